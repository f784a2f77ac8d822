"""One device: its own samples, a few steps of softmax regression."""

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from dhb_numpy.task import load, probabilities, test_set
from flower_dhb import consensus_mod

app = ClientApp(mods=[consensus_mod])


@app.train()
def train(message: Message, context: Context) -> Message:
    """Take a few steps on the device's own samples."""
    x, labels = load(int(context.node_config["partition-id"]))
    (w,) = message.content["arrays"].to_numpy_ndarrays()
    for _ in range(int(context.run_config["local-steps"])):
        wanted = np.eye(w.shape[1])[labels]
        w = w - context.run_config["learning-rate"] * x.T @ (probabilities(x, w) - wanted) / len(x)
    content = {
        "arrays": ArrayRecord([w.astype(np.float32)]),
        "metrics": MetricRecord({"num-examples": len(x)}),
    }
    return Message(RecordDict(content), reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Judge the device's own model by samples of all states."""
    x, labels = test_set()
    (w,) = message.content["arrays"].to_numpy_ndarrays()
    accuracy = float(np.mean((x @ w).argmax(axis=1) == labels))
    metrics = MetricRecord({"accuracy": accuracy, "num-examples": len(x)})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)
