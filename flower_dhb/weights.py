"""Mixing matrices of an undirected graph, and the check that a matrix is one.

`W[i, j]` is the weight that agent i gives to agent j's value. A mixing matrix is
symmetric, its rows and columns sum to 1, it is zero wherever there is no edge (the
diagonal aside), and its second largest absolute eigenvalue is below 1. Entries may be
negative on that condition.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from flower_dhb.errors import GraphError, unknown

__all__ = [
    "WEIGHTS",
    "Matrix",
    "WeightRule",
    "check_mixing_matrix",
    "laplacian_weights",
    "lazy",
    "metropolis_weights",
    "mixing_matrix",
    "second_largest",
    "uniform_weights",
]

Matrix: TypeAlias = NDArray[np.float64]
Adjacency: TypeAlias = NDArray[np.bool_]
WeightRule: TypeAlias = Callable[[Adjacency], Matrix]

_SUM_TOLERANCE = 1e-12  # sums of up to thousands of float64 weights near 1 round to 1e-13
_GAP_TOLERANCE = 1e-12  # eigvalsh of a matrix of norm 1 is accurate to a few 1e-15 per row


def metropolis_weights(adjacency: Adjacency) -> Matrix:
    """Mixing matrix from degrees only: W[i, j] = 1 / (1 + max(degree i, degree j)).

    adjacency: (n, n) bool, symmetric, no self-loops. Returns (n, n) float64.
    Source: Xiao, Boyd & Lall, "A scheme for robust distributed sensor fusion based on
    average consensus", IPSN 2005.
    """
    degree = adjacency.sum(axis=1)
    pairwise = 1.0 / (1.0 + np.maximum(degree[:, None], degree[None, :]))
    return _with_diagonal(np.where(adjacency, pairwise, 0.0))


def uniform_weights(adjacency: Adjacency) -> Matrix:
    """Mixing matrix with one weight for all edges: 1 / (1 + the maximum degree).

    adjacency: (n, n) bool, symmetric, no self-loops. Returns (n, n) float64.
    Source: Xiao & Boyd, "Fast linear iterations for distributed averaging",
    Systems & Control Letters 53 (2004), section 4.1 (maximum-degree weights).
    """
    return _with_diagonal(adjacency / (1.0 + adjacency.sum(axis=1).max(initial=0)))


def laplacian_weights(adjacency: Adjacency) -> Matrix:
    """Mixing matrix I - a L with the constant `a` that mixes fastest.

    `L` is the graph Laplacian and a = 2 / (its largest + its second smallest eigenvalue).
    adjacency: (n, n) bool, symmetric, no self-loops. Returns (n, n) float64.
    Raises GraphError if the graph is not connected.
    Source: Xiao & Boyd 2004, section 4.1 (best constant edge weight).
    """
    if len(adjacency) == 1:
        return np.ones((1, 1))
    edges = adjacency.astype(np.float64)
    eigenvalues = np.linalg.eigvalsh(np.diag(edges.sum(axis=1)) - edges)
    if not eigenvalues[1] > _GAP_TOLERANCE:
        raise GraphError("laplacian weights need a connected graph")
    return _with_diagonal(edges * (2.0 / (eigenvalues[-1] + eigenvalues[1])))


def lazy(weights: str | Matrix | WeightRule = "metropolis") -> WeightRule:
    """The lazy version (I + W) / 2 of other weights: no eigenvalue is negative.

    Example: `Topology.torus(4, 4, weights=lazy("uniform"))`.
    """

    def rule(adjacency: Adjacency) -> Matrix:
        matrix: Matrix = (np.eye(len(adjacency)) + mixing_matrix(adjacency, weights)) / 2.0
        return matrix

    return rule


WEIGHTS: dict[str, WeightRule] = {
    "metropolis": metropolis_weights,
    "uniform": uniform_weights,
    "laplacian": laplacian_weights,
    "lazy": lazy("metropolis"),
    "lazy-uniform": lazy("uniform"),
    "lazy-laplacian": lazy("laplacian"),
}


def mixing_matrix(adjacency: Adjacency, weights: str | Matrix | WeightRule) -> Matrix:
    """Mixing matrix of a graph by name, by rule, or as given; always checked.

    Raises GraphError if the name is unknown or the matrix is not a mixing matrix.
    """
    if isinstance(weights, str):
        if weights not in WEIGHTS:
            raise GraphError(unknown("weights", weights, WEIGHTS))
        matrix = WEIGHTS[weights](adjacency)
    elif callable(weights):
        matrix = weights(adjacency)
    else:
        matrix = weights
    return check_mixing_matrix(matrix, adjacency)


def check_mixing_matrix(matrix: Any, adjacency: Adjacency) -> Matrix:
    """Return `matrix` as float64 if it is a mixing matrix of the graph.

    Raises GraphError that says which of the conditions fails, where, and by how much.
    """
    try:
        w = np.array(matrix, dtype=np.float64)
    except (TypeError, ValueError) as problem:
        raise GraphError(f"a mixing matrix must be a matrix of numbers: {problem}") from None
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
    excess = np.abs(w.sum(axis=1) - 1.0)
    if not excess.max(initial=0.0) <= _SUM_TOLERANCE:
        i = int(excess.argmax())
        raise GraphError(
            "a mixing matrix must be doubly stochastic: rows and columns sum to 1 within "
            f"{_SUM_TOLERANCE}; row {i} sums to {w[i].sum():.15g}"
        )
    off_edges = (w != 0.0) & ~adjacency & ~np.eye(n, dtype=bool)
    if off_edges.any():
        i, j = np.argwhere(off_edges)[0]
        raise GraphError(f"W[{i}, {j}] = {w[i, j]:.6g}, but there is no edge between {i} and {j}")
    if n > 1:
        second = second_largest(np.linalg.eigvalsh(w))
        if not second < 1.0 - _GAP_TOLERANCE:
            raise GraphError(
                f"the second largest absolute eigenvalue is {second:.6g}, must be below 1: with "
                "these weights the agents never agree; is the graph connected by nonzero "
                "weights? Lazy weights (I + W) / 2 remove an eigenvalue of -1"
            )
    return w


def second_largest(eigenvalues: NDArray[Any]) -> float:
    """The second largest absolute eigenvalue of a mixing matrix; 0 for a single agent.

    eigenvalues: (n,) float64, ascending; the largest one is the 1 of the constant vector.
    """
    if len(eigenvalues) < 2:
        return 0.0
    return float(max(abs(eigenvalues[0]), abs(eigenvalues[-2])))


def _with_diagonal(off_diagonal: NDArray[np.float64]) -> Matrix:
    """Put on the diagonal what each row lacks to a sum of 1."""
    matrix = off_diagonal.copy()
    np.fill_diagonal(matrix, 0.0)
    np.fill_diagonal(matrix, 1.0 - matrix.sum(axis=1))
    return matrix
