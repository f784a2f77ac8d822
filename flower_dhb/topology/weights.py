"""Mixing matrices of an undirected graph, and the check that a matrix is one.

`W[i, j]` is the weight that agent i gives to agent j's value. A mixing matrix is
symmetric, its rows and columns sum to 1, it is zero wherever there is no edge (the
diagonal aside), and its second largest absolute eigenvalue is below 1. Entries may be
negative on that condition. It is kept by edge, since a large graph's is nearly all zeros.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from flower_dhb.errors import GraphError, unknown
from flower_dhb.topology.rows import Rows, connected_parts
from flower_dhb.topology.spectrum import extreme_eigenvalues

__all__ = [
    "WEIGHTS",
    "EdgeWeights",
    "Ends",
    "Matrix",
    "WeightRule",
    "Weights",
    "check_mixing_matrix",
    "edge_weights",
    "given_edge_weights",
    "lazy",
    "mixing_matrix",
    "second_largest",
]

Matrix: TypeAlias = NDArray[np.float64]
Adjacency: TypeAlias = NDArray[np.bool_]
Ends: TypeAlias = NDArray[np.int64]  # (m, 2): the two vertices of each edge, ascending
WeightRule: TypeAlias = Callable[[Adjacency], Matrix]

_SUM_TOLERANCE = 1e-12  # sums of up to thousands of float64 weights near 1 round to 1e-13
_GAP_TOLERANCE = 1e-12  # eigvalsh of a matrix of norm 1 is accurate to a few 1e-15 per row


@dataclass(frozen=True, eq=False)
class EdgeWeights:
    """A symmetric matrix of a graph: a weight for each edge, and each agent's own.

    ends: (m, 2) int64, edges i < j in ascending order. edge: (m,) float64. own: (n,)
    float64, the diagonal.
    """

    ends: Ends
    edge: Matrix
    own: Matrix

    def dense(self) -> Matrix:
        """The matrix, `(n, n)` float64."""
        n = len(self.own)
        matrix = np.zeros((n, n))
        i, j = self.ends.T
        matrix[i, j] = matrix[j, i] = self.edge
        np.fill_diagonal(matrix, self.own)
        return matrix

    def rows(self) -> Rows:
        """The matrix without its zeros."""
        return Rows.of_edges(self.ends, self.edge, self.own)


@dataclass(frozen=True)
class _Lazy:
    """The lazy version (I + W) / 2 of other weights; a rule like those of one's own."""

    of: Weights

    def __call__(self, adjacency: Adjacency) -> Matrix:
        return mixing_matrix(adjacency, self)


Weights: TypeAlias = str | Matrix | WeightRule | EdgeWeights


def lazy(weights: str | Matrix | WeightRule = "metropolis") -> WeightRule:
    """The lazy version (I + W) / 2 of other weights: no eigenvalue is negative.

    Example: `Topology.torus(4, 4, weights=lazy("uniform"))`.
    """
    return _Lazy(weights)


def _metropolis(ends: Ends, degree: NDArray[np.int64], _group: tuple[int, ...]) -> Matrix:
    """1 / (1 + max(degree i, degree j)), from degrees only.

    Source: Xiao, Boyd & Lall, "A scheme for robust distributed sensor fusion based on
    average consensus", IPSN 2005.
    """
    return 1.0 / (1.0 + np.maximum(degree[ends[:, 0]], degree[ends[:, 1]]))


def _uniform(ends: Ends, degree: NDArray[np.int64], _group: tuple[int, ...]) -> Matrix:
    """One weight for all edges: 1 / (1 + the maximum degree).

    Source: Xiao & Boyd, "Fast linear iterations for distributed averaging",
    Systems & Control Letters 53 (2004), section 4.1 (maximum-degree weights).
    """
    return np.full(len(ends), 1.0 / (1.0 + degree.max(initial=0)))


def _laplacian(ends: Ends, degree: NDArray[np.int64], group: tuple[int, ...]) -> Matrix:
    """The one weight for all edges that mixes fastest: W = I - a L.

    `L` is the graph Laplacian and a = 2 / (its largest + its second smallest eigenvalue).
    Source: Xiao & Boyd 2004, section 4.1 (best constant edge weight).
    """
    if len(degree) < 2:
        return np.ones(len(ends))
    # I - c L has the same eigenvectors, and rows that sum to 1.
    c = 0.5 / float(degree.max())
    own = np.asarray(1.0 - c * degree, dtype=np.float64)
    lowest, second = extreme_eigenvalues(Rows.of_edges(ends, np.full(len(ends), c), own), group)
    return np.full(len(ends), 2.0 * c / ((1.0 - lowest) + (1.0 - second)))


