"""Eigenvalues of large graphs: against formulas and against full decompositions."""

import networkx as nx
import numpy as np
import pytest

from flower_dhb import GraphError, Topology
from flower_dhb.topology.rows import Rows
from flower_dhb.topology.spectrum import DENSE_UP_TO, all_eigenvalues, extreme_eigenvalues
from flower_dhb.topology.weights import WEIGHTS, edge_weights

GROUPS = ["ring:9", "ring:3", "complete:7", "torus:3x5", "torus:2x4", "torus:2x2", "hypercube:4"]
GROUPS += ["exponential:11", "exponential:8", "exponential:2", "hypercube:1", "complete:1"]


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("spec", GROUPS)
def test_graphs_that_look_the_same_from_each_vertex_have_a_transform_for_a_spectrum(spec, weights):
    topology = Topology.parse(spec, weights)
    full = np.linalg.eigvalsh(topology.mixing_matrix)
    # Eigenvalues of a matrix of norm 1, computed in two ways.
    np.testing.assert_allclose(topology.eigenvalues, full, rtol=0, atol=1e-14)
    if len(full) > 1:
        assert topology.smallest_eigenvalue == pytest.approx(full[0], abs=1e-14)
        assert topology.second_eigenvalue == pytest.approx(np.abs(full[:-1]).max(), abs=1e-14)


def test_a_matrix_that_is_no_convolution_is_decomposed():
    """A group is a claim: weights of one's own on a ring need not respect it."""
    ring = Topology.ring(5)
    uneven = np.array(ring.mixing_matrix)
    uneven[[0, 1], [1, 0]] -= 0.25
    uneven[[0, 1], [0, 1]] += 0.25
    found = Topology.ring(5, uneven)
    np.testing.assert_allclose(found.eigenvalues, np.linalg.eigvalsh(uneven), atol=1e-14)
    assert found.second_eigenvalue > ring.second_eigenvalue + 0.1
    # As many edges everywhere, but not the same ones.
    sparse = edge_weights(6, np.array([[0, 1], [2, 3], [4, 5], [1, 2], [3, 4], [0, 5]]), "lazy")
    np.testing.assert_allclose(
        all_eigenvalues(sparse.rows(), (2, 3)), np.linalg.eigvalsh(sparse.dense()), atol=1e-14
    )


def test_a_row_that_has_more_entries_than_others_is_no_convolution():
    ends, weights = np.array([[0, 1], [0, 3]]), np.array([5.0, 5.0])
    matrix = Rows.of_edges(ends, weights, np.full(4, 2.0))
    expected = [2 - np.sqrt(50), 2, 2, 2 + np.sqrt(50)]
    np.testing.assert_allclose(all_eigenvalues(matrix, (4,)), expected, atol=1e-13)


def test_a_long_path_by_formula():
    """W = I - L / 3; the path's Laplacian has the eigenvalues 2 - 2 cos(pi k / n)."""
    n = 4 * DENSE_UP_TO
    path = Topology.path(n)
    angle = np.pi / n
    assert path.spectral_gap == pytest.approx((2 - 2 * np.cos(angle)) / 3, rel=1e-6)
    # 2e-10: what the iteration is asked for, twice.
    expected = 1 - (2 + 2 * np.cos(angle)) / 3
    assert path.smallest_eigenvalue == pytest.approx(expected, abs=2e-10)


def test_a_long_star_by_formula():
    """Metropolis: 1/n an edge; eigenvalues 0, 1 and 1 - 1/n."""
    star = Topology.star(3 * DENSE_UP_TO)
    assert star.second_eigenvalue == pytest.approx(1 - 1 / (3 * DENSE_UP_TO), abs=2e-10)
    assert star.smallest_eigenvalue == pytest.approx(0.0, abs=2e-10)


IRREGULAR = {
    "fast": nx.gnp_random_graph(600, 0.03, seed=2),
    "slow": nx.connected_watts_strogatz_graph(600, 4, 0.05, seed=3),
    "a tail": nx.lollipop_graph(25, 580),
    "even": nx.complete_bipartite_graph(200, 401),
}


@pytest.mark.parametrize("weights", ["metropolis", "lazy-laplacian"])
@pytest.mark.parametrize("name", IRREGULAR)
def test_two_eigenvalues_of_a_large_graph_are_those_of_its_full_spectrum(name, weights):
    topology = Topology(IRREGULAR[name], weights)
    assert topology.n_agents > DENSE_UP_TO
    full = np.linalg.eigvalsh(topology.mixing_matrix)
    assert topology.smallest_eigenvalue == pytest.approx(full[0], abs=2e-10)
    second = max(abs(full[0]), abs(full[-2]))
    assert 1.0 - topology.second_eigenvalue == pytest.approx(1.0 - second, rel=1e-5, abs=2e-10)


def test_large_matrices_of_ones_own_are_checked():
    n = DENSE_UP_TO + 2
    edges = [(i, i + 1) for i in range(n - 1)]
    wide = np.array(Topology.path(n).mixing_matrix)
    for i, j, amount in ((7, 8, -0.5), (n // 2, n // 2 + 1, -1 / 3)):
        bad = wide.copy()
        bad[[i, j], [j, i]] += amount
        bad[[i, j], [i, j]] -= amount
        with pytest.raises(GraphError, match="second largest absolute eigenvalue is 1"):
            Topology.from_edges(edges, bad)
    # Apart by so little that no iteration tells the eigenvalue from those around it.
    slight = wide.copy()
    i, j = n // 2, n // 2 + 1
    slight[[i, j], [j, i]] -= 1 / 3 + 1e-9
    slight[[i, j], [i, j]] += 1 / 3 + 1e-9
    with pytest.raises(GraphError, match="second largest absolute eigenvalue is 1"):
        Topology.from_edges(edges, slight)
    swap = np.kron(np.eye(n // 2), [[0.0, 1.0], [1.0, 0.0]])
    with pytest.raises(GraphError, match="second largest absolute eigenvalue is 1"):
        Topology.from_edges(edges, swap)
    # I - L / 2 with the eigenvalues cos(pi k / n): nearly -1, and allowed.
    found = Topology.from_edges(edges, 1.5 * wide - 0.5 * np.eye(n))
    assert found.smallest_eigenvalue == pytest.approx(-np.cos(np.pi / n), abs=2e-10)


def test_results_repeat_to_the_bit():
    matrix = edge_weights(2_000, Topology.path(2_000)._weights.ends, "metropolis").rows()
    assert extreme_eigenvalues(matrix) == extreme_eigenvalues(matrix)
