"""Each agent but the first fails once, each in a way of its own."""

from __future__ import annotations

import time

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from flower_dhb import consensus_mod

RAISES, NAN, SHAPES, SLOW, FORGETS = 1, 2, 3, 4, 5
ROUND_OF = {RAISES: 3, NAN: 4, SHAPES: 5, SLOW: 6, FORGETS: 9}
SLEEP_S = 5.0


def forget(message: Message, context: Context, call_next):
    """Outside ours: the agent's state is gone before the round begins."""
    if int(context.node_config["partition-id"]) == FORGETS and message.metadata.group_id == str(
        ROUND_OF[FORGETS]
    ):
        context.state = RecordDict()
    return call_next(message, context)


app = ClientApp(mods=[forget, consensus_mod])


@app.train()
def train(message: Message, context: Context) -> Message:
    """Move half way towards the agent's own number."""
    vertex = int(context.node_config["partition-id"])
    (x,) = message.content["arrays"].to_numpy_ndarrays()
    z = x + 0.1 * (vertex - x)
    now = int(message.content["config"]["server-round"])
    if now == ROUND_OF.get(vertex):
        if vertex == RAISES:
            raise ValueError("the battery is empty")
        if vertex == NAN:
            z = z * np.nan
        if vertex == SHAPES:
            z = z[:-1]
        if vertex == SLOW:
            time.sleep(SLEEP_S)
    metrics = MetricRecord({"num-examples": 1})
    return Message(RecordDict({"arrays": ArrayRecord([z]), "m": metrics}), reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """How far the agent is from the mean of all numbers."""
    (x,) = message.content["arrays"].to_numpy_ndarrays()
    metrics = MetricRecord({"loss": float(np.abs(x - 2.5).max()), "num-examples": 1})
    return Message(RecordDict({"m": metrics}), reply_to=message)