_RULES = {"metropolis": _metropolis, "uniform": _uniform, "laplacian": _laplacian}

WEIGHTS: dict[str, str | _Lazy] = {
    **{name: name for name in _RULES},
    **{f"lazy-{name}".replace("-metropolis", ""): _Lazy(name) for name in _RULES},
}

_OF_PARTS = tuple(name for name in WEIGHTS if "laplacian" not in name)


def edge_weights(
    n_agents: int,
    ends: Ends,
    weights: Weights,
    group: tuple[int, ...] = (),
    *,
    connected: bool = False,
    part: bool = False,
) -> EdgeWeights:
    """Mixing weights of a connected graph by name, by rule, or as given.

    Named weights are mixing matrices of any connected graph: their own weights are
    positive, or the spectrum is balanced by construction. All others are checked.
    group: see `spectrum`. connected: whether the graph is known to be. part: whether it is one
    of several that take turns and need not be connected one by one. Raises GraphError
    if the name is unknown, the graph is not connected, or a matrix is not a mixing matrix.
    """
    if part and isinstance(weights, EdgeWeights):
        return _checked_part(weights)
    if part and not (isinstance(weights, str) and weights in _OF_PARTS):
        raise GraphError(
            f"a graph that takes turns with others has weights of the names {', '.join(_OF_PARTS)}"
            f", which need no connected graph; got {weights!r}"
        )
    connected = connected or part
    if isinstance(weights, str):
        if weights not in WEIGHTS:
            raise GraphError(unknown("weights", weights, WEIGHTS))
        weights = WEIGHTS[weights]
    if isinstance(weights, _Lazy):
        whole = edge_weights(n_agents, ends, weights.of, group, connected=connected)
        return EdgeWeights(ends, whole.edge / 2.0, (1.0 + whole.own) / 2.0)
    if isinstance(weights, str):
        if not connected and connected_parts(n_agents, ends).max(initial=0) > 0:
            raise GraphError(f"{weights} weights need a connected graph")
        degree = np.bincount(ends.ravel(), minlength=n_agents)
        return given_edge_weights(ends, _RULES[weights](ends, degree, group), n_agents)
    if isinstance(weights, EdgeWeights):
        return _checked(weights, group)
    adjacency = _adjacency(n_agents, ends)
    matrix = _check_entries(weights(adjacency) if callable(weights) else weights, adjacency)
    return _checked(EdgeWeights(ends, matrix[ends[:, 0], ends[:, 1]], matrix.diagonal().copy()))


def given_edge_weights(ends: Ends, edge: Matrix, n_agents: int) -> EdgeWeights:
    """Weights of the edges, and for each agent's own what its row lacks to a sum of 1."""
    # In the order of the edges, so every row sums its neighbors in vertex order.
    sums = np.bincount(ends.ravel(), np.repeat(edge, 2), minlength=n_agents)
    return EdgeWeights(ends, edge, np.asarray(1.0 - sums, np.float64))


def mixing_matrix(adjacency: Adjacency, weights: Weights) -> Matrix:
    """Mixing matrix of a graph by name, by rule, or as given: (n, n) float64.

    adjacency: (n, n) bool, symmetric, no self-loops. Raises as `edge_weights`.
    """
    ends = np.argwhere(np.triu(adjacency, k=1)).astype(np.int64).reshape(-1, 2)
    return edge_weights(len(adjacency), ends, weights).dense()


def check_mixing_matrix(matrix: Any, adjacency: Adjacency) -> Matrix:
    """Return `matrix` as float64 if it is a mixing matrix of the graph.

    Raises GraphError that says which of the conditions fails, where, and by how much.
    """
    w = _check_entries(matrix, adjacency)
    ends = np.argwhere(np.triu(adjacency, k=1)).astype(np.int64).reshape(-1, 2)
    _checked(EdgeWeights(ends, w[ends[:, 0], ends[:, 1]], w.diagonal()))
    return w


