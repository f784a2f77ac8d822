"""Results are kept by what they depend on: code that changes gives new runs, and only that."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from importlib import invalidate_caches
from pathlib import Path

import psutil
import pytest

from flower_dhb.algorithms import DSGD, METHODS, HeavyBall, method
from flower_dhb.algorithms.registry import ALGORITHMS
from flower_dhb.cli import main
from flower_dhb.compare import Comparison, compare, workers
from flower_dhb.compare import runs as runs_module
from flower_dhb.compare.presets import settings_of_preset
from flower_dhb.compare.runs import Curves
from flower_dhb.compare.sources import digest_of_code, digest_of_rule
from flower_dhb.compare.store import Store
from flower_dhb.errors import ConfigError

HELPER = "SCALE = 1.0\n"
PROBLEM = """
import torch
import {name}_helper
from flower_dhb.compare import TorchTask

def halved(output, target):
    return ((output - target) ** 2).mean() * {name}_helper.SCALE

def net():
    return torch.nn.Linear(2, 1)

def make():
    x = torch.randn(40, 2, generator=torch.Generator().manual_seed({seed}))
    y = x.sum(1, keepdim=True)
    return TorchTask(net, (x, y), test=(x, y), loss=halved, metric="loss", name="own", rounds=4,
                     backend="loop")
"""
RULE = """
from dataclasses import dataclass
from typing import ClassVar
from flower_dhb.algorithms import DSGD, register

@register
@dataclass(frozen=True, kw_only=True)
class Own(DSGD):
    name: ClassVar[str] = "own-rule"

    def combine(self, state, trained, mixed):
        return super().combine(state, trained, {{k: {factor} * v for k, v in mixed.items()}})
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A folder of modules of one's own, and a function that writes and forgets them."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def write(**sources: str) -> None:
        for name, text in sources.items():
            (tmp_path / f"{name}.py").write_text(text)
        for name in [n for n in sys.modules if n.startswith("mine")]:
            del sys.modules[name]
        ALGORITHMS.pop("own-rule", None)
        METHODS.pop("own-rule", None)
        invalidate_caches()

    yield write
    write()


