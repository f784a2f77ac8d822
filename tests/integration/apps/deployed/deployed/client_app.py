"""Each agent moves towards its own number."""

from __future__ import annotations

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from flower_dhb import consensus_mod

app = ClientApp(mods=[consensus_mod])


@app.train()
def train(message: Message, context: Context) -> Message:
    """One step."""
    (x,) = message.content["arrays"].to_numpy_ndarrays()
    z = x + 0.1 * (int(context.node_config["vertex"]) - x)
    metrics = MetricRecord({"num-examples": 1})
    return Message(RecordDict({"arrays": ArrayRecord([z]), "m": metrics}), reply_to=message)
