"""Communication graphs: the builders, their names, and what is refused."""

from math import comb

import networkx as nx
import numpy as np
import pytest
import scipy.sparse

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
    "small world": (lambda: Topology.small_world(5, 6, 0.1, 0), "2 <= k < n, .*got n = 5, k = 6"),
    "no seed": (lambda: Topology.erdos_renyi(5, 0.9, None), "a seed that is an integer.*got None"),
    "negative seed": (lambda: Topology.erdos_renyi(5, 0.9, -1), "integer >= 0, got -1"),
    "not connected": (
        lambda: Topology.erdos_renyi(20, 0.02, 1),
        r"erdos-renyi:20:0.02:1: .*disconnected.*or choose another seed or a larger p$",
    ),
    "odd k": (
        lambda: Topology.small_world(12, 3, 0.1, 0),
        "an even k with 2 <= k < n, k / 2 neighbors on each side; got n = 12, k = 3",
    ),
    "a float": (lambda: Topology.ring(8.0), "ring: the number of agents must be an integer, got 8"),
    "a text": (
        lambda: Topology.ring("8"),
        "ring: the number of agents must be an integer, got '8'",
    ),
    "a bool": (lambda: Topology.star(True), "star: the number of agents must be an integer"),
    "bool degree": (lambda: Topology.random_regular(4, True, 0), "degree must be an integer"),
    "bool seed": (lambda: Topology.erdos_renyi(5, 0.9, True), "integer >= 0, got True"),
    "bool probability": (lambda: Topology.erdos_renyi(5, True, 0), r"in \[0, 1\], got True"),
    "text probability": (lambda: Topology.erdos_renyi(5, "0.5", 0), r"in \[0, 1\], got '0.5'"),
    "float columns": (lambda: Topology.torus(4, 4.0), "torus: the number of columns must be"),
    "no pairs": (lambda: Topology.from_edges([1, 2]), "an edge is a pair of vertices, got 1"),
    "texts": (lambda: Topology.from_edges(["ab", "bc"]), "an edge is a pair of vertices, got 'ab'"),
    "no sequence": (lambda: Topology.from_edges(8), "sequence of pairs of vertices, got 8"),
    "lists": (lambda: Topology.from_edges([([0], [1])]), "a vertex is a number, a text or a tuple"),
    "bools": (lambda: Topology.from_edges([(True, 2)]), "a vertex is an integer.*got True"),
    "NaN": (lambda: Topology.from_edges([(float("nan"), 2)]), "a vertex is an integer.*got nan"),
    "floats": (lambda: Topology.from_edges([(0.0, 1)]), "a vertex is an integer.*got 0.0"),
    "nothing": (lambda: Topology.from_edges([(None, 1)]), "a vertex is an integer.*got None"),
    "no order": (
        lambda: Topology.from_edges([((0, "a"), ("b", 1))]),
        "vertices cannot be put in order",
    ),
    "no graph": (lambda: Topology("ring:8"), "made of a networkx graph, got str.*Topology.parse"),
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
    assert found.name == SPECS[spec].name == spec
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


@pytest.mark.parametrize(
    "spec",
    [
        *("ring:1_6", " ring:8", "ring:8 ", "ring: 8", "ring:+8", "ring:-8", "ring:٨", "ring:8\n"),
        *("torus:4:4", "torus:4x4x4", "torus:4X4", "bipartite:2:5", "erdos-renyi:8x0.5x1"),
        *(
            "erdos-renyi:8:nan:1",
            "erdos-renyi:8:0.5:-1",
            "erdos-renyi:8:0_1:1",
            "ring:" + "9" * 5000,
        ),
    ],
)
def test_parse_takes_no_text_that_is_merely_like_its_form(spec):
    kind = spec.strip().partition(":")[0]
    with pytest.raises(GraphError, match=rf"is not of the form {kind}:|unknown topology ' ring'"):
        Topology.parse(spec)


@pytest.mark.parametrize("spec", [8, None, b"ring:8"])
def test_parse_takes_texts_only(spec):
    with pytest.raises(GraphError, match="a topology is a text such as 'ring:8'"):
        Topology.parse(spec)


@pytest.mark.parametrize("spec", SPECS)
def test_the_number_of_agents_is_known_without_building(spec):
    assert Topology.count(spec) == SPECS[spec].n_agents


def test_the_number_of_agents_of_a_file(tmp_path):
    (tmp_path / "g.edges").write_text("0 1\n1 2\n")
    assert Topology.count(str(tmp_path / "g.edges")) == 3
    with pytest.raises(GraphError, match="did you mean 'ring'"):
        Topology.count("rign:8")


# --- tuples, as networkx names the vertices of a grid ------------------------------------


