"""A Flower App without torch: agent i pulls the parameters towards its own target.

It starts fast, and what it computes can be written in one line of NumPy.
"""

import time
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from flower_dhb import consensus_mod

app = ClientApp(mods=[consensus_mod])


def start(values):
    """The common initial arrays."""
    rng = np.random.default_rng([int(values["seed"]), 7])
    return {"x": rng.standard_normal(int(values["size"])).astype(values.get("dtype", "float64"))}


def target(vertex, size):
    """Where agent `vertex` wants the parameters to be."""
    return np.random.default_rng([vertex, 1]).standard_normal(size)


def local_step(x, vertex, rate):
    """One gradient step on `|x - target|^2 / 2`."""
    return x - rate * (x - target(vertex, len(x)).astype(x.dtype))


class Trouble:
    """What a test wants to go wrong: a number in a file `fails-3` for vertex 3, 0 without one."""

    def __init__(self, folder, vertex):
        self.folder, self.vertex = folder, vertex

    def __getitem__(self, what):
        path = Path(self.folder) / f"{what}-{self.vertex}"
        return float(path.read_text()) if self.folder and path.exists() else 0.0


@app.train()
def train(message, context):
    """One local step, as slow as the run config says."""
    values, vertex = context.run_config, int(context.node_config["vertex"])
    time.sleep(values["slow-s"] if vertex == values["slow-vertex"] else values["step-s"])
    trouble = Trouble(values.get("trouble", ""), vertex)
    time.sleep(trouble["slow"])
    if trouble["fails"]:
        time.sleep(trouble["fails"])
        raise OSError("no camera at /dev/video0")
    x = message.content.array_records["arrays"]["x"].numpy()
    z = local_step(x, vertex, values["rate"]) + trouble["lies"]
    # Never the same twice, as with an app that shuffles: a round that is trained again differs.
    z = z + values["noise"] * np.random.default_rng().standard_normal(len(z)).astype(x.dtype)
    metrics = MetricRecord({"num-examples": 1, "size": len(z)})
    content = {"arrays": ArrayRecord({"x": Array(z)}), "metrics": metrics}
    return Message(RecordDict(content), reply_to=message)


@app.evaluate()
def evaluate(message, context):
    """Distance to the agent's own target."""
    time.sleep(context.run_config["evaluate-s"])
    x = message.content.array_records["arrays"]["x"].numpy()
    vertex = int(context.node_config["vertex"])
    loss = float(np.mean((x - target(vertex, len(x))) ** 2))
    metrics = MetricRecord({"num-examples": 1, "loss": loss})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)
