"""The fastest-mixing symmetric weights of a graph, by semidefinite programming (`fdla` extra).

Source: Xiao & Boyd, "Fast linear iterations for distributed averaging", Systems & Control
Letters 53 (2004): fastest distributed linear averaging, symmetric case.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flower_dhb.errors import GraphError
from flower_dhb.extras import needs_extra
from flower_dhb.topology.weights import Matrix

__all__ = ["FDLA", "fastest_weights"]

FDLA = "fdla"


def fastest_weights(adjacency: NDArray[np.bool_]) -> Matrix:
    """Mixing matrix with the largest spectral gap; weights may be negative.

    Minimizes the spectral norm of `W - 11'/n` over symmetric W with rows that sum to 1 and
    zeros where there is no edge.

    adjacency: (n, n) bool, symmetric, no self-loops, connected. Returns (n, n) float64.
    Raises ConfigError if cvxpy is not installed, GraphError if the solver finds nothing.
    """
    try:
        cp: Any = import_module("cvxpy")
    except ImportError as error:
        raise needs_extra(f"finding the fastest-mixing weights ('{FDLA}')", "fdla") from error
    n = len(adjacency)
    if n == 1:
        return np.ones((1, 1))
    rows, columns = np.nonzero(np.triu(adjacency))
    # One unknown per edge: W = I - sum of w_e (e_i - e_j)(e_i - e_j)', so that symmetry,
    # row sums and zeros hold by construction, to the last bit that matters.
    incidence = np.zeros((n, len(rows)))
    incidence[rows, range(len(rows))] = 1.0
    incidence[columns, range(len(rows))] = -1.0
    weight = cp.Variable(len(rows))
    matrix = np.eye(n) - incidence @ cp.diag(weight) @ incidence.T
    problem = cp.Problem(cp.Minimize(cp.sigma_max(matrix - np.ones((n, n)) / n)))
    problem.solve(solver=cp.CLARABEL)
    if weight.value is None:
        raise GraphError(f"no fastest-mixing weights found for {n} agents: {problem.status}")
    found = np.zeros((n, n))
    found[rows, columns] = found[columns, rows] = weight.value
    np.fill_diagonal(found, 1.0 - found.sum(axis=1))
    return found
