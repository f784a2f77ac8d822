"""Image data sets from files in their original formats, networks, normalization."""

import gzip
import hashlib
import os
import pickle
import sys
import tarfile

import numpy as np
import pytest
import torch
from support.originals import MNIST_FILES, cifar_files, idx, known_sums, mnist_files, write_mnist
from torch import nn

from clients.agents import Agent
from clients.networks import NETWORKS, normalized
from clients.settings import WORKLOADS, Settings
from clients.workload import train
from flower_dhb import ConfigError
from flower_dhb.engine.supervised import Supervised
from flower_dhb.extras import load

rng = np.random.default_rng(0)
GRAY = {"train": rng.integers(0, 256, (40, 28, 28)), "t10k": rng.integers(0, 256, (20, 28, 28))}
LABELS = {"train": np.arange(40) % 10, "t10k": np.arange(20) % 10}
COLOR = {
    "train": rng.integers(0, 256, (50, 3, 32, 32)),
    "test": rng.integers(0, 256, (20, 3, 32, 32)),
}
KINDS = {name: kind.kind for name, kind in WORKLOADS.items() if hasattr(kind, "kind")}
IDX, PICKLED = ("mnist", "fashion-mnist"), ("cifar10", "cifar100")


def workload(name, folder, **changes):
    values = {"workload": name, "data-dir": str(folder), "split": "iid", "topology": "ring:4"}
    return Settings.of(values | changes).workload


def refusal(name, folder, **changes):
    with pytest.raises(ConfigError) as error:
        workload(name, folder, **changes).load(train=True)
    return str(error.value)


@pytest.fixture
def gray(tmp_path):
    """Folders of small MNIST and Fashion-MNIST files."""
    for name in IDX:
        write_mnist(tmp_path / KINDS[name] / "raw", GRAY, LABELS)
    return tmp_path


@pytest.fixture
def color(tmp_path, monkeypatch):
    """Small CIFAR files, packed; torchvision knows the MD5 sums of the real ones only."""
    for name in PICKLED:
        source = getattr(load("torchvision.datasets", "it"), KINDS[name])
        files = cifar_files(name, COLOR)
        folder = tmp_path / "packed" / source.base_folder
        folder.mkdir(parents=True)
        for file, data in files:
            (folder / file).write_bytes(data)
        with tarfile.open(tmp_path / source.filename, "w:gz") as archive:
            archive.add(folder, source.base_folder)
        data = (tmp_path / source.filename).read_bytes()
        packed = hashlib.md5(data, usedforsecurity=False).hexdigest()
        monkeypatch.setattr(source, "tgz_md5", packed)
        for attribute, value in known_sums(source, files).items():
            monkeypatch.setattr(source, attribute, value)
    return tmp_path


# --- what is read ---------------------------------------------------------------------------


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", IDX)
def test_mnist_and_fashion_mnist_are_read_from_their_idx_files(name, packed, tmp_path):
    folder = tmp_path / KINDS[name] / "raw"
    write_mnist(folder, GRAY, LABELS, packed=packed)
    data = workload(name, tmp_path)
    for training, part in ((True, "train"), (False, "t10k")):
        x, y = data.load(train=training)
        assert (x.dtype, y.dtype) == (torch.uint8, torch.int64)  # bytes: a quarter of the memory
        np.testing.assert_array_equal(x.numpy(), GRAY[part][:, None])
        np.testing.assert_array_equal(y.numpy(), LABELS[part])
    mean, deviation = {"mnist": (0.1307, 0.3081), "fashion-mnist": (0.286, 0.353)}[name]
    np.testing.assert_allclose(  # float32 of values below 3
        data.prepare(x).numpy(), (GRAY["t10k"][:, None] / 255 - mean) / deviation, atol=1e-6
    )
    assert data.augment(x) is x  # digits and clothes are what they are, seen as they are
    left = {path.name for path in folder.iterdir()}
    assert left == set(MNIST_FILES) | ({f"{f}.gz" for f in MNIST_FILES} if packed else set())


