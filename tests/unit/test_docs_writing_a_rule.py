"""What docs/writing-a-rule.md shows runs, from the class to a mesh."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from support.peers import run_cli

from flower_dhb import RunConfig, Topology, simulate
from flower_dhb.algorithms import METHODS, Algorithm, method
from flower_dhb.cli import main
from flower_dhb.files import read_toml

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "writing-a-rule.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
SHELL = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with the page's module in it."""
    (tmp_path / "my_rules.py").write_text(PYTHON[0])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    yield tmp_path
    sys.modules.pop("my_rules", None)


def test_the_page_is_as_this_test_knows_it():
    assert (len(PYTHON), len(SHELL)) == (2, 2)
    members = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", PAGE, re.MULTILINE)
    for name in (name for cell in members for name in re.findall(r"\w+", cell)):
        assert hasattr(Algorithm, name), name


def test_the_class_is_the_law_that_the_page_says(here, capsys):
    names: dict[str, object] = {}
    exec(PYTHON[1], names)  # noqa: S102
    assert float(capsys.readouterr().out) < 1e-6
    rule = method("my_rules:Patient:most=0.8:warmup=5")
    graph = Topology.star(5)
    target = np.random.default_rng(1).normal(size=(5, 3))
    step = lambda x, k: x - 0.1 * (x - target)  # noqa: E731
    x, d = np.zeros((5, 3)), np.zeros((5, 3))
    for k in range(1, 8):
        new = graph.mixing_matrix @ step(x, k) + 0.8 * k / (k + 5) * d
        x, d = new, new - x
    np.testing.assert_allclose(simulate(rule, graph, np.zeros(3), step, 7)[-1], x, atol=1e-14)


def test_the_tables_of_rules_are_whole():
    """Each name has a row in compare.md; each class is told of where the laws are."""
    table = (ROOT / "docs" / "compare.md").read_text(encoding="utf-8")
    laws = (ROOT / "docs" / "algorithm.md").read_text(encoding="utf-8") + table
    for name in METHODS:
        if type(method(name)).__module__.startswith("flower_dhb."):
            assert re.search(rf"^\| .*`{name}`", table, re.MULTILINE), name
    for name in ("GASLoC", "NoLoCo", "DiLoCo", "GlobalUpdateTracking", "MoTEF", "K-GT", "ProxSkip"):
        assert name in laws
        which = (ROOT / "docs" / "which-rule.md").read_text(encoding="utf-8")
        assert name in which or name == "GlobalUpdateTracking", name


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_it_is_compared(here, capsys):
    words = shlex.split(SHELL[0])
    assert words[:2] == ["flower-dhb", "compare"]
    # The page's command, shorter; its processes are workers of this one.
    short = {"60": "3", "2": "1"}
    assert main([*(short.get(w, w) for w in words[1:]), "--jobs", "1", "--out", "out"]) == 0
    assert "my_rules:Patient:most=0.5" in capsys.readouterr().out.replace("\n", "")


def test_a_run_config_names_it(here):
    (block,) = re.findall(r"```toml\n# pyproject.toml\n(.*?)```", PAGE, re.DOTALL)
    (here / "app.toml").write_text(block)
    config = read_toml(here / "app.toml", "")["tool"]["flwr"]["app"]["config"]
    found = RunConfig.of({"topology": "ring:4", "warmup": 7, **config}).algorithm
    assert found == method("my_rules:Patient:warmup=7")


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_mesh_runs_it(here):
    """Each peer imports the rule from the app's folder; `replay` computes the rounds again."""
    app = here / "app"
    shutil.copytree(ROOT / "tests" / "support" / "peer_app", app)
    (here / "my_rules.py").rename(app / "my_rules.py")
    create, up = SHELL[1].strip().splitlines()
    words = [*shlex.split(create)[1:], "--run-config", "warmup=7"]  # a key of the rule's own
    made = run_cli(*words, "--set", "record=payloads")
    assert made.returncode == 0, made.stderr
    done = run_cli(*shlex.split(up)[1:], timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    replayed = run_cli("replay", "mesh")
    assert replayed.returncode == 0, replayed.stdout + replayed.stderr
    assert re.search(r"\b24\b", replayed.stdout)  # four agents, six rounds
    overview = read_toml(here / "mesh" / "mesh.toml", "")
    assert overview["algorithm"] == {"name": "my_rules:Patient", "most": 0.9, "warmup": 7}
