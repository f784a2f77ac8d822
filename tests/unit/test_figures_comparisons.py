"""Pictures of comparisons: what coincides is told apart, axes are as long as what they show."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from flower_dhb.compare import Comparison, Results
from flower_dhb.compare.results import Outcome
from flower_dhb.compare.runs import Curves
from flower_dhb.figures.comparisons import PANELS, case_figure, panel_figure, save

ROUNDS = list(range(5, 105, 5))


def run(scores: object, stopped: str = "") -> Curves:
    values = [float(v) for v in np.asarray(scores)]
    at = ROUNDS[: len(values)]
    return Curves(at, values, values, values, values, [k / 10 for k in at], values[-3:], stopped)


def results(runs: dict[str, list[Curves]], problem: str = "quadratic") -> Results:
    setting = Comparison(
        problem=problem,
        topologies=["ring:4"],
        methods=list(runs),
        seeds=len(next(iter(runs.values()))),
    )
    case = setting.cases[0]
    return Results(
        setting, [Outcome(case, name, 0.1, {}, (), found) for name, found in runs.items()]
    )


def axes_of(figure: Figure):
    FigureCanvasAgg(figure).draw()
    return figure.axes[0]


def labels_of(axis) -> list[str]:
    """Labels that are within the axis, as they are drawn."""
    low, high = sorted(axis.get_view_interval())
    found = zip(axis.get_majorticklocs(), axis.get_majorticklabels(), strict=True)
    return [label.get_text() for at, label in found if low <= at <= high]


def test_an_axis_ends_where_the_values_end_and_not_at_a_target_far_away() -> None:
    found = results({"dsgd": [run(np.geomspace(1.0, 0.2, 20))]})
    axes = axes_of(panel_figure(found, found.comparison.cases[0], "score"))
    low, high = axes.get_ylim()
    assert 0.1 < low < 0.2 < 1.0 < high < 2.0  # the targets are 0.01 and 1e-6
    assert labels_of(axes.yaxis) == ["0.2", "0.5", "1"]
    lines = [line for line in axes.get_lines() if len(line.get_xdata()) == 2]
    assert lines == []
    deep = results({"dsgd": [run(np.geomspace(1.0, 1e-8, 20))]})
    axes = axes_of(panel_figure(deep, deep.comparison.cases[0], "score"))
    assert "1e-6" in labels_of(axes.yaxis)
    assert sum(len(line.get_xdata()) == 2 for line in axes.get_lines()) == 2  # both targets


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        (np.linspace(0.1, 0.45, 20), ["20%", "40%"]),
        (np.linspace(0.3, 0.985, 20), ["50%", "70%", "80%", "90%", "95%", "98%"]),
    ],
)
def test_percents_are_stretched_only_where_the_best_are_near_100(scores, expected) -> None:
    found = results({"dsgd": [run(scores)]}, "digits-logistic")
    axes = axes_of(panel_figure(found, found.comparison.cases[0], "score"))
    shown = labels_of(axes.yaxis)
    assert set(expected) <= set(shown)
    assert len(shown) <= 10
    place = axes.transData.transform
    heights = [place((5, t))[1] for t in axes.get_yticks()]
    assert min(abs(np.diff(sorted(heights)))) >= 11  # pixels of a line of text, at 100 dpi


def test_curves_that_coincide_are_told_apart() -> None:
    same = np.geomspace(1.0, 0.01, 20)
    found = results({name: [run(same)] for name in ("dsgd", "dmsgd", "qg")})
    axes = axes_of(panel_figure(found, found.comparison.cases[0], "score"))
    lines = [line for line in axes.get_lines() if len(line.get_xdata()) == 20]
    assert len(lines) == 3
    widths = [line.get_linewidth() for line in lines]
    assert widths == sorted(widths, reverse=True)
    assert min(np.diff(widths[::-1])) > 0.5  # what lies below looks out
    assert len({line.get_marker() for line in lines}) == 3
    assert len({line.get_color() for line in lines}) == 3
    marked = []
    for line in lines:
        first, step = line.get_markevery()
        marked.append(set(range(first, 20, step)))
    assert not marked[0] & marked[1]
    assert not marked[1] & marked[2]


def test_stopped_runs_are_named_and_do_not_flatten_the_others() -> None:
    good, wild = run(np.geomspace(1.0, 0.1, 20)), run([1.0, 1e7], "round 15: gone")
    found = results({"dsgd": [good, good], "qg": [wild, good], "dmsgd": [run([], "x")] * 2})
    figure = panel_figure(found, found.comparison.cases[0], "score")
    axes = axes_of(figure)
    assert axes.get_ylim()[1] < 20.0
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts == ["dsgd", "qg (1 of 2 stopped)", "dmsgd (2 of 2 stopped)"]


@pytest.mark.slow  # twenty pictures
def test_files_are_vectors_one_for_each_panel_and_the_same_each_time(tmp_path: Path) -> None:
    found = results({"dsgd": [run(np.geomspace(1.0, 0.1, 20))]})
    paths = save(found, tmp_path / "a", ["pdf", "svg"])
    assert {path.name for path in paths} == {
        f"ring-4{panel}.{form}"
        for panel in ("", *(f"-{p}" for p in PANELS))
        for form in ("pdf", "svg")
    }
    again = save(found, tmp_path / "b", ["pdf", "svg"])
    for one, other in zip(paths, again, strict=True):
        assert one.read_bytes() == other.read_bytes()
    assert b"/Subtype /Image" not in (tmp_path / "a" / "ring-4-score.pdf").read_bytes()
    assert "<image" not in (tmp_path / "a" / "ring-4.svg").read_text()
    assert len(case_figure(found, found.comparison.cases[0]).axes) == 4
