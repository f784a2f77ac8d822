"""Graphs from files: edge list, GraphML, JSON node-link; and files that are none."""

import json

import networkx as nx
import numpy as np
import pytest

from flower_dhb import GraphError, Topology

GRAPH = nx.Graph([(0, 1), (0, 2), (1, 2), (2, 3), (3, 10), *((i, i + 1) for i in range(3, 10))])
EDGES = tuple(sorted(tuple(sorted(edge)) for edge in GRAPH.edges()))


def write_edge_list(path):
    lines = ["# vertices of one line", *(f"{a} {b}" for a, b in GRAPH.edges()), ""]
    path.write_text("\n".join(lines))


def write_json(path, **options):
    path.write_text(json.dumps(nx.node_link_data(GRAPH, **options)))


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
DIRECTED = json.dumps(nx.node_link_data(nx.DiGraph([(0, 1)]), edges="edges"))
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
    "JSON list": ("g.json", JSON_LIST, "not a readable graph file"),
    "JSON number": ("g.json", JSON_NUMBER, "not a readable graph file"),
    "JSON without nodes": ("g.json", '{"edges": []}', "not a readable graph file"),
    "directed": ("g.json", DIRECTED, "undirected; got a directed graph"),
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
