"""Figures of a run: how accuracy and consensus distance went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, PercentFormatter

from flower_dhb.figures.style import ACCENT, INK, MAIN, MUTED, SECOND, STYLE

__all__ = ["convergence_figure"]


def convergence_figure(rows: Sequence[Mapping[str, Any]], title: str = "") -> Figure:
    """How a run went, from the rows of its `history.jsonl`.

    Left: accuracy of the agents (mean, and the band from worst to best) and, where it
    was observed, of the average model. Right: consensus distance. Rounds in which an
    agent was missing are marked at the bottom.
    """
    with mpl.rc_context(STYLE):
        engine = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1, wspace=0.03)
        figure = Figure(figsize=(10.5, 4.4), layout=engine)
        left, right = figure.subplots(1, 2)
        if title:
            figure.suptitle(title, x=0.01, ha="left", color=INK, fontsize=13, fontweight="bold")
        _distance(right, rows)
        _accuracy(left, rows)
        for axes in (left, right):
            axes.set_xlabel("round")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            _mark_missing(axes, rows)
        if left.get_legend_handles_labels()[0]:
            left.legend(frameon=False, loc="best", labelcolor=INK)
        return figure


def _accuracy(axes: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    axes.set_title("Test accuracy")
    rounds, mean = _series(rows, "accuracy_mean")
    _, worst = _series(rows, "accuracy_worst")
    _, best = _series(rows, "accuracy_best")
    if len(rounds) and len(worst) == len(best) == len(rounds):
        axes.fill_between(
            rounds, worst, best, color=MAIN, alpha=0.15, lw=0, label="worst to best agent"
        )
    if len(rounds):
        axes.plot(rounds, mean, color=MAIN, lw=2, label="mean over agents")
    seen, average = _series(rows, "accuracy_average_model")
    if len(seen):
        axes.plot(seen, average, color=SECOND, lw=1.6, label="average model (observer only)")
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
    axes.plot(rounds, distance, color=ACCENT, lw=2)
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
    axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", color=MUTED)
    axes.set_yticks([])


def _mark_missing(axes: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    rounds = [row["round"] for row in rows if row.get("missing")]
    if rounds:
        axes.plot(
            rounds,
            [0.0] * len(rounds),
            "|",
            color=SECOND,
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
