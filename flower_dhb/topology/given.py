"""Graphs that a user hands in: pairs of vertices, networkx graphs, adjacency matrices."""

from __future__ import annotations

import sys
from collections.abc import Hashable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from flower_dhb.errors import GraphError
from flower_dhb.topology.forms import Plan, check_size
from flower_dhb.topology.rows import connected_parts
from flower_dhb.topology.weights import EdgeWeights, Ends, given_edge_weights

if TYPE_CHECKING:
    import networkx as nx

__all__ = [
    "check_connected",
    "pairs",
    "plan_of_adjacency",
    "plan_of_edges",
    "plan_of_labels",
    "plan_of_networkx",
    "weights_of_networkx",
]


def pairs(edges: Iterable[Any]) -> list[tuple[Any, Any]]:
    """Edges as pairs; raises GraphError that shows the first that is none."""
    try:
        listed = list(edges)
    except TypeError:
        raise GraphError(f"edges are a sequence of pairs of vertices, got {edges!r}") from None
    found = []
    for edge in listed:
        # A text of two letters would pass for a pair of vertices.
        whole = isinstance(edge, Iterable) and not isinstance(edge, str | bytes)
        pair = tuple(edge) if whole else ()
        if len(pair) != 2:
            raise GraphError(f"an edge is a pair of vertices, got {edge!r}")
        found.append(pair)
    return found


def plan_of_edges(edges: Iterable[Any]) -> Plan:
    """Graph of pairs of labels; a pair and its reverse are the same edge."""
    listed = pairs(edges)
    try:
        labels = list(dict.fromkeys(label for edge in listed for label in edge))
    except TypeError as problem:
        raise GraphError(f"a vertex is a number, a text or a tuple of them: {problem}") from None
    return plan_of_labels(labels, listed)


def plan_of_networkx(graph: nx.Graph[Any]) -> Plan:
    """Vertices and edges of a networkx graph; attributes are not looked at."""
    known = sys.modules.get("networkx")  # whoever has a graph of it has loaded it
    if known is None or not isinstance(graph, known.Graph):
        raise GraphError(
            f"a topology is made of a networkx graph, got {type(graph).__name__}; for pairs of "
            "vertices use Topology.from_edges, for a text such as 'ring:8' Topology.parse"
        )
    if graph.is_directed():
        raise GraphError("a communication graph is undirected; got a directed graph")
    check_size("graph", graph.number_of_nodes(), graph.number_of_edges())
    return plan_of_labels(list(graph.nodes()), list(graph.edges()))


def weights_of_networkx(graph: nx.Graph[Any], plan: Plan, attribute: str) -> EdgeWeights:
    """Mixing weights from an attribute of a networkx graph's edges."""
    vertex = {label: v for v, label in enumerate(plan.labels)}
    weights: dict[tuple[int, int], float] = {}
    for a, b, value in graph.edges(data=attribute):
        i, j = sorted((vertex[a], vertex[b]))
        number = isinstance(value, int | float | np.integer | np.floating)
        if not number or isinstance(value, bool):
            raise GraphError(
                f"edge ({a!r}, {b!r}): attribute '{attribute}' must be a number, the mixing "
                f"weight; got {value!r}"
            )
        if (i, j) in weights:
            raise GraphError(f"edge ({a!r}, {b!r}) is there twice, with a weight each")
        weights[i, j] = float(value)
    ends = sorted_ends(plan)
    edge = np.array([weights[int(i), int(j)] for i, j in ends], dtype=np.float64)
    return given_edge_weights(ends, edge, len(plan.labels))


