"""The app's client side: local training against a loop by hand, its settings, its memory."""

import sys
from typing import ClassVar

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from torch import nn

from clients import settings
from clients.agents import Agent, count_agents, parts_of, samples_of
from clients.client_app import evaluate_own_model, train_locally
from clients.digits import Digits
from clients.settings import WORKLOADS, Settings
from clients.start import initial_arrays
from clients.workload import Samples, Workload, evaluate, put, shared, train
from flower_dhb import ConfigError, Topology
from flower_dhb.problems.digits import load_digits
from flower_dhb.problems.models import make_model
from flower_dhb.problems.optimizers import LocalOptimizer
from flower_dhb.problems.splits import batches, split

VALUES = {
    "topology": "ring:5",
    "split": "classes:2",
    "model": "logistic",
    "learning-rate": 0.1,
    "batch-size": 8,
    "local-steps": 3,
    "seed": 4,
    "rounds": 10,
}
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def identity():
    """Who sends the messages: Flower asks for it when one is made."""
    TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1


def message(model, round=6):
    content = {
        "arrays": ArrayRecord(model.state_dict()),
        "config": ConfigRecord({"server-round": round}),
    }
    return Message(RecordDict(content), dst_node_id=1, message_type="train")


def context(vertex=2, key="partition-id", **changes):
    return Context(1, 1, {key: vertex}, RecordDict(), VALUES | changes)


def metrics(reply):
    return dict(reply.content.metric_records["metrics"])


def arrays(reply):
    return reply.content.array_records["arrays"].to_torch_state_dict()


# --- training and evaluating ------------------------------------------------------------


