"""Each agent moves towards its own number; it starts fast and needs no torch.

What a test wants to go wrong is a file in the folder `trouble`: `slow-2` for vertex 2, with the
seconds that each training takes.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from flower_dhb import consensus_mod

app = ClientApp(mods=[consensus_mod])


@app.train()
def train(message: Message, context: Context) -> Message:
    """One step."""
    vertex = int(context.node_config["vertex"])
    time.sleep(trouble(context, f"slow-{vertex}"))
    (x,) = message.content["arrays"].to_numpy_ndarrays()
    z = x + 0.1 * (vertex - x)
    metrics = MetricRecord({"num-examples": 1})
    return Message(RecordDict({"arrays": ArrayRecord([z]), "m": metrics}), reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """How far the agent is from its own number."""
    (x,) = message.content["arrays"].to_numpy_ndarrays()
    loss = float(np.abs(x - int(context.node_config["vertex"])).max())
    metrics = MetricRecord({"num-examples": 1, "loss": loss})
    return Message(RecordDict({"m": metrics}), reply_to=message)


def trouble(context: Context, name: str) -> float:
    """The number in a file, 0 where there is none."""
    path = Path(str(context.run_config["trouble"])) / name
    return float(path.read_text()) if context.run_config["trouble"] and path.exists() else 0.0