@pytest.mark.parametrize("name", PICKLED)
def test_cifar_is_read_from_its_archive(name, color):
    data = workload(name, color)
    x, y = data.load(train=True)
    np.testing.assert_array_equal(x.numpy(), COLOR["train"])  # channels first, as in the files
    np.testing.assert_array_equal(y.numpy(), np.arange(50) % data.classes)
    test = data.load(train=False)
    np.testing.assert_array_equal(test.x.numpy(), COLOR["test"])
    assert data.build("cnn")(data.prepare(test.x)).shape == (20, data.classes)
    base = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}[name]
    assert (color / base / "batches.meta").exists() or (color / base / "meta").exists()
    assert not [path for path in color.iterdir() if path.name.startswith("tmp")]


def test_training_images_of_cifar_are_shifted_and_mirrored_and_test_images_are_not(color):
    """And so that the same seed, vertex and round give the same ones."""
    values = {"workload": "cifar10", "data-dir": str(color), "topology": "ring:4", "split": "iid"}
    agent = Agent.of(values | {"batch-size": 12}, {"partition-id": 1})
    plain = Agent.of(values | {"batch-size": 12, "augment": False}, {"partition-id": 1})

    def batch(agent, round):
        with agent.drawing(round):
            ((x, y),) = agent.batches(round)
        return x, y

    x, y = batch(agent, 3)
    assert torch.equal(batch(agent, 3)[0], x)
    straight, labels = batch(plain, 3)
    assert torch.equal(labels, y)
    assert not torch.equal(straight, x)
    assert not torch.equal(batch(agent, 4)[0], x)
    assert batch(agent, 3)[0].dtype == torch.float32
    bytes_ = torch.from_numpy(COLOR["test"]).to(torch.uint8)
    torch.manual_seed(0)
    for image, source in zip(agent.settings.workload.augment(bytes_), bytes_, strict=True):
        wide = nn.functional.pad(source, (4, 4, 4, 4))  # black around it
        versions = [
            version[:, i : i + 32, j : j + 32]
            for version in (wide, wide.flip(-1))
            for i in range(9)
            for j in range(9)
        ]
        assert sum(torch.equal(image, version) for version in versions) == 1


# --- what is missing, damaged or something else -------------------------------------------------


@pytest.mark.parametrize("name", KINDS)
def test_missing_files_are_named_with_where_they_go(name, tmp_path):
    text = refusal(name, tmp_path / "absent")
    assert f"{KINDS[name]}: the folder '{tmp_path / 'absent'}' does not exist" in text
    text = refusal(name, tmp_path)
    folder = {
        "mnist": "MNIST/raw",
        "fashion-mnist": "FashionMNIST/raw",
        "cifar10": "cifar-10-batches-py",
        "cifar100": "cifar-100-python",
    }[name]
    files = MNIST_FILES if name in IDX else [file for file, _ in cifar_files(name, COLOR)]
    assert f"are not in '{tmp_path / folder}'. Put " in text
    assert all(text.count(file) == 2 for file in files if file != "meta" and file != "test")
    packed = {"cifar10": "cifar-10-python.tar.gz", "cifar100": "cifar-100-python.tar.gz"}
    assert f"or what they are published in to '{tmp_path / packed.get(name, folder)}" in text
    assert "or set download = true where there is a network" in text
    assert list(tmp_path.iterdir()) == []


