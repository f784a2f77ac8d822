"""What a run tells the command that started it."""

import json

import pytest
from support.apps import numpy_app, start_arrays
from support.grid import LocalGrid

from flower_dhb import DSGD, RunFolder, ServerlessStrategy, Topology, consensus_mod
from flower_dhb.flower.progress import VARIABLE, Progress, tell, tell_round
from flower_dhb.metrics import RoundRecord

LINE = Topology.path(3)  # whose ends differ; on a ring of 3 all agents agree after a round


@pytest.fixture
def path(tmp_path, monkeypatch):
    path = tmp_path / "progress"
    monkeypatch.setenv(VARIABLE, str(path))
    return path


def train(rounds, **options):
    strategy = ServerlessStrategy(LINE, DSGD(), **options)
    app = numpy_app(3, 4, mods=[consensus_mod])
    return strategy.start(LocalGrid(app, 3), start_arrays(4)[0], num_rounds=rounds)


def test_a_strategy_tells_its_rounds_as_its_result_has_them(path):
    result = train(2)
    start, *rounds, end = reader(path).news()
    assert start == {"what": "start", "rounds": 2, "agents": 3}
    assert end == {"what": "end", "incomplete": ""}
    assert [entry["round"] for entry in rounds] == [1, 2]
    for entry, record in zip(rounds, result.history, strict=True):
        metrics = result.evaluate_metrics_clientapp[record.round]
        assert entry["what"] == "round"
        assert entry["metrics"]["norm"] == metrics["norm"]
        assert entry["consensus_distance"] == record.consensus_distance > 0
        assert (entry["missing"], entry["seconds"]) == ([], record.seconds)
        assert entry["profile"] == record.profile
        assert record.profile


def test_a_round_without_evaluation_is_told_too(path):
    train(2, evaluate_every=2)
    _, first, second, _ = reader(path).news()
    assert (first["metrics"], first["consensus_distance"]) == ({}, None)
    assert second["metrics"]


def test_what_is_no_number_is_left_out(path):
    record = RoundRecord(
        round=7,
        missing=[1],
        evaluate={
            0: {"accuracy": 1, "per-class": [0.1, 0.2], "num-examples": 3},
            1: {"accuracy": 0.6, "num-examples": 1},
        },
        evaluate_average_model={"accuracy": 0.5, "per-class": [0.5], "num-examples": 9},
        events=[(0, "late"), (1, "late")],
        warnings=["it rains"],
    )
    tell_round(record)
    (entry,) = reader(path).news()
    assert (entry["round"], entry["missing"]) == (7, [1])
    assert entry["metrics"] == {"accuracy": 0.9, "accuracy-worst": 0.6, "accuracy-best": 1.0}
    assert entry["average_model"] == {"accuracy": 0.5}
    assert (entry["events"], entry["warnings"]) == ([[[0, 1], "late"]], ["it rains"])


def test_a_run_folder_tells_where_it_is(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = RunFolder("runs", "x", LINE, {})
    told = reader(path).news()
    assert told == [{"what": "folder", "path": str(tmp_path / folder.path)}]


def test_without_the_variable_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)
    tell("start", rounds=1)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_written_does_not_end_the_run(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(tmp_path / "absent" / "progress"))
    assert len(train(1).history) == 1


def reader(path):
    """A reader that was there before the run."""
    there = Progress(path.with_name("never"))
    there._path = path
    return there


def test_news_are_told_once_and_only_whole_lines(path):
    watched = Progress(path)
    assert watched.news() == []
    tell("start", rounds=1)
    assert watched.news() == [{"what": "start", "rounds": 1}]
    assert watched.news() == []
    with path.open("a") as file:
        file.write('{"what": "rou')
        file.flush()
        assert watched.news() == []
        file.write('nd", "round": 1}\n{"what"')
        file.flush()
    assert watched.news() == [{"what": "round", "round": 1}]


def test_an_earlier_run_is_no_news(path):
    tell("start", rounds=1)
    watched = Progress(path)
    tell("start", rounds=2)
    assert watched.news() == [{"what": "start", "rounds": 2}]
    assert len([json.loads(line) for line in path.read_text().splitlines()]) == 2
