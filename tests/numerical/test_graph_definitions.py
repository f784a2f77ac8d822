"""Every named graph against its definition, vertex by vertex, in sizes of one and two digits.

Labels that are sorted as text, or rows and columns that are exchanged, look right on small
square graphs.
"""

import numpy as np
import pytest

from flower_dhb import GraphError, Topology
from flower_dhb.topology.directed import DirectedTopology, parse_topology


def power_of_two(x):
    return x > 0 and x & (x - 1) == 0


def between(n, neighbors):
    return np.array([[i != j and bool(neighbors(i, j)) for j in range(n)] for i in range(n)])


def torus(rows, columns):
    def neighbors(i, j):
        down = (i // columns - j // columns) % rows
        right = (i % columns - j % columns) % columns
        return (down in (1, rows - 1) and right == 0) or (right in (1, columns - 1) and down == 0)

    return between(rows * columns, neighbors)


DEFINITIONS = {
    **{f"ring:{n}": between(n, lambda i, j, n=n: (i - j) % n in (1, n - 1)) for n in (3, 4, 13)},
    **{f"complete:{n}": between(n, lambda i, j: True) for n in (1, 2, 11)},
    **{f"star:{n}": between(n, lambda i, j: 0 in (i, j)) for n in (2, 12)},
    **{f"path:{n}": between(n, lambda i, j: abs(i - j) == 1) for n in (1, 2, 12)},
    **{f"torus:{a}x{b}": torus(a, b) for a, b in [(2, 2), (2, 5), (3, 4), (11, 3), (3, 12)]},
    **{
        f"bipartite:{a}x{b}": between(a + b, lambda i, j, a=a: (i < a) != (j < a))
        for a, b in [(1, 1), (1, 3), (11, 2), (2, 11)]
    },
    **{f"hypercube:{k}": between(2**k, lambda i, j: power_of_two(i ^ j)) for k in (1, 2, 3, 4, 5)},
    **{
        f"exponential:{n}": between(
            n, lambda i, j, n=n: power_of_two((i - j) % n) or power_of_two((j - i) % n)
        )
        for n in (2, 3, 4, 5, 8, 9, 16, 17, 33)
    },
}


@pytest.mark.parametrize("spec", DEFINITIONS)
def test_adjacency_is_that_of_the_definition(spec):
    topology = Topology.parse(spec)
    expected = DEFINITIONS[spec]
    np.testing.assert_array_equal(topology.adjacency, expected)
    pairs = [(int(i), int(j)) for i, j in np.argwhere(np.triu(expected))]
    assert list(topology.edges) == pairs
    assert topology.n_agents == len(expected)
    for vertex in range(len(expected)):
        assert topology.neighbors(vertex) == tuple(np.flatnonzero(expected[vertex]))


def reference_weights(adjacency, rule):
    """Rows summed one entry at a time."""
    n = len(adjacency)
    degree = [sum(row) for row in adjacency.tolist()]
    w = np.zeros((n, n))
    for i in range(n):
        for j in range(n):
            if adjacency[i, j]:
                largest = max(degree[i], degree[j]) if rule == "metropolis" else max(degree)
                w[i, j] = 1 / (1 + largest)
        w[i, i] = 1 - sum(w[i, j] for j in range(n) if j != i)
    return w


@pytest.mark.parametrize("rule", ["metropolis", "uniform"])
@pytest.mark.parametrize(
    "spec", ["star:12", "bipartite:2x11", "torus:3x12", "erdos-renyi:15:0.3:5"]
)
def test_weights_are_those_of_the_definition(spec, rule):
    topology = Topology.parse(spec, rule)
    expected = reference_weights(topology.adjacency, rule)
    # Sums of up to 14 weights, in another order.
    np.testing.assert_allclose(topology.mixing_matrix, expected, rtol=0, atol=1e-15)
    lazy = Topology.parse(spec, "lazy" if rule == "metropolis" else "lazy-uniform")
    np.testing.assert_allclose(
        lazy.mixing_matrix, (np.eye(len(expected)) + expected) / 2, atol=1e-15
    )


@pytest.mark.parametrize("n", [2, 3, 4, 5, 8, 9, 16, 17])
def test_directed_graphs_are_those_of_their_definition(n):
    ring = between(n, lambda sender, receiver: (receiver - sender) % n == 1)
    exponential = between(n, lambda sender, receiver: power_of_two((receiver - sender) % n))
    for kind, expected in (("ring", ring), ("exponential", exponential)):
        topology = parse_topology(f"directed-{kind}:{n}")
        assert isinstance(topology, DirectedTopology)
        assert topology.name == f"directed-{kind}:{n}"
        assert list(topology.edges) == [(int(i), int(j)) for i, j in np.argwhere(expected)]
        # A sender divides its value among its receivers and itself.
        shares = (expected | np.eye(n, dtype=bool)) / (1 + expected.sum(axis=1, keepdims=True))
        np.testing.assert_allclose(topology.mixing_matrix, shares.T, rtol=0, atol=1e-16)
        assert not topology.mixing_matrix.flags.writeable


def test_spectrum_of_a_directed_ring():
    """W = (I + shift) / 2 has the eigenvalues (1 + w) / 2 for the n-th roots of unity w."""
    n = 7
    topology = DirectedTopology.ring(n)
    expected = np.sort(np.abs(1 + np.exp(2j * np.pi * np.arange(n) / n)) / 2)
    np.testing.assert_allclose(topology.eigenvalues, expected, atol=1e-14)
    assert topology.second_eigenvalue == pytest.approx(np.cos(np.pi / n), abs=1e-14)
    assert topology.spectral_gap == pytest.approx(1 - np.cos(np.pi / n), abs=1e-14)
    assert repr(topology) == "DirectedTopology(directed-ring:7: 7 agents, 7 edges)"


def test_a_one_way_edge_that_fails_leaves_its_weight_with_the_sender():
    """Agent 2 has the receivers 0 and 3: a third each. Named twice, an edge fails once."""
    graph = DirectedTopology([(0, 1), (1, 2), (2, 0), (2, 3), (3, 0)])
    found = graph.with_missing([(2, 3), (2, 3), (0, 1)])
    expected = np.array(
        [[1, 0, 1 / 3, 1 / 2], [0, 1 / 2, 0, 0], [0, 1 / 2, 2 / 3, 0], [0, 0, 0, 1 / 2]]
    )
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-15)
    np.testing.assert_allclose(graph.mixing_matrix[:, 2], [1 / 3, 0, 1 / 3, 1 / 3])


