"""The app's client side: local training against a loop by hand, and data sets from their files."""

import gzip
import hashlib
import pickle
import struct

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from torch import nn

from clients import client_app, vision
from clients.client_app import WORKLOADS, evaluate_own_model, load_workload, train_locally
from clients.workload import evaluate, train
from flower_dhb import ConfigError, Topology
from flower_dhb.problems.digits import load_digits
from flower_dhb.problems.models import make_model
from flower_dhb.problems.splits import batches, split

VALUES = {
    "topology": "ring:5",
    "split": "classes:2",
    "model": "logistic",
    "learning-rate": 0.1,
    "batch-size": 8,
    "local-steps": 3,
    "seed": 4,
}


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

    trained = reply.content.array_records["arrays"].to_torch_state_dict()
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
        return reply.content.array_records["arrays"].to_torch_state_dict()["0.weight"]

    changes = {"model": "mlp"}
    first = weights(**changes)
    torch.rand(5)
    assert torch.equal(weights(**changes), first)
    for other in ({"round": 7}, {"vertex": 3}, {"seed": 5}, {"local-steps": 1}):
        assert not torch.equal(weights(**(changes | other)), first)


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
    model, digits = make_model("mlp", 1), load_digits()
    whole = evaluate(model, digits.test_x, digits.test_y)
    parts = evaluate(model, digits.test_x, digits.test_y, chunk=7)  # 360 = 51 * 7 + 3
    assert parts == pytest.approx(whole, rel=1e-6)


def test_train_leaves_dropout_on_and_evaluate_turns_it_off():
    seen = []

    class Watch(nn.Linear):
        def forward(self, x):
            seen.append(self.training)
            return super().forward(x)

    x, y = torch.zeros(4, 2), torch.zeros(4, dtype=torch.int64)
    model = Watch(2, 2)
    train(model, x, y, np.array([[0, 1], [2, 3]]), 0.1)
    evaluate(model, x, y)
    assert seen == [True, True, False]


@pytest.mark.parametrize("key", ["vertex", "partition-id"])
def test_the_vertex_comes_from_the_node_config(key):
    reply = train_locally(message(make_model("logistic", 4)), context(3, key))
    parts = load_workload(VALUES, 5).parts
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
        ({"model": "mpl"}, "unknown model 'mpl'"),
        ({"split": "classes"}, "needs a number after the colon"),
        ({"data-dir": 3}, "'data-dir' must be a text, got 3"),
    ],
)
def test_bad_settings_are_refused_with_their_key(changes, text):
    with pytest.raises(ConfigError, match=text):
        train_locally(message(make_model("logistic", 4)), context(**changes))


# --- workloads --------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["iid", "classes:2", "classes:10", "dirichlet:0.5"])
@pytest.mark.parametrize("n_agents", [5, 16])
def test_each_training_digit_is_one_agents(how, n_agents):
    workload = load_workload({"split": how, "seed": 1}, n_agents)
    assert len(workload.parts) == n_agents
    assert min(len(part) for part in workload.parts) > 0
    assert sorted(np.concatenate(workload.parts)) == list(range(1200))
    if how == "classes:2":
        labels = workload.train_y.numpy()
        assert {len(np.unique(labels[part])) for part in workload.parts} == {2}


def test_digits_take_nothing_from_the_data_folder(tmp_path):
    load_workload({"split": "iid", "data-dir": str(tmp_path / "absent")}, 3)


def test_the_models_of_all_agents_start_alike():
    workload = load_workload({"model": "cnn", "split": "iid"}, 3)
    first, second = workload.make_model(), workload.make_model()
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)
        assert a is not b


def test_the_app_lists_all_workloads():
    assert set(WORKLOADS) == {"digits", "mnist", "fashion-mnist", "cifar10"}
    assert client_app.app is not None


# --- data sets in their original formats ---------------------------------------------------

