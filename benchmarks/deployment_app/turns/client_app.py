"""Answers at once, trains a little with NumPy, or is the root app, as the message says."""

from __future__ import annotations

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from flower_dhb import consensus_mod

app = ClientApp()
small = ClientApp(mods=[consensus_mod])


@app.train()
@app.evaluate()
def answer(message: Message, context: Context) -> Message:
    """Hand the message on, unless it asks for nothing."""
    config = message.content.config_records.get("config", {})
    if config.get("floor"):
        if config["floor"] == "app":
            work_of(context)
        content = {"m": MetricRecord({"num-examples": 1})}
        if message.metadata.message_type == "train":
            content["arrays"] = message.content["arrays"]
        return Message(RecordDict(content), reply_to=message)
    return work_of(context)(message, context)


def work_of(context: Context) -> ClientApp:
    """The app that works; the root app loads PyTorch."""
    if context.run_config["work"] == "numpy":
        return small
    from clients.client_app import app as root

    return root


@small.train()
def train(message: Message, context: Context) -> Message:
    """One step towards the agent's own number."""
    (x,) = message.content["arrays"].to_numpy_ndarrays()
    moved = x + np.float32(0.1) * (np.float32(context.node_config["vertex"]) - x)
    metrics = MetricRecord({"num-examples": 1, "train_loss": float(np.abs(moved).mean())})
    return Message(RecordDict({"arrays": ArrayRecord([moved]), "m": metrics}), reply_to=message)


@small.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """How far the agent is from its number."""
    (x,) = message.content["arrays"].to_numpy_ndarrays()
    loss = float(np.abs(x - np.float32(context.node_config["vertex"])).max())
    metrics = MetricRecord({"num-examples": 1, "loss": loss})
    return Message(RecordDict({"m": metrics}), reply_to=message)
