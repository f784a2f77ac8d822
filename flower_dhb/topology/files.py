"""Graph files: JSON node-link and edge lists, and GraphML through networkx."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

from flower_dhb.errors import ConfigError, GraphError
from flower_dhb.extras import load

__all__ = ["read_graph"]

Labelled: TypeAlias = tuple[list[Any], list[tuple[Any, Any]]]  # labels, and pairs of them


def read_graph(path: Path) -> Labelled:
    """Labels and edges of a file, by its ending; labels are integers where all of them are.

    Raises GraphError that names the file if there is none, or it cannot be read, and
    ConfigError if it is GraphML and networkx is not installed.
    """
    try:
        return _integer_labels(_READERS.get(path.suffix.lower(), _read_edge_list)(path))
    except FileNotFoundError:
        raise GraphError(f"{path}: no such file") from None
    except (ConfigError, GraphError):
        raise
    except Exception as error:  # each reader raises its own kinds
        raise GraphError(f"{path}: not a readable graph file: {error}") from error


def _read_edge_list(path: Path) -> Labelled:
    # A line with one vertex would silently lose an agent, so lines are checked here.
    edges: list[tuple[str, str]] = []
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), start=1):
        fields = line.partition("#")[0].replace(",", " ").split()
        if not fields:
            continue
        if len(fields) != 2:
            raise ValueError(f"line {number}: expected two vertices, got {line.strip()!r}")
        edges.append((fields[0], fields[1]))
    return list(dict.fromkeys(label for edge in edges for label in edge)), _once(edges)


def _read_json(path: Path) -> Labelled:
    # networkx names the lists of this format differently from version to version.
    document = json.loads(path.read_text(encoding="utf-8-sig"))
    if not isinstance(document, dict):
        raise ValueError("expected an object with 'nodes' and 'edges' (or 'links')")
    if document.get("directed"):
        raise ValueError("a communication graph is undirected; got a directed graph")
    if ("edges" in document) == ("links" in document):
        raise ValueError("expected the edges as one list, 'edges' or 'links'")
    labels: dict[Any, None] = {}
    for node in _objects(document, "nodes", ("id",)):
        if node["id"] in labels:
            raise ValueError(f"two nodes have the id {node['id']!r}")
        labels[node["id"]] = None
    edges = []
    name = "edges" if "edges" in document else "links"
    for edge in _objects(document, name, ("source", "target")):
        for end in (edge["source"], edge["target"]):
            if end not in labels:
                raise ValueError(f"an edge names {end!r}, which is no node")
        edges.append((edge["source"], edge["target"]))
    return list(labels), _once(edges)


def _read_graphml(path: Path) -> Labelled:
    graph = load("networkx", "a GraphML file").read_graphml(path)
    if graph.is_directed():
        raise GraphError(f"{path}: a communication graph is undirected; got a directed graph")
    return list(graph.nodes()), _once(list(graph.edges()))


def _once(edges: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """Each edge once: a pair and its reverse are the same one."""
    return list({frozenset(edge): edge for edge in edges}.values())


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


def _integer_labels(graph: Labelled) -> Labelled:
    """Files hold text: turn labels into integers where all of them are."""
    labels, edges = graph
    if not all(str(label).isdecimal() for label in labels):
        return graph
    integers = {label: int(label) for label in labels}
    if len(set(integers.values())) < len(integers):
        raise ValueError("two labels are the same integer, such as '1' and '01'")
    return list(integers.values()), [(integers[a], integers[b]) for a, b in edges]


_READERS: dict[str, Callable[[Path], Labelled]] = {
    ".graphml": _read_graphml,
    ".xml": _read_graphml,
    ".json": _read_json,
}
