"""A strategy with the arguments that the run config says; late agents are soon missing.

A file `enough` in the folder `trouble` ends the run with the next round.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp

from deployed import clusters
from flower_dhb import HeavyBall, RunFolder, ServerlessStrategy, Topology
from flower_dhb.metrics import RoundRecord

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run all rounds, whoever answers."""
    config = context.run_config
    topology = Topology.parse(str(config["topology"]))
    folder = RunFolder(str(config["runs-dir"]), str(config["name"]), topology, config)
    arguments = {
        "round_timeout_s": 25.0,
        "evaluate_every": 0,
        "collect_models": True,
        **json.loads(str(config["strategy"])),
    }

    def kept(record: RoundRecord) -> bool:
        folder.append(record)
        return bool(config["trouble"]) and (Path(str(config["trouble"])) / "enough").exists()

    rule = HeavyBall(momentum=float(config["momentum"]))
    strategy = ServerlessStrategy(topology, rule, on_round=kept, **arguments)
    size = clusters.SIZE if config["task"] == "clusters" else int(config["size"])
    start = ArrayRecord([np.zeros(size)])
    result = strategy.start(grid, start, num_rounds=int(config["rounds"]))
    folder.finish({v: {"x": r["0"].numpy()} for v, r in result.models.items()}, "deployed")