def executed(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Runs that are really done, from now on."""
    done: list[object] = []

    def counting(*work: object) -> Curves:
        done.append(work[0])
        return runs_module.execute(*work)  # type: ignore[arg-type]

    monkeypatch.setattr(workers, "execute", counting)
    return done


def again(store: Store, **changes: object):
    values = {"problem": "mine:make", "topologies": ["ring:4"], "methods": ["dsgd"], "seeds": 1}
    return compare(Comparison(**(values | changes)), store).outcomes[0]  # type: ignore[arg-type]


def test_a_problem_whose_code_or_data_change_is_run_anew(
    project, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    done, store = executed(monkeypatch), Store(tmp_path / "runs")
    text = PROBLEM.format(name="mine", seed=1)
    project(mine=text, mine_helper=HELPER)
    first = again(store)
    assert len(done) == 1
    assert again(store) == first
    project(mine=text, mine_helper=HELPER)  # the same, imported anew
    assert again(store) == first
    assert len(done) == 1
    project(mine_helper="SCALE = 2.0\n")  # a module that the problem's imports
    assert again(store).runs != first.runs
    assert len(done) == 2
    project(mine_helper=HELPER, mine=PROBLEM.format(name="mine", seed=2))
    assert again(store).runs != first.runs
    assert len(done) == 3
    project(mine=text)
    assert again(store) == first
    assert len(done) == 3


def test_a_rule_whose_source_changes_is_run_anew(
    project, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    done, store = executed(monkeypatch), Store(tmp_path / "runs")

    def outcome(factor: float):
        project(mine_rule=RULE.format(factor=factor))
        __import__("mine_rule")
        return again(store, problem="averaging", splits=(), methods=["own-rule"], rounds=5)

    first = outcome(1.0)
    plain = again(store, problem="averaging", splits=(), methods=["dsgd"], rounds=5)
    assert first.runs == plain.runs
    assert outcome(1.0) == first
    assert outcome(0.5).runs != first.runs
    assert len(done) == 3
    built_in = {name: digest_of_rule(method(name)) for name in ("dmsgd", "dsgd", "dsgt")}
    assert built_in["dmsgd"] == digest_of_rule(HeavyBall(momentum=0.1))
    assert built_in["dsgd"] == digest_of_rule(DSGD())
    assert len(set(built_in.values())) > 1


def test_other_versions_of_libraries_are_other_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    from flower_dhb.compare import sources

    setting = Comparison(problem="averaging", topologies=["ring:4"], methods=["dsgd"])

    def key() -> str:
        return setting.work(setting.cases[0], method("dsgd"), 1.0, 0).run.key

    before = key()
    sources.digest_of_runtime.cache_clear()
    assert key() == before
    monkeypatch.setattr(sources, "versions", lambda: {"torch": "9.9"})
    sources.digest_of_runtime.cache_clear()
    assert key() != before
    monkeypatch.undo()
    sources.digest_of_runtime.cache_clear()
    assert key() == before


def test_libraries_count_by_version_and_not_by_source() -> None:
    assert digest_of_code(Path.exists) == digest_of_code(pytest.raises)


def test_a_problem_that_is_drawn_without_a_seed_is_refused_elsewhere(project) -> None:
    text = PROBLEM.format(name="mine", seed=1).replace(
        ", generator=torch.Generator().manual_seed(1)", ""
    )
    project(mine=text, mine_helper=HELPER)
    bench = Comparison(problem="mine:make", topologies=["ring:4"], methods=["dsgd"]).bench
    sent = workers.Bench(bench.problem, bench.graphs, bench.digest)
    with pytest.raises(ConfigError, match=r"is another one in another process.*draw from a seed"):
        _ = sent.task


def test_a_problem_that_cannot_be_sent_says_what_to_do(project, tmp_path: Path) -> None:
    text = PROBLEM.format(name="mine", seed=1).replace("TorchTask(net", "TorchTask(lambda: net()")
    project(mine=text, mine_helper=HELPER)
    from mine import make  # type: ignore[import-not-found]

    with pytest.raises(ConfigError, match=r"cannot be sent to other processes.*no lambdas"):
        compare(
            Comparison(problem=make(), topologies=["ring:4"], methods=["dsgd"]),
            Store(tmp_path / "runs"),
            jobs=2,
        )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("raise ValueError('no')", "cannot be imported: ValueError: no"),
        ("def make(n): pass", "cannot be made without arguments"),
        ("def make(): return 3", "is 3, which has no 'name': return a TorchTask"),
        ("make = 3", "is a int; write a function without arguments"),
        ("import nothing_of_that_name", "nothing_of_that_name"),
    ],
)
def test_modules_that_are_no_problem_say_so(project, text: str, message: str) -> None:
    project(mine=text)
    with pytest.raises((ConfigError, ModuleNotFoundError), match=message):
        Comparison(problem="mine:make", topologies=["ring:4"], methods=["dsgd"])


def test_presets_are_run_configs(project, tmp_path: Path) -> None:
    preset = tmp_path / "presets" / "ring.toml"
    preset.parent.mkdir()
    preset.write_text(
        "topology = 'ring:5'\nsplit = 'classes:2'\nalgorithm = 'dmsgd'\nmomentum = 0.8\n"
        "form = 'auto'\nmodel = 'logistic'\nrounds = 7\nlocal-steps = 2\nbatch-size = 8\n"
        "learning-rate = 0.2\noptimizer = 'adamw'\nschedule = 'cosine'\n"
    )
    found = settings_of_preset(preset)
    setting = Comparison(**found)
    assert (setting.task.name, list(setting.graphs)) == ("digits-logistic", ["ring:5"])
    assert setting.methods == ["dmsgd:momentum=0.8"]
    assert setting.cases[0].name == "ring:5 classes:2, 2 local steps, adamw, cosine"
    assert (setting.rounds, setting.batch_size, setting.grid) == (7, 8, (0.2,))
    app = tmp_path / "pyproject.toml"
    app.write_text(
        "[tool.flwr.app.config]\ntopology = 'ring:9'\nsplit = 'iid'\nworkload = 'own'\n"
        "[tool.flower-dhb]\nproblem = 'mine_app:task'\n"
    )
    project(
        mine=PROBLEM.format(name="mine", seed=1),
        mine_helper=HELPER,
        mine_app="from mine import make\nseen = []\ndef task(v): seen.append(v); return make()\n",
    )
    preset.write_text("split = 'classes:2'\n")
    assert settings_of_preset(preset)["problem"].name == "own"
    [seen] = sys.modules["mine_app"].seen
    assert seen == {"topology": "ring:9", "split": "classes:2", "workload": "own"}
    for text, message in (
        ("rounds = 3\n", "the app's run config has no key 'rounds'"),
        ("split = 3\n", "'split' must be a text, got 3"),
        ("[split]\nby = 1\n", "the app's run config has no key 'split.by'"),
        ("split = [1]\n", "'split' must be a text, a number or a boolean, got "),
        ("split =\n", "not readable as TOML: .*; a preset is a TOML file of settings"),
    ):
        preset.write_text(text)
        with pytest.raises(ConfigError, match=message):
            settings_of_preset(preset)
    app.write_text("[tool.flwr.app.config]\nworkload = 'own'\n")
    preset.write_text("")
    with pytest.raises(ConfigError, match="does not say how to compare on it"):
        settings_of_preset(preset)
    assert settings_of_preset(preset, "averaging")["problem"] == "averaging"


# --- real processes -------------------------------------------------------------------------

COMMAND = [sys.executable, "-m", "flower_dhb.cli", "compare", "--problem", "averaging"]
COMMAND += ["--topology", "ring:8", "--methods", "dsgd,dmsgd:momentum=0.4", "--rounds", "40"]
COMMAND += ["--seeds", "4", "--no-pictures"]


@pytest.mark.slow  # a command with two processes
@pytest.mark.timeout(300)
def test_a_command_that_is_killed_loses_nothing_and_doubles_nothing(tmp_path: Path) -> None:
    out, runs = tmp_path / "killed", tmp_path / "killed" / "runs"
    command = [*COMMAND, "--rounds", "300", "--evaluate-every", "1", "--jobs", "2"]
    process = subprocess.Popen([*command, "--out", str(out)], stderr=subprocess.DEVNULL)
    until = time.monotonic() + 60
    while len(list(runs.glob("*.json"))) < 2 and time.monotonic() < until:
        time.sleep(0.02)
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(children) >= 2
    assert psutil.wait_procs(children, timeout=60)[1] == []  # they end with it
    before = {path: path.stat().st_mtime_ns for path in runs.glob("*.json")}
    assert 2 <= len(before) < 8
    for where in (out, tmp_path / "through"):
        assert main([*command[3:], "--jobs", "1", "--out", str(where)]) == 0
    after = {path: path.stat().st_mtime_ns for path in runs.glob("*.json")}
    assert {path: after[path] for path in before} == before  # none was done again
    assert len(after) == 8
    through = {path.name: path.read_bytes() for path in (tmp_path / "through" / "runs").iterdir()}
    assert {path.name: path.read_bytes() for path in runs.iterdir()} == through
    names = ("compare.json", "compare.csv", "curves.csv", "compare.tex", "compare.md")
    for name in names:
        assert (out / name).read_bytes() == (tmp_path / "through" / name).read_bytes()


@pytest.mark.slow  # a Ray cluster of this machine, and two fresh processes
@pytest.mark.timeout(300)
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # Ray leaves its log files to the collector
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_ray_and_processes_give_the_numbers_of_one_process(project, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    rule = RULE.format(factor=0.5).replace("@register\n", "")
    project(mine=PROBLEM.format(name="mine", seed=1), mine_helper=HELPER, mine_rule=rule)
    own = {"problem": "mine:make", "topologies": ["ring:4", "one-peer:4"], "seeds": 2}
    setting = Comparison(**own, methods=["dmsgd", "mine_rule:Own"], optimizers=["sgd", "adamw"])  # type: ignore[arg-type]
    one = compare(setting, tmp_path / "one")
    assert compare(setting, tmp_path / "two", jobs=2).outcomes == one.outcomes
    assert compare(setting, tmp_path / "ray", ray="local").outcomes == one.outcomes
    files = [
        {p.name: p.read_bytes() for p in (tmp_path / w / "runs").iterdir()}
        for w in ("one", "two", "ray")
    ]
    assert files[0] == files[1] == files[2]
