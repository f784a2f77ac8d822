"""What a run leaves: written as it goes on, and readable by others."""

import json
import time
import tomllib

import numpy as np
import pytest
from safetensors.numpy import load_file

from flower_dhb import ConfigError, RunFolder, Topology
from flower_dhb.flower.progress import VARIABLE, Progress, tell_round
from flower_dhb.metrics import RoundRecord
from flower_dhb.runs.folder import history_row, toml_text
from flower_dhb.runs.table import Row, table

NAN = float("nan")
RING = Topology.ring(3)
REQUIRED = {
    *("round", "accuracy_mean", "accuracy_worst", "accuracy_best", "accuracy_average_model"),
    *("loss_mean", "loss_worst", "loss_best", "accuracy", "loss", "consensus_distance"),
    *("bytes_sent", "bytes_sent_by_agent", "missing", "rejoined", "events", "seconds"),
    *("distance_from_start", "warnings", "policies", "profile"),
}


def record(round=1, **changes):
    """A round of three agents, of which the second has four times the examples."""
    evaluate = {
        0: {"accuracy": 0.5, "loss": 2.0, "num-examples": 10},
        1: {"accuracy": 0.7, "loss": 1.0, "num-examples": 40},
        2: {"accuracy": 0.9, "loss": 3.0, "num-examples": 10},
    }
    values = {
        "evaluate": evaluate,
        "consensus_distance": 0.25,
        "bytes_sent": 60,
        "bytes_by_agent": {0: 20, 1: 40},
        "seconds": 0.5,
        "profile": {"app": 0.4, "ours": 0.1},
    }
    return RoundRecord(round=round, **(values | changes))


def open_folder(tmp_path, name="test", config=None):
    return RunFolder(tmp_path, name, RING, config or {})


