"""The study of many local steps: what is done is kept, and nothing is done twice."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import local_steps as study

pytestmark = pytest.mark.slow  # it loads what records a step, for seconds


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study, "METHODS", {"dsgd": {}, "dmsgd": {}})
    monkeypatch.setattr(study, "GRAPHS", ("ring:16",))
    monkeypatch.setattr(study, "SPLITS", ("iid",))
    monkeypatch.setattr(study, "STEPS", (1,))
    monkeypatch.setattr(study, "SEEDS", (0,))
    monkeypatch.setattr(study, "ROUNDS", {1: 2})
    monkeypatch.setattr(study, "EVERY", {1: 1})
    monkeypatch.setattr(study, "LADDERS", {"sgd": (0.01, 0.1, 0.3)})


def test_a_study_that_was_stopped_goes_on_and_says_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study.run_all(tmp_path)
    path = tmp_path / "runs.jsonl"
    whole = path.read_text()
    values = [json.loads(line) for line in whole.splitlines()]
    test = [v for v in values if v["run"]["part"] == "test"]
    assert [v["run"]["rule"]["name"] for v in test] == ["dsgd", "dmsgd"]
    # The ladder was climbed on the validation digits, from one rate up while it got better.
    assert {v["run"]["rate"] for v in values if v["run"]["part"] != "test"} == {0.01, 0.1, 0.3}
    assert {v["run"]["rate"] for v in test} == {0.3}

    study.run_all(tmp_path)
    assert path.read_text() == whole  # nothing is done twice

    lines = whole.splitlines(keepends=True)
    path.write_text("".join(lines[:-1]) + lines[-1][:40])  # killed while it wrote
    capsys.readouterr()
    study.table(study.Study.open(tmp_path))
    assert "Runs that are not there in these columns: 1." in capsys.readouterr().out
    study.run_all(tmp_path)
    again = study.Study.open(tmp_path)
    assert len(again.found) == len(values)
    for value in values:  # the same numbers, to the bit
        found = again.found[value["key"]]
        assert (found["last"], found["reached"]) == (value["last"], value["reached"])
    capsys.readouterr()
    study.table(again)
    assert "Runs that are not there in these columns: 0." in capsys.readouterr().out
