"""Real Flower runs: the command, submitted apps, what they leave."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import tomli_w
from numpy.typing import NDArray
from safetensors.numpy import load_file

from flower_dhb import HeavyBall, Topology, simulate
from flower_dhb.problems.digits import load_digits
from flower_dhb.problems.models import make_model
from flower_dhb.problems.splits import batches, split
from flower_dhb.runs.superlink import SuperLink

ROOT = Path(__file__).parents[2]
OWN_RULES = Path(__file__).parent / "peer_app" / "own_rules.py"

# Seven agents whose degrees differ, two classes of digits for each.
TOPOLOGY, ROUNDS, SEED, RATE = "erdos-renyi:7:0.4:2", 5, 3, 0.2
DIGITS: dict[str, Any] = {
    "topology": TOPOLOGY,
    "rounds": ROUNDS,
    "split": "classes:2",
    "seed": SEED,
    "learning-rate": RATE,
    "observe-average": True,
}

# Nearer than agents with other classes are after a round, so that each round clips.
CLIPPED = "dmsgd:clipping=0.1"

# The run config of each rule, by the rule's name in `method`. "dmsgd" is the app's default.
RULES: dict[str, dict[str, Any]] = {
    "dmsgd": {},
    "dmsgd-gt": {"form": "tracking", "observe-average": False, "evaluate-every": 0},
    "qg": {"algorithm": "qg", "observe-average": False, "evaluate-every": 0},
    "dsgd": {"algorithm": "dsgd", "observe-average": False, "evaluate-every": 0},
    "clipped": {"algorithm": CLIPPED, "observe-average": False, "evaluate-every": 0},
    "own": {"algorithm": "own_rules:Warming", "observe-average": False, "evaluate-every": 0},
}

ALL_RULES = """\"\"\"The ServerApp beside this file, once for each rule.\"\"\"

import json
from pathlib import Path

from flwr.serverapp import ServerApp

from strategies import server_app

app = ServerApp()


@app.main()
def main(grid, context):
    values = dict(context.run_config)
    for name, changes in json.loads(values.pop("rules")).items():
        context.run_config = {**values, "name": name, **changes}
        Path(values["changes"]).write_text(json.dumps(context.run_config))
        server_app.app(grid, context)
"""

ALL_RULES_CLIENT = """\"\"\"The ClientApp beside this file, told what changes.\"\"\"

import json
from pathlib import Path

from flwr.clientapp import ClientApp

from clients import client_app


class Changed(ClientApp):
    def __call__(self, message, context):
        told = context.run_config
        changes = Path(told["changes"])
        if changes.exists():  # with peers, there is no ServerApp
            context.run_config = json.loads(changes.read_text())
        try:
            return client_app.app(message, context)
        finally:
            context.run_config = told


app = Changed()
"""


def write_all_rules(
    path: Path, rules: Mapping[str, Mapping[str, Any]] = RULES, first: str = ""
) -> None:
    """A copy of the app at the root whose ServerApp makes several runs, one after the other.

    rules: what the app is told beside the run config, by the name of the run. first: what
    each process of the app does first.
    """
    document = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    app = document["tool"]["flwr"]["app"]
    app["fab-include"] = ["strategies/**/*.py", "clients/**/*.py", "own_rules.py"]
    app["components"]["serverapp"] = "strategies.all_rules:app"
    app["components"]["clientapp"] = "clients.all_rules:app"
    app["config"]["rules"] = json.dumps(rules)
    app["config"]["changes"] = str(path / "changes.json")
    path.mkdir()
    (path / "pyproject.toml").write_text(tomli_w.dumps(document), encoding="utf-8")
    for folder in ("strategies", "clients"):
        shutil.copytree(ROOT / folder, path / folder, ignore=shutil.ignore_patterns("*.pyc"))
    (path / "strategies" / "all_rules.py").write_text(ALL_RULES, encoding="utf-8")
    (path / "clients" / "all_rules.py").write_text(ALL_RULES_CLIENT, encoding="utf-8")
    # A rule of the app's own, which its ClientApp does not import.
    shutil.copy(OWN_RULES, path)
    with (path / "clients" / "__init__.py").open("a", encoding="utf-8") as module:
        module.write(first)


def run(superlink: SuperLink, app: Path, n: int, runs: Path, **settings: Any) -> list[Path]:
    """Run an app to its end; returns the folders of its results."""
    text = log_of(superlink, superlink.submit(app, n, {**settings, "runs-dir": str(runs)}))
    folders = sorted(runs.iterdir()) if runs.exists() else []
    assert folders, text[-3000:]
    assert "Exit Code" not in text, text[-3000:]
    return folders


def log_of(superlink: SuperLink, run_id: str) -> str:
    """All that a run prints; it has ended then."""
    with superlink.log(run_id) as lines:
        return lines.read()


@contextmanager
def command(
    app: Path, home: Path, settings: Mapping[str, Any], *words: str
) -> Iterator[subprocess.Popen[str]]:
    """`flower-dhb run` as a process; it is killed if it has not ended in time."""
    line = [sys.executable, "-m", "flower_dhb.cli", "run", str(app), "--home", str(home), *words]
    for key, value in settings.items():
        line += ["-c", f"{key}={json.dumps(value)}"]
    with subprocess.Popen(
        line,
        env=os.environ | {"COLUMNS": "200"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def history(folder: Path) -> list[dict[str, Any]]:
    """The rounds of a run."""
    return [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]


def models(folder: Path, n: int) -> NDArray[np.float32]:
    """Final parameters of all agents of a run of the digits' network, `(n, d)`."""
    names = list(make_model("mlp", 0).state_dict())  # a file orders them otherwise
    files = [load_file(folder / f"agent-{vertex:03d}.safetensors") for vertex in range(n)]
    return np.stack([np.concatenate([f[name].ravel() for name in names]) for f in files])


def processes_of(home: Path) -> list[str]:
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


def simulated(graph: str, rounds: int, rate: float, seed: int) -> NDArray[np.float32]:
    """The digits' problem under the reference driver, gradients of all agents in one call."""
    import torch
    from torch.func import functional_call, grad, vmap

    topology = Topology.parse(graph)
    data, model = load_digits(), make_model("mlp", seed)
    parts = split(data.train_y.numpy(), topology.n_agents, "classes:2", seed)
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
        g = gradient(torch.from_numpy(x), data.train_x[rows], data.train_y[rows])
        return x - rate * g.numpy()

    start = torch.cat([p.detach().reshape(-1) for p in model.parameters()]).numpy()
    return simulate(HeavyBall(), topology, start, step, rounds)[-1]
