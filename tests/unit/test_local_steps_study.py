"""The study of many local steps: what is done is kept, and nothing is done twice."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import local_steps as study
from flower_dhb import HeavyBall, Topology
from flower_dhb.engine.engine import Engine
from flower_dhb.engine.supervised import Supervised
from flower_dhb.problems.digits import load_digits
from flower_dhb.problems.models import make_model
from flower_dhb.problems.splits import split

pytestmark = pytest.mark.slow  # it loads what records a step, for seconds


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study, "METHODS", {"dsgd": {}, "dmsgd": {}})
    monkeypatch.setattr(study, "GRAPHS", ("ring:16",))
    monkeypatch.setattr(study, "SPLITS", ("iid",))
    monkeypatch.setattr(study, "STEPS", (1,))
    monkeypatch.setattr(study, "SEEDS", (0, 1))
    monkeypatch.setattr(study, "ROUNDS", {1: 2})
    monkeypatch.setattr(study, "EVERY", {1: 1})
    monkeypatch.setattr(study, "LADDERS", {"sgd": (0.01, 0.03, 0.1, 0.3, 1.0)})


def test_a_study_that_was_stopped_goes_on_and_says_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study.run_all(tmp_path)
    path = tmp_path / "runs.jsonl"
    whole = path.read_text()
    values = [json.loads(line) for line in whole.splitlines()]
    test = [v for v in values if v["runs"]["part"] == "test"]
    assert [v["runs"]["rule"]["name"] for v in test] == ["dsgd", "dmsgd"]
    assert {len(v["reached"]) for v in test} == {2}  # seeds
    # The ladder was climbed on the validation digits, from its middle while it got better.
    climbed = [v["runs"]["rates"] for v in values if v["runs"]["part"] != "test"]
    assert climbed == [[0.03, 0.1, 0.3], [1.0]] * 2
    assert {tuple(v["runs"]["rates"]) for v in test} == {(1.0, 1.0)}

    study.run_all(tmp_path)
    assert path.read_text() == whole  # nothing is done twice

    lines = whole.splitlines(keepends=True)
    path.write_text("".join(lines[:-1]) + lines[-1][:40])  # killed while it wrote
    capsys.readouterr()
    study.table(study.Study.open(tmp_path))
    assert "- 1 steps, iid, sgd, ring:16: 1 of 2 rules" in capsys.readouterr().out
    study.run_all(tmp_path)
    again = study.Study.open(tmp_path)
    assert len(again.found) == len(values)
    for value in values:  # the same numbers, to the bit
        found = again.found[value["key"]]
        assert (found["last"], found["reached"]) == (value["last"], value["reached"])
    capsys.readouterr()
    study.table(again)
    assert "Settings that lack rules: 0." in capsys.readouterr().out


@pytest.mark.parametrize("optimizer", ["sgd", "momentum:0.9", "adamw"])
def test_runs_side_by_side_are_runs_of_the_engine(optimizer: str) -> None:
    """Of other seeds and other rates, whose agents train in one batch."""
    opened = study.Study.open(Path("nowhere"))
    data, rates, seeds = load_digits(), (0.05, 0.01), (0, 3)
    more = {"rates": rates, "seeds": seeds, "part": "test", "rounds": 2}
    runs = opened.runs("dmsgd", "ring:16", "iid", 1, optimizer, **more)
    abreast = study.Abreast(runs, opened.graphs["ring:16"], opened)
    for _ in range(2):
        abreast.step()
    scores = abreast.accuracies(data.test_x, data.test_y)
    for at, (rate, seed) in enumerate(zip(rates, seeds, strict=True)):
        problem = Supervised(
            make_model("mlp", seed),
            data.train_x,
            data.train_y,
            split(data.train_y.numpy(), 16, "iid", seed),
            seed=seed,
            optimizer=optimizer,
            model=opened.model,
        )
        engine = Engine(problem, Topology.ring(16), HeavyBall(), learning_rate=rate)
        engine.run(2)
        mine = abreast.x[16 * at : 16 * at + 16]
        # A fused product or not: the last digits of float32.
        torch.testing.assert_close(mine, engine.parameters, rtol=0, atol=1e-6)
        right = [
            (output.argmax(-1) == data.test_y).double().mean(-1)
            for _, output in problem.outputs(engine.agents, data.test_x)
        ]
        assert scores[at]["mean"] == pytest.approx(float(torch.cat(right).mean()), abs=1e-9)