def plan_of_adjacency(matrix: Any, labels: Sequence[Hashable] | None = None) -> Plan:
    """Graph of a symmetric matrix of zeros and ones, dense or sparse, with a zero diagonal."""
    try:
        adjacency = np.asarray(matrix.toarray() if hasattr(matrix, "toarray") else matrix)
    except ValueError as problem:
        raise GraphError(f"an adjacency matrix is (n, n) numbers or bool: {problem}") from None
    if adjacency.dtype.kind not in "biuf" or adjacency.ndim != 2:
        raise GraphError(
            f"an adjacency matrix is (n, n) numbers or bool; got shape {adjacency.shape}, "
            f"{adjacency.dtype}"
        )
    n = len(adjacency)
    if adjacency.shape != (n, n):
        raise GraphError(f"an adjacency matrix is square; got shape {adjacency.shape}")
    if labels is not None and len(labels) != n:
        raise GraphError(
            f"the adjacency matrix has {n} vertices, but there are {len(labels)} labels"
        )
    other = np.argwhere((adjacency != 0) & (adjacency != 1))
    if len(other):
        i, j = other[0]
        raise GraphError(
            f"an adjacency matrix holds 0 and 1; [{i}, {j}] is {adjacency[i, j]}. If it holds "
            "mixing weights, pass the matrix as `weights`, and where it is not 0 as the adjacency"
        )
    uneven = np.argwhere(adjacency != adjacency.T)
    if len(uneven):
        i, j = uneven[0]
        raise GraphError(
            f"a communication graph is undirected: [{i}, {j}] and [{j}, {i}] of the adjacency "
            "matrix differ"
        )
    check_size("adjacency matrix", n, int(np.count_nonzero(adjacency)) // 2)
    names = list(range(n)) if labels is None else list(labels)
    ends = np.argwhere(np.triu(adjacency)).tolist()
    return plan_of_labels(names, [(names[i], names[j]) for i, j in ends])


def check_connected(plan: Plan) -> None:
    """Raises GraphError that names the smallest of the parts if there are several."""
    parts = connected_parts(len(plan.labels), plan.ends)
    counts = np.bincount(parts)
    if len(counts) > 1:
        smallest = [plan.labels[v] for v in np.flatnonzero(parts == counts.argmin())[:8]]
        raise GraphError(
            f"the graph is disconnected: {len(counts)} parts that can never agree, the smallest "
            f"is {smallest}; add an edge between the parts"
        )


def sorted_ends(plan: Plan) -> Ends:
    """Each edge once, i < j, in ascending order."""
    n = len(plan.labels)
    pair = np.sort(plan.ends.reshape(-1, 2), axis=1)
    keys = np.unique(pair[:, 0] * n + pair[:, 1])
    return np.column_stack(np.divmod(keys, n)).astype(np.int64)


def plan_of_labels(labels: list[Any], edges: list[tuple[Any, Any]]) -> Plan:
    """Graph of all labels, each once, and pairs of them; vertices are in the labels' order."""
    if not labels:
        raise GraphError("the communication graph is empty: it has no vertex")
    for a, b, *_ in edges:
        if a == b:
            raise GraphError(
                f"self-loop at vertex {a}; an agent's own weight is the diagonal of the mixing "
                "matrix, not an edge"
            )
    ordered = _ordered(labels)
    check_size("graph", len(ordered), len(edges))
    vertex = {label: v for v, label in enumerate(ordered)}
    ends = np.array([(vertex[a], vertex[b]) for a, b, *_ in edges], dtype=np.int64)
    return Plan(ordered, ends.reshape(-1, 2))


def _ordered(labels: list[Any]) -> tuple[Hashable, ...]:
    """Integers must be 0 … n-1; other labels are sorted, by type first."""
    wrong = next((x for x in labels if isinstance(x, bool | np.bool_ | float) or x is None), None)
    if wrong is not None or None in labels:
        raise GraphError(f"a vertex is an integer, a text or a tuple of them, got {wrong!r}")
    if all(isinstance(label, int | np.integer) for label in labels):
        integers = sorted(int(label) for label in labels)
        if integers != list(range(len(integers))):
            raise GraphError(
                f"integer vertices must be 0 … {len(integers) - 1}, got {integers[:8]} …"
            )
        return tuple(integers)
    try:
        return tuple(sorted(labels, key=lambda label: (str(type(label)), label)))
    except TypeError as problem:
        raise GraphError(f"vertices cannot be put in order: {problem}") from None