def test_one_missing_file_is_named_alone(gray):
    (gray / "MNIST" / "raw" / "t10k-labels-idx1-ubyte").unlink()
    assert "MNIST: t10k-labels-idx1-ubyte are not in" in refusal("mnist", gray)


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("train-images-idx3-ubyte", lambda data: data[:-100]),
        ("train-images-idx3-ubyte", lambda data: data[:3]),
        ("train-images-idx3-ubyte", lambda data: b""),
        ("train-images-idx3-ubyte", lambda data: b"<html>not found</html>" * 9),
        ("train-images-idx3-ubyte", lambda data: idx(GRAY["train"][:, :20])),
        ("train-labels-idx1-ubyte", lambda data: data[:-5]),
        ("train-labels-idx1-ubyte", lambda data: idx(LABELS["train"][:39])),
        ("train-labels-idx1-ubyte", lambda data: idx(LABELS["train"] + 1)),
    ],
)
def test_damaged_idx_files_are_refused(file, damage, gray):
    path = gray / "MNIST" / "raw" / file
    path.write_bytes(damage(path.read_bytes()))
    text = refusal("mnist", gray)
    assert f"MNIST: the files in '{path.parent}' are damaged: " in text
    assert "Delete what is wrong. Put train-images-idx3-ubyte, " in text


@pytest.mark.parametrize("damage", [lambda d: d[:-200], lambda d: b"<html>" + d])
def test_a_packed_file_that_is_damaged_leaves_nothing_behind(damage, tmp_path):
    folder = tmp_path / "MNIST" / "raw"
    write_mnist(folder, GRAY, LABELS, packed=True)
    path = folder / "train-images-idx3-ubyte.gz"
    path.write_bytes(damage(path.read_bytes()))
    text = refusal("mnist", tmp_path)
    assert "train-images-idx3-ubyte" in text.split(" are not in ", maxsplit=1)[0]
    assert "train-images-idx3-ubyte.gz: " in text
    assert not (folder / "train-images-idx3-ubyte").exists()
    assert not list(folder.glob("*.part"))


