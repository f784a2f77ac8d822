"""Mixing matrices: each rule by hand on an irregular graph, and each way to be wrong."""

from fractions import Fraction

import numpy as np
import pytest

from flower_dhb import GraphError, Topology, lazy
from flower_dhb.topology.weights import WEIGHTS, check_mixing_matrix, mixing_matrix, second_largest

# A triangle 0 1 2 with a tail 2 - 3 - 4: degrees 2, 2, 3, 2, 1.
EDGES = [(0, 1), (0, 2), (1, 2), (2, 3), (3, 4)]
KITE = Topology.from_edges(EDGES)

# Weights of agent 3, whose neighbors are 2 (degree 3) and 4 (degree 1), and of agent 4.
ROWS = {
    # 1 / (1 + max(2, 3)) = 1/4 to agent 2, 1 / (1 + max(2, 1)) = 1/3 to agent 4
    "metropolis": ["0 0 1/4 5/12 1/3", "0 0 0 1/3 2/3"],
    # 1 / (1 + 3) to each neighbor
    "uniform": ["0 0 1/4 1/2 1/4", "0 0 0 1/4 3/4"],
    # halves of metropolis, and one half more to itself
    "lazy": ["0 0 1/8 17/24 1/6", "0 0 0 1/6 5/6"],
    "lazy-uniform": ["0 0 1/8 3/4 1/8", "0 0 0 1/8 7/8"],
}


def fractions(text):
    return [float(Fraction(word)) for word in text.split()]


@pytest.mark.parametrize("name", ROWS)
def test_rows_worked_out_by_hand(name):
    topology = Topology.from_edges(EDGES, weights=name)
    # 1 minus a sum of rounded fractions: a unit in the last place of 1.
    np.testing.assert_allclose(topology.row(3), fractions(ROWS[name][0]), rtol=0, atol=2e-16)
    np.testing.assert_allclose(topology.row(4), fractions(ROWS[name][1]), rtol=0, atol=2e-16)


def test_best_constant_weights_by_hand():
    """Laplacian of a star of 5: eigenvalues 0, 1 and 5, so a = 2 / 6 and the hub has 1 - 4/3."""
    star = Topology.star(5, "laplacian")
    np.testing.assert_allclose(star.row(0), fractions("-1/3 1/3 1/3 1/3 1/3"), atol=1e-15)
    np.testing.assert_allclose(star.row(2), fractions("1/3 0 2/3 0 0"), atol=1e-15)
    lazy_star = Topology.star(5, "lazy-laplacian")
    np.testing.assert_allclose(lazy_star.row(0), fractions("1/3 1/6 1/6 1/6 1/6"), atol=1e-15)


def test_no_other_constant_mixes_faster_than_the_best():
    laplacian = np.diag(KITE.adjacency.sum(axis=1)) - KITE.adjacency.astype(float)
    best = Topology.from_edges(EDGES, weights="laplacian").second_eigenvalue
    for a in np.linspace(0.05, 0.6, 56):
        # The norm without the constant mode; 1e-12 for the rounding of both.
        assert np.linalg.norm(np.eye(5) - a * laplacian - 1 / 5, 2) >= best - 1e-12


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize(
    "topology",
    [KITE, Topology.star(9), Topology.erdos_renyi(12, 0.3, seed=4), Topology.path(1)],
    ids=repr,
)
def test_every_rule_makes_a_mixing_matrix(name, topology):
    w = mixing_matrix(topology.adjacency, name)
    n = topology.n_agents
    np.testing.assert_array_equal(w, w.T)
    # Sums of up to 12 rounded weights.
    np.testing.assert_allclose(w.sum(axis=1), 1.0, atol=1e-15)
    assert not w[~topology.adjacency & ~np.eye(n, dtype=bool)].any()
    assert np.linalg.norm(w - 1 / n, 2) < 1.0


@pytest.mark.parametrize("weights", ["metropolis", "uniform", "laplacian"])
def test_lazy_weights_have_no_negative_eigenvalue(weights):
    plain = Topology.bipartite(3, 3, weights=weights)
    slow = Topology.bipartite(3, 3, weights=lazy(weights))
    assert plain.eigenvalues[0] < -0.3
    np.testing.assert_allclose(slow.eigenvalues, (1 + plain.eigenvalues) / 2, atol=1e-14)


def test_lazy_of_a_matrix_of_ones_own_even_if_that_one_never_agrees_is_refused():
    """(I + W) / 2 of a checked W; the swap matrix of two agents is not a mixing matrix."""
    with pytest.raises(GraphError, match="second largest absolute eigenvalue is 1,"):
        Topology.path(2, weights=lazy(np.array([[0.0, 1.0], [1.0, 0.0]])))


def test_a_rule_of_ones_own_is_called_with_the_adjacency_and_checked():
    seen = []

    def rule(adjacency):
        seen.append(adjacency)
        return np.eye(5)

    with pytest.raises(GraphError, match="second largest absolute eigenvalue is 1, must be below"):
        Topology.from_edges(EDGES, weights=rule)
    np.testing.assert_array_equal(seen[0], KITE.adjacency)


