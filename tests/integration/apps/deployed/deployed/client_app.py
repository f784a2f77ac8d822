"""Each agent moves towards its own number, or learns clusters; it starts fast, without torch.

What a test wants to go wrong is a file in the folder `trouble`: `slow-2` for vertex 2, with the
seconds that each training takes. A file `busy-2` appears then; if it is more than a minute, a
file `trains-2` does.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from deployed import clusters
from flower_dhb import consensus_mod

app = ClientApp(mods=[consensus_mod])


@app.train()
def train(message: Message, context: Context) -> Message:
    """One step."""
    vertex = int(context.node_config["vertex"])
    seconds = trouble(context, f"slow-{vertex}")
    for name, least in (("busy", 0.0), ("trains", 60.0)):
        if seconds > least:
            (Path(str(context.run_config["trouble"])) / f"{name}-{vertex}").touch()
    time.sleep(seconds)
    (x,) = message.content["arrays"].to_numpy_ndarrays()
    z = clusters.step(x, vertex) if learns_clusters(context) else x + 0.1 * (vertex - x)
    metrics = MetricRecord({"num-examples": 1})
    return Message(RecordDict({"arrays": ArrayRecord([z]), "m": metrics}), reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """How far the agent is from its own number, or how many points it puts where they belong."""
    (x,) = message.content["arrays"].to_numpy_ndarrays()
    if learns_clusters(context):
        found = {"accuracy": clusters.accuracy(x)}
    else:
        found = {"loss": float(np.abs(x - int(context.node_config["vertex"])).max())}
    metrics = MetricRecord({"num-examples": 1, **found})
    return Message(RecordDict({"m": metrics}), reply_to=message)


def learns_clusters(context: Context) -> bool:
    """Which of the two tasks the run config says."""
    return str(context.run_config["task"]) == "clusters"


def trouble(context: Context, name: str) -> float:
    """The number in a file, 0 where there is none."""
    path = Path(str(context.run_config["trouble"])) / name
    return float(path.read_text()) if context.run_config["trouble"] and path.exists() else 0.0
