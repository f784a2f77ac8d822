"""Where the vertices of a communication graph are drawn, so that a person can read it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from flower_dhb.extras import load

if TYPE_CHECKING:
    from flower_dhb.topology.graph import Topology

__all__ = ["Places", "on_circle", "places", "wrapped_edges"]

Places: TypeAlias = NDArray[np.float64]  # (n, 2), within [-1, 1] x [-1, 1]
Plan: TypeAlias = Callable[[int, tuple[int, ...]], Places]

_CAREFUL_UP_TO = 80  # agents; loosening the drawing of more takes seconds
_TRIES = 1000


def places(topology: Topology) -> Places:
    """Positions of all vertices, `(n, 2)` within the square from -1 to 1.

    Regular graphs have the shape of their name; all others are laid out so that no
    vertex lies on another or on an edge that is not its own.
    """
    planned = _planned(topology)
    return _fitted(planned if planned is not None else _free(topology))


def on_circle(topology: Topology) -> bool:
    """Whether the vertices lie on a circle in their order."""
    return topology.kind in _CIRCULAR


def wrapped_edges(topology: Topology) -> Mapping[tuple[int, int], tuple[int, int]]:
    """Edges of a torus that leave the grid at one side and come back at the other.

    By edge: the direction `(right, up)` in which it leaves its first vertex.
    """
    if topology.kind != "torus":
        return {}
    columns = topology.sizes[1]
    wrapped = {}
    for a, b in topology.edges:
        (row_a, column_a), (row_b, column_b) = divmod(a, columns), divmod(b, columns)
        if column_b - column_a > 1:
            wrapped[a, b] = (-1, 0)
        elif row_b - row_a > 1:
            wrapped[a, b] = (0, 1)
    return wrapped


def _planned(topology: Topology) -> Places | None:
    plan = _PLANS.get(topology.kind)
    return plan(topology.n_agents, topology.sizes) if plan is not None else None


def _circle(n: int, sizes: tuple[int, ...]) -> Places:  # noqa: ARG001
    angles = np.pi / 2 - 2 * np.pi * np.arange(n) / n
    return np.column_stack([np.cos(angles), np.sin(angles)])


def _star(n: int, sizes: tuple[int, ...]) -> Places:
    return np.vstack([np.zeros((1, 2)), _circle(n - 1, sizes)])


def _line(n: int, sizes: tuple[int, ...]) -> Places:  # noqa: ARG001
    # Long lines go to and fro, like writing that turns at each end.
    width = n if n <= 10 else int(np.ceil(np.sqrt(n)))
    rows, columns = np.divmod(np.arange(n), width)
    columns = np.where(rows % 2, width - 1 - columns, columns)
    return np.column_stack([columns, -rows]).astype(np.float64)


def _grid(n: int, sizes: tuple[int, ...]) -> Places:
    rows, columns = np.divmod(np.arange(n), sizes[1])
    return np.column_stack([columns, -rows]).astype(np.float64)


def _two_sides(n: int, sizes: tuple[int, ...]) -> Places:  # noqa: ARG001
    sides = []
    for x, size in zip((-1.0, 1.0), sizes, strict=True):
        y = np.linspace(1.0, -1.0, size) if size > 1 else np.zeros(1)
        sides.append(np.column_stack([np.full(size, x), y]))
    return np.vstack(sides)


def _cube(n: int, sizes: tuple[int, ...]) -> Places:
    dimension = sizes[0]
    digits = (np.arange(n)[:, None] >> np.arange(dimension)[::-1]) & 1
    edges = tuple((v, v | 1 << k) for v in range(n) for k in range(dimension) if not v >> k & 1)
    angles = np.pi * np.arange(dimension) / dimension
    # One direction per binary digit. Directions of equal length are the prettiest, but in
    # some dimensions they put opposite corners onto each other.
    drawings = []
    for growth in (0.0, 0.2, 0.4, 0.6, 0.9, 1.3):
        lengths = 1.0 + growth * np.arange(dimension) / max(dimension - 1, 1)
        steps = lengths[:, None] * np.column_stack([np.cos(angles), -np.sin(angles)])
        drawings.append(_fitted(np.asarray(digits @ steps, np.float64)))
    return max(drawings, key=lambda p: _clearance(p, edges)[0])


_CIRCULAR = ("ring", "complete", "exponential", "small-world", "random-regular")
_PLANS: dict[str, Plan] = {
    **dict.fromkeys(_CIRCULAR, _circle),
    "star": _star,
    "path": _line,
    "torus": _grid,
    "bipartite": _two_sides,
    "hypercube": _cube,
}


def _free(topology: Topology) -> Places:
    """A drawing by distances in the graph, then loosened where things are too close."""
    n = topology.n_agents
    load("scipy", what := "a drawing of a graph without a form")  # networkx lays out with it
    nx = load("networkx", what)
    graph = nx.empty_graph(n)
    graph.add_edges_from(topology.edges)
    if n > _CAREFUL_UP_TO:
        return _array(nx.spring_layout(graph, seed=0))
    drawing = _fitted(_array(nx.kamada_kawai_layout(graph)))
    if n < 3:
        return drawing
    rng = np.random.default_rng(0)
    clearance, tightest = _clearance(drawing, topology.edges)
    for _ in range(_TRIES):
        moved = drawing.copy()
        moved[rng.choice(tightest)] += rng.normal(scale=0.12, size=2)
        moved = _fitted(moved)
        wider, places_now = _clearance(moved, topology.edges)
        if wider > clearance:
            drawing, clearance, tightest = moved, wider, places_now
    return drawing


def _array(drawing: Mapping[int, NDArray[np.float64]]) -> Places:
    return np.array([drawing[v] for v in range(len(drawing))], dtype=np.float64)


def _fitted(p: Places) -> Places:
    """Centered, and as large as the square allows without distortion."""
    low, high = p.min(axis=0), p.max(axis=0)
    return np.asarray((p - (low + high) / 2) * (2.0 / max((high - low).max(), 1e-9)), np.float64)


def _clearance(p: Places, edges: tuple[tuple[int, int], ...]) -> tuple[float, list[int]]:
    """Smallest distance of a vertex from another and (twice) from an edge not its own.

    With it, the two or three vertices that are this close.
    """
    apart = np.linalg.norm(p[:, None] - p[None], axis=2)
    np.fill_diagonal(apart, np.inf)
    i, j = np.unravel_index(int(apart.argmin()), apart.shape)
    nearest, tightest = float(apart[i, j]), [int(i), int(j)]
    if edges:
        ends = np.array(edges)
        begin, along = p[ends[:, 0]], p[ends[:, 1]] - p[ends[:, 0]]
        offset = p[None] - begin[:, None]
        squared = np.maximum((along**2).sum(axis=1), 1e-12)[:, None]
        share = np.clip((offset * along[:, None]).sum(axis=2) / squared, 0.0, 1.0)
        away = 2.0 * np.linalg.norm(offset - share[..., None] * along[:, None], axis=2)
        np.put_along_axis(away, ends, np.inf, axis=1)
        edge, vertex = np.unravel_index(int(away.argmin()), away.shape)
        if away[edge, vertex] < nearest:
            nearest = float(away[edge, vertex])
            tightest = [int(vertex), *(int(end) for end in ends[edge])]
    return nearest, tightest
