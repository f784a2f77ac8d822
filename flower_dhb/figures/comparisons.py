"""Pictures of a comparison: score over rounds and over bytes, consensus, every agent's model."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import (
    FixedLocator,
    FuncFormatter,
    LogLocator,
    MaxNLocator,
    NullFormatter,
    NullLocator,
)
from numpy.typing import NDArray

from flower_dhb.figures.style import INK, MUTED, STYLE
from flower_dhb.files import write_durably

if TYPE_CHECKING:
    from flower_dhb.compare.report import Results
    from flower_dhb.compare.results import Outcome
    from flower_dhb.compare.settings import Case

__all__ = ["PANELS", "case_figure", "panel_figure", "save"]

# Okabe & Ito's colors, told apart by color-blind readers too.
_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#1f2933")
_DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.5, 1.5)), (0, (6, 1.5, 1.5, 1.5)))
_MARKERS = "osD^vP*X<>ph"
_MARKS = 7  # on a curve
_NAME = 18  # letters of a method's name that stand beside a picture in one line
_STYLE: Any = STYLE | {
    "axes.titlesize": 11,
    "ytick.color": INK,
    "xtick.color": INK,
    "svg.hashsalt": "flower-dhb",  # the same picture is the same file
    "pdf.fonttype": 42,  # letters stay letters
}
_BEYOND = 1.01  # so that 100% has a place
_STRETCHED_FROM = 0.8  # best score from which good methods differ near 100% only
_SHARES = (0.0, 0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 1.0)
_APART = 0.055  # of the axis, the least distance of two labels

# Without a date, so that the same picture is the same file.
_METADATA: dict[str, Any] = {"pdf": {"CreationDate": None}, "svg": {"Date": None}, "png": {}}


def case_figure(results: Results, case: Case) -> Figure:
    """All pictures of a case in one: medians over seeds, with their range shaded."""
    with mpl.rc_context(_STYLE):
        height = max(8.6, 4.0 + 0.42 * len(results.of(case)))
        figure = Figure(figsize=(12, height), layout="constrained")
        for axes, panel in zip(figure.subplots(2, 2).ravel(), PANELS.values(), strict=True):
            panel(axes, results, case)
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(
            handles,
            labels,
            loc="outside lower center",
            ncols=_columns(labels, 120, most=4),
            frameon=False,
            title=_said_of_seeds(results),
        )
        figure.suptitle(f"{results.comparison.task.name} on {case.name}", color=INK)
    return figure


def panel_figure(results: Results, case: Case, panel: str) -> Figure:
    """One picture of a case, with a legend of its own. panel: a name of PANELS."""
    with mpl.rc_context(_STYLE):
        rows = len(results.of(case))
        legend = panel != "agents"
        ncols = _columns([_label(outcome) for outcome in results.of(case)], 66, most=2)
        height = 3.4 + 0.2 * math.ceil(rows / ncols) if legend else 1.4 + 0.34 * rows
        figure = Figure(figsize=(5.4, height), layout="constrained")
        PANELS[panel](figure.subplots(), results, case)
        if legend:
            handles, labels = figure.axes[0].get_legend_handles_labels()
            figure.legend(
                handles, labels, loc="outside lower center", ncols=ncols, frameon=False, fontsize=8
            )
    return figure


def save(
    results: Results, folder: str | Path, formats: Sequence[str] = ("pdf", "svg")
) -> list[Path]:
    """Write an overview of each case and each of its pictures; returns the files' paths.

    formats: of `pdf`, `svg`, `png`. Files are named `CASE.pdf` and `CASE-PANEL.pdf`.
    """
    folder, paths = Path(folder), []
    folder.mkdir(parents=True, exist_ok=True)
    for case in results.comparison.cases:
        name = re.sub(r"[^\w.=%@+-]+", "-", case.name).strip("-")
        figures = {name: case_figure(results, case)}
        figures |= {f"{name}-{panel}": panel_figure(results, case, panel) for panel in PANELS}
        for stem, figure in figures.items():
            for form in formats:
                buffer = BytesIO()
                with mpl.rc_context(_STYLE):
                    figure.savefig(buffer, format=form, dpi=140, metadata=_METADATA.get(form))
                paths.append(folder / f"{stem}.{form}")
                write_durably(paths[-1], buffer.getvalue())
    return paths


def _columns(labels: Sequence[str], letters: int, most: int) -> int:
    """Columns of a legend as wide as so many letters."""
    longest = max((len(label) for label in labels), default=1) + 6  # and a piece of the line
    return max(1, min(most, letters // longest))


def _said_of_seeds(results: Results) -> str | None:
    seeds = results.comparison.seeds
    return f"median of {seeds} seeds, their range shaded" if seeds > 1 else None


# --- panels -----------------------------------------------------------------------------


def _score(axes: Axes, results: Results, case: Case) -> None:
    task = results.comparison.task
    _curves(axes, results.of(case), "mean", "rounds")
    axes.set(title=f"{task.metric.capitalize()}, mean over agents", xlabel="round")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    _score_axis(axes, results, case)


def _traffic(axes: Axes, results: Results, case: Case) -> None:
    shown = results.of(case)
    _curves(axes, shown, "mean", "megabytes")
    metric = results.comparison.task.metric
    axes.set(title=f"{metric.capitalize()} over traffic", xlabel="MB sent, all agents")
    axes.set_xlim(0.0, 1.02 * _least_traffic(shown))
    _score_axis(axes, results, case)


def _consensus(axes: Axes, results: Results, case: Case) -> None:
    shown = results.of(case)
    _curves(axes, shown, "consensus", "rounds")
    axes.set(title="Consensus distance", xlabel="round")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    values = [v for o in shown for run in o.runs for v in run.consensus]
    _log_axis(axes, values)


def _agents(axes: Axes, results: Results, case: Case) -> None:
    task, outcomes = results.comparison.task, results.of(case)
    every: list[float] = []
    for index, outcome in enumerate(outcomes):
        finals = [run.agents for run in outcome.runs if not run.stopped]
        values = np.array([v for agents in finals for v in agents])
        every += values.tolist()
        # Spread across the row by order, so that equal scores stay visible.
        height = index + 0.6 * (np.arange(len(values)) / max(1, len(values) - 1) - 0.5)
        axes.scatter(values, height, s=9, color=_color(index), alpha=0.6, linewidths=0)
        if len(values):
            axes.plot([np.median(values)] * 2, [index - 0.4, index + 0.4], color=INK, lw=1.5)
    # A long name in lines, broken at its settings.
    names = [_label(o) for o in outcomes]
    folded = [n if len(n) <= _NAME else n.replace(":", "\n:") for n in names]
    axes.set_yticks(range(len(outcomes)), folded, fontsize=9)
    axes.set_ylim(len(outcomes) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")
    axes.set(title=f"Final {task.metric} of every agent, all seeds")
    if task.share:
        axes.xaxis.set_major_locator(MaxNLocator(6))
        axes.xaxis.set_major_formatter(FuncFormatter(_percent))
    elif not task.rising and all(v > 0.0 for v in every):
        _log_axis(axes, every, axes.xaxis)


PANELS: dict[str, Callable[[Axes, Results, Case], None]] = {
    "score": _score,
    "traffic": _traffic,
    "consensus": _consensus,
    "agents": _agents,
}


# --- curves -----------------------------------------------------------------------------


def _curves(axes: Axes, outcomes: Sequence[Outcome], view: str, over: str) -> None:
    """Medians over seeds, and their range.

    Curves that coincide are told apart: each has its marker, at places of its own, and those
    drawn first are wider and look out from under the later ones.
    """
    count = len(outcomes)
    for index, outcome in enumerate(outcomes):
        length = min((len(run.rounds) for run in outcome.runs), default=0)
        stopped = sum(bool(run.stopped) for run in outcome.runs)
        label = _label(outcome) + (f" ({stopped} of {len(outcome.runs)} stopped)" * bool(stopped))
        style = _line(index, count)
        if length == 0:  # stopped at once; the legend says so
            axes.plot([], [], **style, label=label)
            continue
        values = np.array([getattr(run, view)[:length] for run in outcome.runs])
        at = np.array(getattr(outcome.runs[0], over)[:length])
        step = max(1, length // _MARKS)
        offset = min(length - 1, round(step * (index + 1) / (count + 1)))
        axes.plot(at, np.median(values, axis=0), **style, markevery=(offset, step), label=label)
        low, high = values.min(axis=0), values.max(axis=0)
        axes.fill_between(at, low, high, color=_color(index), alpha=0.10, lw=0)


def _line(index: int, count: int) -> dict[str, Any]:
    return {
        "color": _color(index),
        "linestyle": _DASHES[index % len(_DASHES)] if index else "-",
        "linewidth": 1.3 + 2.2 * (1.0 - (index + 1) / count) if count > 1 else 1.6,
        "marker": _MARKERS[index % len(_MARKERS)],
        "markersize": 5.0,
        "markeredgecolor": "white",
        "markeredgewidth": 0.5,
    }


def _color(index: int) -> str:
    return _COLORS[index % len(_COLORS)]


def _label(outcome: Outcome) -> str:
    tuned = [f"{n.replace('_', '-')}={v:g}" for n, v in outcome.settings.items()]
    return ":".join([outcome.method, *tuned])


# --- axes -------------------------------------------------------------------------------


def _least_traffic(outcomes: Sequence[Outcome]) -> float:
    """Where the most frugal method ends: beyond it, not all methods can be compared."""
    ends = [
        run.megabytes[-1]
        for outcome in outcomes
        for run in outcome.runs
        if run.megabytes and not run.stopped
    ]
    return min(ends, default=1.0)


def _score_axis(axes: Axes, results: Results, case: Case) -> None:
    """Limits from what was reached; targets are drawn where they are near it."""
    task = results.comparison.task
    runs = [run for outcome in results.of(case) for run in outcome.runs]
    values = [v for run in runs for v in run.mean]
    if not values:
        return
    if task.share and max(values) <= 1.0 and min(values) >= 0.0:
        _share_axis(axes, min(values), max(values))
    elif not task.rising and min(values) > 0.0:
        # A run on its way out of the numbers must not flatten all others.
        usual = [v for run in runs if not run.stopped for v in run.mean]
        starts = [run.mean[0] for run in runs if run.mean]
        _log_axis(axes, [v for v in usual if v <= 10.0 * max(starts)] or values)
    low, high = sorted(axes.get_ylim())
    for target in results.comparison.targets:
        if low <= target <= high:
            axes.axhline(target, color=MUTED, linewidth=0.8, linestyle=(0, (1, 3)))


def _share_axis(axes: Axes, low: float, high: float) -> None:
    """Percents; stretched toward 100% where the best are near it: equal ratios of the error."""
    scale: Callable[[Any], NDArray[np.float64]]
    if high >= _STRETCHED_FROM:
        axes.set_yscale("function", functions=(_stretch, _unstretch))
        top, scale = min(0.997, high + 0.3 * (1.0 - high)), _stretch
        bottom = max(0.0, low - 0.02)
    else:
        top, bottom, scale = min(1.0, high + 0.05), max(0.0, low - 0.05), np.asarray
    axes.set_ylim(bottom, top)
    ends = scale(np.array([bottom, top]))
    ticks: list[float] = []
    for share in sorted((s for s in _SHARES if bottom <= s <= top), reverse=True):
        place = (scale(np.array([share, *ticks[-1:]])) - ends[0]) / (ends[1] - ends[0])
        if not ticks or place[1] - place[0] >= _APART:
            ticks.append(share)
    axes.yaxis.set_major_locator(FixedLocator(ticks))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(_percent))


def _log_axis(axes: Axes, values: Sequence[float], axis: Any = None) -> None:
    """A logarithmic axis as long as the values, with labels that can be read."""
    axis = axes.yaxis if axis is None else axis
    shown = [v for v in values if v > 0.0 and math.isfinite(v)]
    if not shown:
        return
    vertical = axis is axes.yaxis
    (axes.set_yscale if vertical else axes.set_xscale)("log")
    low, high = min(shown) / 1.3, max(shown) * 1.3
    (axes.set_ylim if vertical else axes.set_xlim)(low, high)
    decades = math.log10(high / low)
    subs = (1.0, 2.0, 5.0) if decades < 3.0 else (1.0,)
    axis.set_major_locator(LogLocator(subs=subs, numticks=8))
    axis.set_minor_formatter(NullFormatter())
    axis.set_major_formatter(FuncFormatter(_power))


def _power(value: float, _at: Any = None) -> str:
    """`0.02`, `500`, and beyond them `2e-5`."""
    if value == 0.0 or 1e-3 <= value < 1e4:
        return f"{value:g}"
    digits, _, exponent = f"{value:.0e}".partition("e")
    return f"{digits}e{int(exponent)}"


def _percent(value: float, _at: Any = None) -> str:
    return f"{100.0 * value:g}%"


def _stretch(accuracy: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(-np.log(np.maximum(_BEYOND - np.asarray(accuracy), 1e-3)))


def _unstretch(height: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(_BEYOND - np.exp(-np.asarray(height)))
