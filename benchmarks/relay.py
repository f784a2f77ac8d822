"""Seconds per round of the relay against FedAvg, on the same ClientApp, in one run.

Both strategies run by turns on the same simulated nodes (Ray), so drift of the machine
hits both. Usage: python benchmarks/relay.py [--rounds 5] [--turns 5]
[--model "5 million"] [--what "train and evaluate"]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from itertools import pairwise
from pathlib import Path

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from torch import nn

from flower_dhb import ServerlessStrategy, Topology, consensus_mod

N_AGENTS = 8
WHAT = ("train", "train and evaluate")
LAYERS = {"100 thousand": (128, 384, 128, 10), "5 million": (1024, 2048, 1408, 10)}


def make_model(sizes: tuple[int, ...]) -> nn.Module:
    layers: list[nn.Module] = []
    for a, b in pairwise(sizes):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def make_client_app(sizes: tuple[int, ...]) -> ClientApp:
    app = ClientApp(mods=[consensus_mod])

    @app.train()
    def train(message: Message, context: Context) -> Message:
        torch.set_num_threads(1)
        model = make_model(sizes)
        model.load_state_dict(message.content.array_records["arrays"].to_torch_state_dict())
        generator = torch.Generator().manual_seed(int(context.node_config["partition-id"]))
        x = torch.randn(32, sizes[0], generator=generator)
        y = torch.randint(sizes[-1], (32,), generator=generator)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        metrics = MetricRecord({"train_loss": loss.item(), "num-examples": 32})
        content = {"arrays": ArrayRecord(model.state_dict()), "metrics": metrics}
        return Message(RecordDict(content), reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        model = make_model(sizes)
        model.load_state_dict(message.content.array_records["arrays"].to_torch_state_dict())
        return Message(RecordDict({"m": MetricRecord({"num-examples": 32})}), reply_to=message)

    return app


def make_server_app(
    sizes: tuple[int, ...], rounds: int, turns: int, only: str, output: Path
) -> ServerApp:
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        n_parameters = sum(p.numel() for p in make_model(sizes).parameters())
        start = ArrayRecord(make_model(sizes).state_dict())
        everyone = {"min_train_nodes": N_AGENTS, "min_available_nodes": N_AGENTS}
        strategies = {
            ("relay", "train"): lambda: ServerlessStrategy(
                Topology.ring(N_AGENTS), evaluate_every=0, average=False
            ),
            ("fedavg", "train"): lambda: FedAvg(fraction_evaluate=0.0, **everyone),
            ("relay", "train and evaluate"): lambda: ServerlessStrategy(
                Topology.ring(N_AGENTS), join_evaluation=True
            ),
            ("fedavg", "train and evaluate"): lambda: FedAvg(
                min_evaluate_nodes=N_AGENTS, **everyone
            ),
        }
        strategies = {key: make for key, make in strategies.items() if only in ("", key[1])}
        seconds: dict[str, list[float]] = {}
        for turn in range(turns + 1):
            for (name, what), make in strategies.items():
                strategy = make()
                begin = time.perf_counter()
                strategy.start(grid, start, num_rounds=rounds)
                if turn > 0:  # the first turn starts Ray's workers
                    took = (time.perf_counter() - begin) / rounds
                    seconds.setdefault(f"{name}: {what}", []).append(took)
        output.write_text(json.dumps({"parameters": n_parameters, "seconds": seconds}))

    return app


def measure(sizes: tuple[int, ...], rounds: int, turns: int, only: str, output: Path) -> None:
    from flwr.simulation import run_simulation

    run_simulation(
        make_server_app(sizes, rounds, turns, only, output),
        make_client_app(sizes),
        num_supernodes=N_AGENTS,
        backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}},
    )


def main() -> None:
    import subprocess
    import tempfile

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--model", choices=list(LAYERS), help="this one alone")
    parser.add_argument("--what", choices=WHAT, default="", help="these rounds alone")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        words = (arguments.rounds, arguments.turns, arguments.what, arguments.output)
        measure(LAYERS[arguments.one], *words)
        return
    print(f"{'model':<14}{'round':<22}{'FedAvg s':>10}{'relay s':>10}{'ratio':>8}  (medians)")
    with tempfile.TemporaryDirectory() as folder:
        for name in (
            [arguments.model] if arguments.model else LAYERS
        ):  # a process each: Ray keeps what it once had
            output = Path(folder) / "result.json"
            command = [sys.executable, __file__, "--one", name, "--output", str(output)]
            command += ["--rounds", str(arguments.rounds), "--turns", str(arguments.turns)]
            command += ["--what", arguments.what] if arguments.what else []
            log = Path(folder) / "log"
            with log.open("w") as file:
                done = subprocess.run(command, stdout=file, stderr=file, check=False)
            if done.returncode != 0 or not output.exists():
                sys.exit(log.read_text()[-4000:])
            seconds = json.loads(output.read_text())["seconds"]
            for what in [arguments.what] if arguments.what else WHAT:
                relay, fedavg = seconds[f"relay: {what}"], seconds[f"fedavg: {what}"]
                ratio = statistics.median(a / b for a, b in zip(relay, fedavg, strict=True))
                print(
                    f"{name:<14}{what:<22}{statistics.median(fedavg):>10.3f}"
                    f"{statistics.median(relay):>10.3f}{ratio:>8.2f}"
                )


if __name__ == "__main__":
    main()
