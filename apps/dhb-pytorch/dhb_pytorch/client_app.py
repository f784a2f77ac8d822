"""One agent: one epoch of its own images a round, with plain SGD."""

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch.nn.functional import cross_entropy

from dhb_pytorch.task import Net, load, test_set
from flower_dhb import consensus_mod

app = ClientApp(mods=[consensus_mod])


def model_of(message: Message) -> Net:
    """The network with the parameters of a message."""
    model = Net()
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    return model


@app.train()
def train(message: Message, context: Context) -> Message:
    """One epoch; the order of the images is the agent's and the round's own."""
    agent, config = int(context.node_config["partition-id"]), context.run_config
    x, labels = load(agent)
    model = model_of(message)
    optimizer = torch.optim.SGD(model.parameters(), lr=float(config["learning-rate"]))
    seed = 1000 * agent + int(message.content["config"]["server-round"])
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    for batch in order.split(int(config["batch-size"])):
        optimizer.zero_grad()
        loss = cross_entropy(model(x[batch]), labels[batch])
        loss.backward()
        optimizer.step()
    content = {
        "arrays": ArrayRecord(model.state_dict()),
        "metrics": MetricRecord({"train_loss": loss.item(), "num-examples": len(x)}),
    }
    return Message(RecordDict(content), reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Judge the agent's own model by images of all digits."""
    x, labels = test_set()
    with torch.no_grad():
        accuracy = (model_of(message)(x).argmax(dim=1) == labels).float().mean().item()
    metrics = MetricRecord({"accuracy": accuracy, "num-examples": len(x)})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)
