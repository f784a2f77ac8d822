"""Payload to bytes and back: versioned, checked against what is expected, never unpickled.

A frame is a fixed prefix (magic, version, header length, checksum), a JSON header (run,
round, vertex, and name, dtype and length of each vector), and the vectors' bytes in
little-endian order. The checksum is xxh3 over header and vectors: it finds accidents,
not attackers, whom the transport keeps out.
"""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from flower_dhb.errors import PayloadError
from flower_dhb.types import dtype_name

__all__ = [
    "VERSION",
    "Header",
    "VectorSpec",
    "Verifier",
    "all_finite",
    "check_sum",
    "checksum",
    "decode",
    "encode",
    "encode_parts",
    "head",
    "head_lengths",
    "open_head",
    "read_checksum",
    "read_header",
]

VERSION = 1
_MAGIC = b"DHB\x00"
_PREFIX = struct.Struct("<4sHHIQ")  # magic, version, zero, header length, checksum
_HEADER_LIMIT_BYTES = 4096  # a header of four vectors takes about 250 bytes
_DTYPES = ("float32", "float64")
_FINITE_BLOCK = 2**16  # elements; the mask of a block stays in the cache

if sys.byteorder != "little":  # pragma: no cover
    raise ImportError("flower_dhb payloads are little-endian; this machine is not")


@dataclass(frozen=True)
class VectorSpec:
    """Name, dtype name and number of elements of one vector of a payload."""

    name: str
    dtype: str
    size: int

    @property
    def n_bytes(self) -> int:
        """Length in bytes."""
        return self.size * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class Header:
    """What a frame says of itself, and what a receiver expects of it."""

    run: str
    round: int
    vertex: int
    vectors: tuple[VectorSpec, ...]

    @classmethod
    def of(
        cls, payload: Mapping[str, NDArray[Any]], *, run: str, round: int, vertex: int
    ) -> Header:
        """Header of a payload. Raises PayloadError for a dtype that is not carried."""
        for name, vector in payload.items():
            if vector.ndim != 1 or dtype_name(vector.dtype) not in _DTYPES:
                raise PayloadError(
                    f"vector '{name}' is {vector.dtype.name}{list(vector.shape)}; a payload "
                    f"carries flat vectors of {' or '.join(_DTYPES)}"
                )
        return cls(
            run,
            round,
            vertex,
            tuple(VectorSpec(k, dtype_name(v.dtype), v.shape[0]) for k, v in payload.items()),
        )

    @property
    def n_bytes(self) -> int:
        """Bytes of all vectors."""
        return sum(vector.n_bytes for vector in self.vectors)

    def text(self) -> bytes:
        """As it stands in a frame."""
        document = {
            "run": self.run,
            "round": self.round,
            "vertex": self.vertex,
            "vectors": [[v.name, v.dtype, v.size] for v in self.vectors],
        }
        return json.dumps(document).encode()

    @property
    def frame_bytes(self) -> int:
        """Length of the frame."""
        return _PREFIX.size + len(self.text()) + self.n_bytes

    @property
    def sender(self) -> str:
        """How messages name this frame."""
        return f"round {self.round}, neighbor {self.vertex}"

    def check(self, found: Header) -> None:
        """Raise PayloadError unless `found` is what is expected here."""
        for what in ("run", "round", "vertex"):
            want, got = getattr(self, what), getattr(found, what)
            if want != got:
                raise PayloadError(
                    f"{self.sender}: payload is of {what} {got!r}, expected {want!r}"
                )
        want_names = [v.name for v in self.vectors]
        got_names = [v.name for v in found.vectors]
        if want_names != got_names:
            raise PayloadError(
                f"{self.sender}: payload holds vectors {got_names}, expected {want_names}; "
                "all agents must run the same algorithm"
            )
        for mine, theirs in zip(self.vectors, found.vectors, strict=True):
            if mine != theirs:
                raise PayloadError(
                    f"{self.sender}: '{mine.name}' is {theirs.dtype}[{theirs.size}], expected "
                    f"{mine.dtype}[{mine.size}]; all agents must run the same model"
                )


