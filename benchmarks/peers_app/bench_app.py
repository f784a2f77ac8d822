"""One Flower App for all runtimes: an MLP on digits, 64 inputs, 10 classes, 5 local steps of SGD.

`hidden = "128,64"` has 17,226 parameters, `"960,960"` 1,000,000 or so. The model is kept
in the process where the process is kept.
"""

from __future__ import annotations

import json
import time
from functools import cache
from itertools import pairwise
from pathlib import Path

import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

from flower_dhb import RunConfig, ServerlessStrategy, consensus_mod
from flower_dhb.problems.digits import load_digits
from flower_dhb.problems.splits import batches, split

torch.set_num_threads(1)
app = ClientApp(mods=[consensus_mod])
server = ServerApp()


@cache
def model(hidden, seed):
    """The MLP, drawn from the seed."""
    torch.manual_seed(seed)
    sizes = [64, *map(int, hidden.split(",")), 10]
    layers = []
    for a, b in pairwise(sizes):
        layers += [torch.nn.Linear(a, b), torch.nn.ReLU()]
    return torch.nn.Sequential(*layers[:-1])


@cache
def parts(n, how, seed):
    """Each agent's samples."""
    return split(load_digits().train_y.numpy(), n, how, seed)


def start(values):
    """The common initial arrays."""
    return dict(model(values["hidden"], int(values["seed"])).state_dict())


@app.train()
def train(message, context):
    """A few steps of plain SGD."""
    values = context.run_config
    vertex, n = int(context.node_config["partition-id"]), int(context.node_config["num-partitions"])
    net, digits = model(values["hidden"], int(values["seed"])), load_digits()
    net.load_state_dict(message.content["arrays"].to_torch_state_dict())
    mine = parts(n, values["split"], int(values["seed"]))[vertex]
    steps = batches(
        len(mine), int(values["batch-size"]), int(values["local-steps"]),
        seed=int(values["seed"]), vertex=vertex, round=message.content["config"]["server-round"],
    )  # fmt: skip
    optimizer = torch.optim.SGD(net.parameters(), lr=float(values["learning-rate"]))
    for step in steps:
        at = torch.from_numpy(mine[step])
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(net(digits.train_x[at]), digits.train_y[at])
        loss.backward()
        optimizer.step()
    metrics = MetricRecord({"train_loss": loss.item(), "num-examples": len(mine)})
    content = {"arrays": ArrayRecord(net.state_dict()), "metrics": metrics}
    return Message(RecordDict(content), reply_to=message)


@app.evaluate()
def evaluate(message, context):
    """The share of the test images that the model gets right."""
    values = context.run_config
    net, digits = model(values["hidden"], int(values["seed"])), load_digits()
    net.load_state_dict(message.content["arrays"].to_torch_state_dict())
    with torch.no_grad():
        right = net(digits.test_x).argmax(1) == digits.test_y
    metrics = MetricRecord({"accuracy": right.double().mean().item(), "num-examples": len(right)})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)


@server.main()
def main(grid, context):
    """The relay, which writes the seconds of each round where it is told to."""
    config = RunConfig.of(context.run_config)
    strategy = ServerlessStrategy(
        config.topology, config.algorithm, evaluate_every=0, average=False
    )
    times = []
    begin = time.monotonic()
    strategy.on_round = lambda _: times.append(time.monotonic())
    strategy.start(
        grid,
        initial_arrays=ArrayRecord(start(context.run_config)),
        num_rounds=config.rounds,
    )
    out = context.run_config.get("out")
    if out:
        seconds = [b - a for a, b in zip([begin, *times], times, strict=False)]
        Path(str(out)).write_text(json.dumps(seconds))
