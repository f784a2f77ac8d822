"""The blocked kernel: mix the neighbors' payloads and combine, in one pass over memory.

Parameters of real models do not fit into a processor's cache, so the time of a round's
arithmetic is the time to move its vectors through memory. Working on blocks keeps every
intermediate result in the cache: each input is read once, each output written once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flower_dhb.algorithms.base import Algorithm
from flower_dhb.types import Payload, State

__all__ = ["BLOCK", "combine", "weighted_sum"]

# Elements per block: 512 KiB of float32, measured best of 8 thousand to 512 thousand
# elements (benchmarks/mixing.py). About seven blocks are alive at once, so all extra
# memory is below one million elements, however large the model.
BLOCK = 2**17


def combine(
    algorithm: Algorithm,
    state: State,
    trained: NDArray[Any],
    vertex: int,
    weights: Mapping[int, float],
    payloads: Mapping[int, Payload],
    out: State | None = None,
) -> State:
    """One agent's state after a round: `algorithm.combine` of the weighted sum of payloads.

    Parameters
    ----------
    state, trained
        The agent's state before the round and its locally trained parameters, `(d,)`.
    vertex
        The agent's own vertex; its own payload is formed here.
    weights
        Mixing weight by vertex, the agent's own included; must sum to 1.
    payloads
        Neighbors' payloads by vertex, as many as there are other weights.
    out
        Where to write; may be `state` itself. None allocates.

    The sum runs in vertex order, so a run repeats to the bit.
    """
    size = trained.shape[0]
    if out is None:
        out = State(
            np.empty_like(trained), {name: np.empty_like(trained) for name in algorithm.memory}
        )
    scratch = np.empty(min(BLOCK, size), trained.dtype)
    sums = {name: np.empty_like(scratch) for name in algorithm.vectors}
    for start in range(0, size, BLOCK):
        part = slice(start, min(start + BLOCK, size))
        piece = State(state.parameters[part], {k: v[part] for k, v in state.memory.items()})
        own = algorithm.outgoing(piece, trained[part])
        mixed = {
            name: _accumulate(
                [
                    (weights[j], own[name] if j == vertex else payloads[j][name][part])
                    for j in sorted(weights)
                ],
                sums[name][: part.stop - start],
                scratch[: part.stop - start],
            )
            for name in algorithm.vectors
        }
        new = algorithm.combine(piece, trained[part], mixed)
        out.parameters[part] = new.parameters
        for name, vector in out.memory.items():
            vector[part] = new.memory[name]
    return out


def weighted_sum(weights: Mapping[int, float], vectors: Mapping[int, NDArray[Any]]) -> NDArray[Any]:
    """Sum of `weights[j] * vectors[j]` in vertex order, `(d,)` in the vectors' dtype."""
    first = next(iter(vectors.values()))
    total, scratch = np.empty_like(first), np.empty_like(first)
    return _accumulate([(weights[j], vectors[j]) for j in sorted(weights)], total, scratch)


def _accumulate(
    terms: list[tuple[float, NDArray[Any]]], total: NDArray[Any], scratch: NDArray[Any]
) -> NDArray[Any]:
    for position, (weight, vector) in enumerate(terms):
        # A Python float keeps the arithmetic in the vector's dtype, a NumPy float64 does not.
        if position == 0:
            np.multiply(vector, float(weight), out=total)
        else:
            np.multiply(vector, float(weight), out=scratch)
            total += scratch
    return total
