"""How numbers are sent: as they are, with half the bits, or as small integers of a scale.

Rounding is stochastic: a number becomes one of the two representable ones beside it, the nearer
one with the greater probability, so that it is right on average.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["Bytes", "Values", "values_of"]

Bytes = NDArray[np.uint8]

_CHUNK = 2**16  # elements at a time: what is made of them stays in the cache
_LARGEST = np.uint32(0x7F7F0000)  # the largest number of bfloat16, as the bits of a float32
_SIGN, _KEPT = np.uint32(0x80000000), np.uint32(0xFFFF0000)


class Values(Protocol):
    """A form of numbers."""

    def size(self, count: int) -> int:
        """Bytes of so many numbers."""

    def encode(self, numbers: NDArray[Any], rng: np.random.Generator) -> Bytes:
        """Finite numbers `(count,)` as bytes."""

    def decode(self, data: Bytes, count: int) -> NDArray[Any]:
        """The numbers that bytes of that size stand for; whatever they hold."""


@dataclass(frozen=True)
class _Float:
    """Numbers as they are."""

    dtype: np.dtype[Any]

    def size(self, count: int) -> int:
        return count * self.dtype.itemsize

    def encode(self, numbers: NDArray[Any], rng: np.random.Generator) -> Bytes:  # noqa: ARG002
        return np.ascontiguousarray(numbers, self.dtype.newbyteorder("<")).view(np.uint8)

    def decode(self, data: Bytes, count: int) -> NDArray[Any]:  # noqa: ARG002
        return np.frombuffer(data, self.dtype)


@dataclass(frozen=True)
class _BFloat16:
    """The upper half of a float32: its range, and three decimal digits."""

    dtype: np.dtype[Any]

    def size(self, count: int) -> int:
        return 2 * count

    def encode(self, numbers: NDArray[Any], rng: np.random.Generator) -> Bytes:
        out = np.empty(len(numbers), "<u2")
        for part in _parts(len(numbers)):
            with np.errstate(over="ignore"):
                bits = numbers[part].astype(np.float32).view(np.uint32)
            below = rng.integers(0, 2**16, len(bits), dtype=np.uint16)
            # No number is rounded to infinity; the sum stays below 2^32 without the sign.
            size = np.minimum((bits & ~_SIGN) + below, _LARGEST + np.uint32(0xFFFF))
            out[part] = ((bits & _SIGN) | size) >> np.uint32(16)
        return out.view(np.uint8)

    def decode(self, data: Bytes, count: int) -> NDArray[Any]:  # noqa: ARG002
        bits = np.frombuffer(data, "<u2").astype(np.uint32) << np.uint32(16)
        return bits.view(np.float32).astype(self.dtype, copy=False)


@dataclass(frozen=True)
class _Integers:
    """Integers of 8 or 4 bits, times the scale of their block.

    The scale makes the largest number of a block the largest integer: 127 or 7. Scales come
    first.
    """

    dtype: np.dtype[Any]
    bits: int
    block: int

    def size(self, count: int) -> int:
        blocks = -(-count // self.block)
        return blocks * self.dtype.itemsize + (count * self.bits + 7) // 8

    def encode(self, numbers: NDArray[Any], rng: np.random.Generator) -> Bytes:
        count, most = len(numbers), 2 ** (self.bits - 1) - 1
        blocks = -(-count // self.block)
        largest = np.nextafter(np.finfo(self.dtype).max / self.dtype.type(most), 0)
        scales = np.empty(blocks, self.dtype.newbyteorder("<"))
        codes = np.empty(count + count % (8 // self.bits), np.int8)
        codes[count:] = 0
        for part in _parts(count):
            piece = numbers[part]
            rows = np.zeros((-(-len(piece) // self.block), self.block), self.dtype)
            rows.reshape(-1)[: len(piece)] = piece
            scale = np.abs(rows).max(1, keepdims=True) / self.dtype.type(most)
            np.minimum(scale, largest, out=scale)  # its largest multiple stays finite
            first = part.start // self.block
            scales[first : first + len(rows)] = scale[:, 0]
            scale[scale == 0.0] = 1.0
            rows /= scale
            rows += rng.random(rows.shape, dtype=np.float32)
            np.floor(rows, out=rows)
            np.clip(rows, -most, most, out=rows)
            codes[part] = rows.reshape(-1)[: len(piece)]
        if self.bits == 4:
            pairs = codes.view(np.uint8).reshape(-1, 2)
            packed = (pairs[:, 0] & 15) | (pairs[:, 1] << 4)
        else:
            packed = codes.view(np.uint8)
        return np.concatenate([scales.view(np.uint8), packed])

    def decode(self, data: Bytes, count: int) -> NDArray[Any]:
        blocks = -(-count // self.block)
        split = blocks * self.dtype.itemsize
        scales = np.frombuffer(data[:split], self.dtype)
        packed = data[split:]
        out = np.empty(count, self.dtype)
        for part in _parts(count):
            out[part] = self._integers(packed, part)
            rows = np.repeat(scales[part.start // self.block :][: _CHUNK // self.block], self.block)
            with np.errstate(over="ignore", invalid="ignore"):  # who decodes looks at the result
                out[part] *= rows[: part.stop - part.start]
        return out

    def _integers(self, packed: Bytes, part: slice) -> NDArray[np.int8]:
        if self.bits == 8:
            return packed[part].view(np.int8)
        pairs = packed[part.start // 2 : (part.stop + 1) // 2]
        both = np.empty((len(pairs), 2), np.uint8)
        both[:, 0] = pairs << 4
        both[:, 1] = pairs & 240
        return (both.view(np.int8) >> 4).reshape(-1)[: part.stop - part.start]


def _parts(count: int) -> Iterator[slice]:
    for start in range(0, count, _CHUNK):
        yield slice(start, min(start + _CHUNK, count))


# A longer block costs fewer bytes for its scale, and its numbers are of fewer different values.
_BLOCKS: Final = {8: 256, 4: 128}


def values_of(name: str, dtype: np.dtype[Any]) -> Values:
    """The form of numbers that a compression names, for vectors of a dtype."""
    if name == "float":
        return _Float(dtype)
    if name == "bf16":
        return _BFloat16(dtype)
    bits = int(name.removeprefix("int"))
    return _Integers(dtype, bits, _BLOCKS[bits])
