"""The app's server side: what it hands to the strategy, and what it writes down."""

import json
import math

import numpy as np
import pytest
from flwr.app import Context, RecordDict
from safetensors.numpy import load_file
from support.dying import Killed
from support.grid import LocalGrid

from clients.client_app import app as client_app
from flower_dhb import DSGD, ConfigError, ServerlessStrategy
from strategies import server_app

pytestmark = pytest.mark.thorough


def run(tmp_path, node=None, **values):
    """Run the whole app on 16 agents in this process; returns its folder."""
    values = {"rounds": 2, "runs-dir": str(tmp_path), "name": "try", **values}
    context = Context(1, 1, {}, RecordDict(), values)
    grid = LocalGrid(client_app, 16, node_config=lambda v: {"vertex": v, **(node or {})})
    server_app.main(grid, context)
    (folder,) = tmp_path.iterdir()
    return folder


def history(folder):
    return [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]


def test_a_run_leaves_everything_that_is_promised(tmp_path):
    folder = run(tmp_path)
    assert folder.name.endswith("-try")
    models = {f"agent-{v:03d}.safetensors" for v in range(16)}
    assert {path.name for path in folder.iterdir()} == models | {
        *("history.jsonl", "config.toml", "run.json", "convergence.png", "topology.png"),
        *("split.png", "split.json"),
    }
    rows = history(folder)
    assert [row["round"] for row in rows] == [1, 2]
    assert [row["missing"] for row in rows] == [[], []]
    assert rows[-1]["consensus_distance"] > 0
    assert {row["accuracy_average_model"] for row in rows} == {None}
    first, second = (load_file(folder / f"agent-{v:03d}.safetensors") for v in (0, 1))
    assert {name: a.shape for name, a in first.items()} == {
        "0.weight": (32, 64),
        "0.bias": (32,),
        "2.weight": (10, 32),
        "2.bias": (10,),
    }
    assert not np.array_equal(first["0.weight"], second["0.weight"])


def test_the_average_model_is_observed_only_if_asked_for(tmp_path):
    rows = history(run(tmp_path, **{"observe-average": True}))
    assert all(0.0 < row["accuracy_average_model"] <= 1.0 for row in rows)


def killed_in_round(k):
    """A strategy whose ServerApp dies when a round has been trained, before it is evaluated."""

    class Dying(ServerlessStrategy):
        def configure_evaluate(self, server_round, *others):
            if server_round == k:
                raise Killed
            return super().configure_evaluate(server_round, *others)

    return Dying


def test_a_run_whose_serverapp_was_killed_goes_on_in_its_folder(tmp_path, monkeypatch):
    """With the number of rounds that it was started with, which is not the app's default."""
    values = {"rounds": 3, "observe-average": True, "evaluate-every": 2}
    states = {"state-dir": str(tmp_path / "states")}
    plain = run(tmp_path / "plain", **values)
    with monkeypatch.context() as patch:
        patch.setattr(server_app, "ServerlessStrategy", killed_in_round(2))
        with pytest.raises(Killed):
            run(tmp_path / "runs", states, **values)
    (folder,) = (tmp_path / "runs").iterdir()
    assert len(history(folder)) == 1
    torn = (folder / "history.jsonl").read_text() + '{"round": 2, "accu'  # as a crash may leave it
    (folder / "history.jsonl").write_text(torn)
    again = {**values, "rounds": 100, "resume": str(folder)}
    assert run(tmp_path / "runs", states, **again) == folder
    assert timeless(history(folder)) == timeless(history(plain))
    assert len(history(folder)) == 3
    for v in range(16):
        name = f"agent-{v:03d}.safetensors"
        assert (folder / name).read_bytes() == (plain / name).read_bytes()
    assert {path.name for path in folder.iterdir()} == {path.name for path in plain.iterdir()}
    with pytest.raises(ConfigError, match="that run is over"):
        run(tmp_path / "runs", states, **again)


def timeless(rows):
    """But for the clock."""
    told = {"seconds", "profile"}
    return [{key: value for key, value in row.items() if key not in told} for row in rows]


class CapturedError(Exception):
    """Ends a run as soon as its strategy is made."""


@pytest.mark.parametrize(("value", "limit"), [(0.0, math.inf), (0, math.inf), (7.5, 7.5)])
def test_the_rounds_deadline_and_no_deadline(tmp_path, monkeypatch, value, limit):
    def strategy(topology, algorithm, **settings):
        ServerlessStrategy(topology, algorithm, **settings)  # takes them
        raise CapturedError(topology.name, algorithm, settings)

    monkeypatch.setattr(server_app, "ServerlessStrategy", strategy)
    with pytest.raises(CapturedError) as caught:
        run(tmp_path, **{"round-timeout-s": value, "algorithm": "dsgd", "evaluate-every": 5})
    name, algorithm, settings = caught.value.args
    assert (name, algorithm) == ("ring:16", DSGD())
    assert settings["round_timeout_s"] == limit
    assert settings["evaluate_every"] == 5


def test_a_round_without_a_deadline_ends_when_all_have_answered(tmp_path):
    rows = history(run(tmp_path, **{"round-timeout-s": 0, "rounds": 1}))
    assert [row["missing"] for row in rows] == [[]]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"topology": "rign:16"}, "unknown topology 'rign', did you mean 'ring'"),
        ({"topology": "torus:4x4", "momentum-mixing": 1.0}, "diverges for every step size"),
        ({"name": "a/b"}, "a run's name becomes part of a folder name"),
        ({"split": "clases:2"}, "unknown split"),
    ],
)
def test_bad_settings_leave_no_folder(tmp_path, values, message):
    with pytest.raises(ConfigError, match=message):
        run(tmp_path, **values)
    assert list(tmp_path.iterdir()) == []