def test_train_is_plain_gradient_descent_on_the_agents_own_batches():
    reply = train_locally(message(make_model("logistic", 4)), context())

    digits = load_digits()
    part = split(digits.train_y.numpy(), 5, "classes:2", 4)[2]
    rows = part[batches(len(part), 8, 3, seed=4, vertex=2, round=6)]
    start = make_model("logistic", 4)
    w = start.weight.detach().double().numpy().copy()
    b = start.bias.detach().double().numpy().copy()
    losses = []
    for batch in rows:  # softmax regression by hand, in float64
        x, y = digits.train_x[batch].double().numpy(), digits.train_y[batch].numpy()
        scores = x @ w.T + b
        p = np.exp(scores - scores.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        losses.append(-np.log(p[np.arange(8), y]).mean())
        p[np.arange(8), y] -= 1.0
        w, b = w - 0.1 * p.T @ x / 8, b - 0.1 * p.mean(axis=0)

    trained = arrays(reply)
    # Three steps in float32 against float64; a step moves weights by a thousand times more.
    np.testing.assert_allclose(trained["weight"].numpy(), w, rtol=0, atol=1e-6)
    np.testing.assert_allclose(trained["bias"].numpy(), b, rtol=0, atol=1e-6)
    found = metrics(reply)
    assert found == {
        "train_loss": pytest.approx(np.mean(losses), abs=1e-6),
        "num-examples": len(part),
    }


def test_training_depends_on_round_vertex_and_seed_and_on_nothing_else():
    def weights(round=6, vertex=2, **changes):
        reply = train_locally(message(make_model("mlp", 0), round), context(vertex, **changes))
        return arrays(reply)["0.weight"]

    changes = {"model": "mlp"}
    first = weights(**changes)
    torch.rand(5)
    assert torch.equal(weights(**changes), first)
    # On its own device, an agent has its samples alone, and they are the same.
    alone = train_locally(message(make_model("mlp", 0)), context(key="vertex", **changes))
    assert torch.equal(arrays(alone)["0.weight"], first)
    for other in ({"round": 7}, {"vertex": 3}, {"seed": 5}, {"local-steps": 1}):
        assert not torch.equal(weights(**(changes | other)), first)


def test_optimizer_and_schedule_are_those_of_torch():
    """Momentum within the round, then nothing is left of it; the rate is the round's."""
    changes = {"optimizer": "momentum:0.8:weight-decay=0.1", "schedule": "step:0.5@4"}
    model = make_model("logistic", 4)
    found = [arrays(train_locally(message(model, k), context(**changes))) for k in (4, 5)]
    agent = Agent.of(VALUES, {"partition-id": 2})
    for k, rate, reply in ((4, 0.1, found[0]), (5, 0.05, found[1])):
        mine = make_model("logistic", 4)
        sgd = torch.optim.SGD(mine.parameters(), lr=rate, momentum=0.8, weight_decay=0.1)
        train(mine, agent.batches(k), sgd)
        assert torch.equal(reply["weight"], mine.weight)


def test_evaluation_is_loss_and_accuracy_on_the_common_test_digits():
    model = make_model("logistic", 4)
    found = metrics(evaluate_own_model(message(model), context()))
    digits = load_digits()
    with torch.no_grad():
        scores = model(digits.test_x)
    expected = nn.functional.cross_entropy(scores, digits.test_y).item()
    right = sum(int(s.argmax()) == int(y) for s, y in zip(scores, digits.test_y, strict=True))
    assert found == {
        "loss": pytest.approx(expected, rel=1e-6),
        "accuracy": right / 360,
        "num-examples": 360,
    }
    assert metrics(evaluate_own_model(message(model), context(vertex=0))) == found


def test_evaluation_in_chunks_gives_the_same():
    model, test = make_model("mlp", 1), Digits().load(train=False)
    whole = evaluate(model, Digits(), test, CPU, chunk=360)
    parts = evaluate(model, Digits(), test, CPU, chunk=7)  # 360 = 51 * 7 + 3
    assert parts == pytest.approx(whole, rel=1e-6)


class Noted(Workload):
    """Notes whether its model is in training when it is called, and draws with dropout."""

    models = ("watch",)
    seen: ClassVar[list] = []

    def load(self, *, train):
        return Samples(torch.ones(40, 2), torch.arange(40) % 2)

    def build(self, model):
        class Watch(nn.Module):
            def __init__(self):
                super().__init__()
                self.drop, self.linear = nn.Dropout(0.5), nn.Linear(2, 2)

            def forward(self, x):
                Noted.seen.append(self.training)
                return self.linear(self.drop(x))

        return Watch()


def test_dropout_is_on_in_training_alone_and_drawn_from_seed_vertex_and_round(monkeypatch):
    monkeypatch.setitem(settings.WORKLOADS, "noted", Noted)
    values = {"workload": "noted", "model": "auto", "split": "iid"}
    start = Settings.of(VALUES | values).new_model()

    def weights(round, vertex):
        return arrays(train_locally(message(start, round), context(vertex, **values)))

    Noted.seen.clear()
    first = weights(1, 0)["linear.weight"]
    evaluate_own_model(message(start), context(**values))
    assert Noted.seen == [True, True, True, False]
    state = torch.random.get_rng_state()
    assert torch.equal(weights(1, 0)["linear.weight"], first)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not torch.equal(weights(2, 0)["linear.weight"], first)


# --- settings ---------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["vertex", "partition-id"])
def test_the_vertex_comes_from_the_node_config(key):
    reply = train_locally(message(make_model("logistic", 4)), context(3, key))
    parts = parts_of(Settings.of(VALUES), 5)
    assert metrics(reply)["num-examples"] == len(parts[3])


@pytest.mark.parametrize(("key", "vertex"), [("partition-id", 5), ("vertex", 17), ("other", 0)])
def test_a_vertex_outside_the_topology_is_refused(key, vertex):
    found = vertex if key != "other" else -1
    with pytest.raises(ConfigError, match=f"this node is vertex {found}, the topology has 5"):
        train_locally(message(make_model("logistic", 4)), context(vertex, key))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"learning-rate": 0}, "'learning-rate' must be above 0, got 0"),
        ({"batch-size": 0}, "'batch-size' must be at least 1, got 0"),
        ({"local-steps": 1.5}, "'local-steps' must be an integer, got 1.5"),
        ({"workload": "digit"}, "unknown workload 'digit', did you mean 'digits'"),
        ({"model": "mpl"}, "workload 'digits': unknown model 'mpl', did you mean 'mlp'"),
        ({"workload": "mnist", "model": "mlp"}, "workload 'mnist': unknown model 'mlp'"),
        ({"split": "classes"}, "needs a number after the colon"),
        ({"data-dir": 3}, "'data-dir' must be a text, got 3"),
        ({"download": "yes"}, "'download' must be true or false, got 'yes'"),
        ({"normalization": "layer"}, "unknown normalization 'layer'"),
        ({"normalization": "group"}, "this model has no normalization"),
        ({"optimizer": "adamm"}, "run config: unknown optimizer 'adamm', did you mean 'adam"),
        ({"schedule": "cosin"}, "run config: unknown learning-rate schedule 'cosin'"),
        ({"augment": 1}, "'augment' must be true or false, got 1"),
        ({"device": "gpu"}, "'device' must be auto, cpu, cuda .* or cuda:NUMBER, got 'gpu'"),
        ({"device": "cuda:99"}, "got 'cuda:99'; this process sees"),
    ],
)
def test_bad_settings_are_refused_with_their_key(changes, text):
    with pytest.raises(ConfigError, match=text):
        train_locally(message(make_model("logistic", 4)), context(**changes))


