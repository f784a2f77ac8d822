"""A run whose ServerApp and agents are one process, for tests that kill it."""

from __future__ import annotations

from multiprocessing.connection import Connection
from pathlib import Path

from flower_dhb import HeavyBall, ServerlessStrategy, consensus_mod
from tests.support.apps import numpy_app, start_arrays
from tests.support.grid import LocalGrid


def train(folder: Path, told: Connection) -> None:
    """A whole run in a process of its own, which tells each round and at last all models."""
    app = numpy_app(3, 4, mods=[consensus_mod])
    states = {"state-dir": str(folder / "states")}
    grid = LocalGrid(app, 3, node_config=lambda v: {"partition-id": v, **states})
    strategy = ServerlessStrategy(
        "star:3",
        HeavyBall(form="tracking"),
        collect_models=True,
        evaluate_every=2,
        checkpoint=folder / "run",
        on_round=lambda record: told.send(record.round),
    )
    result = strategy.start(grid, start_arrays(4)[0], 60)
    assert [record.round for record in result.history] == list(range(1, 61))
    assert not any(record.missing or record.rejoined for record in result.history)
    told.send([a.numpy().tolist() for v in range(3) for a in result.models[v].values()])
