"""Figures of communication graphs: vertices, edges, mixing weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from flower_dhb.extras import needs_extra
from flower_dhb.figures.positions import on_circle, places, wrapped_edges
from flower_dhb.figures.style import INK, MAIN, MUTED, SECOND, STYLE
from flower_dhb.topology.graph import Topology
from flower_dhb.topology.turns import Graphs

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draw"]

_NAMED_UP_TO = 64  # agents; more names than that are too small to read


def draw(graph: Graphs) -> Figure:
    """Draw a communication graph; an edge is as strong as its mixing weight.

    Of graphs that take turns all edges are drawn, as strong as their mean weight.

    Dashed edges have negative weight. The number in a vertex is its name. An edge of a
    torus that wraps around ends in the name of the vertex that it leads to.

    Returns a matplotlib figure: `draw(graph).savefig("graph.png")`. Raises ConfigError that
    names the `plot` extra where matplotlib is not installed.
    """
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError as error:
        raise needs_extra("a picture", "plot") from error
    topology = graph.together
    n = topology.n_agents
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 6.9))
        axes = figure.add_axes((0.02, 0.01, 0.96, 0.89))
        axes.set_axis_off()
        axes.set_aspect("equal")
        axes.set(xlim=(-1.15, 1.15), ylim=(-1.15, 1.15))
        xy = places(topology)
        wrapped, circle = wrapped_edges(topology), on_circle(topology)
        if wrapped:
            xy = xy * 0.82
        weights = np.array([topology.mixing_matrix[a, b] for a, b in topology.edges])
        strength = np.abs(weights) / max(np.abs(weights).max(initial=0.0), 1e-12)
        for (a, b), weight, strong in zip(topology.edges, weights, strength, strict=True):
            style: dict[str, Any] = {
                "color": MAIN if weight >= 0 else SECOND,
                "linestyle": "-" if weight >= 0 else (0, (4, 2.5)),
                "linewidth": 0.6 + 2.4 * strong * min(1.0, 40 / max(len(weights), 1)),
                "alpha": 0.25 + 0.55 * strong,
                "zorder": 1,
                "solid_capstyle": "round",
            }
            if (a, b) in wrapped:
                _stubs(axes, xy, (a, b), wrapped[a, b], style)
            else:
                points = _line(xy[a], xy[b], bent=circle and 1 < b - a < n - 1)
                axes.plot(points[:, 0], points[:, 1], **style)
        _vertices(axes, xy)
        _titles(figure, topology, weights, graph.spectral_gap)
        return figure


def _titles(figure: Figure, topology: Topology, weights: Any, gap: float) -> None:
    about = f"{topology.n_agents} agents, {len(topology.edges)} edges, spectral gap {gap:.3g}"
    if len(weights):
        about += f", mixing weights {_range(weights)}"
    if (weights < 0).any():
        about += " (dashed: negative)"
    figure.text(0.04, 0.955, topology.name, color=INK, fontsize=14, fontweight="bold")
    figure.text(0.04, 0.918, about, color=MUTED, fontsize=9.5)


def _vertices(axes: Any, xy: Any) -> None:
    n = len(xy)
    size = min(520.0, 9000.0 / n)
    axes.scatter(xy[:, 0], xy[:, 1], s=size, c="white", edgecolors=INK, linewidths=1.2, zorder=2)
    if n <= _NAMED_UP_TO:
        for vertex, (x, y) in enumerate(xy):
            axes.text(
                x,
                y,
                str(vertex),
                ha="center",
                va="center",
                color=INK,
                zorder=3,
                fontsize=_name_size(n),
            )


def _stubs(
    axes: Any, xy: Any, edge: tuple[int, int], direction: tuple[int, int], style: dict[str, Any]
) -> None:
    """An edge that leaves the grid: a short line at both ends, and who is at the other."""
    spacing = min(0.5, 1.5 / max(len(xy) ** 0.5, 2.0))
    for vertex, other, sign in ((edge[0], edge[1], 1), (edge[1], edge[0], -1)):
        away = sign * spacing * np.array(direction, dtype=np.float64)
        end = xy[vertex] + 0.55 * away
        axes.plot([xy[vertex, 0], end[0]], [xy[vertex, 1], end[1]], **style)
        if len(xy) <= _NAMED_UP_TO:
            x, y = xy[vertex] + 0.72 * away
            font = 0.85 * _name_size(len(xy))
            axes.text(x, y, str(other), ha="center", va="center", color=MUTED, fontsize=font)


def _line(a: Any, b: Any, *, bent: bool) -> Any:
    """Points of an edge; on a circle it bends inwards, so that edges do not lie on each other."""
    if not bent:
        return np.array([a, b])
    middle = (a + b) / 2
    radius = float(np.linalg.norm(middle))
    control = middle * (1.0 - 0.2 / radius) if radius > 0.2 else middle
    t = np.linspace(0.0, 1.0, 24)[:, None]
    return (1 - t) ** 2 * a + 2 * t * (1 - t) * control + t**2 * b


def _name_size(n: int) -> float:
    return float(min(10.0, 1.4 + 0.38 * min(520.0, 9000.0 / n) ** 0.5))


def _range(weights: Any) -> str:
    if len(weights) == 0:
        return "none"
    low, high = float(weights.min()), float(weights.max())
    return f"{low:.3g}" if np.isclose(low, high) else f"{low:.3g} to {high:.3g}"