@pytest.mark.parametrize("sides", [(2, 3), (3, 11), (11, 12)])
def test_a_torus_has_the_neighbors_of_its_grid(sides):
    """Sides of two digits: 10 comes after 9, not after 1."""
    rows, columns = sides
    torus = Topology.torus(rows, columns)
    assert torus.labels == tuple((r, c) for r in range(rows) for c in range(columns))
    for r in range(rows):
        for c in range(columns):
            around = {((r + 1) % rows, c), ((r - 1) % rows, c)}
            around |= {(r, (c + 1) % columns), (r, (c - 1) % columns)}
            found = torus.neighbors(r * columns + c)
            assert found == tuple(sorted(a * columns + b for a, b in around))
    grid = Topology(nx.grid_2d_graph(rows, columns, periodic=True))
    assert (grid.labels, grid.edges) == (torus.labels, torus.edges)


def test_a_vertex_of_a_hypercube_is_the_number_of_its_digits():
    cube = Topology.hypercube(3)
    assert cube.labels[6] == (1, 1, 0)
    assert (cube.labels, cube.edges) == (
        Topology(nx.hypercube_graph(3)).labels,
        Topology(nx.hypercube_graph(3)).edges,
    )


# --- other libraries' graphs -------------------------------------------------------------


def test_networkx_and_back():
    roads = nx.Graph([("oslo", "rome"), ("rome", "bonn"), ("bonn", "oslo"), ("rome", "wien")])
    topology = Topology.from_networkx(roads, "lazy", name="roads")
    assert (topology.name, topology.labels) == ("roads", ("bonn", "oslo", "rome", "wien"))
    assert topology.edges == ((0, 1), (0, 2), (1, 2), (2, 3))
    back = topology.to_networkx()
    assert back.name == "roads"
    assert nx.utils.graphs_equal(nx.Graph(back.edges()), nx.Graph(roads.edges()))
    assert back.nodes["rome"] == {"vertex": 2}
    assert back.edges["rome", "wien"] == {"weight": topology.mixing_matrix[2, 3]}
    again = Topology.from_networkx(back, attribute="weight")
    assert again.labels == topology.labels
    # Own weights are 1 minus a sum there, half of one more than that here.
    np.testing.assert_allclose(again.mixing_matrix, topology.mixing_matrix, rtol=0, atol=1e-15)


def weighted(*values):
    graph = nx.MultiGraph() if len(values) > 2 else nx.Graph()
    for value, edge in zip(values, [(0, 1), (1, 2), (2, 1)], strict=False):
        graph.add_edge(*edge, **({} if value is None else {"w": value}))
    return graph


def test_weights_of_edges_by_hand():
    topology = Topology.from_networkx(weighted(0.5, 0.25), attribute="w")
    expected = [[0.5, 0.5, 0.0], [0.5, 0.25, 0.25], [0.0, 0.25, 0.75]]
    np.testing.assert_array_equal(topology.mixing_matrix, expected)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((0.5, None), r"edge \(1, 2\): attribute 'w' must be a number.*got None"),
        ((0.5, "0.5"), "must be a number, the mixing weight; got '0.5'"),
        ((0.5, True), "got True"),
        ((0.5, float("nan")), "must be finite"),
        ((0.5, 0.0), "is the graph connected by nonzero weights"),
        ((0.5, -0.25), "second largest absolute eigenvalue is .*must be below 1"),
        ((0.25, 0.25, 0.25), "is there twice, with a weight each"),
    ],
)
def test_weights_of_edges_that_do_not_mix(values, message):
    with pytest.raises(GraphError, match=message):
        Topology.from_networkx(weighted(*values), attribute="w")


def test_weights_come_from_one_place():
    with pytest.raises(GraphError, match="either weights or an attribute of edges, 'w'"):
        Topology.from_networkx(weighted(0.5, 0.25), "lazy", attribute="w")


