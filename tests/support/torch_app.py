"""A torch app in the style of Flower's quickstart, with BatchNorm. It knows nothing of us."""

from __future__ import annotations

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import nn


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.norm = nn.BatchNorm1d(8)
        self.last = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.relu(self.norm(self.first(x))))


def initial_arrays() -> ArrayRecord:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return ArrayRecord(Net().state_dict())


def load_data(partition: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(100 + partition)
    x = torch.randn(32, 6, generator=generator) + 0.3 * partition
    truth = torch.randn(6, 3, generator=torch.Generator().manual_seed(9))
    return x, (x @ truth).argmax(dim=1)


def make_app(mods: list[object] | None = None) -> ClientApp:
    app = ClientApp(mods=mods)  # type: ignore[arg-type]

    @app.train()
    def train(msg: Message, context: Context) -> Message:
        model = Net()
        model.load_state_dict(msg.content["arrays"].to_torch_state_dict())
        x, y = load_data(int(context.node_config["partition-id"]))
        optimizer = torch.optim.SGD(model.parameters(), lr=float(msg.content["config"]["lr"]))
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        metrics = MetricRecord({"train_loss": loss.item(), "num-examples": len(x)})
        content = RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics})
        return Message(content=content, reply_to=msg)

    @app.evaluate()
    def evaluate(msg: Message, context: Context) -> Message:
        model = Net()
        model.load_state_dict(msg.content["arrays"].to_torch_state_dict())
        model.eval()
        x, y = load_data(int(context.node_config["partition-id"]))
        with torch.no_grad():
            scores = model(x)
        loss = nn.functional.cross_entropy(scores, y).item()
        correct = (scores.argmax(dim=1) == y).float().mean().item()
        metrics = MetricRecord({"eval_loss": loss, "eval_acc": correct, "num-examples": len(x)})
        return Message(content=RecordDict({"metrics": metrics}), reply_to=msg)

    return app
