"""The blocked kernel: mix the neighbors' payloads and combine, in one pass over memory.

Parameters of real models do not fit into a processor's cache, so the time of a round's
arithmetic is the time to move its vectors through memory. Working on blocks keeps every
intermediate result in the cache: each input is read once, each output written once.

A rule is elementwise. One that declares to be linear is probed with unit vectors, and what
it does to each of its inputs is then one scaled addition into a block that is used again and
again. Every other rule is called itself, block by block.

A scaled addition is a product and a sum, each rounded once, and never fused: the same
payloads give the same bits on every processor and with every NumPy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from flower_dhb.algorithms.base import Algorithm
from flower_dhb.types import Payload, State

__all__ = ["BLOCK", "combine", "convex", "convex_rows", "weighted_sum"]

# Elements per block: 256 KiB of float32, measured best of 8 thousand to 128 thousand
# elements (benchmarks/mixing.py). A few blocks are alive at once: all extra memory is
# below one million elements, however large the model.
BLOCK = 2**16

_PARAMETERS, _TRAINED = "parameters", "trained"
_NEGLIGIBLE = 1e-12  # coefficients are sums of a few products of numbers near 1, in float64

Block: TypeAlias = NDArray[Any]
Term: TypeAlias = tuple[float, Block]


@dataclass(frozen=True)
class _Step:
    """One output of a rule as a sum of inputs, maybe on top of an output before it.

    direct: the output may be written where an equally named input lies, since nothing
    reads that input any more.
    """

    output: str
    terms: tuple[tuple[str, float], ...]
    direct: bool


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
        The agent's state before the round, with what the rule measures in it, and its
        locally trained parameters, `(d,)`.
    vertex
        The agent's own vertex; its own payload is formed here.
    weights
        Mixing weight by vertex, the agent's own included; must sum to 1.
    payloads
        Neighbors' payloads by vertex, as many as there are other weights.
    out
        Where to write; may be `state` itself. None allocates.

    Neighbors are summed in vertex order, so a run repeats to the bit.
    """
    if out is None:
        memory = {name: np.empty_like(trained) for name in algorithm.memory}
        out = State(np.empty_like(trained), memory, round=state.round + 1)
    steps = None
    if algorithm.linear:
        numbers = tuple(sorted(state.measured.items()))
        # Most rules are the same in every round, and a plan is kept for as long.
        k = state.round if _looks_at_rounds(algorithm, tuple(sorted(state.measured))) else 0
        steps = _plan(algorithm, float(weights[vertex]), numbers, k)
    scratch: dict[str, Block] = {}
    term = np.empty_like(trained[:BLOCK])
    for start in range(0, trained.shape[0], BLOCK):
        part = slice(start, min(start + BLOCK, trained.shape[0]))
        memory = {k: v[part] for k, v in state.memory.items()}
        piece = State(state.parameters[part], memory, state.measured, state.round)
        near = {
            name: [(float(weights[j]), payloads[j][name][part]) for j in sorted(payloads)]
            for name in algorithm.vectors
        }
        if steps is None:
            own = float(weights[vertex])
            _by_rule(algorithm, piece, trained[part], own, near, out, part, term)
        else:
            _by_steps(steps, piece, trained[part], near, out, part, scratch, term)
    return out


def weighted_sum(weights: Mapping[int, float], vectors: Mapping[int, NDArray[Any]]) -> NDArray[Any]:
    """Sum of `weights[j] * vectors[j]` in vertex order, `(d,)` in the vectors' dtype."""
    total = np.empty_like(next(iter(vectors.values())))
    term = np.empty_like(total[:BLOCK])
    for start in range(0, total.shape[0], BLOCK):
        part = slice(start, start + BLOCK)
        terms = [(float(weights[j]), vectors[j][part]) for j in sorted(vectors)]
        _sum_into(total[part], terms, term)
    return total


