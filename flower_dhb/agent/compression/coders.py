"""Which numbers of a vector are sent: all of them, a few, or factors of its matrices."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from flower_dhb.agent.compression.spec import Compression
from flower_dhb.agent.compression.values import Bytes, Values, values_of
from flower_dhb.errors import ConfigError, PayloadError
from flower_dhb.types import Layout

__all__ = ["Coder", "coder_of"]

_DENSE = 1 / 16  # from this share on, a bit for each number is shorter than the places of some
_REGION = 2**16  # numbers whose places fit into 16 bits


class Coder(Protocol):
    """Makes bytes of a vector, and of these the vector that they stand for."""

    @property
    def size(self) -> int:
        """Bytes, the same for every vector."""

    def encode(self, vector: NDArray[Any], round: int, rng: np.random.Generator) -> Bytes:
        """A finite vector `(d,)` as bytes."""

    def decode(self, data: Bytes, round: int) -> NDArray[Any]:
        """What `size` bytes stand for, `(d,)`. Raises PayloadError if they are none of ours."""

    def mixed_at(self, round: int) -> NDArray[np.int64] | None:
        """The places at which payloads are mixed in a round, None for all of them."""


@dataclass(frozen=True)
class _All:
    values: Values
    length: int

    @property
    def size(self) -> int:
        return self.values.size(self.length)

    def encode(self, vector: NDArray[Any], round: int, rng: np.random.Generator) -> Bytes:  # noqa: ARG002
        return self.values.encode(vector, rng)

    def decode(self, data: Bytes, round: int) -> NDArray[Any]:  # noqa: ARG002
        return self.values.decode(data, self.length)

    def mixed_at(self, round: int) -> None:  # noqa: ARG002
        return None


@dataclass(frozen=True)
class _TopK:
    """The numbers that are largest in size, and where they are."""

    values: Values
    length: int
    count: int
    dtype: np.dtype[Any]

    @property
    def size(self) -> int:
        return self._places_size + self.values.size(self.count)

    @property
    def _dense(self) -> bool:
        return self.count >= _DENSE * self.length

    @property
    def _places_size(self) -> int:
        if self._dense:
            return (self.length + 7) // 8
        return 4 * self._regions + 2 * self.count

    @property
    def _regions(self) -> int:
        return -(-self.length // _REGION)

    def encode(self, vector: NDArray[Any], round: int, rng: np.random.Generator) -> Bytes:  # noqa: ARG002
        rest = self.length - self.count
        places = np.argpartition(np.abs(vector), rest)[rest:]
        places.sort()
        return np.concatenate([self._write(places), self.values.encode(vector[places], rng)])

    def decode(self, data: Bytes, round: int) -> NDArray[Any]:  # noqa: ARG002
        places = self._read(data[: self._places_size])
        vector = np.zeros(self.length, self.dtype)
        vector[places] = self.values.decode(data[self._places_size :], self.count)
        return vector

    def mixed_at(self, round: int) -> None:  # noqa: ARG002
        return None

    def _write(self, places: NDArray[np.int64]) -> Bytes:
        if self._dense:
            chosen = np.zeros(self.length, np.bool_)
            chosen[places] = True
            return np.packbits(chosen, bitorder="little")
        counts = np.bincount(places // _REGION, minlength=self._regions).astype("<u4")
        within = (places % _REGION).astype("<u2")
        return np.concatenate([counts.view(np.uint8), within.view(np.uint8)])

    def _read(self, data: Bytes) -> NDArray[np.int64]:
        if self._dense:
            bits = np.unpackbits(data, bitorder="little")
            places: NDArray[np.int64] = np.flatnonzero(bits)
            good = len(places) == self.count and (not len(places) or places[-1] < self.length)
        else:
            split = 4 * self._regions
            counts = np.frombuffer(data[:split], "<u4").astype(np.int64)
            good = int(counts.sum()) == self.count and int(counts.max()) <= _REGION
            if good:  # else there is no telling how much memory they would take
                within = np.frombuffer(data[split:], "<u2").astype(np.int64)
                places = within + _REGION * np.repeat(np.arange(self._regions), counts)
                good = bool((np.diff(places) > 0).all()) and int(places[-1]) < self.length
        if not good:
            raise PayloadError(
                f"the places of its values are not {self.count:,} different ones of "
                f"{self.length:,} in their order"
            )
        return places


@dataclass(frozen=True)
class _RandK:
    """Numbers at places that follow from the round, so all agents send the same ones.

    They are mixed there, and nowhere else: what is sent is known exactly, and needs no estimate
    of the rest.
    """

    values: Values
    length: int
    count: int
    dtype: np.dtype[Any]

    @property
    def size(self) -> int:
        return self.values.size(self.count)

    def encode(self, vector: NDArray[Any], round: int, rng: np.random.Generator) -> Bytes:
        return self.values.encode(vector[self.mixed_at(round)], rng)

    def decode(self, data: Bytes, round: int) -> NDArray[Any]:
        vector = np.zeros(self.length, self.dtype)
        vector[self.mixed_at(round)] = self.values.decode(data, self.count)
        return vector

    def mixed_at(self, round: int) -> NDArray[np.int64]:
        """As many places, as far apart; where the first one lies is drawn from the round."""
        begin = _drawn(round)
        places = np.floor((np.arange(self.count) + begin) * (self.length / self.count))
        found: NDArray[np.int64] = np.minimum(places, self.length - 1).astype(np.int64)
        return found


def _drawn(round: int) -> float:
    """A number in [0, 1) that looks random; the same on every machine (SplitMix64's mixing)."""
    z = (round * 0x9E3779B97F4A7C15) & (2**64 - 1)
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & (2**64 - 1)
    return float((z ^ (z >> 31)) >> 11) / 2.0**53


@dataclass(frozen=True)
class _Matrix:
    """Where a matrix lies in the vector, and its sides."""

    begin: int
    rows: int
    columns: int

    @property
    def end(self) -> int:
        return self.begin + self.rows * self.columns


@dataclass(frozen=True)
class _LowRank:
    """Each matrix as a product of two narrow ones, all other numbers as they are.

    The factors are those of a subspace iteration that begins at random. Source: Vogels,
    Karimireddy & Jaggi, "PowerSGD", NeurIPS 2019 (arXiv 1905.13727).
    """

    values: Values
    length: int
    rank: int
    dtype: np.dtype[Any]
    matrices: tuple[_Matrix, ...]

    @property
    def size(self) -> int:
        return self.values.size(self._count)

    @property
    def _count(self) -> int:
        factors = sum(self.rank * (m.rows + m.columns) for m in self.matrices)
        return factors + self.length - sum(m.rows * m.columns for m in self.matrices)

    def encode(self, vector: NDArray[Any], round: int, rng: np.random.Generator) -> Bytes:  # noqa: ARG002
        pieces, at = [], 0
        for m in self.matrices:
            pieces.append(vector[at : m.begin])
            left, right = self._factors(vector[m.begin : m.end].reshape(m.rows, m.columns), rng)
            pieces += [left.reshape(-1), right.reshape(-1)]
            at = m.end
        pieces.append(vector[at:])
        return self.values.encode(np.concatenate(pieces).astype(self.dtype, copy=False), rng)

    def _factors(
        self, matrix: NDArray[Any], rng: np.random.Generator
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        """`P (rows, rank)` with orthonormal columns, and `Q (columns, rank)`; `P Q'` is near."""
        right = rng.standard_normal((matrix.shape[1], self.rank)).astype(self.dtype)
        for _ in range(2):
            left, _ = np.linalg.qr(matrix @ right)
            right = matrix.T @ left
        return left, right

    def decode(self, data: Bytes, round: int) -> NDArray[Any]:  # noqa: ARG002
        numbers = self.values.decode(data, self._count)
        vector = np.empty(self.length, self.dtype)
        at = begin = 0
        for m in self.matrices:
            plain = m.begin - begin
            vector[begin : m.begin] = numbers[at : at + plain]
            at += plain
            left = numbers[at : at + m.rows * self.rank].reshape(m.rows, self.rank)
            at += left.size
            right = numbers[at : at + m.columns * self.rank].reshape(m.columns, self.rank)
            at += right.size
            target = vector[m.begin : m.end].reshape(m.rows, m.columns)
            target[...] = 0.0
            with np.errstate(over="ignore", invalid="ignore"):
                # Products and sums one by one: the same bits on every machine, unlike a library's.
                for column in range(self.rank):
                    target += np.multiply.outer(left[:, column], right[:, column])
            begin = m.end
        vector[begin:] = numbers[at:]
        return vector

    def mixed_at(self, round: int) -> None:  # noqa: ARG002
        return None


def coder_of(compression: Compression, layout: Layout) -> Coder:
    """What a compression makes of one vector of a payload of a model.

    Raises ConfigError for a rank where the model has no matrix that would be shorter for it.
    """
    values = values_of(compression.values, layout.dtype)
    d, dtype = layout.size, layout.dtype
    if compression.select == "all":
        return _All(values, d)
    if compression.select == "lowrank":
        rank = int(compression.amount)
        matrices = _matrices(layout, rank)
        if not matrices:
            raise ConfigError(
                f"compression '{compression}': the model has no matrix that factors of rank {rank} "
                "would be shorter for; take 'int8' or 'topk:0.1'"
            )
        return _LowRank(values, d, rank, dtype, matrices)
    count = min(d, max(1, math.ceil(compression.amount * d)))
    kind = _TopK if compression.select == "topk" else _RandK
    return kind(values, d, count, dtype)


def _matrices(layout: Layout, rank: int) -> tuple[_Matrix, ...]:
    """The model's arrays of two or more dimensions, the first against all others together."""
    found, at = [], 0
    for entry in layout.entries:
        if entry.kind != "parameter":
            continue
        if len(entry.shape) > 1 and entry.size:
            rows, columns = entry.shape[0], entry.size // entry.shape[0]
            if rank * (rows + columns) < entry.size:
                found.append(_Matrix(at, rows, columns))
        at += entry.size
    return tuple(found)
