"""The programs of docs/compare.md run as they stand, and make what they say."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

from flower_dhb.algorithms import METHODS
from flower_dhb.algorithms.registry import ALGORITHMS
from flower_dhb.figures.comparisons import PANELS
from flower_dhb.topology.turns import Turns

PAGE = Path(__file__).parents[2] / "docs" / "compare.md"


def program(heading: str) -> str:
    section = PAGE.read_text(encoding="utf-8").partition(f"### {heading}\n")[2]
    return re.search(r"```python\n(.*?)```", section, re.DOTALL)[1]  # type: ignore[index]


@pytest.mark.slow  # eighteen runs and twenty pictures
def test_figure_2_of_a_paper(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = program("Figure 2 of a paper")
    assert len(text.splitlines()) <= 40
    (tmp_path / "figure2.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    try:
        results = runpy.run_path("figure2.py")["results"]
    finally:
        for names in (ALGORITHMS, METHODS):
            names.pop("cautious", None)
    assert [type(graph) is Turns for graph in results.comparison.graphs.values()] == [True, False]
    mean = {(o.case.topology, o.method): o.runs[0].mean[-1] for o in results.outcomes}
    assert min(mean.values()) > 0.5
    printed = capsys.readouterr().out
    assert printed.count("cautious") == 2
    assert max(len(line) for line in printed.splitlines()) <= 80
    stems = [
        f"{graph}-8-iid{panel}"
        for graph in ("one-peer", "ring")
        for panel in ("", *(f"-{p}" for p in PANELS))
    ]
    for stem in stems:
        assert (tmp_path / "figures" / f"{stem}.pdf").read_bytes().startswith(b"%PDF")
        assert "<svg" in (tmp_path / "figures" / f"{stem}.svg").read_text()[:1000]
    table = (tmp_path / "table.tex").read_text()
    assert table.count(r"\begin{tabular}{lrrrrr}") == table.count(r"\bottomrule") == 2
    rows = re.findall(r"^cautious & 1 & (.*) \\\\$", table, re.MULTILINE)
    assert len(rows) == 2
    assert all(r"\pm" in row for row in rows)


@pytest.mark.thorough
def test_a_model_of_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = program("Your own model, data and loss").replace("methods=[", "rounds=10, methods=[")
    (tmp_path / "signs.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    runpy.run_path("signs.py")
    assert "signs, ring:8 iid" in capsys.readouterr().out