def encode(payload: Mapping[str, NDArray[Any]], *, run: str, round: int, vertex: int) -> bytes:
    """One frame as bytes. Raises PayloadError for vectors that a payload cannot carry."""
    return b"".join(encode_parts(payload, run=run, round=round, vertex=vertex))


def encode_parts(
    payload: Mapping[str, NDArray[Any]], *, run: str, round: int, vertex: int
) -> list[bytes | memoryview]:
    """One frame as buffers to be sent one after the other, the vectors not copied."""
    header = Header.of(payload, run=run, round=round, vertex=vertex)
    buffers = [_little_endian(v).view(np.uint8).data for v in payload.values() if v.size]
    return [head(_MAGIC, VERSION, header.text(), buffers, header.sender), *buffers]


def head(
    magic: bytes, version: int, text: bytes, buffers: Sequence[bytes | memoryview], sender: str
) -> bytes:
    """What stands before the buffers of a frame: its prefix, and the text of its header.

    Raises PayloadError if the header is longer than one that is read.
    """
    if len(text) > _HEADER_LIMIT_BYTES:
        raise PayloadError(
            f"{sender}: header of {len(text)} bytes, at most {_HEADER_LIMIT_BYTES} are carried; "
            "use shorter names"
        )
    return _PREFIX.pack(magic, version, 0, len(text), checksum(text, *buffers)) + text


def decode(
    frame: bytes | bytearray | memoryview, expect: Header, *, verified: bool = False
) -> dict[str, NDArray[Any]]:
    """Vectors of a frame by name, read-only views into it.

    verified: whether a `Verifier` has found checksum and values good as they arrived.
    Raises PayloadError that names round, sender and vector if version, length, header,
    checksum or a value (NaN, infinity) is not as expected.
    """
    found, start = _split(frame, expect.sender)
    expect.check(found)
    body = memoryview(frame)[start:]
    if len(body) != found.n_bytes:
        raise PayloadError(
            f"{expect.sender}: payload has {len(body)} bytes of vectors, expected {found.n_bytes}"
        )
    if not verified:
        check_sum(frame, expect)
    vectors: dict[str, NDArray[Any]] = {}
    at = 0
    for spec in found.vectors:
        vector = np.frombuffer(body[at : at + spec.n_bytes], dtype=spec.dtype)
        vector.setflags(write=False)
        if not verified and not all_finite(vector):
            raise PayloadError(f"{expect.sender}: '{spec.name}' holds NaN or infinite values")
        vectors[spec.name] = vector
        at += spec.n_bytes
    return vectors


class Verifier:
    """Checks a frame piece by piece while it arrives, each while it is in the cache.

    frame: where the pieces are put together, of its full length.
    """

    def __init__(self, frame: memoryview, expect: Header) -> None:
        self._frame, self._expect = frame, expect
        self._digest = xxhash.xxh3_64()
        self._hashed = _PREFIX.size
        self._pieces: list[tuple[str, str, int, int]] = []  # name, dtype, begin, end
        at = len(frame) - expect.n_bytes
        for spec in expect.vectors:
            self._pieces.append((spec.name, spec.dtype, at, at + spec.n_bytes))
            at += spec.n_bytes

    def advance(self, end: int) -> None:
        """All bytes before `end` are there. Raises PayloadError for NaN or infinity."""
        if end > self._hashed:
            self._digest.update(self._frame[self._hashed : end])
            self._hashed = end
        while self._pieces:
            name, dtype, at, stop = self._pieces[0]
            itemsize = np.dtype(dtype).itemsize
            count = (min(end, stop) - at) // itemsize
            if count > 0:
                values = np.frombuffer(self._frame, dtype, count, at)
                if not all_finite(values):
                    raise PayloadError(
                        f"{self._expect.sender}: '{name}' holds NaN or infinite values"
                    )
                at += count * itemsize
            self._pieces[0] = (name, dtype, at, stop)
            if at < stop:
                return
            del self._pieces[0]

    def finish(self) -> dict[str, NDArray[Any]]:
        """The vectors, once all bytes are there. Raises PayloadError as `decode` does."""
        _check_sum(self._expect, read_checksum(self._frame), self._digest.intdigest())
        return decode(self._frame, self._expect, verified=True)