def history(folder):
    lines = (folder.path / "history.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line, parse_constant=pytest.fail) for line in lines]


# --- the rows ----------------------------------------------------------------------------


def test_a_row_worked_out_by_hand():
    row = history_row(record(evaluate_average_model={"accuracy": 0.95, "num-examples": 9}), 3)
    assert set(row) == REQUIRED
    assert row["accuracy_mean"] == pytest.approx((10 * 0.5 + 40 * 0.7 + 10 * 0.9) / 60)
    assert (row["accuracy_worst"], row["accuracy_best"]) == (0.5, 0.9)
    assert (row["loss_worst"], row["loss_best"]) == (3.0, 1.0)
    assert row["accuracy"] == [0.5, 0.7, 0.9]
    assert row["accuracy_average_model"] == 0.95
    assert row["bytes_sent_by_agent"] == [20, 40, 0]
    assert (row["round"], row["consensus_distance"], row["seconds"]) == (1, 0.25, 0.5)
    assert (row["missing"], row["rejoined"], row["events"]) == ([], [], [])
    assert row["profile"] == {"app": 0.4, "ours": 0.1}


def test_what_was_not_measured_is_null_under_the_same_keys():
    row = history_row(RoundRecord(round=4), 3)
    assert set(row) == REQUIRED
    for key in ("accuracy_mean", "accuracy_worst", "accuracy_average_model", "loss_mean"):
        assert row[key] is None
    assert row["accuracy"] == [None] * 3
    assert row["consensus_distance"] is None


def test_values_that_are_not_finite_are_null(tmp_path):
    folder = open_folder(tmp_path)
    evaluate = {0: {"accuracy": 0.5, "loss": NAN}, 1: {"accuracy": 0.5, "loss": float("inf")}}
    folder.append(record(evaluate=evaluate, consensus_distance=NAN))
    (row,) = history(folder)
    assert row["loss"] == [None, None, None]
    assert (row["loss_mean"], row["loss_worst"], row["consensus_distance"]) == (None, None, None)
    assert row["accuracy_mean"] == 0.5


def test_other_metrics_of_an_app_get_keys_of_their_own():
    row = history_row(record(evaluate={1: {"f1-score": 0.25, "num-examples": 3}}), 3)
    assert (row["f1_score_mean"], row["f1_score"]) == (0.25, [None, 0.25, None])
    assert "num_examples" not in row
    assert "num-examples_mean" not in row


def test_a_row_has_the_strategys_weights_and_its_idea_of_better():
    """By another key, one agent without it; of `age` less is better; the key is no metric."""
    evaluate = {
        0: {"age": 1.0, "loss": 1.0, "n": 1},
        1: {"age": 2.0, "loss": 2.0, "n": 3},
        2: {"age": 9.0, "loss": 0.5, "num-examples": 5},
    }
    row = history_row(record(evaluate=evaluate, weighted_by_key="n", lower_is_better=("age",)), 3)
    assert row["age_mean"] == pytest.approx((1.0 + 3 * 2.0) / 4)
    assert (row["age_worst"], row["age_best"]) == (9.0, 1.0)
    assert (row["loss_worst"], row["loss_best"]) == (0.5, 2.0)
    assert "n_mean" not in row
    assert row["num_examples"] == [None, None, 5.0], "here it is a metric like any other"


def test_missing_agents_and_events_are_told():
    row = history_row(record(missing=[2], rejoined=[0], events=[(2, "no answer")]), 3)
    assert (row["missing"], row["rejoined"]) == ([2], [0])
    assert row["events"] == [{"agent": 2, "what": "no answer"}]


# --- the folder --------------------------------------------------------------------------


def test_a_finished_round_is_forced_to_the_disk(tmp_path, monkeypatch):
    folder, forced = open_folder(tmp_path), []
    monkeypatch.setattr("flower_dhb.runs.folder.sync", lambda file: forced.append(file.tell()))
    for k in (1, 2):
        folder.append(record(k))
    lines = (folder.path / "history.jsonl").read_bytes().splitlines(keepends=True)
    assert forced == [len(lines[0]), len(lines[0]) + len(lines[1])]


def test_finished_rounds_are_on_disk_before_the_run_ends(tmp_path):
    folder = open_folder(tmp_path)
    assert history(folder) == []
    for k in (1, 2, 3):
        folder.append(record(round=k))
        assert [row["round"] for row in history(folder)] == list(range(1, k + 1))
    assert history(folder) == folder.rows
    assert not (folder.path / "convergence.png").exists()


def test_config_and_graph_are_there_from_the_start(tmp_path):
    folder = open_folder(tmp_path, config={"rounds": 5})
    assert (folder.path / "config.toml").read_text() == "rounds = 5\n"
    assert (folder.path / "topology.png").read_bytes().startswith(b"\x89PNG")


def test_runs_of_the_same_second_get_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr(time, "strftime", lambda _: "20260101-120000")
    names = [open_folder(tmp_path).path.name for _ in range(3)]
    assert names == [
        "20260101-120000-test",
        "20260101-120000-test-2",
        "20260101-120000-test-3",
    ]


def test_folders_above_are_made(tmp_path):
    assert open_folder(tmp_path / "a" / "b").path.parent == tmp_path / "a" / "b"


@pytest.mark.parametrize("name", ["", "a/b", "a\\b", "..", ".hidden", "/etc"])
def test_bad_names_are_refused(tmp_path, name):
    with pytest.raises(ConfigError, match="a run's name becomes part of a folder name, got"):
        open_folder(tmp_path, name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.thorough
def test_finish_saves_models_that_safetensors_reads(tmp_path):
    folder = open_folder(tmp_path)
    folder.append(record())
    model = {
        "weight": np.arange(6, dtype=np.float32).reshape(2, 3).T,  # not contiguous
        "count": np.array(7),
    }
    folder.finish({0: model, 2: model}, "title")
    names = sorted(path.name for path in folder.path.glob("*.safetensors"))
    assert names == ["agent-000.safetensors", "agent-002.safetensors"]
    found = load_file(folder.path / names[1])
    assert found.keys() == model.keys()
    for name, array in model.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(found[name], array)
    assert (folder.path / "convergence.png").read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_there_are_no_pictures_and_all_else(tmp_path, monkeypatch):
    monkeypatch.setattr("flower_dhb.runs.folder.installed", lambda *_: False)
    folder = open_folder(tmp_path)
    folder.append(record())
    folder.finish({0: {"x": np.zeros(2)}})
    names = {path.name for path in folder.path.iterdir()}
    assert names == {"config.toml", "run.json", "history.jsonl", "agent-000.safetensors"}


def test_the_table_shows_the_first_the_best_and_the_last_round(tmp_path):
    folder = open_folder(tmp_path)
    assert folder.table() == []
    for k, worst in enumerate([0.1, 0.8, 0.7], start=1):
        evaluate = {0: {"accuracy": worst}, 1: {"accuracy": 0.9}}
        folder.append(record(round=k, evaluate=evaluate))
    folder.append(RoundRecord(round=4))
    head, *lines = folder.table()
    assert head.split("  ")[-1].strip() == "distance"
    assert [line.split()[:2] for line in lines] == [["first", "1"], ["best", "2"], ["last", "3"]]
    assert head.split() == ["round", "accuracy,", "mean", "worst", "agent", "distance"]
    assert lines[1].split()[2:] == ["85.0%", "80.0%", "0.25"]  # and no average model


def test_the_table_is_that_of_the_command(tmp_path, monkeypatch):
    told = tmp_path / "progress"
    folder = open_folder(tmp_path)
    records = [
        record(round=k, evaluate={0: {"drift": x}}, lower_is_better=("drift",))
        for k, x in enumerate([0.5, 0.2, 0.4], start=1)
    ]
    for one in records:
        folder.append(one)
    lines = folder.table()
    monkeypatch.setenv(VARIABLE, str(told))
    told.touch()
    progress = Progress(told)
    for one in records:
        tell_round(one)
    rows = [Row(**{k: v for k, v in news.items() if k != "what"}) for news in progress.news()]
    titles, cells = table(rows)
    assert [line.split() for line in lines[1:]] == cells
    assert lines[2].split()[:3] == ["best", "2", "0.2"]
    assert lines[0].split() == " ".join(titles).split()


# --- TOML --------------------------------------------------------------------------------

VALUES = {
    "text": "plain",
    "quotes": "say \"no\" and 'yes'",
    "backslash": r"C:\runs\new",
    "unicode": "Grüße, δ_i ∈ ℝ, 🌻",
    "control": "tab\t newline\n return\r bell\x07 delete\x7f end",
    "empty": "",
    "not-a-number": "1.5",
    "flag": True,
    "other-flag": False,
    "integer": -3,
    "large": 2**53 + 1,
    "number": 0.1,
    "small": 1e-07,
    "huge": 1e22,
    "whole": 60.0,
    "infinite": float("inf"),
    "minus-infinite": float("-inf"),
}


def test_config_parses_back_to_the_same_values(tmp_path):
    folder = open_folder(tmp_path, config=VALUES)
    with (folder.path / "config.toml").open("rb") as file:
        found = tomllib.load(file)
    assert found == VALUES
    assert {k: type(v) for k, v in found.items()} == {k: type(v) for k, v in VALUES.items()}


def test_nan_parses_back_to_nan():
    assert np.isnan(tomllib.loads(toml_text({"x": NAN}))["x"])


def test_keys_that_are_not_bare_are_quoted():
    values = {"a.b": 1, 'with "quotes"': 2, "größe": 3, "plain-key_1": 4}
    assert tomllib.loads(toml_text(values)) == values
    assert "plain-key_1 = 4\n" in toml_text(values)