rng = np.random.default_rng(0)
LABELS = {"train": np.arange(40) % 10, "t10k": np.arange(20) % 10}
GRAY = {name: rng.integers(0, 256, (len(y), 28, 28), np.uint8) for name, y in LABELS.items()}
COLOR = {
    name: rng.integers(0, 256, (len(y), 3, 32, 32), np.uint8)
    for name, y in (("train", np.arange(50) % 10), ("test", np.arange(20) % 10))
}
FOLDERS = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST"}


def idx(array):
    """An array of bytes in the IDX format: magic with its dimensions, sizes, values."""
    head = struct.pack(">I", 0x0800 | array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    return head + array.astype(np.uint8).tobytes()


def write_idx(folder, *, packed=False):
    folder.mkdir(parents=True)
    for name, labels in LABELS.items():
        for file, data in (
            (f"{name}-images-idx3-ubyte", idx(GRAY[name])),
            (f"{name}-labels-idx1-ubyte", idx(labels)),
        ):
            if packed:
                (folder / f"{file}.gz").write_bytes(gzip.compress(data))
            else:
                (folder / file).write_bytes(data)


def write_cifar(folder):
    """Five training batches of ten images and one test batch; returns MD5 sums by file."""
    folder = folder / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    contents = {
        f"data_batch_{i + 1}": (COLOR["train"][10 * i : 10 * i + 10], list(range(10)))
        for i in range(5)
    }
    contents["test_batch"] = (COLOR["test"], [k % 10 for k in range(20)])
    files = {
        name: {"data": images.reshape(len(images), -1), "labels": labels}
        for name, (images, labels) in contents.items()
    } | {"batches.meta": {"label_names": [f"class {i}" for i in range(10)]}}
    sums = {}
    for name, content in files.items():
        data = pickle.dumps(content)
        (folder / name).write_bytes(data)
        sums[name] = hashlib.md5(data, usedforsecurity=False).hexdigest()
    return sums


@pytest.fixture
def cifar(tmp_path, monkeypatch):
    """A folder of small CIFAR-10 files. torchvision knows the MD5 sums of the real ones only."""
    from torchvision.datasets import CIFAR10

    sums = write_cifar(tmp_path)
    monkeypatch.setattr(
        CIFAR10, "train_list", [[f"data_batch_{i}", sums[f"data_batch_{i}"]] for i in range(1, 6)]
    )
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", sums["test_batch"]]])
    monkeypatch.setattr(CIFAR10, "meta", CIFAR10.meta | {"md5": sums["batches.meta"]})
    return tmp_path


def load(dataset, folder, n_agents=4, how="iid", **changes):
    values = {"workload": dataset, "model": "cnn", "split": how, "data-dir": str(folder)}
    return load_workload(values | changes, n_agents)


@pytest.mark.parametrize("dataset", FOLDERS)
def test_mnist_and_fashion_mnist_are_read_from_their_idx_files(dataset, tmp_path):
    write_idx(tmp_path / FOLDERS[dataset] / "raw")
    workload = load(dataset, tmp_path)
    for x, y, name in (
        (workload.train_x, workload.train_y, "train"),
        (workload.test_x, workload.test_y, "t10k"),
    ):
        assert (x.dtype, y.dtype) == (torch.float32, torch.int64)
        np.testing.assert_array_equal(x.numpy(), GRAY[name][:, None].astype(np.float32) / 255)
        np.testing.assert_array_equal(y.numpy(), LABELS[name])
    assert sorted(np.concatenate(workload.parts)) == list(range(40))
    assert workload.make_model()(workload.test_x).shape == (20, 10)


def test_cifar10_is_read_from_its_batches(cifar):
    workload = load("cifar10", cifar, how="classes:5")
    assert workload.train_x.shape == (50, 3, 32, 32)
    expected = COLOR["train"].astype(np.float32) / 255  # channels first, as in the files
    np.testing.assert_array_equal(workload.train_x.numpy(), expected)
    np.testing.assert_array_equal(workload.test_x.numpy(), COLOR["test"].astype(np.float32) / 255)
    np.testing.assert_array_equal(workload.train_y.numpy(), np.arange(50) % 10)
    np.testing.assert_array_equal(workload.test_y.numpy(), np.arange(20) % 10)
    assert {len(np.unique(part % 10)) for part in workload.parts} == {5}
    assert workload.make_model()(workload.test_x).shape == (20, 10)


def test_an_agent_trains_and_evaluates_on_images(tmp_path):
    write_idx(tmp_path / "MNIST" / "raw")
    changes = {"workload": "mnist", "model": "cnn", "split": "iid", "data-dir": str(tmp_path)}
    model = load("mnist", tmp_path, 5, seed=4).make_model()
    before = {name: array.clone() for name, array in model.state_dict().items()}
    reply = train_locally(message(model), context(**changes))
    after = reply.content.array_records["arrays"].to_torch_state_dict()
    assert all(not torch.equal(after[name], before[name]) for name in before)
    found = metrics(evaluate_own_model(message(model), context(**changes)))
    assert found["num-examples"] == 20
    assert 0.0 <= found["accuracy"] <= 1.0


def test_weights_of_the_image_model_come_from_the_seed_alone(tmp_path):
    write_idx(tmp_path / "MNIST" / "raw")

    def weights(seed):
        model = load("mnist", tmp_path, seed=seed).make_model()
        return torch.nn.utils.parameters_to_vector(model.parameters())

    state = torch.random.get_rng_state()
    first = weights(1)
    torch.testing.assert_close(torch.random.get_rng_state(), state, rtol=0, atol=0)
    torch.rand(3)
    assert torch.equal(weights(1), first)
    assert not torch.equal(weights(2), first)


@pytest.mark.parametrize(
    ("dataset", "kind"),
    [("mnist", "MNIST"), ("fashion-mnist", "FashionMNIST"), ("cifar10", "CIFAR10")],
)
def test_missing_files_are_refused_with_the_line_that_fetches_them(dataset, kind, tmp_path):
    with pytest.raises(ConfigError) as error:
        load(dataset, tmp_path)
    text = str(error.value)
    assert f"workload '{dataset}': no {kind} files in '{tmp_path}', or damaged ones" in text
    program = text.split('python -c "', 1)[1].removesuffix('"')
    assert program == (
        f"from torchvision.datasets import {kind}; {kind}({str(tmp_path)!r}, download=True)"
    )
    compile(program, "the line", "exec")


def test_packed_files_alone_are_not_enough(tmp_path):
    # torchvision unpacks them when it is asked to fetch; a run changes nothing in the folder.
    write_idx(tmp_path / "MNIST" / "raw", packed=True)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ConfigError, match="no MNIST files"):
        load("mnist", tmp_path)
    assert sorted(tmp_path.rglob("*")) == before


def test_other_files_under_the_names_of_cifar10_are_not_read(tmp_path):
    write_cifar(tmp_path)  # their MD5 sums are not those of the real files: nothing is unpickled
    with pytest.raises(ConfigError, match=r"no CIFAR10 files in .*, or damaged ones"):
        load("cifar10", tmp_path)


@pytest.mark.parametrize("dataset", vision.DATASETS)
@pytest.mark.parametrize("model", ["mlp", "logistic", "resnet"])
def test_a_model_that_the_workload_does_not_have(dataset, model, tmp_path):
    text = f"workload '{dataset}' has the model 'cnn', got '{model}'"
    with pytest.raises(ConfigError, match=text):
        load(dataset, tmp_path, model=model)


def test_without_torchvision_the_remedy_is_named(monkeypatch, tmp_path):
    import sys

    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(
        ConfigError, match=r"needs the 'vision' extra: pip install 'flower-dhb\[vision\]'"
    ):
        load("mnist", tmp_path)


def test_a_message_needs_the_number_of_agents_and_not_their_graph(monkeypatch, tmp_path):
    """Each message asks for it: at a thousand agents, a graph would cost more than training."""
    count_agents = client_app.count_agents
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
