"""FedAvg, or two lines changed, as `mode` says; prints, and keeps the final model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from flower_dhb import ServerlessStrategy, Topology

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train, and say how it went."""
    config = context.run_config
    print(f"the app begins, mode {config['mode']}")
    strategy = FedAvg() if config["mode"] == "fedavg" else ServerlessStrategy(Topology.ring(4))
    result = strategy.start(
        grid, ArrayRecord([np.zeros(3)]), num_rounds=int(config["num-server-rounds"])
    )
    if config["mode"] == "server-fails":
        result.arrays["weight"]  # such as a name that the model lacks
    print(f"the app ends with {len(result.evaluate_metrics_clientapp)} evaluations")
    if config["out"]:
        Path(str(config["out"])).write_text(repr(sorted(result.evaluate_metrics_clientapp)))
