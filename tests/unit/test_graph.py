"""Communication graphs: the builders, their names, and what is refused."""

from math import comb

import networkx as nx
import numpy as np
import pytest

from flower_dhb import GraphError, Topology

# builder, number of agents, number of edges, degrees that occur
BUILDERS = [
    (Topology.ring(7), 7, 7, {2}),
    (Topology.ring(3), 3, 3, {2}),
    (Topology.complete(6), 6, 15, {5}),
    (Topology.complete(1), 1, 0, {0}),
    (Topology.star(6), 6, 5, {5, 1}),
    (Topology.star(2), 2, 1, {1}),
    (Topology.path(5), 5, 4, {1, 2}),
    (Topology.path(1), 1, 0, {0}),
    (Topology.torus(3, 4), 12, 24, {4}),
    (Topology.torus(2, 4), 8, 12, {3}),  # a wrap-around of two rows is the direct edge
    (Topology.torus(2, 2), 4, 4, {2}),
    (Topology.bipartite(2, 3), 5, 6, {3, 2}),
    (Topology.hypercube(3), 8, 12, {3}),
    (Topology.hypercube(1), 2, 1, {1}),
    # hops 1, 2, 4 both ways: 7 - 4 = 3 makes all pairs but the distances 1, 2, 3
    (Topology.exponential(7), 7, 21, {6}),
    (Topology.exponential(8), 8, 20, {5}),  # hop 4 is its own reverse
    (Topology.exponential(2), 2, 1, {1}),
    (Topology.random_regular(10, 3, seed=1), 10, 15, {3}),
    (Topology.small_world(10, 4, 0.0, seed=1), 10, 20, {4}),
    (Topology.erdos_renyi(6, 1.0, seed=1), 6, 15, {5}),
]


@pytest.mark.parametrize(("topology", "agents", "edges", "degrees"), BUILDERS, ids=repr)
def test_builders_give_the_right_number_of_agents_edges_and_neighbors(
    topology, agents, edges, degrees
):
    assert topology.n_agents == len(topology) == agents
    assert len(topology.edges) == edges
    assert {len(topology.neighbors(i)) for i in range(agents)} == degrees


# What a few vertices must be neighbors of, so that vertex numbers mean what they should.
NEIGHBORS = [
    (Topology.ring(5), {0: (1, 4), 3: (2, 4)}),
    (Topology.star(4), {0: (1, 2, 3), 2: (0,)}),
    (Topology.path(4), {0: (1,), 2: (1, 3)}),
    (Topology.torus(3, 4), {0: (1, 3, 4, 8), 6: (2, 5, 7, 10)}),
    (Topology.bipartite(2, 3), {0: (2, 3, 4), 4: (0, 1)}),
    (Topology.hypercube(3), {0: (1, 2, 4), 6: (2, 4, 7)}),
    (Topology.hypercube(4), {10: (2, 8, 11, 14)}),
    (Topology.exponential(8), {0: (1, 2, 4, 6, 7), 3: (1, 2, 4, 5, 7)}),
    (Topology.exponential(11), {0: (1, 2, 3, 4, 7, 8, 9, 10)}),
    (Topology.small_world(8, 4, 0.0, seed=0), {0: (1, 2, 6, 7)}),
]


@pytest.mark.parametrize(("topology", "expected"), NEIGHBORS, ids=repr)
def test_neighbors_by_hand(topology, expected):
    assert {i: topology.neighbors(i) for i in expected} == expected


def test_edges_are_ascending_pairs_and_match_the_adjacency():
    topology = Topology.erdos_renyi(9, 0.5, seed=2)
    assert all(a < b for a, b in topology.edges)
    assert list(topology.edges) == sorted(set(topology.edges))
    rows, columns = np.nonzero(np.triu(topology.adjacency))
    assert list(topology.edges) == list(zip(rows.tolist(), columns.tolist(), strict=True))
    np.testing.assert_array_equal(topology.adjacency, topology.adjacency.T)


def test_eigenvalues_ascend_to_one():
    topology = Topology.star(5)
    np.testing.assert_allclose(topology.eigenvalues, [0, 0.8, 0.8, 0.8, 1], atol=1e-14)


RANDOM = {
    "erdos_renyi": lambda seed: Topology.erdos_renyi(12, 0.5, seed),
    "random_regular": lambda seed: Topology.random_regular(12, 3, seed),
    "small_world": lambda seed: Topology.small_world(12, 4, 0.5, seed),
}


@pytest.mark.parametrize("name", RANDOM)
def test_a_seed_gives_the_same_graph_and_another_seed_another(name):
    build = RANDOM[name]
    assert build(3).edges == build(3).edges
    assert len({build(seed).edges for seed in range(6)}) == 6


@pytest.mark.parametrize("name", RANDOM)
def test_random_graphs_leave_the_global_generators_alone(name):
    before = np.random.get_state()[1].copy()
    RANDOM[name](3)
    np.testing.assert_array_equal(np.random.get_state()[1], before)


