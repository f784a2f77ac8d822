"""Runs each strategy in turn, and writes down the seconds of every round."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from flower_dhb import ServerlessStrategy, Topology

app = ServerApp()


class TimedFedAvg(FedAvg):
    """Takes down when each round begins and when the last one ends."""

    def start(self, *arguments: object, **options: object) -> object:
        """Run all rounds."""
        self.moments: list[float] = []
        result = super().start(*arguments, **options)
        self.moments.append(time.monotonic())
        return result

    def configure_train(self, *arguments: object) -> object:
        """Begin a round."""
        self.moments.append(time.monotonic())
        return super().configure_train(*arguments)


@app.main()
def main(grid: Grid, context: Context) -> None:
    """All turns."""
    config = context.run_config
    topology = Topology.parse(str(config["topology"]))
    n, rounds = topology.n_agents, int(config["rounds"])
    start = _start(config, n)
    everyone = {"min_train_nodes": n, "min_available_nodes": n}
    seconds: dict[str, list[float]] = {}
    profiles: dict[str, list[dict[str, float]]] = {}

    def fedavg(name: str, floor: str = "", **options: object) -> None:
        strategy = TimedFedAvg(**everyone, **options)
        strategy.start(grid, start, num_rounds=rounds, train_config=ConfigRecord({"floor": floor}))
        took = np.diff(strategy.moments)
        seconds.setdefault(name, []).extend(float(s) for s in took)

    def relay(name: str, **options: object) -> None:
        strategy = ServerlessStrategy(topology, average=False, **options)
        # One round more: the last one is evaluated by itself, and not counted.
        result = strategy.start(grid, start, num_rounds=rounds + 1)
        counted = result.history[:-1]
        seconds.setdefault(name, []).extend(record.seconds for record in counted)
        profiles.setdefault(name, []).extend(record.profile for record in counted)

    turns: dict[str, Callable[[str], None]] = {
        "floor": lambda name: fedavg(name, "at once", fraction_evaluate=0.0),
        "floor, the app loaded": lambda name: fedavg(name, "app", fraction_evaluate=0.0),
        "FedAvg": lambda name: fedavg(name, fraction_evaluate=0.0),
        "relay": lambda name: relay(name, evaluate_every=0),
        "FedAvg with evaluation": lambda name: fedavg(name, min_evaluate_nodes=n),
        "relay, sealed": lambda name: relay(name, evaluate_every=0, encryption="neighbors"),
        "relay, int8": lambda name: relay(name, evaluate_every=0, compression="int8"),
        "relay with evaluation": lambda name: relay(name, join_evaluation=True),
        "relay with evaluations by themselves": lambda name: relay(name, join_evaluation=False),
    }
    only = str(config["only"]).split(";") if config["only"] else list(turns)
    output = Path(str(config["output"]))
    for _ in range(int(config["turns"])):
        for name in only:
            turns[name](name)
            found = {"seconds": seconds, "profiles": profiles}
            output.with_suffix(".part").write_text(json.dumps(found), encoding="utf-8")
    output.with_suffix(".part").rename(output)


def _start(config: dict[str, object], n: int) -> ArrayRecord:
    if config["work"] == "numpy":
        return ArrayRecord([np.zeros(int(config["parameters"]), np.float32)])
    from clients.start import initial_arrays

    return ArrayRecord(initial_arrays(config))
