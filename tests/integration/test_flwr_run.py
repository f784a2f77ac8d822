"""Real runs in simulation: real SuperLinks, Ray's workers, the app at the repository's root."""

from __future__ import annotations

import shutil
import tomllib
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from support.flower_runs import (
    RATE,
    ROOT,
    ROUNDS,
    SEED,
    TOPOLOGY,
    history,
    log_of,
    models,
    processes_of,
    run,
    simulated,
)

from flower_dhb.cli.run import Watch
from flower_dhb.errors import RoundError
from flower_dhb.flower.progress import Progress
from flower_dhb.runs.superlink import SuperLink

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300), pytest.mark.xdist_group("superlink")]

FAULTY = Path(__file__).parent / "apps" / "faulty"
FOREIGN = Path(__file__).parent / "apps" / "foreign"


def test_the_command_shows_rounds_and_leaves_nothing_behind(digits) -> None:
    assert digits.status == 0, digits.out
    lines = digits.out.splitlines()
    for k in range(1, ROUNDS + 1):
        assert [line for line in lines if line.startswith(f"round {k}/{ROUNDS} | ")], digits.out
    assert "worst agent" in digits.out
    assert f"Results: {digits.folder}" in lines
    assert processes_of(digits.home) == []


def test_a_run_gives_the_parameters_of_simulate(digits) -> None:
    # float32, five rounds: the one gradient is batched over agents, the other is
    # not, and sums run in another order. 1e-5 is a few dozen roundings of values
    # near 1; one round's step is a hundred times larger.
    np.testing.assert_allclose(
        models(digits.folder, 7), simulated(TOPOLOGY, ROUNDS, RATE, SEED), rtol=0, atol=1e-5
    )


def test_a_run_leaves_its_history_config_pictures_and_models(digits) -> None:
    folder = digits.folder
    names = {path.name for path in folder.iterdir()}
    agents = {f"agent-{v:03d}.safetensors" for v in range(7)}
    assert names == agents | {
        "history.jsonl",
        "config.toml",
        "convergence.png",
        "topology.png",
        "split.png",
        "split.json",
        "run.json",
    }
    rows = history(folder)
    assert [row["round"] for row in rows] == [1, 2, 3, 4, 5]
    required = {
        *("round", "accuracy_mean", "accuracy_worst", "accuracy_best", "accuracy_average_model"),
        *("loss_mean", "consensus_distance", "bytes_sent", "missing", "seconds", "profile"),
    }
    for row in rows:
        assert required <= set(row)
        assert None not in [row[key] for key in required]
        assert len(row["accuracy"]) == len(row["loss"]) == 7
        assert row["accuracy_worst"] <= row["accuracy_mean"] <= row["accuracy_best"]
        assert row["accuracy_worst"] == min(row["accuracy"])
    config = tomllib.loads((folder / "config.toml").read_text())
    assert (config["topology"], config["algorithm"]) == (TOPOLOGY, "dmsgd")
    for picture in ("convergence.png", "topology.png", "split.png"):
        data = (folder / picture).read_bytes()
        assert data.startswith(b"\x89PNG")
        assert len(data) > 10_000


def test_same_seed_same_history_to_the_bit(digits, rules: dict[str, Path]) -> None:
    """Another SuperLink, other processes, and the command once, `flwr run` once."""
    first, second = (
        [
            {k: v for k, v in row.items() if k not in ("seconds", "profile")}
            for row in history(folder)
        ]
        for folder in (digits.folder, rules["dmsgd"])
    )
    assert first == second
    for vertex in range(7):
        name = f"agent-{vertex:03d}.safetensors"
        assert (digits.folder / name).read_bytes() == (rules["dmsgd"] / name).read_bytes()


def test_faults_in_simulation_cost_rounds_and_not_the_run(
    superlink: SuperLink, tmp_path: Path
) -> None:
    (folder,) = run(superlink, FAULTY, 6, tmp_path)
    rows = history(folder)
    missing = {row["round"]: row["missing"] for row in rows}
    events = {(row["round"], e["agent"]): e["what"] for row in rows for e in row["events"]}
    assert len(rows) == 20
    assert missing[3] == [1]
    assert "ValueError: the battery is empty" in events[3, 1]
    assert missing[4] == [2]
    assert "8 values that are not finite" in events[4, 2]
    assert missing[5] == [3]
    assert "float64[7], expected float64[8]" in events[5, 3]
    assert missing[6] == [4]
    assert any("late answer to 'train' of round 6" in text for text in events.values())
    assert [row["round"] for row in rows if 5 in row["rejoined"]] in ([9], [10])
    assert missing[20] == []
    assert rows[-1]["loss_mean"] < rows[0]["loss_mean"]
    assert (folder / "convergence.png").exists()


# --- runs that fail -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def failing(superlink: SuperLink, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Two runs at once that end with an error, `{name: run id}`: their time is mostly waiting.

    A bad run config ends as too few nodes do: `tests/unit/test_server_app.py` has its words.
    """
    foreign = shutil.copytree(FOREIGN, tmp_path_factory.mktemp("failing") / "foreign")
    return {
        "too few nodes": superlink.submit(ROOT, 2, {"topology": "ring:16"}),
        "server fails": superlink.submit(foreign, 4, {"mode": "server-fails"}),
    }


def test_too_few_nodes_end_the_run_with_the_remedy(
    superlink: SuperLink, failing: dict[str, str]
) -> None:
    text = log_of(superlink, failing["too few nodes"])
    assert "has 16 vertices, but 2 nodes are connected" in text
    assert "num-supernodes=16" in text


def test_an_app_that_fails_ends_with_its_error_once(
    superlink: SuperLink, failing: dict[str, str], tmp_path: Path
) -> None:
    out = StringIO()
    watching = Watch(superlink, Progress(tmp_path / "progress"), tmp_path / "run.log")
    with pytest.raises(RoundError) as error:
        watching.follow(failing["server fails"], Console(file=out, width=200))
    text = str(error.value)
    assert text.startswith("the run failed: KeyError: 'weight' (foreign/server_app.py, line ")
    assert text.endswith(f"All of its log: {tmp_path / 'run.log'}")
    assert "Traceback" not in out.getvalue()
    assert "KeyError" not in out.getvalue()
    assert "Traceback" in (tmp_path / "run.log").read_text()