def test_the_share_of_edges_is_the_probability():
    counts = [len(Topology.erdos_renyi(30, 0.5, seed).edges) for seed in range(10)]
    # 10 draws of Binomial(435, 1/2): the mean is within 4 standard errors of 3.3.
    assert abs(np.mean(counts) - comb(30, 2) / 2) < 13.2


def test_name_and_repr():
    topology = Topology.star(5)
    assert topology.name == "star:5"
    assert repr(topology) == "Topology(star:5: 5 agents, 4 edges, spectral gap 0.2)"


# --- labels ----------------------------------------------------------------------------


def test_a_pair_and_its_reverse_are_one_edge():
    topology = Topology.from_edges([(0, 1), (1, 0), (1, 2), (1, 2)])
    assert topology.edges == ((0, 1), (1, 2))


def test_parallel_edges_of_a_multigraph_are_one_edge():
    topology = Topology(nx.MultiGraph([(0, 1), (0, 1), (1, 2)]))
    assert topology.edges == ((0, 1), (1, 2))


def test_labels_are_numbered_in_sorted_order():
    topology = Topology.from_edges([("oslo", "rome"), ("rome", "bonn")])
    assert topology.labels == ("bonn", "oslo", "rome")
    assert topology.edges == ((0, 2), (1, 2))


def test_integer_vertices_keep_their_numbers_whatever_order_they_come_in():
    topology = Topology.from_edges([(2, 0), (0, 10), *((i, i + 1) for i in range(2, 10)), (1, 2)])
    assert topology.labels == tuple(range(11))
    assert topology.neighbors(0) == (2, 10)


def test_numpy_integers_are_integers():
    """Mixed with Python integers they must not be sorted by type."""
    topology = Topology.from_edges([(np.int64(0), 1), (1, np.int64(2)), (np.int64(2), np.int64(3))])
    assert topology.labels == (0, 1, 2, 3)
    assert topology.edges == ((0, 1), (1, 2), (2, 3))
    with pytest.raises(GraphError, match="integer vertices must be 0 … 2, got"):
        Topology.from_edges(np.array([[0, 1], [1, 5]]))


def test_rows_of_the_matrix_follow_the_vertices():
    topology = Topology.from_edges([(2, 1), (2, 0), (2, 3)])
    np.testing.assert_array_equal(topology.row(2), [0.25, 0.25, 0.25, 0.25])
    np.testing.assert_array_equal(topology.row(0), [0.75, 0.0, 0.25, 0.0])


# --- missing edges ---------------------------------------------------------------------