class Trap:
    """What a file that somebody else has written may do when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("trapped",)


@pytest.mark.parametrize("name", PICKLED)
def test_other_files_under_the_names_of_cifar_are_never_unpickled(
    name, color, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    data = workload(name, color)
    data.load(train=True)
    (file, *_), folder = data_files(name), color / BASES[name]
    (folder / file).write_bytes(pickle.dumps(Trap()))
    text = refusal(name, color)
    assert f"the files in '{folder}' are damaged: the MD5 sum of {file} is " in text
    assert not (tmp_path / "trapped").exists()
    archive = color / f"{BASES[name].removesuffix('-batches-py').removesuffix('-python')}"
    packed = archive.with_name(f"{archive.name}-python.tar.gz")
    packed.write_bytes(packed.read_bytes()[:-30])  # and the archive is cut off
    (folder / file).unlink()
    text = refusal(name, color)
    assert f"{file} are not in '{folder}': the MD5 sum of {packed.name} is " in text


BASES = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}


def data_files(name):
    return [file for file, _ in cifar_files(name, COLOR)]


def test_a_download_that_fails_says_so_and_where_the_files_go(tmp_path, monkeypatch):
    source = load("torchvision.datasets", "it").MNIST
    monkeypatch.setattr(source, "mirrors", ["http://127.0.0.1:9/"])  # nobody listens there
    text = refusal("mnist", tmp_path / "new", download=True)
    assert "train-images-idx3-ubyte, train-labels-idx1-ubyte" in text
    assert "Error downloading train-images-idx3-ubyte.gz" in text
    assert "Put train-images-idx3-ubyte" in text


def test_a_download_that_succeeds(tmp_path, monkeypatch):
    source = load("torchvision.datasets", "it").MNIST

    def fetch(self):
        write_mnist(tmp_path / "MNIST" / "raw", GRAY, LABELS)

    monkeypatch.setattr(source, "download", fetch)
    assert len(workload("mnist", tmp_path, download=True).load(train=True).y) == 40


def test_without_torchvision_the_remedy_is_named(monkeypatch, gray):
    for name in ("torchvision", "torchvision.datasets"):
        monkeypatch.setitem(sys.modules, name, None)
    text = refusal("mnist", gray)
    assert text.endswith("needs the 'vision' extra: pip install 'flower-dhb[vision]'")


def test_gzip_is_what_packs_them():
    """The yardstick itself."""
    assert gzip.decompress(dict(mnist_files(GRAY, LABELS, packed=True))[f"{MNIST_FILES[0]}.gz"])


# --- networks -----------------------------------------------------------------------------------


SIZES = {"cnn": 37_338, "lenet5": 62_006, "vgg11": 9_231_114, "resnet20": 269_722}
SIZES |= {"resnet18": 11_173_962}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_take_both_sizes_of_images_and_have_their_known_size(name):
    """ResNet-20: 0.27 million in its paper; VGG-11 and ResNet-18 as is usual on 32 x 32."""
    with torch.device("meta"):
        for shape in ((1, 28, 28), (3, 32, 32)):
            model = NETWORKS[name](shape, 10).eval()
            assert model(torch.empty(2, *shape)).shape == (2, 10)
    assert sum(p.numel() for p in model.parameters()) == SIZES[name]


@pytest.mark.parametrize("name", ["cnn", "vgg11", "resnet20", "resnet18"])
def test_normalization_is_exchanged_and_the_weights_stay(name):
    def made(how):
        with torch.device("meta"):
            return normalized(NETWORKS[name]((3, 32, 32), 10), how)

    kinds = {how: [type(m) for m in made(how).modules()] for how in ("batch", "group", "none")}
    places = kinds["batch"].count(nn.BatchNorm2d)
    assert places == {"cnn": 4, "vgg11": 8, "resnet20": 19, "resnet18": 20}[name]
    assert kinds["group"].count(nn.GroupNorm) == places
    assert kinds["none"].count(nn.Identity) - kinds["batch"].count(nn.Identity) == places
    assert nn.BatchNorm2d not in kinds["group"] + kinds["none"]
    assert [type(m) for m in made("auto").modules()] == kinds["batch"]
    names = [k for k in made("batch").state_dict() if "num_batches" not in k and "running" not in k]
    assert list(made("group").state_dict()) == names


def test_weights_come_from_the_seed_alone_whatever_the_normalization():
    def weights(seed, how):
        values = {"workload": "mnist", "seed": seed, "normalization": how}
        return Settings.of(values).new_model()[0].weight

    state = torch.random.get_rng_state()
    first = weights(1, "batch")
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.rand(3)
    assert torch.equal(weights(1, "group"), first)
    assert not torch.equal(weights(2, "group"), first)


def test_the_shortcut_of_resnet_20_thins_out_and_pads_with_zeros():
    block = NETWORKS["resnet20"]((3, 32, 32), 10)[6]  # the first of 32 channels
    for convolution in (block.conv1, block.conv2):
        nn.init.zeros_(convolution.weight)
    x = torch.rand(2, 16, 8, 8)
    y = block.eval()(x)
    assert torch.equal(y[:, 8:24], x[:, :, ::2, ::2])
    assert not y[:, :8].any()
    assert not y[:, 24:].any()


@pytest.mark.parametrize("how", ["group", "batch"])
def test_local_steps_of_the_engine_are_those_of_the_app_to_the_bit(how, gray):
    values = {"workload": "mnist", "data-dir": str(gray), "split": "iid", "topology": "ring:4"}
    values |= {"normalization": how, "local-steps": 2, "batch-size": 4, "optimizer": "momentum:0.8"}
    agent = Agent.of(values, {"partition-id": 0})
    settings, model = agent.settings, agent.settings.new_model()
    train(model, agent.batches(1), settings.optimizer.make(model.parameters(), 0.02))
    problem = Supervised(
        settings.new_model(),
        settings.workload.prepare(agent.samples.x),
        agent.samples.y,
        [agent.part],
        batch_size=4,
        local_steps=2,
        optimizer=settings.optimizer,
        backend="loop",
    )
    agents = problem.start(torch.device("cpu"))
    trained = torch.empty_like(agents.parameters)
    problem.adapt(agents, 1, 0.02, trained)
    state, entries = model.state_dict(), problem.model.layout.entries
    for kind, row in (("parameter", trained[0]), ("statistic", agents.statistics[0])):
        mine = [state[e.name].ravel() for e in entries if e.kind == kind]
        assert torch.equal(torch.cat([torch.zeros(0), *mine]), row)
