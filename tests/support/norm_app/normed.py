"""A small torch app with a normalization, in double precision: agents have data of their own."""

import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import nn

from flower_dhb import consensus_mod
from flower_dhb.problems.splits import batches

N, SAMPLES, STEPS, BATCH, RATE = 3, 20, 2, 6, 0.1
NORMS = {"batch": lambda: nn.BatchNorm1d(6), "group": lambda: nn.GroupNorm(2, 6)}

app = ClientApp(mods=[consensus_mod])


def net(normalization):
    """The model, with the same values each time."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        layers = nn.Linear(4, 6, bias=False), NORMS[normalization](), nn.Tanh(), nn.Linear(6, 3)
        return nn.Sequential(*layers).to(torch.float64)


def start(values):
    """The common initial arrays."""
    return {name: t.numpy() for name, t in net(values["normalization"]).state_dict().items()}


def samples():
    """All samples, those of one agent after the other's; each agent's are somewhere else."""
    generator = torch.Generator().manual_seed(11)
    x = torch.randn(N * SAMPLES, 4, generator=generator, dtype=torch.float64)
    x += torch.arange(N).repeat_interleave(SAMPLES)[:, None]
    y = torch.randint(3, (N * SAMPLES,), generator=generator)
    return x, y


def part(vertex):
    """Which samples an agent has."""
    return list(range(vertex * SAMPLES, (vertex + 1) * SAMPLES))


@app.train()
def train(message, context):
    """Some steps of SGD."""
    model = net(context.run_config["normalization"])
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    vertex, k = int(context.node_config["partition-id"]), message.content["config"]["server-round"]
    x, y = samples()
    for drawn in batches(SAMPLES, BATCH, STEPS, seed=0, vertex=vertex, round=int(k)):
        chosen = torch.tensor(part(vertex))[drawn]
        loss = nn.functional.cross_entropy(model(x[chosen]), y[chosen])
        parameters = list(model.parameters())
        # By hand: torch.optim imports for seconds what three processes would each import.
        with torch.no_grad():
            for p, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
                p -= RATE * gradient
    content = {
        "arrays": ArrayRecord(model.state_dict()),
        "metrics": MetricRecord({"num-examples": SAMPLES}),
    }
    return Message(RecordDict(content), reply_to=message)


@app.evaluate()
def evaluate(message, context):
    """The loss on the agent's own samples, by the running statistics."""
    model = net(context.run_config["normalization"])
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    x, y = samples()
    mine = part(int(context.node_config["partition-id"]))
    with torch.no_grad():
        loss = nn.functional.cross_entropy(model.eval()(x[mine]), y[mine]).item()
    metrics = MetricRecord({"loss": loss, "num-examples": SAMPLES})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)