def test_the_weight_of_a_missing_edge_returns_to_both_ends():
    """Star of four, Metropolis: 1/4 an edge. Named twice, an edge fails once."""
    found = Topology.star(4).with_missing([(2, 0), (0, 2), (0, 3)])
    expected = [[0.75, 0.25, 0, 0], [0.25, 0.75, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    np.testing.assert_array_equal(found, expected)


def test_missing_edges_leave_the_topology_as_it_was():
    topology = Topology.star(4)
    topology.with_missing([(0, 1)])[:] = 0.0
    np.testing.assert_array_equal(topology.row(0), np.full(4, 0.25))


@pytest.mark.parametrize(
    ("edge", "message"),
    [
        ((1, 2), "there is no edge between 1 and 2"),
        ((1, 1), "there is no edge between 1 and 1"),
        ((0, 4), "no vertex 4; vertices are 0 … 3"),
        ((-1, 0), "no vertex -1"),
    ],
)
def test_missing_edges_that_are_none(edge, message):
    with pytest.raises(GraphError, match=message):
        Topology.star(4).with_missing([edge])


@pytest.mark.parametrize("method", ["row", "neighbors"])
@pytest.mark.parametrize("vertex", [-1, 4])
def test_vertices_outside_the_graph(method, vertex):
    with pytest.raises(GraphError, match=f"no vertex {vertex}; vertices are 0 … 3"):
        getattr(Topology.star(4), method)(vertex)


# --- what is refused -------------------------------------------------------------------

BAD_GRAPHS = {
    "directed": (nx.DiGraph([(0, 1)]), "undirected; got a directed graph"),
    "empty": (nx.Graph(), "is empty: it has no vertex"),
    "self-loop": (nx.Graph([(0, 1), (1, 1)]), "self-loop at vertex 1"),
    "disconnected": (
        nx.Graph([(0, 1), (2, 3), (3, 4)]),
        r"disconnected: 2 parts that can never agree, the smallest is \[0, 1\]; add an edge",
    ),
    "isolated vertex": (nx.empty_graph(3), "disconnected: 3 parts"),
    "a gap in the vertices": (nx.Graph([(0, 1), (1, 3)]), r"must be 0 … 2, got \[0, 1, 3\]"),
    "vertices from one": (nx.Graph([(1, 2)]), r"must be 0 … 1, got \[1, 2\]"),
}


@pytest.mark.parametrize("case", BAD_GRAPHS)
def test_graphs_that_agents_cannot_sit_on(case):
    graph, message = BAD_GRAPHS[case]
    with pytest.raises(GraphError, match=message):
        Topology(graph)


BAD_BUILDS = {
    "ring of two": (lambda: Topology.ring(2), "ring needs at least 3, got 2; for two agents use"),
    "complete": (lambda: Topology.complete(0), "complete needs at least 1, got 0"),
    "star": (lambda: Topology.star(1), "star needs at least 2, got 1"),
    "path": (lambda: Topology.path(0), "path needs at least 1, got 0"),
    "torus": (lambda: Topology.torus(1, 4), "torus needs at least 2, got 1; for one row use"),
    "bipartite": (lambda: Topology.bipartite(3, 0), "bipartite needs at least 1, got 0"),
    "hypercube": (lambda: Topology.hypercube(0), "hypercube needs at least 1, got 0"),
    "exponential": (lambda: Topology.exponential(1), "exponential needs at least 2, got 1"),
    "probability": (
        lambda: Topology.erdos_renyi(5, 1.5, 0),
        r"erdos_renyi needs a probability in \[0, 1\], got 1.5",
    ),
    "probability NaN": (
        lambda: Topology.small_world(5, 2, float("nan"), 0),
        r"small_world needs a probability in \[0, 1\], got nan",
    ),
    "odd degree sum": (
        lambda: Topology.random_regular(5, 3, 0),
        "even n \\* degree; got n = 5, degree = 3",
    ),
    "degree": (lambda: Topology.random_regular(4, 4, 0), "1 <= degree < n"),
    "small world": (lambda: Topology.small_world(5, 5, 0.1, 0), "2 <= k < n; got n = 5, k = 5"),
    "no seed": (lambda: Topology.erdos_renyi(5, 0.9, None), "a seed that is an integer.*got None"),
    "negative seed": (lambda: Topology.erdos_renyi(5, 0.9, -1), "integer >= 0, got -1"),
    "not connected": (
        lambda: Topology.erdos_renyi(20, 0.02, 1),
        r"erdos-renyi:20:0.02:1: .*disconnected.*or choose another seed or a larger p$",
    ),
    "three ends": (lambda: Topology.from_edges([(0, 1, 2)]), r"pair of vertices, got \(0, 1, 2\)"),
}


@pytest.mark.parametrize("case", BAD_BUILDS)
def test_builders_refuse(case):
    build, message = BAD_BUILDS[case]
    with pytest.raises(GraphError, match=message):
        build()


def test_another_seed_is_no_remedy_for_wrong_weights():
    with pytest.raises(GraphError) as refusal:
        Topology.erdos_renyi(6, 1.0, 1, weights="metropolos")
    assert "did you mean 'metropolis'" in str(refusal.value)
    assert "another seed" not in str(refusal.value)


# --- short texts -----------------------------------------------------------------------

SPECS = {
    "ring:16": Topology.ring(16),
    " ring:5 ": Topology.ring(5),
    "complete:4": Topology.complete(4),
    "star:7": Topology.star(7),
    "path:3": Topology.path(3),
    "torus:3x4": Topology.torus(3, 4),
    "bipartite:2x5": Topology.bipartite(2, 5),
    "hypercube:3": Topology.hypercube(3),
    "exponential:9": Topology.exponential(9),
    "erdos-renyi:12:0.5:7": Topology.erdos_renyi(12, 0.5, 7),
    "random-regular:10:3:2": Topology.random_regular(10, 3, 2),
    "small-world:12:4:0.25:5": Topology.small_world(12, 4, 0.25, 5),
}


@pytest.mark.parametrize("spec", SPECS)
def test_parse_builds_what_the_text_says(spec):
    found = Topology.parse(spec, weights="lazy")
    assert found.edges == SPECS[spec].edges
    assert found.name == SPECS[spec].name == spec.strip()
    expected = (np.eye(len(found)) + SPECS[spec].mixing_matrix) / 2
    np.testing.assert_array_equal(found.mixing_matrix, expected)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("rign:16", "unknown topology 'rign', did you mean 'ring'.*Known: ring,.*or a graph file"),
        ("Ring:16", "did you mean 'ring'"),
        ("erdos_renyi:8:0.3:1", "did you mean 'erdos-renyi'"),
        ("qqq", r"unknown topology 'qqq'\. Known: ring, complete, star"),
        ("", "unknown topology ''"),
        ("ring", "topology 'ring' is not of the form ring:N"),
        ("ring:", "is not of the form ring:N"),
        ("ring:x", "is not of the form ring:N"),
        ("ring:4:4", "is not of the form ring:N"),
        ("ring:4.5", "is not of the form ring:N"),
        ("torus:16", "is not of the form torus:ROWSxCOLUMNS"),
        ("erdos-renyi:16:0.3", "is not of the form erdos-renyi:N:P:SEED"),
        ("erdos-renyi:16:2:1", r"needs a probability in \[0, 1\], got 2.0"),
        ("ring:2", "ring needs at least 3, got 2"),
        ("no/such.edges", "no/such.edges: no such file"),
    ],
)
def test_parse_refuses(spec, message):
    with pytest.raises(GraphError, match=message):
        Topology.parse(spec)