def test_unknown_name_gets_the_nearest_match():
    with pytest.raises(
        GraphError, match=r"unknown weights 'metropolos', did you mean 'metropolis'.*uniform"
    ):
        Topology.ring(5, weights="metropolos")


# --- what is refused -------------------------------------------------------------------


def changed(*changes):
    """The kite's Metropolis matrix with entries added to."""
    matrix = np.array(KITE.mixing_matrix)
    for i, j, value in changes:
        matrix[i, j] += value
    return matrix


BAD = {
    "not square": (np.ones((5, 4)) / 5, r"must be \(5, 5\), square; got shape \(5, 4\)"),
    "too small": (np.eye(4), r"must be \(5, 5\), square; got shape \(4, 4\)"),
    "a vector": (np.ones(5), r"got shape \(5,\)"),
    "text": ([["a"] * 5] * 5, "must be a matrix of numbers"),
    "ragged": ([[1.0], [1.0, 2.0]], "must be a matrix of numbers"),
    "NaN": (changed((1, 2, np.nan)), "must be finite; it holds NaN or infinite"),
    "infinite": (changed((1, 1, np.inf)), "must be finite"),
    "asymmetric": (
        changed((0, 1, 0.125), (0, 0, -0.125)),
        r"must be symmetric; W\[0, 1\] = 0\.458333 but W\[1, 0\] = 0\.333333",
    ),
    "row sum": (
        changed((4, 4, 0.25)),
        r"must be doubly stochastic: rows and columns sum to 1 within 1e-12; row 4 sums to 1\.25",
    ),
    "row sum, slightly": (changed((3, 3, 2e-12)), "row 3 sums to 1.000000000002"),
    "off the edges": (
        changed((0, 4, 0.125), (4, 0, 0.125), (0, 0, -0.125), (4, 4, -0.125)),
        r"W\[0, 4\] = 0\.125, but there is no edge between 0 and 4",
    ),
    "identity": (np.eye(5), r"second largest absolute eigenvalue is 1, must be below 1.*connected"),
    "eigenvalue above 1": (
        # -1/2 on edge 3 - 4: the two push each other apart
        changed((3, 4, -5 / 6), (4, 3, -5 / 6), (3, 3, 5 / 6), (4, 4, 5 / 6)),
        "second largest absolute eigenvalue is 1, must be below 1",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_mixing_matrix_is_refused_with_the_reason(case):
    matrix, message = BAD[case]
    with pytest.raises(GraphError, match=message):
        Topology.from_edges(EDGES, weights=matrix)


def test_an_eigenvalue_of_minus_one_is_refused_with_the_remedy():
    swap = np.array([[0.0, 1.0], [1.0, 0.0]])
    with pytest.raises(GraphError, match=r"Lazy weights \(I \+ W\) / 2 remove an eigenvalue of -1"):
        Topology.path(2, weights=swap)


def test_a_missing_weight_that_cuts_the_graph_is_refused():
    cut = changed((2, 3, -0.25), (3, 2, -0.25), (2, 2, 0.25), (3, 3, 0.25))
    with pytest.raises(GraphError, match="is the graph connected by nonzero weights"):
        Topology.from_edges(EDGES, weights=cut)


def test_rounding_is_tolerated():
    """Rows that sum to 1 within 1e-12, as those of a matrix read from text."""
    matrix = changed((0, 0, 5e-13))
    np.testing.assert_array_equal(check_mixing_matrix(matrix, KITE.adjacency), matrix)


def test_a_matrix_of_ones_own_is_copied():
    matrix = changed()
    topology = Topology.from_edges(EDGES, weights=matrix)
    matrix[:] = 0.0
    assert topology.row(4)[3] == 1 / 3


def test_the_mixing_matrix_cannot_be_written_to():
    with pytest.raises(ValueError, match="read-only"):
        KITE.mixing_matrix[0, 0] = 1.0


@pytest.mark.parametrize(
    ("eigenvalues", "expected"),
    [([1.0], 0.0), ([-0.6, 0.2, 1.0], 0.6), ([-0.1, 0.2, 1.0], 0.2), ([0.5, 1.0], 0.5)],
)
def test_second_largest(eigenvalues, expected):
    assert second_largest(np.array(eigenvalues)) == expected


@pytest.mark.parametrize("name", WEIGHTS)
def test_named_weights_need_a_connected_graph(name):
    apart = np.zeros((4, 4), dtype=bool)
    apart[[0, 1, 2, 3], [1, 0, 3, 2]] = True
    with pytest.raises(GraphError, match="weights need a connected graph"):
        mixing_matrix(apart, name)


def test_a_matrix_of_integers_or_a_sparse_one_is_a_matrix_of_floats():
    from scipy.sparse import csr_array

    alone = Topology.path(1, [[1]])
    assert alone.mixing_matrix.dtype == np.float64
    found = check_mixing_matrix(csr_array(KITE.mixing_matrix), KITE.adjacency)
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, KITE.mixing_matrix)
    same = Topology.from_edges(EDGES, csr_array(KITE.mixing_matrix))
    np.testing.assert_array_equal(same.mixing_matrix, KITE.mixing_matrix)
