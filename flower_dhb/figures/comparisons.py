"""Pictures of a comparison: score over rounds and over bytes, consensus, every agent's model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray

from flower_dhb.figures.style import INK, MUTED, STYLE

if TYPE_CHECKING:
    from flower_dhb.compare.comparison import Outcome
    from flower_dhb.compare.settings import Case, Comparison

__all__ = ["case_figure"]

# Okabe & Ito's colors, told apart by color-blind readers too; line styles take turns.
_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#1f2933")
_BEYOND = 1.01  # so that 100% has a place
_LINES = ("-", "--", ":")
_STYLE: Any = STYLE | {"axes.titlesize": 11, "ytick.color": INK}


def case_figure(outcomes: Sequence[Outcome], comparison: Comparison, case: Case) -> Figure:
    """Four pictures of one graph and split: medians over seeds, with their range shaded."""
    shown = [outcome for outcome in outcomes if outcome.case == case]
    task = comparison.task
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(12, 8.6), layout="constrained")
        grid = figure.subplots(2, 2)
        _curves(grid[0, 0], shown, "mean", "rounds")
        grid[0, 0].set(title=f"{task.metric.capitalize()}, mean over agents", xlabel="round")
        _curves(grid[0, 1], shown, "mean", "megabytes")
        grid[0, 1].set(title="The same over traffic", xlabel="MB sent, all agents")
        grid[0, 1].set_xlim(0.0, 1.02 * _least_traffic(shown))
        _curves(grid[1, 0], shown, "consensus", "rounds")
        grid[1, 0].set(title="Consensus distance", xlabel="round", yscale="log")
        _agents(grid[1, 1], shown)
        grid[1, 1].set(title=f"Final {task.metric} of every agent, all seeds")
        for axes in (grid[0, 0], grid[0, 1]):
            _score_axis(axes, task.rising, task.targets, axes.yaxis)
        if task.rising:
            grid[1, 1].xaxis.set_major_formatter(PercentFormatter(1.0))
        else:
            grid[1, 1].set_xscale("log")
        handles, labels = grid[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=6, frameon=False)
        title = f"{comparison.problem} on {case.topology}"
        figure.suptitle(f"{title}, split {case.split}" if case.split else title, color=INK)
    return figure


def _least_traffic(outcomes: Sequence[Outcome]) -> float:
    """Where the most frugal method ends: beyond it, not all methods can be compared."""
    ends = [run.megabytes[-1] for outcome in outcomes for run in outcome.runs if run.megabytes]
    return min(ends, default=1.0)


def _score_axis(axes: Axes, rising: bool, targets: Sequence[float], axis: Any) -> None:
    for target in targets:
        axes.axhline(target, color=MUTED, linewidth=0.8, linestyle=(0, (1, 3)))
    if rising:
        # Stretched toward 100%, where good methods differ: equal ratios of the error.
        axes.set_yscale("function", functions=(_stretch, _unstretch))
        axes.set_ylim(0.0, 0.995)
        axis.set_ticks([0.0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99])
        axis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    else:
        axes.set_yscale("log")


def _stretch(accuracy: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(-np.log(np.maximum(_BEYOND - np.asarray(accuracy), 1e-3)))


def _unstretch(height: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(_BEYOND - np.exp(-np.asarray(height)))


def _curves(axes: Axes, outcomes: Sequence[Outcome], view: str, over: str) -> None:
    for index, outcome in enumerate(outcomes):
        length = min((len(run.rounds) for run in outcome.runs), default=0)
        if length == 0:  # diverged at once; the legend says so
            axes.plot([], [], **_line(index), label=f"{outcome.method} (diverged)")
            continue
        values = np.array([getattr(run, view)[:length] for run in outcome.runs])
        at = np.array(getattr(outcome.runs[0], over)[:length])
        diverged = " (diverged)" if any(run.diverged for run in outcome.runs) else ""
        axes.plot(at, np.median(values, axis=0), **_line(index), label=outcome.method + diverged)
        axes.fill_between(
            at, values.min(axis=0), values.max(axis=0), color=_color(index), alpha=0.10, lw=0
        )


def _agents(axes: Axes, outcomes: Sequence[Outcome]) -> None:
    for index, outcome in enumerate(outcomes):
        finals = [run.agents for run in outcome.runs if not run.diverged]
        values = np.array([v for agents in finals for v in agents])
        # Spread across the row by order, so that equal scores stay visible.
        height = index + 0.6 * (np.arange(len(values)) / max(1, len(values) - 1) - 0.5)
        axes.scatter(values, height, s=9, color=_color(index), alpha=0.6, linewidths=0)
        if len(values):
            axes.plot([np.median(values)] * 2, [index - 0.4, index + 0.4], color=INK, lw=1.5)
    axes.set_yticks(range(len(outcomes)), [outcome.method for outcome in outcomes])
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")


def _line(index: int) -> dict[str, Any]:
    return {
        "color": _color(index),
        "linestyle": _LINES[index // len(_COLORS) % len(_LINES)],
        "linewidth": 1.6,
    }


def _color(index: int) -> str:
    return _COLORS[index % len(_COLORS)]