def test_a_directed_graph_is_told_apart_by_its_digest():
    graph = DirectedTopology([(0, 1), (1, 2), (2, 0), (2, 1)])
    again = DirectedTopology([(2, 1), (2, 0), (1, 2), (0, 1)], name="other")
    turned = DirectedTopology([(b, a) for a, b in graph.edges])
    assert graph.digest == again.digest != turned.digest
    assert DirectedTopology.ring(5).digest != Topology.ring(5).digest


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: DirectedTopology([1, 2]), "an edge is a pair of vertices, got 1"),
        (lambda: DirectedTopology(["ab"]), "an edge is a pair of vertices, got 'ab'"),
        (lambda: DirectedTopology(3), "sequence of pairs of vertices, got 3"),
        (lambda: DirectedTopology([(0, 1.5)]), "directed: a vertex must be an integer, got 1.5"),
        (lambda: DirectedTopology([(0, True)]), "a vertex must be an integer, got True"),
        (lambda: DirectedTopology([(0, -1)]), "needs at least 0, got -1"),
        (lambda: DirectedTopology([(0, 1), (1, 0), (1, 1)]), "self-loop at vertex 1"),
        (lambda: DirectedTopology([(0, 1), (1, 3), (3, 0)]), "vertices must be 0 … n-1"),
        (lambda: DirectedTopology([]), "vertices must be 0 … n-1"),
        (lambda: DirectedTopology([(0, 1), (1, 2), (2, 1)]), "not strongly connected"),
        (lambda: DirectedTopology.ring(8.0), "the number of agents must be an integer, got 8.0"),
        (lambda: DirectedTopology.ring(1), "directed-ring needs at least 2, got 1"),
        (lambda: DirectedTopology.exponential(10**12), "1,000,000,000,000 agents are too many"),
        (lambda: parse_topology("directed-ring:1_6"), "not of the form directed-ring:N"),
        (lambda: parse_topology("directed-ring:٨"), "not of the form directed-ring:N"),
        (lambda: parse_topology(" directed-ring:8"), "unknown topology ' directed-ring'"),
        (lambda: parse_topology("directed-rign:8"), "did you mean 'directed-ring'"),
        (lambda: parse_topology("directed-ring:8", "metropolos"), "did you mean 'metropolis'"),
        (lambda: DirectedTopology.ring(3).with_missing([(1, 0)]), "no edge from 1 to 0"),
        (lambda: DirectedTopology.ring(3).with_missing([1]), "an edge is a pair of vertices"),
    ],
)
def test_directed_graphs_that_are_none(build, message):
    with pytest.raises(GraphError, match=message):
        build()


def test_spectrum_of_a_ring_and_what_it_says():
    """Metropolis on a ring: eigenvalues (1 + 2 cos(2 pi k / n)) / 3."""
    topology = Topology.ring(12)
    expected = np.sort((1 + 2 * np.cos(2 * np.pi * np.arange(12) / 12)) / 3)
    np.testing.assert_allclose(topology.eigenvalues, expected, atol=1e-14)
    assert topology.second_eigenvalue == pytest.approx((1 + np.sqrt(3)) / 3, abs=1e-14)
    assert topology.spectral_gap == pytest.approx(1 - (1 + np.sqrt(3)) / 3, abs=1e-14)