def convex(weights: Mapping[int, float]) -> Mapping[int, float]:
    """The weights, or their absolute shares where one is negative.

    A variance mixed with a negative weight could turn negative itself.
    """
    if min(weights.values()) >= 0.0:
        return weights
    total = sum(abs(w) for w in weights.values())
    return {j: abs(w) / total for j, w in weights.items()}


def convex_rows(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """The same for every row of a mixing matrix `(n, n)`, and for rows that do not sum to 1.

    Those of push-sum do not: its push weights correct the parameters, and statistics have none.
    """
    sizes = np.abs(matrix)
    totals = sizes.sum(axis=1, keepdims=True)
    as_they_are = (matrix.min(axis=1, keepdims=True) >= 0.0) & (np.abs(totals - 1.0) <= 1e-9)
    return np.where(as_they_are, matrix, sizes / totals)


# --- a block --------------------------------------------------------------------------


def _by_steps(
    steps: tuple[_Step, ...],
    piece: State,
    trained: Block,
    near: Mapping[str, list[Term]],
    out: State,
    part: slice,
    scratch: dict[str, Block],
    term: Block,
) -> None:
    inputs = {_PARAMETERS: piece.parameters, _TRAINED: trained}
    inputs |= {f"memory/{name}": block for name, block in piece.memory.items()}
    size = trained.shape[0]
    for step in steps:
        target = _part_of(out, step.output, part)
        if not step.direct:
            target = _scratch(scratch, step.output, target, size)
        terms: list[Term] = []
        for name, coefficient in step.terms:
            if name in inputs:
                terms.append((coefficient, inputs[name]))
            else:
                vector = name.removeprefix("near/")
                terms += [(coefficient * weight, block) for weight, block in near[vector]]
        _sum_into(target, terms, term)
        inputs[f"new/{step.output}"] = target
    for step in steps:
        if not step.direct:
            _part_of(out, step.output, part)[:] = inputs[f"new/{step.output}"]


def _by_rule(
    algorithm: Algorithm,
    piece: State,
    trained: Block,
    own_weight: float,
    near: Mapping[str, list[Term]],
    out: State,
    part: slice,
    term: Block,
) -> None:
    own = algorithm.outgoing(piece, trained)
    mixed = {}
    for name in algorithm.vectors:
        mixed[name] = np.empty_like(trained)
        _sum_into(mixed[name], [(own_weight, own[name]), *near[name]], term)
    new = algorithm.combine(piece, trained, mixed)
    out.parameters[part] = new.parameters
    for name, vector in out.memory.items():
        vector[part] = new.memory[name]


def _sum_into(target: Block, terms: list[Term], term: Block) -> None:
    """Write the sum of `coefficient * block`; only the first two terms may be the target.

    term: as long as the target or longer; what is in it is lost.
    """
    if not terms:
        target[:] = 0.0
        return
    (first, a), rest = terms[0], terms[1:]
    if rest and first == 1.0 and rest[0][0] == -1.0:
        np.subtract(a, rest[0][1], out=target)
        rest = rest[1:]
    else:
        np.multiply(a, first, out=target)
    term = term[: len(target)]
    for coefficient, block in rest:
        np.multiply(block, coefficient, out=term)
        np.add(target, term, out=target)


def _part_of(state: State, output: str, part: slice) -> Block:
    vector = state.parameters if output == _PARAMETERS else state.memory[output]
    block: Block = vector[part]
    return block


def _scratch(scratch: dict[str, Block], name: str, like: Block, size: int) -> Block:
    if name not in scratch:
        scratch[name] = np.empty_like(like)
    return scratch[name][:size]


# --- a rule as a sum of its inputs ------------------------------------------------------


@lru_cache(maxsize=256)
def _plan(
    algorithm: Algorithm, own_weight: float, measured: tuple[tuple[str, float], ...], round: int
) -> tuple[_Step, ...]:
    """What each output of a linear rule is made of, after so many rounds."""
    names = [_PARAMETERS, *(f"memory/{m}" for m in algorithm.memory), _TRAINED]
    names += [f"near/{v}" for v in algorithm.vectors]
    inputs = dict(zip(names, np.eye(len(names)), strict=True))
    state = State(inputs[_PARAMETERS], _memory(algorithm, inputs), dict(measured), round)
    unit = _probe(algorithm, own_weight, inputs, state)
    outputs = [_PARAMETERS, *algorithm.memory]
    chosen: list[tuple[str, dict[str, float]]] = []
    for output in outputs:
        plain = _nonzero(names, unit[output])
        # A displacement is one subtraction from the new parameters, not a sum anew.
        bases = [before for before, _ in chosen]
        options = [plain] + [
            {f"new/{base}": 1.0, **_nonzero(names, unit[output] - unit[base])} for base in bases
        ]
        chosen.append((output, min(options, key=len)))
    steps = []
    for position, (output, terms) in enumerate(chosen):
        own = _PARAMETERS if output == _PARAMETERS else f"memory/{output}"
        later = any(own in others for _, others in chosen[position + 1 :])
        order = sorted(terms, key=lambda name: not name.startswith("new/"))
        safe = own not in order or order.index(own) == 0 or _is_subtraction(terms, order)
        steps.append(_Step(output, tuple((n, terms[n]) for n in order), safe and not later))
    return tuple(steps)


def _probe(
    algorithm: Algorithm,
    own_weight: float,
    inputs: Mapping[str, NDArray[np.float64]],
    state: State,
) -> dict[str, NDArray[np.float64]]:
    """A rule's outputs for given inputs; `near/v` is the neighbors' part of a mixed vector."""
    own = algorithm.outgoing(state, inputs[_TRAINED])
    mixed = {v: own_weight * own[v] + inputs[f"near/{v}"] for v in algorithm.vectors}
    new = algorithm.combine(state, inputs[_TRAINED], mixed)
    return {_PARAMETERS: np.asarray(new.parameters), **dict(new.memory)}


def _memory(
    algorithm: Algorithm, inputs: Mapping[str, NDArray[np.float64]]
) -> dict[str, NDArray[np.float64]]:
    return {name: inputs[f"memory/{name}"] for name in algorithm.memory}


class _Noticing(State):
    """A state that knows whether somebody asked for its round."""

    def __getattribute__(self, name: str) -> Any:
        if name == "round":
            object.__getattribute__(self, "__dict__")["asked"] = True
        return object.__getattribute__(self, name)


@lru_cache(maxsize=256)
def _looks_at_rounds(algorithm: Algorithm, measured: tuple[str, ...]) -> bool:
    """Whether a linear rule asks for the round's number, so that its coefficients may change."""
    names = [_PARAMETERS, *(f"memory/{m}" for m in algorithm.memory), _TRAINED]
    inputs = {name: np.ones(1) for name in [*names, *(f"near/{v}" for v in algorithm.vectors)]}
    numbers = dict.fromkeys(measured, 1.0)
    state = _Noticing(inputs[_PARAMETERS], _memory(algorithm, inputs), numbers)
    _probe(algorithm, 1.0, inputs, state)
    return "asked" in vars(state)


def _nonzero(names: list[str], coefficients: NDArray[np.float64]) -> dict[str, float]:
    """Coefficients by input, without those that are rounding; 1 and -1 made exact."""
    kept = {}
    for name, value in zip(names, coefficients, strict=True):
        if abs(abs(value) - 1.0) < _NEGLIGIBLE:
            kept[name] = float(np.sign(value))
        elif abs(value) > _NEGLIGIBLE:
            kept[name] = float(value)
    return kept


def _is_subtraction(terms: Mapping[str, float], order: list[str]) -> bool:
    return (
        len(order) >= 2
        and terms[order[0]] == 1.0
        and terms[order[1]] == -1.0
        and (not order[0].startswith("near/") and not order[1].startswith("near/"))
    )
