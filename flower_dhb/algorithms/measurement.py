"""What a rule measures of whole vectors: inner products, once a round and agent.

The body of a rule is elementwise, so that it may run on any part of a vector. A norm or an
angle belongs to the whole vector; it is taken here, before the body runs, in every
runtime alike.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flower_dhb.algorithms.base import Algorithm, Products
from flower_dhb.types import State, Vector

__all__ = ["inner_products", "measured"]

_BLOCK = 2**16  # elements of a block: its float64 copies stay in the cache


def measured(algorithm: Algorithm, state: State, trained: Vector) -> State:
    """The state together with what the rule measures in this round.

    state, trained: as for `Algorithm.outgoing`, `(d,)` for one agent or `(n, d)` for all.
    The numbers are floats for one agent, and `(n, 1)` in the vectors' dtype for all.
    """
    if not algorithm.products:
        return state
    numbers = algorithm.measure(inner_products(algorithm, state, trained))
    return replace(state, measured={k: _like(trained, v) for k, v in numbers.items()})


def inner_products(algorithm: Algorithm, state: State, trained: Vector) -> Products:
    """The inner products that a rule declares, summed in float64 and in a fixed order."""
    pairs = algorithm.products
    names = sorted({name for pair in pairs for name in pair})
    single = trained.ndim == 1
    size = trained.shape[-1]
    width = _BLOCK if single else max(1, _BLOCK // len(trained))
    room = _Room()
    totals: list[Any] = [0.0] * len(pairs)
    for first in range(0, size, width):
        part = slice(first, first + width)
        blocks = {name: _block(name, state, trained, part, room) for name in names}
        for at, (left, right) in enumerate(pairs):
            totals[at] = totals[at] + room.product(blocks[left], blocks[right]).sum(-1)
    found = {}
    for pair, total in zip(pairs, totals, strict=True):
        array = np.asarray(total if isinstance(total, float) else _numpy(total), np.float64)
        found[pair] = array if single else array.reshape(-1, 1)
    return found


class _Room:
    """Float64 copies of blocks, each kind written over what was in its place before.

    To allocate them anew for each block takes longer than to compute with them. Tensors are not
    kept: their device has an allocator of its own.
    """

    def __init__(self) -> None:
        self._kept: dict[str, NDArray[np.float64]] = {}

    def double(self, name: str, block: Vector) -> Vector:
        """A copy in float64, also of flags: 1 and 0."""
        if not isinstance(block, np.ndarray):
            return block.double()
        place = self._place(name, block)
        place[...] = block
        return place

    def difference(self, name: str, a: Vector, b: Vector) -> Vector:
        """`a - b`, subtracted in float64."""
        if not isinstance(a, np.ndarray):
            return a.double() - b.double()
        return np.subtract(a, b, out=self._place(name, a), dtype=np.float64)

    def product(self, a: Vector, b: Vector) -> Vector:
        """`a b`; what is written over it next is another product."""
        if not isinstance(a, np.ndarray):
            return a * b
        return np.multiply(a, b, out=self._place("", a))

    def _place(self, name: str, like: NDArray[Any]) -> NDArray[np.float64]:
        kept = self._kept.get(name)
        if kept is None or kept.shape != like.shape:  # the last block is a shorter one
            kept = self._kept[name] = np.empty(like.shape)
        return kept


def _block(name: str, state: State, trained: Vector, part: slice, room: _Room) -> Vector:
    x, z = state.parameters[..., part], trained[..., part]
    if name == "parameters":
        return room.double(name, x)
    if name == "trained":
        return room.double(name, z)
    if name == "step":
        return room.difference(name, z, x)
    if name == "moving":
        return room.double(name, x * (z != x))
    return room.double(name, state.memory[name.removeprefix("memory/")][..., part])


def _numpy(total: Vector) -> Any:
    return total if isinstance(total, np.ndarray | np.generic) else total.cpu().numpy()


def _like(vector: Vector, value: NDArray[np.float64]) -> Any:
    if vector.ndim == 1:
        return float(value)  # a float leaves float32 vectors what they are
    if isinstance(vector, np.ndarray):
        return value.astype(vector.dtype)
    return vector.new_tensor(value)
