"""The notebook runs from top to bottom, shows what it says, and is kept without outputs."""

import ast
import json
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


def cells_of(path):
    found = json.loads(path.read_text(encoding="utf-8"))
    assert (found["nbformat"], found["nbformat_minor"]) == (4, 5)
    return found["cells"]


def run(source, namespace):
    """A cell, as a notebook does it: returns the value of a last line that is an expression."""
    lines = [line for line in source.splitlines() if not line.startswith("%")]  # of Jupyter itself
    tree = ast.parse("\n".join(lines))
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "cell", "exec"), namespace)  # noqa: S102
    if last is None:
        return None
    return eval(compile(ast.Expression(last.value), "cell", "eval"), namespace)  # noqa: S307


def test_there_is_one():
    assert [path.name for path in NOTEBOOKS] == ["two-rules.ipynb"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_kept_without_outputs(path):
    cells = cells_of(path)
    assert len(cells) == 10
    assert len({cell["id"] for cell in cells}) == 10
    for cell in cells:
        assert cell["metadata"] == {}
        if cell["cell_type"] == "code":
            assert (cell["outputs"], cell["execution_count"]) == ([], None)


@pytest.mark.thorough
def test_the_notebook_of_two_rules(monkeypatch, capsys):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("agg")
    from matplotlib import pyplot as plt
    from matplotlib.figure import Figure

    shown, drawn = [], []
    monkeypatch.setattr(plt, "show", lambda: drawn.append(plt.gcf()))
    namespace = {"display": shown.append}
    sources = [c["source"] for c in cells_of(NOTEBOOKS[0]) if c["cell_type"] == "code"]
    for source in sources:
        value = run("".join(source), namespace)
        if value is not None:
            shown.append(value)
    plt.close("all")
    said = capsys.readouterr().out
    assert "ring:16: 16 edges, spectral gap 0.051" in said
    assert "torus:4x4: 32 edges, spectral gap 0.400" in said
    assert "dmsgd" in said
    assert [type(each) for each in shown] == [Figure] * 3
    (agree,) = drawn
    assert len(agree.axes[0].lines) == 4
    # What it is there to show: momentum and edges both help to agree.
    last = {line.get_label(): line.get_ydata()[30] for line in agree.axes[0].lines}
    assert last["HeavyBall, ring:16"] < last["DSGD, ring:16"] / 10
    assert last["DSGD, torus:4x4"] < last["DSGD, ring:16"] / 10
    worst = {(r["topology"], r["method"]): r["final_worst"] for r in namespace["results"].records()}
    assert worst["ring:16", "dmsgd"] > worst["ring:16", "dsgd"]
