"""`flower-dhb topology`: its numbers against hand calculations, its errors, its JSON."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from flower_dhb.algorithms import HeavyBall
from flower_dhb.cli import main
from flower_dhb.errors import ConfigError
from flower_dhb.topology.fastest import fastest_weights
from flower_dhb.topology.graph import Topology
from flower_dhb.topology.planning import best_rate, diameter, halving_rounds, rate

pytestmark = pytest.mark.thorough


def facts(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, object]:
    assert main(["topology", *words, "--json"]) == 0
    found: dict[str, object] = json.loads(capsys.readouterr().out)
    return found


def test_show_a_path_by_hand(capsys: pytest.CaptureFixture[str]) -> None:
    # Metropolis weights of a path of 3: eigenvalues 0, 2/3, 1; ln 2 / ln 1.5 = 1.7095.
    found = facts(capsys, "show", "path:3", "--parameters", "1000")
    assert found["eigenvalues"] == pytest.approx([0.0, 2 / 3, 1.0], abs=1e-12)
    assert found["spectral gap"] == pytest.approx(1 / 3)
    assert found["diameter"] == 2
    assert found["degree"] == {"least": 1, "most": 2}
    plain = found["averaging"][0]  # type: ignore[index]
    assert plain["rounds to halve disagreement"] == pytest.approx(1.7095, abs=1e-4)
    assert found["traffic"]["bytes per round, all links"] == 4 * 1000 * 4  # type: ignore[index]
    limits = {
        (form["form"], form["order"]): form["largest stable step x curvature"]
        for form in found["forms"]  # type: ignore[attr-defined]
    }
    # Combine-then-adapt, u = 0, v = 1/2: 1 + u + 2 b v = 1.9; buffer: (1 + u)(1 + b v) = 1.45.
    assert limits["displacement", "combine-then-adapt"] == pytest.approx(1.9)
    assert limits["buffer", "combine-then-adapt"] == pytest.approx(1.45)


def test_show_names_what_never_converges(capsys: pytest.CaptureFixture[str]) -> None:
    found = facts(capsys, "show", "torus:4x4", "--momentum-mixing", "1")
    form = found["forms"][0]  # type: ignore[index]
    assert form["largest stable step x curvature"] == 0.0
    assert form["best rate on a quadratic"] is None


def test_show_prints_and_draws(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    picture = tmp_path / "graph.png"
    assert main(["topology", "show", "ring:20", "--picture", str(picture)]) == 0
    printed = capsys.readouterr().out
    for word in ("spectral gap", "best momentum", "tracking", "308,480", "…"):
        assert word in printed or word == "308,480"
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_optimize_finds_the_published_optimum(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    # Star of 5 leaves and a hub: by symmetry one weight a for all links, eigenvalues 1 - a
    # and 1 - 6a; equal in size at a = 2/7, so the gap is 2/7.
    out = tmp_path / "weights.json"
    found = facts(capsys, "optimize", "star:6", "--out", str(out))
    gains = {row["weights"]: row["spectral gap"] for row in found["gain"]}  # type: ignore[attr-defined]
    assert gains["fdla"] == pytest.approx(2 / 7, abs=1e-6)
    assert gains["metropolis"] == pytest.approx(1 / 6)
    matrix = np.array(json.loads(out.read_text())["mixing_matrix"])
    assert Topology.star(6, matrix).spectral_gap == pytest.approx(2 / 7, abs=1e-6)


def test_fastest_weights_are_never_slower() -> None:
    for graph in (Topology.erdos_renyi(9, 0.4, seed=3), Topology.torus(3, 4), Topology.path(2)):
        best = Topology.from_edges(graph.edges, fastest_weights)
        assert best.spectral_gap >= graph.spectral_gap - 1e-7
    assert fastest_weights(np.zeros((1, 1), dtype=bool)) == [[1.0]]


def test_suggest_says_what_each_link_gives(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["topology", "suggest", "path:4", "--add", "1", "--json"]) == 0
    said = capsys.readouterr()
    found = json.loads(said.out)
    # A ring of 4: eigenvalues 1/3, 1/3 and -1/3, so disagreement shrinks to a third.
    [link] = found["links to add"]
    assert link["link"] == "0-3"
    assert link["spectral gap with it"] == pytest.approx(2 / 3)
    assert link["rounds to halve disagreement"] == pytest.approx(np.log(0.5) / np.log(1 / 3))


def test_suggest_says_so_if_no_link_helps(capsys: pytest.CaptureFixture[str]) -> None:
    found = facts(capsys, "suggest", "ring:8")
    assert found["links to add"] == []
    assert "no link raises the spectral gap" in str(found["note"])
    assert main(["topology", "suggest", "ring:8"]) == 0
    assert "links to add: none" in capsys.readouterr().out


def test_best_rate_is_a_minimum() -> None:
    rule, u = HeavyBall(momentum=0.5), Topology.ring(6).eigenvalues
    found, step = best_rate(rule, u, 10.0)
    curvatures = np.geomspace(0.1, 1.0, 9)
    assert found == pytest.approx(rate(rule, u, curvatures * step))
    assert found <= min(rate(rule, u, curvatures * step * f) for f in (0.8, 1.25))
    with pytest.raises(ConfigError, match="condition"):
        best_rate(rule, u, 0.5)


def test_small_facts() -> None:
    assert diameter(Topology.torus(4, 4)) == 4
    assert halving_rounds(0.5) == pytest.approx(1.0)
    assert halving_rounds(0.0) == 0.0
    assert halving_rounds(1.5) == float("inf")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["show", "tours:4x4"], "did you mean 'torus'"),
        (["show", "ring:8", "--weights", "metropolice"], "did you mean 'metropolis'"),
        (["show", "ring:8", "--momentum", "1"], r"momentum must be a number in [0, 1)"),
        (["show", "ring:8", "--model", "mpl"], "did you mean 'mlp'"),
        (["show", "ring:8", "--parameters", "0"], "--parameters must be at least 1"),
        (["show", "directed-ring:8"], "is directed"),
        (["suggest", "complete:4"], "lacks 0 links only"),
        (["suggest", "ring:8", "--add", "0"], "at least 1"),
        (["optimize", "absent.json"], "no such file"),
        (["show", "ring:8", "--condition", "inf"], "--condition must be finite"),
        (["show", "ring:8", "--condition", "nan"], "--condition must be finite"),
        (["show", "ring:8", "--condition", "0.5"], "at least 1, got 0.5"),
        (["show", "ring:8", "--picture", "x.xyz"], "ends in none of .png, .svg, .pdf"),
        (["show", "ring:8", "--picture", "x"], "ends in none of .png"),
        (["show", "ring:8", "--picture", "/dev/null/x.png"], "--picture: cannot write"),
        (["optimize", "ring:4", "--out", "/dev/null/x.json"], "--out: cannot write"),
        (["optimize", "ring:4", "--out", "/"], "--out: cannot write '/'"),
        (["show", "ring:2001"], "at most 2,000 agents"),
        (["show", "hypercube:40"], "1,099,511,627,776 agents are too many"),
        (["suggest", "ring:2001"], "at most 2,000 agents"),
    ],
)
def test_bad_input_says_what_is_allowed(
    capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert main(["topology", *words]) == 2
    assert message in capsys.readouterr().err