@pytest.mark.parametrize("kind", [np.array, list, scipy.sparse.csr_array])
def test_an_adjacency_matrix(kind):
    square = [[0, 1, 0, 1], [1, 0, 1, 0], [0, 1, 0, 1], [1, 0, 1, 0]]
    topology = Topology.from_adjacency(kind(square), "uniform", name="square")
    assert topology.edges == Topology.ring(4).edges
    assert topology.labels == (0, 1, 2, 3)
    np.testing.assert_array_equal(topology.adjacency, np.array(square, dtype=bool))
    named = Topology.from_adjacency(kind(square), labels=["d", "c", "b", "a"])
    assert named.labels == ("a", "b", "c", "d")
    assert named.neighbors(0) == (1, 3)  # a: d and b


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        ([[0, 1], [0, 0]], r"undirected: \[0, 1\] and \[1, 0\] of the adjacency matrix differ"),
        ([[1, 1], [1, 0]], "self-loop at vertex 0"),
        ([[0, 0.5], [0.5, 0]], r"holds 0 and 1; \[0, 1\] is 0.5. If it holds mixing weights"),
        ([[0, np.nan], [np.nan, 0]], r"\[0, 1\] is nan"),
        ([[0, 1, 0], [1, 0, 0]], r"is square; got shape \(2, 3\)"),
        ([0, 1], r"got shape \(2,\)"),
        ([["0", "1"], ["1", "0"]], "numbers or bool"),
        ([[0, 1, 0], [1, 0, 0], [0, 0, 0]], r"disconnected: 2 parts.*smallest is \[2\]"),
        ([[0, 1], [1]], "an adjacency matrix is"),
        (np.zeros((0, 0)), "the communication graph is empty"),
    ],
)
def test_adjacency_matrices_that_are_none(matrix, message):
    with pytest.raises(GraphError, match=message):
        Topology.from_adjacency(matrix)


def test_a_label_for_each_row():
    with pytest.raises(GraphError, match="has 2 vertices, but there are 3 labels"):
        Topology.from_adjacency([[0, 1], [1, 0]], labels="abc")


# --- identity ----------------------------------------------------------------------------


def test_a_digest_is_of_numbers_and_not_of_names():
    ring = Topology.ring(6)
    same = Topology.from_edges(ring.edges, np.array(ring.mixing_matrix), name="other")
    named = Topology.from_edges([("abcdef"[a], "abcdef"[b]) for a, b in ring.edges])
    assert ring.digest == same.digest == named.digest == Topology.ring(6).digest
    slightly = np.array(ring.mixing_matrix)
    slightly[[0, 1], [1, 0]] += 2**-52
    slightly[[0, 1], [0, 1]] -= 2**-52
    moved = [(0, 2), *ring.edges[1:]]  # the same degrees are not the same graph
    others = [
        Topology.ring(7),
        Topology.ring(6, "lazy"),
        Topology.from_edges(moved),
        Topology.from_edges(ring.edges, slightly),
    ]
    assert len({ring.digest, *(other.digest for other in others)}) == 5


# --- size --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Topology.parse("hypercube:40"), "hypercube: 1,099,511,627,776 agents are too"),
        (lambda: Topology.hypercube(10**9), "hypercube: more than 2.63 agents are too many"),
        (lambda: Topology.ring(20_001), "ring: 20,001 agents are too many; .* at most 20,000"),
        (lambda: Topology.complete(2_001), "complete: 2,001,000 edges are too many.*2,000,000"),
        (lambda: Topology.torus(10**6, 10**6), "torus: 1,000,000,000,000 agents"),
        (lambda: Topology.bipartite(5_000, 5_000), "bipartite: 25,000,000 edges"),
        (lambda: Topology.exponential(10**12), "exponential: 1,000,000,000,000 agents"),
        (lambda: Topology.erdos_renyi(10_000, 0.9, 0), "erdos_renyi: 44,995,500 edges"),
        (lambda: Topology.random_regular(10**6, 4, 0), "random_regular: 1,000,000 agents"),
        (lambda: Topology.small_world(10**6, 4, 0.1, 0), "small_world: 1,000,000 agents"),
        (lambda: Topology.star(10**9), "star: 1,000,000,000 agents"),
        (lambda: Topology.path(10**9), "path: 1,000,000,000 agents"),
        (lambda: Topology(nx.empty_graph(20_001)), "graph: 20,001 agents are too many"),
    ],
)
@pytest.mark.timeout(10)
def test_graphs_that_are_too_large_are_refused_before_they_are_built(build, message):
    with pytest.raises(GraphError, match=message):
        build()


def test_thousands_of_agents_need_no_matrix_of_millions():
    """Built, checked and asked for rows, a large graph never forms its dense matrix."""
    for topology in (
        Topology.ring(5_000),
        Topology.torus(100, 100),
        Topology.small_world(3_000, 4, 0.1, 1),
    ):
        assert -1.0 < topology.smallest_eigenvalue < -0.3
        assert 0.0 < topology.spectral_gap < 0.02
        assert len(topology.neighbors(7)) >= 2
        assert topology.row(7).sum() == pytest.approx(1.0)
        assert not {"mixing_matrix", "adjacency", "eigenvalues"} & set(vars(topology))


def test_random_graphs_are_those_of_networkx():
    for seed in (0, 3, 2**33 + 5):
        graph = nx.gnp_random_graph(25, 0.3, seed=seed)
        assert Topology.erdos_renyi(25, 0.3, seed).edges == tuple(sorted(graph.edges()))
