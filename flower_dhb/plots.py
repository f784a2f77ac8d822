"""Figures: the communication graph, and how a run converged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import networkx as nx
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

if TYPE_CHECKING:
    from flower_dhb.graph import Topology

__all__ = ["convergence_figure", "topology_figure"]

_INK, _MUTED, _GRID = "#1f2933", "#7b8794", "#e4e7eb"
_MAIN, _SECOND, _ACCENT = "#2f6fb0", "#c2571a", "#2a9d8f"
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

    Dashed edges have negative weight. The number in a vertex is its name.
    """
    n = topology.n_agents
    graph: nx.Graph[int] = nx.Graph()
    graph.add_nodes_from(range(n))
    graph.add_edges_from(topology.edges)
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(6.4, 6.4), layout="constrained")
        axes = figure.add_subplot()
        axes.set_axis_off()
        axes.set_aspect("equal")
        axes.margins(0.08)
        positions = _positions(graph, topology.name)
        weights = np.array([topology.mixing_matrix[a, b] for a, b in topology.edges])
        strength = np.abs(weights) / max(np.abs(weights).max(initial=0.0), 1e-12)
        for (a, b), weight, strong in zip(topology.edges, weights, strength, strict=True):
            (x1, y1), (x2, y2) = positions[a], positions[b]
            axes.plot(
                [x1, x2],
                [y1, y2],
                color=_MAIN if weight >= 0 else _SECOND,
                linestyle="-" if weight >= 0 else "--",
                linewidth=0.6 + 2.4 * strong * min(1.0, 40 / max(len(weights), 1)),
                alpha=0.25 + 0.55 * strong,
                zorder=1,
                solid_capstyle="round",
            )
        size = min(520.0, 9000.0 / n)
        xy = np.array([positions[v] for v in range(n)])
        axes.scatter(
            xy[:, 0], xy[:, 1], s=size, c="white", edgecolors=_INK, linewidths=1.2, zorder=2
        )
        if n <= 64:
            for vertex, (x, y) in enumerate(xy):
                axes.text(
                    x,
                    y,
                    str(vertex),
                    ha="center",
                    va="center",
                    color=_INK,
                    zorder=3,
                    fontsize=min(10.0, 1.4 + 0.38 * size**0.5),
                )
        axes.set_title(f"{topology.name}\n", fontsize=13)
        axes.text(
            0.0,
            1.005,
            f"{n} agents, {len(topology.edges)} edges, spectral gap {topology.spectral_gap:.3g}, "
            f"mixing weights {_range(weights)}",
            transform=axes.transAxes,
            color=_MUTED,
            fontsize=9.5,
        )
        return figure


def convergence_figure(rows: Sequence[Mapping[str, Any]], title: str = "") -> Figure:
    """How a run went, from the rows of its `history.jsonl`.

    Left: accuracy of the agents (mean, and the band from worst to best) and, where it
    was observed, of the average model. Right: consensus distance. Rounds in which an
    agent was missing are marked at the bottom.
    """
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(10.5, 4.2), layout="constrained")
        left, right = figure.subplots(1, 2)
        if title:
            figure.suptitle(title, x=0.01, ha="left", color=_INK, fontsize=12, fontweight="bold")
        _accuracy(left, rows)
        _distance(right, rows)
        for axes in (left, right):
            axes.set_xlabel("round")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            _mark_missing(axes, rows)
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
        axes.set_ylim(0.0, 1.02)
    seen, average = _series(rows, "accuracy_average_model")
    if len(seen):
        axes.plot(seen, average, color=_SECOND, lw=1.6, label="average model (observer only)")
    if len(rounds) or len(seen):
        axes.legend(frameon=False, loc="lower right", labelcolor=_INK)
    else:
        axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", color=_MUTED)


def _distance(axes: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    axes.set_title("Consensus distance")
    rounds, distance = _series(rows, "consensus_distance")
    if len(rounds):
        axes.plot(rounds, distance, color=_ACCENT, lw=2)
        if (distance > 0).any():
            axes.set_yscale("log")
    else:
        axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", color=_MUTED)


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
        )


def _series(rows: Sequence[Mapping[str, Any]], key: str) -> tuple[Any, Any]:
    """Rounds and values of a key, where it is a number."""
    pairs = [(row["round"], row[key]) for row in rows if isinstance(row.get(key), int | float)]
    table = np.array(pairs, dtype=np.float64).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def _positions(graph: nx.Graph[int], name: str) -> dict[int, Any]:
    kind = name.partition(":")[0]
    if kind in ("ring", "complete", "exponential", "small-world", "random-regular"):
        n = graph.number_of_nodes()
        angles = np.pi / 2 - 2 * np.pi * np.arange(n) / n
        return {v: (np.cos(a), np.sin(a)) for v, a in enumerate(angles)}
    if kind == "bipartite":
        left = nx.bipartite.sets(graph)[0] if graph.number_of_nodes() > 1 else {0}
        return dict(nx.bipartite_layout(graph, sorted(left), aspect_ratio=1))
    return dict(nx.kamada_kawai_layout(graph))


def _range(weights: Any) -> str:
    if len(weights) == 0:
        return "none"
    low, high = float(weights.min()), float(weights.max())
    return f"{low:.3g}" if np.isclose(low, high) else f"{low:.3g} to {high:.3g}"