def test_agents_take_turns_on_gpus(monkeypatch):
    def device(text, vertex):
        return str(Settings.of({"device": text}).device_of(vertex))

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert device("auto", 3) == device("cpu", 3) == "cpu"
    with pytest.raises(ConfigError, match="this process sees 0 GPUs"):
        device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [device("auto", v) for v in range(3)] == ["cuda:0", "cuda:1", "cuda:0"]
    assert [device("cuda", v) for v in range(3)] == ["cuda:0", "cuda:1", "cuda:0"]
    assert device("cuda:1", 0) == "cuda:1"
    assert device("cpu", 0) == "cpu"


# --- data and models ----------------------------------------------------------------------


@pytest.mark.parametrize("how", ["iid", "classes:2", "classes:10", "dirichlet:0.5"])
@pytest.mark.parametrize("n_agents", [5, 16])
def test_each_training_digit_is_one_agents(how, n_agents):
    parts = parts_of(Settings.of({"split": how, "seed": 1}), n_agents)
    assert len(parts) == n_agents
    assert min(len(part) for part in parts) > 0
    assert sorted(np.concatenate(parts)) == list(range(1200))
    if how == "classes:2":
        labels = load_digits().train_y.numpy()
        assert {len(np.unique(labels[part])) for part in parts} == {2}


def test_a_process_reads_its_data_once_and_a_device_keeps_its_own_samples_alone(monkeypatch):
    reads = []

    class Counted(Noted):
        def load(self, *, train):
            reads.append(train)
            return super().load(train=train)

    monkeypatch.setitem(settings.WORKLOADS, "counted", Counted)
    values = VALUES | {"workload": "counted", "model": "auto", "split": "iid"}
    simulated = [Agent.of(values, {"partition-id": v}) for v in range(5)]
    assert all(agent.samples is simulated[0].samples for agent in simulated)
    assert reads == [True]
    for _ in range(2):  # two messages
        device = Agent.of(values, {"vertex": 3, "partition-id": 3})
        assert device.samples.x.untyped_storage().nbytes() == 8 * 2 * 4  # 8 of 40, two floats
    assert reads == [True, True]
    assert initial_arrays(values).keys() == {"linear.weight", "linear.bias"}
    assert reads == [True, True]  # a peer that begins needs no data for that


def test_the_models_of_all_agents_start_alike():
    values = Settings.of({"model": "cnn", "split": "iid"})
    first, second = values.new_model(), values.new_model()
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)
        assert a is not b


