"""Six agents on a ring, a deadline of four seconds."""

from __future__ import annotations

from logging import INFO

import numpy as np
from flwr.app import ArrayRecord, Context
from flwr.common import log
from flwr.serverapp import Grid, ServerApp

from flower_dhb import HeavyBall, RunFolder, ServerlessStrategy, Topology

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run all rounds, whatever happens."""
    topology = Topology.ring(6)
    folder = RunFolder(str(context.run_config["runs-dir"]), "faulty", topology, context.run_config)
    log(INFO, "this run leaves its results in %s", folder.path.resolve())
    strategy = ServerlessStrategy(
        topology,
        HeavyBall(momentum=0.5),
        round_timeout_s=4.0,
        collect_models=True,
        on_round=folder.append,
    )
    result = strategy.start(
        grid, ArrayRecord([np.zeros(8)]), num_rounds=int(context.run_config["rounds"])
    )
    models = {v: {"x": r["0"].numpy()} for v, r in result.models.items()}
    folder.finish(models, "faulty")