def _check_entries(matrix: Any, adjacency: Adjacency) -> Matrix:
    """Shape, numbers, symmetry and zeros."""
    w = _numbers(matrix)
    n = len(adjacency)
    if w.shape != (n, n):
        raise GraphError(
            f"a mixing matrix of {n} agents must be ({n}, {n}), square; got shape {w.shape}"
        )
    if not np.isfinite(w).all():
        raise GraphError("a mixing matrix must be finite; it holds NaN or infinite weights")
    asymmetry = np.abs(w - w.T)
    if not asymmetry.max(initial=0.0) <= _SUM_TOLERANCE:
        i, j = divmod(int(asymmetry.argmax()), n)
        raise GraphError(
            f"a mixing matrix must be symmetric; W[{i}, {j}] = {w[i, j]:.6g} "
            f"but W[{j}, {i}] = {w[j, i]:.6g}"
        )
    off_edges = (w != 0.0) & ~adjacency & ~np.eye(n, dtype=bool)
    if off_edges.any():
        i, j = np.argwhere(off_edges)[0]
        raise GraphError(f"W[{i}, {j}] = {w[i, j]:.6g}, but there is no edge between {i} and {j}")
    return w


def _numbers(matrix: Any) -> Matrix:
    """A float64 copy of what holds real numbers; NumPy alone would convert texts, too."""
    given = matrix.toarray() if hasattr(matrix, "toarray") else matrix
    try:
        array = np.asarray(given)
    except ValueError as problem:
        raise GraphError(f"a mixing matrix must be a matrix of numbers: {problem}") from None
    if array.dtype.kind not in "iuf":
        raise GraphError(
            f"a mixing matrix must be a matrix of numbers, real ones; got {array.dtype}"
        )
    return np.array(array, dtype=np.float64)


def _check_sums(sums: Matrix) -> None:
    excess = np.abs(sums - 1.0)
    if not excess.max(initial=0.0) <= _SUM_TOLERANCE:
        i = int(excess.argmax())
        raise GraphError(
            "a mixing matrix must be doubly stochastic: rows and columns sum to 1 within "
            f"{_SUM_TOLERANCE}; row {i} sums to {sums[i]:.15g}"
        )


def _checked_part(found: EdgeWeights) -> EdgeWeights:
    """The same of a graph that takes turns: its parts need not agree, but none may diverge."""
    least = min(found.edge.min(initial=0.0), found.own.min(initial=0.0))
    if not (np.isfinite(found.edge).all() and least >= 0.0):
        raise GraphError(
            f"weights of a graph that takes turns must be finite and not negative, got {least:.6g}"
        )
    _check_sums(found.rows().sums())
    return found


def _checked(found: EdgeWeights, group: tuple[int, ...] = ()) -> EdgeWeights:
    """What can be checked of weights that lie on edges: finite, sums, spectrum."""
    if not (np.isfinite(found.edge).all() and np.isfinite(found.own).all()):
        raise GraphError("a mixing matrix must be finite; it holds NaN or infinite weights")
    matrix = found.rows()
    _check_sums(matrix.sums())
    n = len(found.own)
    if n == 1:
        return found
    # Parts that no weight joins keep an eigenvalue 1 each; no iteration has to find that.
    apart = connected_parts(n, found.ends[found.edge != 0.0]).max() > 0
    second = 1.0 if apart else max(abs(v) for v in extreme_eigenvalues(matrix, group))
    if not second < 1.0 - _GAP_TOLERANCE:
        raise GraphError(
            f"the second largest absolute eigenvalue is {second:.6g}, must be below 1: with "
            "these weights the agents never agree; is the graph connected by nonzero "
            "weights? Lazy weights (I + W) / 2 remove an eigenvalue of -1"
        )
    return found


def second_largest(eigenvalues: NDArray[Any]) -> float:
    """The second largest absolute eigenvalue of a mixing matrix; 0 for a single agent.

    eigenvalues: (n,) float64, ascending; the largest one is the 1 of the constant vector.
    """
    if len(eigenvalues) < 2:
        return 0.0
    return float(max(abs(eigenvalues[0]), abs(eigenvalues[-2])))


def _adjacency(n_agents: int, ends: Ends) -> Adjacency:
    adjacency = np.zeros((n_agents, n_agents), dtype=np.bool_)
    i, j = ends.T
    adjacency[i, j] = adjacency[j, i] = True
    return adjacency