def test_frozen_parameters_stay_at_home():
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
    model[0].requires_grad_(requires_grad=False)
    travels = shared(model)
    assert travels.keys() == {k for k in model.state_dict() if not k.startswith("0.")}
    other = {name: array + 1 for name, array in travels.items()}
    frozen = model[0].weight.clone()
    put(other, model)
    assert torch.equal(model[2].weight, other["2.weight"])
    assert torch.equal(model[0].weight, frozen)
    with pytest.raises(RuntimeError, match=r"arrays of the model are missing: 2\.bias"):
        put({k: v for k, v in other.items() if k != "2.bias"}, model)
    with pytest.raises(RuntimeError, match="the model has no arrays more"):
        put(other | {"more": torch.zeros(1)}, model)


def test_the_app_lists_all_workloads_and_their_models():
    assert set(WORKLOADS) == {
        *("digits", "cancer", "text", "text-lora", "mnist", "fashion-mnist", "cifar10", "cifar100")
    }
    for name, kind in WORKLOADS.items():
        assert Settings.of({"workload": name}).model == kind.models[0]


@pytest.mark.parametrize("workload", ["cancer", "text"])
def test_what_ships_with_scikit_learn_is_divided_once_and_for_all(workload):
    data = WORKLOADS[workload]()
    training, test = data.load(train=True), data.load(train=False)
    assert (len(training.y), len(test.y)) == {"cancer": (426, 143), "text": (1992, 504)}[workload]
    rows = [
        {(int(label), *row.tolist()) for row, label in zip(*samples, strict=True)}
        for samples in (training, test)
    ]
    assert not rows[0] & rows[1]
    for model in data.models:
        scores = data.build(model)(data.prepare(test.x[:3]))
        assert scores.shape == (3, int(test.y.max()) + 1)


@pytest.mark.parametrize(
    ("workload", "optimizer", "rate", "least"),
    [("cancer", "sgd", 0.1, 0.95), ("text", "adamw", 0.02, 0.6)],
)
@pytest.mark.thorough
def test_the_first_model_of_a_workload_learns(workload, optimizer, rate, least):
    """One agent with half of the data; chance is 0.63 and 0.125."""
    changes = {"workload": workload, "model": "auto", "split": "iid", "topology": "complete:2"}
    agent = Agent.of(VALUES | changes | {"local-steps": 150}, {"partition-id": 0})
    model = agent.settings.new_model()
    local = LocalOptimizer.parse(optimizer).make(model.parameters(), rate)
    train(model, agent.batches(1), local)
    test = samples_of(agent.settings.workload, train=False)
    _, accuracy = evaluate(model, agent.settings.workload, test, CPU)
    assert accuracy > least


def test_without_peft_the_remedy_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ConfigError, match=r"'lora' extra: pip install 'flower-dhb\[lora\]'"):
        Settings.of({"workload": "text-lora"}).new_model()


def test_a_message_needs_the_number_of_agents_and_not_their_graph(monkeypatch, tmp_path):
    """Each message asks for it: at a thousand agents, a graph would cost more than training."""
    built = []
    monkeypatch.setattr(Topology, "__init__", lambda self, *_, **__: built.append(self))
    for spec, expected in (("ring:1000", 1000), ("torus:30x40", 1200), ("hypercube:10", 1024)):
        assert count_agents({"topology": spec}) == expected
    path = tmp_path / "g.edges"
    path.write_text("0 1\n1 2\n")
    assert count_agents({"topology": str(path)}) == 3
    path.unlink()
    assert count_agents({"topology": str(path)}) == 3  # read once
    values = {"topology": "ring:1000", "split": "iid"}
    trained = train_locally(message(make_model("logistic", 4)), context(999, **values))
    assert trained.content["metrics"]["num-examples"] == 1
    assert not built
    with pytest.raises(ConfigError, match="this node is vertex 1000, the topology has 1000"):
        train_locally(message(make_model("logistic", 4)), context(1000, **values))
