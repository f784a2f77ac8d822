"""The ClientApp: a plain Flower app that `consensus_mod` makes an agent."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from typing import Any, cast

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from clients import digits, vision
from clients.workload import Workload, evaluate, train
from flower_dhb import ConfigError, Topology, consensus_mod
from flower_dhb.problems.splits import batches
from flower_dhb.runs.config import get_choice, get_integer, get_number, get_text

__all__ = ["app", "count_agents", "load_workload"]

app = ClientApp(mods=[consensus_mod])

WORKLOADS: dict[str, Callable[..., Workload]] = {
    "digits": digits.load,
    **{name: partial(vision.load_named, name) for name in vision.DATASETS},
}

# The models here are small: more threads than one only get into each other's way.
torch.set_num_threads(1)


def load_workload(values: Mapping[str, Any], n_agents: int) -> Workload:
    """The workload that a run config names, split over `n_agents` agents."""
    load = WORKLOADS[get_choice(values, "workload", "digits", WORKLOADS)]
    return load(
        get_text(values, "model", "mlp"),
        get_text(values, "split", "classes:2"),
        n_agents,
        get_integer(values, "seed", 0, least=0),
        get_text(values, "data-dir", "data"),
    )


def count_agents(values: Mapping[str, Any]) -> int:
    """Number of agents of the topology in a run config; no graph is built.

    Asked for with every message, so a graph file is read once.
    """
    return _count(get_text(values, "topology", "ring:16"))


@app.train()
def train_locally(message: Message, context: Context) -> Message:
    """Local SGD steps on this agent's own samples."""
    values, vertex, workload = _open(context)
    part = workload.parts[vertex]
    steps = batches(
        len(part),
        get_integer(values, "batch-size", 32, least=1),
        get_integer(values, "local-steps", 1, least=1),
        seed=get_integer(values, "seed", 0, least=0),
        vertex=vertex,
        round=cast(int, cast(ConfigRecord, message.content["config"])["server-round"]),
    )
    model = workload.make_model()
    model.load_state_dict(cast(ArrayRecord, message.content["arrays"]).to_torch_state_dict())
    rate = get_number(values, "learning-rate", 0.4, above=0.0)
    loss = train(model, workload.train_x, workload.train_y, part[steps], rate)
    metrics = MetricRecord({"train_loss": loss, "num-examples": len(part)})
    return _reply(message, {"arrays": ArrayRecord(model.state_dict()), "metrics": metrics})


@app.evaluate()
def evaluate_own_model(message: Message, context: Context) -> Message:
    """Test this agent's own model on the common test set."""
    _, _, workload = _open(context)
    model = workload.make_model()
    model.load_state_dict(cast(ArrayRecord, message.content["arrays"]).to_torch_state_dict())
    loss, accuracy = evaluate(model, workload.test_x, workload.test_y)
    metrics = MetricRecord(
        {"loss": loss, "accuracy": accuracy, "num-examples": len(workload.test_y)}
    )
    return _reply(message, {"metrics": metrics})


def _open(context: Context) -> tuple[Mapping[str, Any], int, Workload]:
    values = context.run_config
    vertex = int(context.node_config.get("vertex", context.node_config.get("partition-id", -1)))
    n_agents = count_agents(values)
    if not 0 <= vertex < n_agents:
        raise ConfigError(f"this node is vertex {vertex}, the topology has {n_agents}")
    return values, vertex, load_workload(values, n_agents)


@lru_cache(maxsize=8)
def _count(topology: str) -> int:
    return Topology.count(topology)


def _reply(message: Message, records: dict[str, Any]) -> Message:
    return Message(RecordDict(records), reply_to=message)
