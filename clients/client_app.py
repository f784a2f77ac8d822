"""The ClientApp: a plain Flower app that `consensus_mod` makes an agent."""

from __future__ import annotations

from typing import Any, cast

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from clients.agents import Agent, samples_of
from clients.workload import evaluate, shared, train
from flower_dhb import consensus_mod

__all__ = ["app"]

app = ClientApp(mods=[consensus_mod])

# The models here are small: more threads than one only get into each other's way.
torch.set_num_threads(1)


@app.train()
def train_locally(message: Message, context: Context) -> Message:
    """Local steps on this agent's own samples.

    Whatever momentum the optimizer has ends with the round: the momentum that lasts is what
    the agents share, and `consensus_mod` takes care of it.
    """
    agent = Agent.of(context.run_config, context.node_config)
    number = cast(int, cast(ConfigRecord, message.content["config"])["server-round"])
    model = agent.model(cast(ArrayRecord, message.content["arrays"]))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = agent.settings.optimizer.make(trained, agent.settings.rate(number))
    with agent.drawing(number):
        loss = train(model, agent.batches(number), optimizer)
    metrics = MetricRecord({"train_loss": loss, "num-examples": len(agent.part)})
    return _reply(message, {"arrays": ArrayRecord(shared(model)), "metrics": metrics})


@app.evaluate()
def evaluate_own_model(message: Message, context: Context) -> Message:
    """Test this agent's own model on the common test set."""
    agent = Agent.of(context.run_config, context.node_config)
    workload = agent.settings.workload
    test = samples_of(workload, train=False)
    model = agent.model(cast(ArrayRecord, message.content["arrays"]))
    loss, accuracy = evaluate(model, workload, test, agent.device)
    metrics = MetricRecord({"loss": loss, "accuracy": accuracy, "num-examples": len(test.y)})
    return _reply(message, {"metrics": metrics})


def _reply(message: Message, records: dict[str, Any]) -> Message:
    return Message(RecordDict(records), reply_to=message)
