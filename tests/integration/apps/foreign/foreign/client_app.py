"""One number for each agent; prints, and fails if it is told to."""

from __future__ import annotations

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from flower_dhb import consensus_mod

app = ClientApp(mods=[consensus_mod])


@app.train()
def train(message: Message, context: Context) -> Message:
    """Move half way towards the agent's own number."""
    number = int(context.node_config["partition-id"])
    if context.run_config["mode"] == "client-fails":
        raise ValueError(f"no data for partition {number}")
    (x,) = message.content["arrays"].to_numpy_ndarrays()
    print(f"client {number} trains")
    metrics = MetricRecord({"train_loss": float(abs(x - number).max()), "num-examples": 1})
    arrays = ArrayRecord([x + 0.5 * (number - x)])
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """How near the agent is to the mean of all numbers."""
    (x,) = message.content["arrays"].to_numpy_ndarrays()
    error = float(np.abs(x - 1.5).max())
    metrics = MetricRecord({"eval_loss": error, "eval_acc": 1 / (1 + error), "num-examples": 1})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)
