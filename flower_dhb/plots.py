"""Figures: the communication graph, and how a run converged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, PercentFormatter

from flower_dhb.positions import on_circle, places, wrapped_edges

if TYPE_CHECKING:
    from flower_dhb.graph import Topology

__all__ = ["convergence_figure", "topology_figure"]

_INK, _MUTED, _GRID = "#1f2933", "#7b8794", "#e4e7eb"
_MAIN, _SECOND, _ACCENT = "#2f6fb0", "#c2571a", "#2a9d8f"
_NAMED_UP_TO = 64  # agents; more names than that are too small to read
_STYLE: Any = {
    "font.size": 10,
    "axes.edgecolor": _MUTED,
    "axes.labelcolor": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.titlecolor": _INK,
    "xtick.color": _MUTED,
    "ytick.color": _MUTED,
    "grid.color": _GRID,
    "axes.grid": True,
    "axes.axisbelow": True,
}


def topology_figure(topology: Topology) -> Figure:
    """Draw a communication graph; an edge is as strong as its mixing weight.

    Dashed edges have negative weight. The number in a vertex is its name. An edge of a
    torus that wraps around ends in the name of the vertex that it leads to.
    """
    n = topology.n_agents
    with mpl.rc_context(_STYLE):
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
                "color": _MAIN if weight >= 0 else _SECOND,
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
        _titles(figure, topology, weights)
        return figure


def _titles(figure: Figure, topology: Topology, weights: Any) -> None:
    about = (
        f"{topology.n_agents} agents, {len(topology.edges)} edges, "
        f"spectral gap {topology.spectral_gap:.3g}"
    )
    if len(weights):
        about += f", mixing weights {_range(weights)}"
    if (weights < 0).any():
        about += " (dashed: negative)"
    figure.text(0.04, 0.955, topology.name, color=_INK, fontsize=14, fontweight="bold")
    figure.text(0.04, 0.918, about, color=_MUTED, fontsize=9.5)


def _vertices(axes: Any, xy: Any) -> None:
    n = len(xy)
    size = min(520.0, 9000.0 / n)
    axes.scatter(xy[:, 0], xy[:, 1], s=size, c="white", edgecolors=_INK, linewidths=1.2, zorder=2)
    if n <= _NAMED_UP_TO:
        for vertex, (x, y) in enumerate(xy):
            axes.text(
                x,
                y,
                str(vertex),
                ha="center",
                va="center",
                color=_INK,
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
            axes.text(x, y, str(other), ha="center", va="center", color=_MUTED, fontsize=font)


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


def convergence_figure(rows: Sequence[Mapping[str, Any]], title: str = "") -> Figure:
    """How a run went, from the rows of its `history.jsonl`.

    Left: accuracy of the agents (mean, and the band from worst to best) and, where it
    was observed, of the average model. Right: consensus distance. Rounds in which an
    agent was missing are marked at the bottom.
    """
    with mpl.rc_context(_STYLE):
        engine = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1, wspace=0.03)
        figure = Figure(figsize=(10.5, 4.4), layout=engine)
        left, right = figure.subplots(1, 2)
        if title:
            figure.suptitle(title, x=0.01, ha="left", color=_INK, fontsize=13, fontweight="bold")
        _distance(right, rows)
        _accuracy(left, rows)
        for axes in (left, right):
            axes.set_xlabel("round")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            _mark_missing(axes, rows)
        if left.get_legend_handles_labels()[0]:
            left.legend(frameon=False, loc="best", labelcolor=_INK)
        return figure


def _accuracy(axes: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    axes.set_title("Test accuracy")
    rounds, mean = _series(rows, "accuracy_mean")
    _, worst = _series(rows, "accuracy_worst")
    _, best = _series(rows, "accuracy_best")
    if len(rounds) and len(worst) == len(best) == len(rounds):
        axes.fill_between(
            rounds, worst, best, color=_MAIN, alpha=0.15, lw=0, label="worst to best agent"
        )
    if len(rounds):
        axes.plot(rounds, mean, color=_MAIN, lw=2, label="mean over agents")
    seen, average = _series(rows, "accuracy_average_model")
    if len(seen):
        axes.plot(seen, average, color=_SECOND, lw=1.6, label="average model (observer only)")
    if len(rounds) or len(seen):
        axes.set_ylim(0.0, 1.02)
        axes.yaxis.set_major_formatter(PercentFormatter(xmax=1.0, decimals=0))
    else:
        _not_measured(axes)


def _distance(axes: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    axes.set_title("Consensus distance")
    rounds, distance = _series(rows, "consensus_distance")
    if not len(rounds):
        _not_measured(axes)
        return
    axes.plot(rounds, distance, color=_ACCENT, lw=2)
    if (distance > 0).any():
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(_plain_number))
        positive = distance[distance > 0]
        if positive.max() < 100.0 * positive.min():
            # Powers of ten alone would leave the axis bare.
            axes.yaxis.set_minor_locator(LogLocator(subs=(2.0, 5.0)))
            axes.yaxis.set_minor_formatter(FuncFormatter(_plain_number))


def _plain_number(value: float, _position: int) -> str:
    return f"{value:g}"


def _not_measured(axes: Any) -> None:
    axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", color=_MUTED)
    axes.set_yticks([])


def _mark_missing(axes: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    rounds = [row["round"] for row in rows if row.get("missing")]
    if rounds:
        axes.plot(
            rounds,
            [0.0] * len(rounds),
            "|",
            color=_SECOND,
            ms=9,
            mew=1.5,
            clip_on=False,
            transform=axes.get_xaxis_transform(),
            label="an agent was missing",
        )


def _series(rows: Sequence[Mapping[str, Any]], key: str) -> tuple[Any, Any]:
    """Rounds and values of a key, where it is a number."""
    pairs = [(row["round"], row[key]) for row in rows if isinstance(row.get(key), int | float)]
    table = np.array(pairs, dtype=np.float64).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def _range(weights: Any) -> str:
    if len(weights) == 0:
        return "none"
    low, high = float(weights.min()), float(weights.max())
    return f"{low:.3g}" if np.isclose(low, high) else f"{low:.3g} to {high:.3g}"
