"""Graph files: GraphML, JSON node-link, and edge lists, through networkx."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import networkx as nx

from flower_dhb.errors import GraphError

__all__ = ["read_graph"]


def read_graph(path: Path) -> nx.Graph[Any]:
    """Graph of a file, by its ending; labels are integers where all of them are.

    Raises GraphError that names the file if there is none, or it cannot be read.
    """
    try:
        return _integer_labels(_READERS.get(path.suffix.lower(), _read_edge_list)(path))
    except FileNotFoundError:
        raise GraphError(f"{path}: no such file") from None
    except Exception as error:  # each reader raises its own kinds
        raise GraphError(f"{path}: not a readable graph file: {error}") from error


def _read_edge_list(path: Path) -> nx.Graph[Any]:
    # A line with one vertex would silently lose an agent, so lines are checked here.
    graph: nx.Graph[Any] = nx.Graph()
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), start=1):
        fields = line.partition("#")[0].replace(",", " ").split()
        if not fields:
            continue
        if len(fields) != 2:
            raise ValueError(f"line {number}: expected two vertices, got {line.strip()!r}")
        graph.add_edge(*fields)
    return graph


def _read_json(path: Path) -> nx.Graph[Any]:
    # networkx names the lists of this format differently from version to version, and
    # adds vertices that only an edge names.
    document = json.loads(path.read_text(encoding="utf-8-sig"))
    if not isinstance(document, dict):
        raise ValueError("expected an object with 'nodes' and 'edges' (or 'links')")
    if document.get("directed"):
        raise ValueError("a communication graph is undirected; got a directed graph")
    if ("edges" in document) == ("links" in document):
        raise ValueError("expected the edges as one list, 'edges' or 'links'")
    graph: nx.Graph[Any] = nx.Graph()
    for node in _objects(document, "nodes", ("id",)):
        if node["id"] in graph:
            raise ValueError(f"two nodes have the id {node['id']!r}")
        graph.add_node(node["id"])
    name = "edges" if "edges" in document else "links"
    for edge in _objects(document, name, ("source", "target")):
        for end in (edge["source"], edge["target"]):
            if end not in graph:
                raise ValueError(f"an edge names {end!r}, which is no node")
        graph.add_edge(edge["source"], edge["target"])
    return graph


def _objects(document: dict[str, Any], name: str, keys: tuple[str, ...]) -> list[dict[str, Any]]:
    """A list of objects whose `keys` are integers or texts."""
    found = document.get(name)
    if not isinstance(found, list):
        raise ValueError(f"expected a list '{name}', got {found!r}")
    for position, item in enumerate(found):
        values = [item.get(key) if isinstance(item, dict) else None for key in keys]
        if not all(isinstance(v, int | str) and not isinstance(v, bool) for v in values):
            wanted = " and ".join(f"'{key}'" for key in keys)
            raise ValueError(
                f"'{name}', entry {position}: expected an object with {wanted}, integers or "
                f"texts; got {item!r}"
            )
    return found


def _integer_labels(graph: nx.Graph[Any]) -> nx.Graph[Any]:
    """Files hold text: turn labels into integers where all of them are."""
    if all(str(label).isdecimal() for label in graph.nodes()):
        integers = {label: int(label) for label in graph.nodes()}
        if len(set(integers.values())) < len(integers):
            raise ValueError("two labels are the same integer, such as '1' and '01'")
        graph = nx.relabel_nodes(graph, integers)
    return graph


_READERS: dict[str, Callable[[Path], nx.Graph[Any]]] = {
    ".graphml": nx.read_graphml,
    ".xml": nx.read_graphml,
    ".json": _read_json,
}
