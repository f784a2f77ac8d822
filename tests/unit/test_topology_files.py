"""Graphs from files: edge list, GraphML, JSON node-link; and files that are none."""

import json
import warnings

import networkx as nx
import numpy as np
import pytest

from flower_dhb import GraphError, Topology

GRAPH = nx.Graph([(0, 1), (0, 2), (1, 2), (2, 3), (3, 10), *((i, i + 1) for i in range(3, 10))])
EDGES = tuple(sorted(tuple(sorted(edge)) for edge in GRAPH.edges()))


def write_edge_list(path):
    lines = ["# vertices of one line", *(f"{a} {b}" for a, b in GRAPH.edges()), ""]
    path.write_text("\n".join(lines))


def node_link(edges="edges", directed=False, graph=GRAPH):
    """As networkx writes it; its own function has other arguments in other versions."""
    return {
        "directed": directed,
        "multigraph": False,
        "graph": {},
        "nodes": [{"id": label} for label in graph.nodes()],
        edges: [{"source": a, "target": b, "weight": 0.5} for a, b in graph.edges()],
    }


def write_json(path, **options):
    path.write_text(json.dumps(node_link(**options)))


def test_this_is_how_networkx_writes_it(tmp_path):
    path = tmp_path / "g.json"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some versions announce another default
        path.write_text(json.dumps(nx.node_link_data(GRAPH)))
    assert Topology.load(path).edges == EDGES


FILES = {
    "graph.edges": write_edge_list,
    "graph.txt": write_edge_list,
    "graph.graphml": lambda path: nx.write_graphml(GRAPH, path),
    "graph.xml": lambda path: nx.write_graphml(GRAPH, path),
    "graph.GraphML": lambda path: nx.write_graphml(GRAPH, path),
    "edges.json": lambda path: write_json(path, edges="edges"),
    "links.json": lambda path: write_json(path, edges="links"),
}


@pytest.mark.parametrize("name", FILES)
def test_each_format_gives_the_same_graph(name, tmp_path):
    path = tmp_path / name
    FILES[name](path)
    topology = Topology.load(path)
    assert topology.edges == EDGES
    assert topology.labels == tuple(range(11))
    assert topology.name == path.stem


def test_an_edge_list_may_hold_comments_commas_blank_lines_and_names(tmp_path):
    path = tmp_path / "sites.csv"
    path.write_text("# sites\nrome, oslo  # by cable\n\n  rome bonn\n")
    topology = Topology.load(path)
    assert topology.labels == ("bonn", "oslo", "rome")
    assert topology.edges == ((0, 2), (1, 2))


def test_a_byte_order_mark_is_no_part_of_the_first_vertex(tmp_path):
    path = tmp_path / "graph.txt"
    path.write_text("\ufeff0 1\n0 2\n", encoding="utf-8")
    assert Topology.load(path).edges == ((0, 1), (0, 2))


def test_load_and_parse_take_weights(tmp_path):
    path = tmp_path / "graph.edges"
    write_edge_list(path)
    for topology in (Topology.load(path, "lazy"), Topology.parse(str(path), "lazy")):
        # Vertex 0 has degree 2, its neighbors 2 and 3: half of 1/3 and of 1/4.
        np.testing.assert_allclose(topology.row(0)[1:3], [1 / 6, 1 / 8], rtol=1e-15)


JSON_LIST, JSON_NUMBER = "[1, 2]", "7"


def document(**changes):
    return json.dumps({"nodes": [{"id": 0}, {"id": 1}], "edges": [], **changes})


EDGE = {"source": 0, "target": 1}
BAD_FILES = {
    "three fields": ("g.txt", "0 1\n1 2 0.5\n", "line 2: expected two vertices, got '1 2 0.5'"),
    "one field": ("g.txt", "0 1\n2\n", "line 2: expected two vertices, got '2'"),
    "empty": ("g.txt", "# nothing\n", "the communication graph is empty"),
    "disconnected": ("g.txt", "0 1\n2 3\n", "the graph is disconnected"),
    "self-loop": ("g.txt", "0 1\n1 1\n", "self-loop at vertex 1"),
    "from one": ("g.txt", "1 2\n2 3\n", "integer vertices must be 0 … 2"),
    "same integer": ("g.txt", "0 1\n1 2\n2 01\n", "two labels are the same integer"),
    "binary": ("g.txt", b"\xff\xfe\x00", "not a readable graph file"),
    "not XML": ("g.graphml", "0 1\n", "not a readable graph file"),
    "other XML": ("g.xml", "<a></a>", "not a readable graph file"),
    "not JSON": ("g.json", "{", "not a readable graph file"),
    "JSON list": ("g.json", JSON_LIST, "expected an object with .nodes. and .edges."),
    "JSON number": ("g.json", JSON_NUMBER, "expected an object with .nodes. and .edges."),
    "JSON without nodes": ("g.json", '{"edges": []}', "not a readable graph file"),
    "directed": ("g.json", document(directed=True), "undirected; got a directed graph"),
    "directed GraphML": (
        "g.graphml",
        "\n".join(nx.generate_graphml(nx.path_graph(3, nx.DiGraph))),
        "undirected; got a directed graph",
    ),
    "no edges": ("g.json", '{"nodes": []}', "one list, 'edges' or 'links'"),
    "two lists of edges": ("g.json", document(links=[]), "one list, 'edges' or 'links'"),
    "edges by number": ("g.json", document(edges=2), "expected a list 'edges', got 2"),
    "a stranger": ("g.json", document(edges=[{**EDGE, "target": 7}]), "names 7, which is no node"),
    "half an edge": ("g.json", document(edges=[{"source": 0}]), "'edges', entry 0: expected an"),
    "an edge as a list": ("g.json", document(edges=[[0, 1]]), "'source' and 'target', integers"),
    "a node twice": ("g.json", document(nodes=[{"id": 0}] * 2), "two nodes have the id 0"),
    "a node without id": ("g.json", document(nodes=[{}]), "'nodes', entry 0: expected an object"),
    "a node that is true": ("g.json", document(nodes=[{"id": True}]), "integers or texts; got"),
    "a node that is NaN": ("g.json", document(nodes=[{"id": float("nan")}]), "integers or texts"),
    "a node that is a list": ("g.json", document(nodes=[{"id": [1]}]), "integers or texts"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_files_are_refused_by_name(case, tmp_path):
    name, content, message = BAD_FILES[case]
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(GraphError, match=message) as refusal:
        Topology.load(path)
    assert str(refusal.value).startswith(f"{path}: ")


def test_no_such_file(tmp_path):
    with pytest.raises(GraphError, match=r"absent\.json: no such file"):
        Topology.load(tmp_path / "absent.json")
