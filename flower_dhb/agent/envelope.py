"""What a relay may read of a sealed payload: who sent it, in which round, to whom, how long it is.

A sealed payload is a fixed prefix (magic, version, lengths), a JSON header (run, round, vertex,
bytes of the frame inside, and a wrapped key for each receiver), the sender's signature, and the
frame in pieces, each encrypted with its tag behind it. No key is needed to read the header, and
nothing in it tells of the parameters. `site/sealing.py` seals and opens.
"""

from __future__ import annotations

import base64
import binascii
import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from flower_dhb.errors import PayloadError

__all__ = ["PIECE_BYTES", "TAG_BYTES", "Envelope", "is_sealed", "pieces", "read_envelope"]

PIECE_BYTES = 16 * 2**20  # of the frame, encrypted at a time
TAG_BYTES = 16  # behind each piece
VERSION = 1
_MAGIC = b"DHBE"
_PREFIX = struct.Struct("<4sHHI")  # magic, version, bytes of the signature, bytes of the header
_LIMIT_SIGNATURE_BYTES = 512
_LIMIT_KEY_BYTES = 512  # of one wrapped key
_LIMIT_HEADER_BYTES = 4 * 2**20  # a receiver takes about 120
_LIMIT_SIZE = 2**53
_Buffer = bytes | bytearray | memoryview


@dataclass(frozen=True)
class Envelope:
    """The header of a sealed payload.

    size: bytes of the frame inside. receivers: the content's key, wrapped for each neighbor.
    """

    run: str
    round: int
    vertex: int
    size: int
    receivers: Mapping[int, bytes]

    @property
    def sender(self) -> str:
        """How messages name this payload."""
        return f"round {self.round}, neighbor {self.vertex}"

    @property
    def n_bytes(self) -> int:
        """Bytes of all encrypted pieces."""
        return self.size + TAG_BYTES * max(1, -(-self.size // PIECE_BYTES))

    def header(self) -> bytes:
        """As it is written, signed, and bound to every piece."""
        wrapped = [[j, base64.b64encode(key).decode()] for j, key in sorted(self.receivers.items())]
        text = {
            "run": self.run,
            "round": self.round,
            "vertex": self.vertex,
            "size": self.size,
            "receivers": wrapped,
        }
        return json.dumps(text, separators=(",", ":")).encode()

    def to_bytes(self, header: bytes, signature: bytes) -> bytes:
        """All that stands before the encrypted pieces. Raises PayloadError if it is too long."""
        if len(header) > _LIMIT_HEADER_BYTES:
            raise PayloadError(
                f"round {self.round}: {len(self.receivers)} receivers take a header of "
                f"{len(header)} bytes, at most {_LIMIT_HEADER_BYTES} are carried"
            )
        return _PREFIX.pack(_MAGIC, VERSION, len(signature), len(header)) + header + signature

    def check(self, run: str, round: int, vertex: int) -> None:
        """Raise PayloadError unless it is the payload that is expected here."""
        expected = {"run": run, "round": round, "vertex": vertex}
        for what, want in expected.items():
            got = getattr(self, what)
            if want != got:
                raise PayloadError(
                    f"round {round}, neighbor {vertex}: sealed payload is of {what} {got!r}, "
                    f"expected {want!r}"
                )


def pieces(size: int) -> Iterator[tuple[int, int]]:
    """Where the pieces of a frame begin and end; there is one at least."""
    for begin in range(0, max(size, 1), PIECE_BYTES):
        yield begin, min(begin + PIECE_BYTES, size)


def is_sealed(data: _Buffer) -> bool:
    """Whether bytes begin as a sealed payload does."""
    return bytes(memoryview(data)[: len(_MAGIC)]) == _MAGIC


def read_envelope(data: _Buffer, who: str) -> tuple[Envelope, memoryview, memoryview, memoryview]:
    """The envelope of a sealed payload, its header as written, the signature, and the pieces.

    who: how errors name the payload. Raises PayloadError for bytes that are nothing of this kind,
    and for those of which a part is missing.
    """
    view = memoryview(data)
    if len(view) < _PREFIX.size or not is_sealed(view):
        raise PayloadError(f"{who}: the payload is not sealed")
    _, version, n_signature, n_header = _PREFIX.unpack_from(view)
    if version != VERSION:
        raise PayloadError(
            f"{who}: sealed payload of version {version}, expected {VERSION}; all agents must run "
            "the same version of flower_dhb"
        )
    begin = _PREFIX.size + n_header
    body = begin + n_signature
    fits = n_header <= _LIMIT_HEADER_BYTES and n_signature <= _LIMIT_SIGNATURE_BYTES
    if not fits or body > len(view):
        raise PayloadError(f"{who}: header of {n_header} bytes does not fit its sealed payload")
    header = view[_PREFIX.size : begin]
    try:
        envelope = _parse(bytes(header))
    except (ValueError, TypeError, KeyError, RecursionError, binascii.Error) as error:
        why = str(error)[:200]
        raise PayloadError(f"{who}: unreadable header of a sealed payload: {why}") from None
    if len(view) - body != envelope.n_bytes:
        raise PayloadError(
            f"{who}: sealed payload has {len(view) - body} bytes, its header says "
            f"{envelope.n_bytes}"
        )
    return envelope, header, view[begin:body], view[body:]


def _parse(text: bytes) -> Envelope:
    document = json.loads(text)
    run, number, vertex = document["run"], document["round"], document["vertex"]
    size = document["size"]
    if type(run) is not str or not all(
        type(value) is int and 0 <= value <= _LIMIT_SIZE for value in (number, vertex, size)
    ):
        raise TypeError("run, round, vertex and size must be a text and integers")
    receivers: dict[int, bytes] = {}
    for j, wrapped in document["receivers"]:
        if type(j) is not int or j < 0 or j in receivers or type(wrapped) is not str:
            raise TypeError("a receiver must be a vertex, and once")
        receivers[j] = base64.b64decode(wrapped, validate=True)
        if len(receivers[j]) > _LIMIT_KEY_BYTES:
            raise ValueError(f"the key for vertex {j} has {len(receivers[j])} bytes")
    return Envelope(run, number, vertex, size, receivers)
