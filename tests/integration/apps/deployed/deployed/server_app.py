"""Three agents on a path; agents that do not answer within a few seconds are missing."""

from __future__ import annotations

import numpy as np
from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp

from flower_dhb import HeavyBall, RunFolder, ServerlessStrategy, Topology

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run all rounds, whoever answers."""
    topology = Topology.path(3)
    folder = RunFolder(str(context.run_config["runs-dir"]), "deployed", topology, {})
    strategy = ServerlessStrategy(
        topology,
        HeavyBall(momentum=0.5),
        round_timeout_s=25.0,
        evaluate_every=0,
        collect_models=True,
        on_round=folder.append,
    )
    result = strategy.start(
        grid, ArrayRecord([np.zeros(8)]), num_rounds=int(context.run_config["rounds"])
    )
    folder.finish({v: {"x": r["0"].numpy()} for v, r in result.models.items()}, "deployed")
