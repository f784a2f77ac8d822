"""Real `flwr run`: a real SuperLink, Ray's workers, the app at the repository's root."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from rich.console import Console
from safetensors.numpy import load_file

from flower_dhb import HeavyBall, Topology, simulate
from flower_dhb.cli.run import Watch
from flower_dhb.errors import RoundError
from flower_dhb.flower.progress import VARIABLE, Progress
from flower_dhb.problems.digits import load_digits
from flower_dhb.problems.models import make_model
from flower_dhb.problems.splits import batches, split
from flower_dhb.runs.superlink import SuperLink, local_superlink

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[2]
FAULTY = Path(__file__).parent / "apps" / "faulty"
FOREIGN = Path(__file__).parent / "apps" / "foreign"
TOPOLOGY = "erdos-renyi:7:0.4:2"
SETTINGS: dict[str, Any] = {"topology": TOPOLOGY, "rounds": 5, "split": "iid", "seed": 3}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("flwr-home")


@pytest.fixture(scope="module")
def superlink(home: Path) -> Iterator[SuperLink]:
    with local_superlink(home, {VARIABLE: str(home / "progress")}) as link:
        yield link
    assert _processes_of(home) == [], "all that was started must have ended"


def run(superlink: SuperLink, app: Path, n: int, runs: Path, **settings: Any) -> Path:
    """Run an app to its end; returns the folder of its results."""
    run_id = superlink.submit(app, n, {**settings, "runs-dir": str(runs)})
    with superlink.log(run_id) as lines:
        text = lines.read()
    folders = sorted(runs.iterdir()) if runs.exists() else []
    assert folders, text[-3000:]
    assert "Exit Code" not in text, text[-3000:]
    return folders[-1]


def history(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def folder(superlink: SuperLink, tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("first")
    return run(superlink, ROOT, 7, runs, **SETTINGS, **{"observe-average": True})


def test_flwr_run_gives_the_parameters_of_simulate(folder: Path) -> None:
    expected = _simulated()
    names = list(make_model("mlp", 0).state_dict())  # a file orders them otherwise
    for vertex in range(7):
        arrays = load_file(folder / f"agent-{vertex:03d}.safetensors")
        found = np.concatenate([arrays[name].ravel() for name in names])
        # float32, five rounds: the one gradient is batched over agents, the other is
        # not, and sums run in another order. 1e-5 is a few dozen roundings of values
        # near 1; one round's step is a hundred times larger.
        np.testing.assert_allclose(found, expected[vertex], rtol=0, atol=1e-5)


def test_a_run_leaves_its_history_config_pictures_and_models(folder: Path) -> None:
    import tomllib

    names = {path.name for path in folder.iterdir()}
    models = {f"agent-{v:03d}.safetensors" for v in range(7)}
    assert names == models | {"history.jsonl", "config.toml", "convergence.png", "topology.png"}
    rows = history(folder)
    assert [row["round"] for row in rows] == [1, 2, 3, 4, 5]
    required = {
        *("round", "accuracy_mean", "accuracy_worst", "accuracy_best", "accuracy_average_model"),
        *("loss_mean", "consensus_distance", "bytes_sent", "missing", "seconds"),
    }
    for row in rows:
        assert required <= set(row)
        assert None not in [row[key] for key in required]
        assert len(row["accuracy"]) == len(row["loss"]) == 7
        assert row["accuracy_worst"] <= row["accuracy_mean"] <= row["accuracy_best"]
        assert row["accuracy_worst"] == min(row["accuracy"])
    config = tomllib.loads((folder / "config.toml").read_text())
    assert (config["topology"], config["algorithm"]) == (TOPOLOGY, "dmsgd")
    for picture in ("convergence.png", "topology.png"):
        data = (folder / picture).read_bytes()
        assert data.startswith(b"\x89PNG")
        assert len(data) > 10_000


def test_same_seed_same_history_to_the_bit(
    superlink: SuperLink, folder: Path, tmp_path: Path
) -> None:
    again = run(superlink, ROOT, 7, tmp_path, **SETTINGS, **{"observe-average": True})
    first, second = (
        [{k: v for k, v in row.items() if k != "seconds"} for row in history(f)]
        for f in (folder, again)
    )
    assert first == second
    for vertex in range(7):
        name = f"agent-{vertex:03d}.safetensors"
        assert (folder / name).read_bytes() == (again / name).read_bytes()


def test_faults_in_simulation_cost_rounds_and_not_the_run(
    superlink: SuperLink, tmp_path: Path
) -> None:
    rows = history(run(superlink, FAULTY, 6, tmp_path))
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
    assert (next(tmp_path.iterdir()) / "convergence.png").exists()


def test_a_bad_run_config_ends_at_once_with_its_remedy(superlink: SuperLink) -> None:
    run_id = superlink.submit(ROOT, 7, {"topology": "rng:7"})
    with superlink.log(run_id) as lines:
        text = lines.read()
    assert "unknown topology 'rng', did you mean 'ring'?" in text


def test_too_few_nodes_end_the_run_with_the_remedy(superlink: SuperLink) -> None:
    run_id = superlink.submit(ROOT, 2, {"topology": "ring:16"})
    with superlink.log(run_id) as lines:
        text = lines.read()
    assert "has 16 vertices, but 2 nodes are connected" in text
    assert "num-supernodes=16" in text


# --- apps that know nothing of run folders ------------------------------------------------------


def watch(superlink: SuperLink, app: Path, mode: str, out: StringIO) -> Watch:
    """Follow a run of the foreign app as `flower-dhb run` does."""
    home = superlink.log_path.parent
    progress = Progress(home / "progress")
    run_id = superlink.submit(app, 4, {"mode": mode})
    watching = Watch(superlink, progress, home / f"{mode}.log")
    try:
        watching.follow(run_id, Console(file=out, width=200))
    finally:
        assert (app / "pyproject.toml").read_bytes() == (FOREIGN / "pyproject.toml").read_bytes()
    return watching


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    return Path(shutil.copytree(FOREIGN, tmp_path / "foreign"))


@pytest.mark.parametrize(
    ("mode", "last"),
    [
        ("serverless", r"round 3/3 \| eval_loss .* \| consensus distance "),
        # From 0, all move half way to the mean, 1.5, in each of three rounds.
        ("fedavg", r"round 3/3 \| .*eval_loss 0.1875 \| eval_acc 0.8421$"),
    ],
)
def test_an_app_of_ones_own_shows_its_prints_and_its_rounds(
    superlink: SuperLink, foreign: Path, mode: str, last: str
) -> None:
    out = StringIO()
    watching = watch(superlink, foreign, mode, out)
    lines = out.getvalue().splitlines()
    assert lines[0] == f"the app begins, mode {mode}"
    assert "the app ends with 3 evaluations" in lines
    assert any(line.startswith("agents: client ") for line in lines)
    assert [row.round for row in watching.rows] == [1, 2, 3]
    assert all(row.rounds == 3 for row in watching.rows)
    (told,) = [line for line in lines if line.startswith("round 3/3")]
    assert re.match(last, told)
    assert not any("SuperNodes" in line or "logstream" in line for line in lines)


def test_an_app_that_fails_ends_with_its_error_once(superlink: SuperLink, foreign: Path) -> None:
    out = StringIO()
    with pytest.raises(RoundError) as error:
        watch(superlink, foreign, "server-fails", out)
    text = str(error.value)
    assert text.startswith("the run failed: KeyError: 'weight' (foreign/server_app.py, line ")
    assert text.endswith(f"All of its log: {superlink.log_path.with_name('server-fails.log')}")
    assert "Traceback" not in out.getvalue()
    assert "KeyError" not in out.getvalue()
    assert "Traceback" in superlink.log_path.with_name("server-fails.log").read_text()


def test_two_commands_at_once_keep_apart_and_leave_nothing_behind(
    foreign: Path, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    before = sorted(foreign.rglob("*"))
    running = {}
    for rounds in (1, 2):
        command = [sys.executable, "-m", "flower_dhb.cli", "run", ".", "--home", str(home)]
        settings = f'num-server-rounds={rounds} out="{tmp_path}/{rounds}"'
        running[rounds] = subprocess.Popen(
            [*command, "-c", settings], cwd=foreign, stdout=subprocess.PIPE, text=True
        )
    try:
        for rounds, process in running.items():
            out, _ = process.communicate(timeout=250)
            assert process.returncode == 0, out
            assert f"round {rounds}/{rounds} | " in out
            assert (tmp_path / str(rounds)).read_text() == str(list(range(1, rounds + 1)))
    finally:
        for process in running.values():
            process.kill()
            process.wait()
    assert sorted(foreign.rglob("*")) == before
    assert len(list(home.iterdir())) == 2
    assert _processes_of(home) == []


def test_the_command_shows_rounds_and_leaves_nothing_behind(tmp_path: Path) -> None:
    home = tmp_path / "home"
    command = [sys.executable, "-m", "flower_dhb.cli", "run", str(ROOT), "--home", str(home)]
    command += ["-c", 'topology="path:2"', "-c", f'rounds=2 split="iid" runs-dir="{tmp_path}/r"']
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "round 1/2 | " in done.stdout
    assert "worst agent" in done.stdout
    assert f"Results: {tmp_path}/r/" in done.stdout.replace("\n", "")
    assert _processes_of(home) == []


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_command_leaves_finished_rounds_and_no_process(
    tmp_path: Path, how: signal.Signals
) -> None:
    home, runs = tmp_path / "home", tmp_path / "runs"
    command = [sys.executable, "-m", "flower_dhb.cli", "run", str(ROOT), "--home", str(home)]
    command += ["-c", f'topology="path:2" rounds=100000 split="iid" runs-dir="{runs}"']
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        try:
            deadline = time.monotonic() + 120
            while not any(len(history(f)) >= 2 for f in runs.glob("*")):
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.2)
            process.send_signal(how)
            assert process.wait(timeout=60) == (-9 if how == signal.SIGKILL else 130)
        finally:
            process.kill()
    assert _processes_of(home) == []
    rows = history(next(runs.iterdir()))
    assert [row["round"] for row in rows] == list(range(1, len(rows) + 1))


def _processes_of(home: Path) -> list[str]:
    """Command lines of living processes whose Flower home is this one."""
    gone_in_a_moment = []
    for process in psutil.process_iter():
        try:
            mine = process.environ().get("FLWR_HOME", "").startswith(str(home))
            if mine and process.status() != psutil.STATUS_ZOMBIE:
                gone_in_a_moment.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    _, alive = psutil.wait_procs(gone_in_a_moment, timeout=30)
    return [str(process) for process in alive]


def _simulated() -> np.ndarray:
    """The same problem under the reference driver, gradients of all agents in one call."""
    import torch
    from torch.func import functional_call, grad, vmap

    topology, seed = Topology.parse(TOPOLOGY), 3
    digits, model = load_digits(), make_model("mlp", seed)
    parts = split(digits.train_y.numpy(), 7, "iid", seed)
    shapes = [(name, p.shape, p.numel()) for name, p in model.named_parameters()]

    def loss(flat: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        pieces = torch.split(flat, [size for *_, size in shapes])
        named = {n: p.view(shape) for (n, shape, _), p in zip(shapes, pieces, strict=True)}
        return torch.nn.functional.cross_entropy(functional_call(model, named, (x,)), y)

    gradient = vmap(grad(loss))

    def step(x: np.ndarray, k: int) -> np.ndarray:
        rows = np.stack(
            [
                p[batches(len(p), 32, 1, seed=seed, vertex=v, round=k)[0]]
                for v, p in enumerate(parts)
            ]
        )
        g = gradient(torch.from_numpy(x), digits.train_x[rows], digits.train_y[rows])
        return x - 0.4 * g.numpy()

    start = torch.cat([p.detach().reshape(-1) for p in model.parameters()]).numpy()
    return simulate(HeavyBall(), topology, start, step, 5)[-1]
