"""An app as Flower's templates make it, package and all, on peers: no line of it is changed."""

import json

import pytest
from safetensors.numpy import load_file

from tests.support.peers import run_cli

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

FILES = {
    "pyproject.toml": """
[project]
name = "quickstart"
version = "1.0.0"
dependencies = []

[tool.flwr.app]
publisher = "somebody"

[tool.flwr.app.components]
serverapp = "quickstart.server_app:app"
clientapp = "quickstart.client_app:app"

[tool.flwr.app.config]
num-server-rounds = 3
local-epochs = 2
batch-size = 16
""",
    "quickstart/__init__.py": "",
    "quickstart/task.py": """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        hidden = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU())
        self.layers = nn.Sequential(*hidden, nn.Linear(16, 3))

    def forward(self, x):
        return self.layers(x)


def load_data(partition_id, num_partitions):
    rng = torch.Generator().manual_seed(1)
    x, plane = torch.randn(600, 6, generator=rng), torch.randn(6, 3, generator=rng)
    y = (x @ plane).argmax(dim=1)
    return x[partition_id::num_partitions], y[partition_id::num_partitions]
""",
    "quickstart/client_app.py": """
import torch
from flwr.app import ArrayRecord, MetricRecord, Message, RecordDict
from flwr.clientapp import ClientApp

from quickstart.task import Net, load_data

app = ClientApp()


def load(msg, context):
    model = Net()
    model.load_state_dict(msg.content["arrays"].to_torch_state_dict())
    node = context.node_config
    return model, *load_data(node["partition-id"], node["num-partitions"])


@app.train()
def train(msg, context):
    model, x, y = load(msg, context)
    optimizer = torch.optim.SGD(model.parameters(), lr=msg.content["config"]["lr"], momentum=0.9)
    for _ in range(context.run_config["local-epochs"]):
        for part in torch.arange(len(x)).split(context.run_config["batch-size"]):
            if len(part) < 2:
                continue
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(x[part]), y[part])
            loss.backward()
            optimizer.step()
    metrics = MetricRecord({"train_loss": loss.item(), "num-examples": len(x)})
    content = {"arrays": ArrayRecord(model.state_dict()), "metrics": metrics}
    return Message(content=RecordDict(content), reply_to=msg)


@app.evaluate()
def evaluate(msg, context):
    model, x, y = load(msg, context)
    model.eval()
    with torch.no_grad():
        right = (model(x).argmax(dim=1) == y).float().mean().item()
    metrics = MetricRecord({"eval_acc": right, "num-examples": len(x)})
    return Message(content=RecordDict({"metrics": metrics}), reply_to=msg)
""",
    "quickstart/server_app.py": """
from flwr.app import ArrayRecord, ConfigRecord
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg

from quickstart.task import Net

app = ServerApp()


@app.main()
def main(grid, context):
    FedAvg().start(
        grid=grid,
        initial_arrays=ArrayRecord(Net().state_dict()),
        train_config=ConfigRecord({"lr": 0.05}),
        num_rounds=context.run_config["num-server-rounds"],
    )
""",
}


@pytest.fixture
def app(tmp_path):
    for name, text in FILES.items():
        path = tmp_path / "app" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "app"


def test_a_stock_app_trains_on_peers(app, tmp_path):
    out = tmp_path / "mesh"
    words = ["mesh", "create", "--app", app, "--out", out, "--topology", "ring:3", "--rounds", 16]
    words += ["--start", "quickstart.task:Net", "--set", "train-config.lr=0.05"]
    made = run_cli(*words, load=["torch"])
    assert made.returncode == 0, made.stderr
    up = run_cli("mesh", "up", out, "--quiet", timeout=120)
    assert up.returncode == 0, up.stderr
    for v in range(3):
        state = out / f"vertex-{v}" / "state"
        history = [json.loads(line) for line in (state / "history.jsonl").read_text().splitlines()]
        assert [entry["round"] for entry in history] == list(range(1, 17))
        assert not any(entry["missing"] for entry in history)
        # An unseeded start: the worst of 24 agents had 0.90 by then, and 0.845 after eight rounds.
        assert history[-1]["evaluate"]["eval_acc"] > 0.85
        assert history[-1]["train"]["num-examples"] == 200
        model = load_file(state / "model.safetensors")
        assert model["layers.1.running_var"].min() > 0
        assert model["layers.1.num_batches_tracked"] == 16 * 2 * 13  # local: never averaged


@pytest.mark.parametrize(
    ("start", "text"),
    [
        ("quickstart.task:Nett", "AttributeError"),
        ("quickstart.tusk:Net", "ModuleNotFoundError"),
        ("quickstart.task:load_data", "expected a function of the run config"),
        ("nothing.safetensors", "no readable initial arrays"),
    ],
)
def test_a_start_that_is_none_is_refused(app, tmp_path, start, text):
    words = ["mesh", "create", "--app", app, "--out", tmp_path / "m", "--topology", "ring:3"]
    made = run_cli(*words, "--start", start, load=["torch"])
    assert made.returncode == 2
    assert text in made.stderr, made.stderr
    assert "Traceback" not in made.stderr
