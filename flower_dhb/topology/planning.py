"""What a graph can do, before anything is deployed: rates and limits.

Every rule is linear in what it mixes, so on a quadratic whose curvature all agents share
it falls into independent modes, one per eigenvalue `u` of the mixing matrix and `h` of
the curvature. In a mode the rule acts on plain numbers, with `mixed = u * outgoing`: its
iteration matrix is found by applying the rule itself to unit vectors.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from flower_dhb.algorithms.base import COMPLETE, Algorithm
from flower_dhb.algorithms.heavy_ball import HeavyBall
from flower_dhb.errors import ConfigError
from flower_dhb.topology.graph import Topology
from flower_dhb.topology.rows import Rows
from flower_dhb.topology.turns import AnyGraph
from flower_dhb.types import State

__all__ = [
    "averaging_rate",
    "best_averaging_momentum",
    "best_rate",
    "check_rule_on",
    "diameter",
    "halving_rounds",
    "mode_matrices",
    "period_growth",
    "rate",
    "stability_limit",
]

Array = NDArray[np.float64]

_TINY = 1e-9
_LATE = 10**9  # rounds: what a rule that changes with them has become
_LOOK = 2**24  # bytes
_DIVERGED = 1.0 + 1e-7  # eigenvalues of these small matrices are accurate to about 1e-8
_EXACT = 512  # numbers of state whose eigenvalues are found at once, in a tenth of a second
_PERIODS, _DRAWN = 60, 4  # otherwise: periods that are followed, and from how many states


def mode_matrices(algorithm: Algorithm, mixing: Array, curvature: Array) -> Array:
    """Iteration matrices of a rule in every mode: (modes, s, s) for s numbers of state.

    mixing: (modes,), eigenvalues of the mixing matrix. curvature: (modes,), step size
    times eigenvalues of the curvature. The state is the parameters, then the memory.
    """
    units = ("parameters", *algorithm.memory)
    columns = [_response(algorithm, mixing, curvature, unit) for unit in units]
    return np.stack(columns, axis=-1)


def _response(algorithm: Algorithm, mixing: Array, curvature: Array, unit: str) -> Array:
    """State after a round that begins with one number at 1, all others at 0: (modes, s).

    unit: a name of the state, or `data` for a local step of 1 that the data push.
    """
    ones, zeros = np.ones_like(mixing), np.zeros_like(mixing)
    memory = {name: ones if name == unit else zeros for name in algorithm.memory}
    state = State(ones if unit == "parameters" else zeros, memory, round=_LATE)
    trained = (1.0 - curvature) * state.parameters + (ones if unit == "data" else zeros)
    payload = algorithm.outgoing(state, trained)
    new = algorithm.combine(state, trained, {k: mixing * v for k, v in payload.items()})
    return np.stack([new.parameters, *(new.memory[n] for n in algorithm.memory)], axis=-1)


def _require_linear(algorithm: Algorithm) -> None:
    if not algorithm.linear or algorithm.products:
        raise ConfigError(
            f"'{algorithm.name}' adapts to what it measures, so it has no fixed rate on a "
            "quadratic; plan with 'dmsgd'"
        )


def rate(algorithm: Algorithm, eigenvalues: Array, curvatures: Array | float) -> float:
    """Linear rate on a quadratic: the error shrinks by this factor each round.

    The largest absolute eigenvalue over all modes that a run excites (gradient tracking,
    for one, keeps the sum of its trackers fixed: an eigenvalue 1 that no run excites).
    Above 1 it diverges.

    eigenvalues: of the mixing matrix. curvatures: step size times curvature.
    """
    _require_linear(algorithm)
    u, a = (g.ravel() for g in np.meshgrid(eigenvalues, np.atleast_1d(curvatures), indexing="ij"))
    matrices = mode_matrices(algorithm, u, a)
    # Sums over agents that a rule keeps fixed live in the modes of the constant vector.
    kept = (np.abs(u - 1.0) <= _TINY) & algorithm.exact
    radii = [0.0]
    if not kept.all():
        radii.append(float(np.abs(np.linalg.eigvals(matrices[~kept])).max()))
    if kept.any():
        pushes = _response(algorithm, u[kept], a[kept], "data")
        pairs = zip(matrices[kept], pushes, strict=True)
        radii += [_reachable_radius(matrix, push) for matrix, push in pairs]
    return max(radii)


def check_rule_on(algorithm: Algorithm, topology: AnyGraph) -> None:
    """Refuse a graph of another kind, or one on which the rule diverges whatever the step size.

    Of graphs that take turns the sequence is looked at: disagreement may grow on some of them,
    or on none, and what counts is what becomes of it in a period.

    Raises GraphError for the kind, ConfigError if no step size would be stable.
    """
    graphs = topology.graphs
    turning_at_all = len(graphs) > 1
    turning = turning_at_all and not topology.directed and algorithm.graph != COMPLETE
    if not (turning and algorithm.linear and not algorithm.products):
        for graph in graphs:
            # Where nobody exchanges anything nobody is averaged with either.
            if graph.edges or not turning_at_all or algorithm.graph != COMPLETE:
                algorithm.check(graph)
        return
    growth = period_growth(algorithm, topology)
    if not growth <= _DIVERGED:
        raise ConfigError(
            f"'{algorithm.name}' diverges on '{topology.name}' for every step size: without steps "
            f"disagreement grows {growth:.3g} times in a period of {len(graphs)} rounds. Remedies: "
            "lazy weights (I + W) / 2 (weights='lazy'), or less momentum or momentum mixing"
        )


@lru_cache(maxsize=64)
def period_growth(algorithm: Algorithm, topology: AnyGraph) -> float:
    """Factor by which disagreement grows or shrinks in a period of graphs that take turns.

    The rule is linear, and local steps do nothing. Exact, as the spectral radius of a period,
    where agents and memory are few; else followed over many periods from random states.
    """
    n = topology.n_agents
    # Disagreement: what sums to zero over agents. No round leads out of it.
    basis = np.linalg.qr(np.eye(n) - 1.0 / n)[0][:, : n - 1]
    names = ("parameters", *algorithm.memory)
    size = (n - 1) * len(names)
    if size <= _EXACT:
        units = np.eye(size).reshape(len(names), n - 1, size)
        after = _period(algorithm, topology, names, basis @ units)
        matrix = (basis.T @ after).reshape(size, size)
        return float(np.abs(np.linalg.eigvals(matrix)).max())
    states = basis @ np.random.default_rng(0).normal(size=(len(names), n - 1, _DRAWN))
    growth = []
    for _ in range(_PERIODS):
        states = states / np.linalg.norm(states)
        states = _period(algorithm, topology, names, states)
        growth.append(float(np.linalg.norm(states)))
    late = growth[_PERIODS // 2 :]
    return float(np.exp(np.mean(np.log(late)))) if min(late) > 0.0 else 0.0


def _period(
    algorithm: Algorithm, topology: AnyGraph, names: tuple[str, ...], states: Array
) -> Array:
    """States of all agents, (names, n, columns), after each graph has had its turn."""
    state = State(states[0], dict(zip(names[1:], states[1:], strict=True)), round=_LATE)
    for graph in topology.graphs:
        payload = algorithm.outgoing(state, state.parameters)
        mixed = payload
        if graph.edges:
            mixed = {name: graph.mixing_matrix @ vector for name, vector in payload.items()}
        state = replace(algorithm.combine(state, state.parameters, mixed), round=_LATE)
    return np.stack([state.parameters, *(state.memory[name] for name in names[1:])])


def stability_limit(algorithm: Algorithm, eigenvalues: Array) -> float:
    """Largest stable `step size x curvature` on a quadratic; 0 if there is none.

    eigenvalues: (n,) float64, of the mixing matrix. In closed form where there is one,
    else by bisection on the spectral radius, to 4 digits.
    """
    if isinstance(algorithm, HeavyBall) and algorithm.has_closed_form:
        return algorithm.stability_limit(eigenvalues)
    low, high = 0.0, 8.0
    u = np.unique(np.round(eigenvalues, 12))
    grid = np.linspace(0.0, high, 401)[1:]
    stable = [rate(algorithm, u, point) <= _DIVERGED for point in grid]
    if not stable[0]:
        grid, stable = np.geomspace(1e-6, grid[0], 40), []
        stable = [rate(algorithm, u, point) <= _DIVERGED for point in grid]
        if not stable[0]:
            return 0.0
    if all(stable):
        return float("inf")
    first = stable.index(False)
    low, high = float(grid[first - 1]), float(grid[first])
    while high - low > 1e-5 * high:
        middle = 0.5 * (low + high)
        if rate(algorithm, u, middle) <= _DIVERGED:
            low = middle
        else:
            high = middle
    return low


def best_rate(algorithm: Algorithm, eigenvalues: Array, condition: float) -> tuple[float, float]:
    """Best linear rate on quadratics of a condition number, and the step size for it.

    Returns (rate, step size x largest curvature). The rate is that of the distance to the
    rule's own fixed point. Searched over 60 step sizes below the stability limit.
    """
    if not 1.0 <= condition < float("inf"):
        raise ConfigError(f"condition number must be finite and at least 1, got {condition}")
    limit = min(stability_limit(algorithm, eigenvalues), 8.0)
    if limit <= 0.0:
        return float("inf"), 0.0
    u = np.unique(np.round(eigenvalues, 12))
    curvatures = np.geomspace(1.0 / condition, 1.0, 9)
    steps = np.geomspace(1e-3, 1.0, 60) * limit
    found = [(rate(algorithm, u, curvatures * step), float(step)) for step in steps]
    return min(found)


def averaging_rate(eigenvalues: Array, momentum: float, momentum_mixing: float) -> float:
    """Factor by which disagreement shrinks each round of averaging alone, with momentum.

    The modes of `x+ = W x + b Pt d` are the roots of `t^2 - (u + b v) t + b v`, with
    `v = 1 - w + w u`; momentum 0 gives the second largest eigenvalue.
    """
    u = _disagreement(eigenvalues)
    if len(u) == 0:
        return 0.0
    product = momentum * (1.0 - momentum_mixing + momentum_mixing * u)
    half = (u + product) / 2.0
    root = np.sqrt((half**2 - product).astype(complex))
    return float(np.maximum(np.abs(half + root), np.abs(half - root)).max())


def best_averaging_momentum(eigenvalues: Array, momentum_mixing: float) -> tuple[float, float]:
    """Momentum that averages fastest on a graph, to 3 digits, and its rate."""
    grid = np.linspace(0.0, 0.999, 1000)
    rates = [averaging_rate(eigenvalues, float(b), momentum_mixing) for b in grid]
    best = int(np.argmin(rates))
    return float(grid[best]), rates[best]


def halving_rounds(rate: float) -> float:
    """Rounds until disagreement has halved; 0 if one round removes it, infinite if none does."""
    if rate <= _TINY:
        return 0.0
    return float("inf") if rate >= 1.0 else float(np.log(0.5) / np.log(rate))


def diameter(topology: Topology) -> int:
    """The largest number of hops between two agents.

    All agents look one hop further at a time: row i has a bit for each agent that i has seen.
    """
    n = topology.n_agents
    ends = np.array(topology.edges, dtype=np.int64).reshape(-1, 2)
    graph = Rows.of_edges(ends, np.ones(len(ends)), np.ones(n))
    # Groups of rows whose neighbors' bits take some megabytes at a time.
    step = max(1, _LOOK * 8 // n)
    starts = np.unique(np.searchsorted(graph.indptr, np.arange(0, len(graph.data), step)))
    groups = list(pairwise([*starts.tolist(), n]))
    seen = np.packbits(np.eye(n, dtype=np.bool_), axis=1)
    hops = 0
    while True:
        further = np.empty_like(seen)
        for first, last in groups:
            begin, *_, end = graph.indptr[first : last + 1]
            bits = seen[graph.indices[begin:end]]
            offsets = graph.indptr[first:last] - begin
            further[first:last] = np.bitwise_or.reduceat(bits, offsets, axis=0)
        if (further == seen).all():
            return hops
        seen, hops = further, hops + 1


def _disagreement(eigenvalues: Array) -> Array:
    """Eigenvalues without the 1 of the constant vector."""
    return np.asarray(np.sort(eigenvalues)[:-1])


def _reachable_radius(matrix: Array, push: Array) -> float:
    """Spectral radius on the states that a run gets to.

    A run starts from some parameters and no memory, and its data push every round: the
    differences of successive states lie in the span of `A^k (A - I) e` and `A^k push`.
    """
    size = len(matrix)
    basis = np.zeros((size, 0))
    for seed in ((matrix - np.eye(size))[:, 0], push):
        vector = seed
        for _ in range(size):
            rest = vector - basis @ (basis.T @ vector)
            rest = rest - basis @ (basis.T @ rest)
            length = float(np.linalg.norm(rest))
            if length <= _TINY:
                break
            basis = np.column_stack([basis, rest / length])
            vector = matrix @ (rest / length)
    if basis.shape[1] == 0:
        return 0.0
    return float(np.abs(np.linalg.eigvals(basis.T @ matrix @ basis)).max())
