"""What a graph can do, before anything is deployed: rates, limits and useful links.

Every rule is linear in what it mixes, so on a quadratic whose curvature all agents share
it falls into independent modes, one per eigenvalue `u` of the mixing matrix and `h` of
the curvature. In a mode the rule acts on plain numbers, with `mixed = u * outgoing`: its
iteration matrix is found by applying the rule itself to unit vectors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from math import comb
from typing import TypeAlias

import networkx as nx
import numpy as np
from numpy.typing import NDArray

from flower_dhb.algorithms.base import Algorithm
from flower_dhb.algorithms.heavy_ball import HeavyBall
from flower_dhb.errors import ConfigError
from flower_dhb.graph import Topology
from flower_dhb.types import State
from flower_dhb.weights import WeightRule, mixing_matrix, second_largest

__all__ = [
    "Link",
    "averaging_rate",
    "best_averaging_momentum",
    "best_rate",
    "diameter",
    "halving_rounds",
    "mode_matrices",
    "rate",
    "stability_limit",
    "suggest_links",
]

Array = NDArray[np.float64]
Edge: TypeAlias = tuple[int, int]

_TINY = 1e-9
_DIVERGED = 1.0 + 1e-7  # eigenvalues of these small matrices are accurate to about 1e-8


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
    state = State(ones if unit == "parameters" else zeros, memory)
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


def stability_limit(algorithm: Algorithm, eigenvalues: Array) -> float:
    """Largest stable `step size x curvature` on a quadratic; 0 if there is none.

    eigenvalues: (n,) float64, of the mixing matrix. In closed form where there is one,
    else by bisection on the spectral radius, to 4 digits.
    """
    if isinstance(algorithm, HeavyBall) and algorithm.form != "tracking":
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
    if not condition >= 1.0:
        raise ConfigError(f"condition number must be at least 1, got {condition}")
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


@dataclass(frozen=True)
class Link:
    """A link worth adding, and the spectral gap once it and those before it are there."""

    edge: tuple[int, int]
    spectral_gap: float


def suggest_links(
    topology: Topology, count: int, weights: str | WeightRule = "metropolis"
) -> list[Link]:
    """The links that together raise the spectral gap most, the most useful one first.

    All choices of links are tried where there are at most 20,000 of them; otherwise all
    choices among those links that join what the slowest modes keep most apart (to first
    order an eigenvalue with eigenvector q changes with (q_i - q_j)^2), as many as give
    5,000 choices. One link at a time would miss pairs that help only together.
    Raises ConfigError if `count` is below 1 or there are fewer absent links.
    """
    if not count >= 1:
        raise ConfigError(f"the number of links to add must be at least 1, got {count}")
    absent = _absent(topology.adjacency)
    if count > len(absent):
        raise ConfigError(f"'{topology.name}' lacks {len(absent)} links only, cannot add {count}")

    def gap(edges: Sequence[Edge]) -> float:
        matrix = mixing_matrix(_with_links(topology.adjacency, edges), weights)
        return 1.0 - second_largest(np.linalg.eigvalsh(matrix))

    def after(edges: Sequence[Edge], candidates: Sequence[Edge]) -> Edge:
        return max(candidates, key=lambda edge: (round(gap([*edges, edge]), 12), edge[::-1]))

    if comb(len(absent), count) > 20_000:
        absent = _most_apart(topology, absent, count)
    together = max(combinations(absent, count), key=lambda edges: round(gap(edges), 12))
    chosen: list[Edge] = []
    while len(chosen) < count:
        chosen.append(after(chosen, [edge for edge in together if edge not in chosen]))
    return [Link(edge, gap(chosen[: at + 1])) for at, edge in enumerate(chosen)]


def diameter(topology: Topology) -> int:
    """The largest number of hops between two agents."""
    return int(nx.diameter(nx.from_numpy_array(topology.adjacency)))


def _absent(adjacency: NDArray[np.bool_]) -> list[Edge]:
    rows, columns = np.nonzero(np.triu(~adjacency, k=1))
    return [(int(i), int(j)) for i, j in zip(rows, columns, strict=True)]


def _with_links(adjacency: NDArray[np.bool_], edges: Sequence[Edge]) -> NDArray[np.bool_]:
    found = adjacency.copy()
    for i, j in edges:
        found[i, j] = found[j, i] = True
    return found


def _most_apart(topology: Topology, absent: Sequence[Edge], count: int) -> list[Edge]:
    """The absent links across which the slowest modes differ most, for 5,000 choices."""
    eigenvalues, vectors = np.linalg.eigh(topology.mixing_matrix)
    sizes = np.abs(eigenvalues)
    sizes[-1] = 0.0
    slow = vectors[:, sizes >= sizes.max() - 1e-9]
    i, j = np.array(absent).T
    order = np.argsort(-np.round(((slow[i] - slow[j]) ** 2).sum(axis=1), 12), kind="stable")
    many = count
    while many < len(absent) and comb(many + 1, count) <= 5000:
        many += 1
    return [absent[k] for k in order[:many]]


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