def _check_sum(expect: Header, claimed: int, actual: int) -> None:
    if claimed != actual:
        raise PayloadError(
            f"{expect.sender}: checksum is {actual:016x}, the header says {claimed:016x}; the "
            "payload was damaged on its way"
        )


def check_sum(frame: bytes | bytearray | memoryview, expect: Header) -> None:
    """Raise PayloadError if a frame has not the checksum that it claims."""
    _check_sum(expect, read_checksum(frame), checksum(memoryview(frame)[_PREFIX.size :]))


def read_header(frame: bytes | bytearray | memoryview) -> Header:
    """Header of a frame, before anything else of it is believed."""
    return _split(frame, "payload")[0]


def read_checksum(frame: bytes | bytearray | memoryview) -> int:
    """The checksum that a frame claims. Raises PayloadError if there is none."""
    if len(frame) < _PREFIX.size:
        raise PayloadError(f"{len(frame)} bytes are too short for a payload")
    *_, claimed = _PREFIX.unpack_from(frame)
    return int(claimed)


def checksum(*buffers: bytes | memoryview) -> int:
    """64-bit xxh3 of the buffers one after the other."""
    digest = xxhash.xxh3_64()
    for buffer in buffers:
        digest.update(buffer)
    return digest.intdigest()


def all_finite(vector: NDArray[Any]) -> bool:
    """Whether a flat vector holds neither NaN nor infinity."""
    return all(
        bool(np.isfinite(vector[start : start + _FINITE_BLOCK]).all())
        for start in range(0, vector.shape[0], _FINITE_BLOCK)
    )


def _little_endian(vector: NDArray[Any]) -> NDArray[Any]:
    """The vector itself wherever it is contiguous and little-endian already."""
    return np.ascontiguousarray(vector, dtype=vector.dtype.newbyteorder("<"))


def open_head(
    frame: bytes | bytearray | memoryview, magic: bytes, version: int, sender: str
) -> tuple[bytes, int]:
    """The text of a frame's header, and where its buffers begin.

    Raises PayloadError if it is no frame of this kind and version.
    """
    if len(frame) < _PREFIX.size:
        raise PayloadError(f"{sender}: {len(frame)} bytes are too short for a payload")
    found_magic, found, zero, length, _ = _PREFIX.unpack_from(frame)
    if found_magic != magic or zero:
        raise PayloadError(f"{sender}: not a payload of this package")
    if found != version:
        raise PayloadError(
            f"{sender}: payload version {found}, expected {version}; all agents must run the "
            "same version of flower_dhb"
        )
    start = _PREFIX.size + length
    if length > _HEADER_LIMIT_BYTES or start > len(frame):
        raise PayloadError(f"{sender}: header of {length} bytes does not fit its frame")
    return bytes(memoryview(frame)[_PREFIX.size : start]), start


def head_lengths() -> range:
    """How long prefix and header of a frame may be together."""
    return range(_PREFIX.size + 1, _PREFIX.size + _HEADER_LIMIT_BYTES + 1)


def _split(frame: bytes | bytearray | memoryview, sender: str) -> tuple[Header, int]:
    """Header of a frame and where its vectors begin."""
    text, start = open_head(frame, _MAGIC, VERSION, sender)
    try:
        header = _parse(text)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise PayloadError(f"{sender}: unreadable header: {error}") from None
    return header, start


def _parse(text: bytes) -> Header:
    document = json.loads(text)
    run, number, vertex = document["run"], document["round"], document["vertex"]
    if type(run) is not str or type(number) is not int or type(vertex) is not int:
        raise TypeError("run, round and vertex must be text, integer and integer")
    vectors = []
    for name, dtype, size in document["vectors"]:
        if type(name) is not str or dtype not in _DTYPES or type(size) is not int or size < 0:
            raise TypeError(f"vector {name!r} of {dtype!r}[{size!r}]")
        vectors.append(VectorSpec(name, dtype, size))
    return Header(run, number, vertex, tuple(vectors))
