"""A compressed payload as bytes and back; one that is sent whole is a frame of `agent.codec`.

Like a plain frame: a prefix (magic, version, header length, checksum), a JSON header, and bytes of
known lengths. The header names the compression, a digest of the public payload that the codes
are a change of, and one of the public payload itself, so that both ends know that they mean the
same numbers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from flower_dhb.agent import codec
from flower_dhb.agent.codec import Header, VectorSpec
from flower_dhb.agent.compression.compressor import Codes, Compressor
from flower_dhb.errors import EstimateError, PayloadError
from flower_dhb.types import NDArrays, Payload

__all__ = ["Frame", "decode", "digest", "digests", "encode", "is_compressed"]

VERSION: Final = 1
_MAGIC = b"DHBc"

Data = bytes | bytearray | memoryview


@dataclass(frozen=True)
class Frame:
    """What is sent of one payload.

    codes: of the vectors that are compressed. public: the payload that they stand for, whole,
    running statistics among it. known: the public payload of which the codes are a change, empty
    if they are not of one.
    """

    codes: Codes
    public: Payload
    known: Payload


def is_compressed(data: Data) -> bool:
    """Whether a frame is one of a compressed payload."""
    return bytes(memoryview(data)[:4]) == _MAGIC


def digest(payload: Payload, names: tuple[str, ...]) -> str:
    """A short name of the numbers of a payload; empty if it has none."""
    if not all(name in payload for name in names):
        return ""
    parts = [np.ascontiguousarray(payload[name]).view(np.uint8).data for name in names]
    return f"{codec.checksum(*parts):016x}"


def encode(frame: Frame, compressor: Compressor, *, run: str, round: int, vertex: int) -> bytes:
    """One frame as bytes."""
    names = compressor.names
    rest = {name: vector for name, vector in frame.public.items() if name not in names}
    document = {
        "run": run,
        "round": round,
        "vertex": vertex,
        "compression": str(compressor.compression),
        "known": digest(frame.known, names) if compressor.estimates else "",
        "public": digest(frame.public, names),
    }
    parts = [frame.codes[name].data for name in names]
    parts += [np.ascontiguousarray(vector).view(np.uint8).data for vector in rest.values()]
    sender = f"round {round}, agent {vertex}"
    text = json.dumps(document).encode()
    return b"".join([codec.head(_MAGIC, VERSION, text, parts, sender), *parts])


def digests(data: Data) -> tuple[str, str]:
    """Of which public payload a compressed frame of one's own is a change, and what it stands for.

    The first is empty if it is of none.
    """
    document, _ = _split(data, "this agent")
    return document["known"], document["public"]


def length(compressor: Compressor, vectors: tuple[VectorSpec, ...]) -> int:
    """Bytes of the vectors of a compressed payload, without header."""
    rest = sum(spec.n_bytes for spec in vectors if spec.name not in compressor.names)
    return compressor.n_bytes + rest


def sizes(expect: Header, compressor: Compressor | None) -> range:
    """How long a compressed frame may be; empty if there can be none."""
    if compressor is None:
        return range(0)
    body, heads = length(compressor, expect.vectors), codec.head_lengths()
    return range(body + heads.start, body + heads.stop)


def check(data: Data, expect: Header, compressor: Compressor | None) -> None:
    """What can be said of a frame by who does not hold the payload of which it may be a change.

    Raises PayloadError as `decode` does.
    """
    if not is_compressed(data):
        codec.decode(data, expect)
        return
    opened = _open(data, expect, compressor)
    d = opened.compressor.length
    nothing = {name: np.zeros(d, opened.compressor.dtype) for name in opened.compressor.names}
    opened.decode(nothing)


def decode(
    data: Data, expect: Header, compressor: Compressor | None, known: Payload | None = None
) -> NDArrays:
    """The public payload that a frame stands for, compressed or whole.

    known: what this agent holds of the sender's last public payload.

    Raises PayloadError that names round and sender if anything is not as expected, EstimateError
    if the payload is a change of one that this agent does not hold, or leads to other numbers here
    than at its sender.
    """
    if not is_compressed(data):
        return codec.decode(data, expect)
    opened = _open(data, expect, compressor)
    names, estimates = opened.compressor.names, opened.compressor.estimates
    held = digest(known, names) if estimates and known else ""
    if opened.known != held or bool(held) != estimates:
        raise EstimateError(
            f"{expect.sender}: payload is a change of one that this agent does not hold"
        )
    vectors = opened.decode(known or {})
    if digest(vectors, names) != opened.public:
        raise EstimateError(
            f"{expect.sender}: payload stands for other numbers here than at its sender"
        )
    return vectors


@dataclass(frozen=True)
class _Opened:
    """A frame whose header and checksum are as they should be."""

    expect: Header
    compressor: Compressor
    known: str
    public: str
    body: Any

    def decode(self, known: Payload) -> NDArrays:
        """The payload, if it is a change of `known`. Raises PayloadError."""
        names, who = self.compressor.names, self.expect.sender
        codes = _codes(self.body, self.compressor)
        try:
            vectors = self.compressor.decode(codes, known, self.expect.round)
        except PayloadError as error:
            raise PayloadError(f"{who}: {error}") from None
        at = self.compressor.n_bytes
        for spec in self.expect.vectors:
            if spec.name in names:
                continue
            vector = np.frombuffer(self.body[at : at + spec.n_bytes], spec.dtype)
            if not codec.all_finite(vector):
                raise PayloadError(f"{who}: '{spec.name}' holds NaN or infinite values")
            vectors[spec.name] = vector
            at += spec.n_bytes
        return vectors


def _open(data: Data, expect: Header, compressor: Compressor | None) -> _Opened:
    if compressor is None:
        raise PayloadError(
            f"{expect.sender}: payload is compressed, and this agent's are not; all agents must "
            "run with the same compression"
        )
    document, start = _split(data, expect.sender)
    expect.check(Header(document["run"], document["round"], document["vertex"], expect.vectors))
    wanted, found = str(compressor.compression), document["compression"]
    if found != wanted:
        raise PayloadError(
            f"{expect.sender}: payload is compressed by '{found}', expected '{wanted}'; all agents "
            "must run with the same compression"
        )
    body = np.frombuffer(data, np.uint8)[start:]
    size = length(compressor, expect.vectors)
    if len(body) != size:
        raise PayloadError(f"{expect.sender}: payload has {len(body)} bytes, expected {size}")
    codec.check_sum(data, expect)
    return _Opened(expect, compressor, document["known"], document["public"], body)


def _codes(body: Any, compressor: Compressor) -> Codes:
    size = compressor.coder.size
    return {name: body[i * size : (i + 1) * size] for i, name in enumerate(compressor.names)}


_KINDS: Final[Mapping[str, type]] = {
    "run": str,
    "round": int,
    "vertex": int,
    "compression": str,
    "known": str,
    "public": str,
}


def _split(data: Data, sender: str) -> tuple[dict[str, Any], int]:
    """The header of a frame and where its codes begin."""
    text, start = codec.open_head(data, _MAGIC, VERSION, sender)
    try:
        document = json.loads(text)
        if type(document) is not dict:
            raise TypeError(f"it is {type(document).__name__}")
        for name, kind in _KINDS.items():
            if type(document[name]) is not kind:
                raise TypeError(f"'{name}' is {document[name]!r}")
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise PayloadError(f"{sender}: unreadable header: {str(error)[:200]}") from None
    return document, start
