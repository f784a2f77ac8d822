"""Images from their original files to trained agents: `flwr run`, peers and engine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from support.flower_runs import history, run, write_all_rules
from support.originals import cifar_files, known_sums, scaled_digits, write_mnist
from torchvision.datasets import CIFAR10

from clients.agents import parts_of
from clients.settings import Settings
from flower_dhb import Topology
from flower_dhb.algorithms import method
from flower_dhb.engine.engine import Engine
from flower_dhb.engine.supervised import Supervised
from flower_dhb.runs.superlink import SuperLink
from tests.support.peers import PATIENT, Mesh

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600), pytest.mark.xdist_group("superlink")]

EARLY = 2  # rounds after which other runtimes are compared
LEARNING: dict[str, Any] = {
    "topology": "ring:8",
    "split": "iid",
    "seed": 1,
    "model": "cnn",
    "algorithm": "safeguarded",
    "rounds": 10,
    "local-steps": 8,
    "batch-size": 16,
    "optimizer": "adamw",
    "schedule": "step:0.3@5,8",
    "learning-rate": 0.004,
    "augment": False,  # a mirrored digit is none
}
# Images of 28 x 28 in IDX files, and of 32 x 32 in three colors in pickled batches.
SEEN: dict[str, dict[str, Any]] = {
    "mnist": {"workload": "mnist", "normalization": "group"},
    "cifar10": {"workload": "cifar10", "normalization": "batch"},
}
RUNS: dict[str, dict[str, Any]] = {
    "early": {"rounds": EARLY, "evaluate-every": 0},
    "whole": {"evaluate-every": 5, "observe-average": True},
}


@contextmanager
def small_cifar(sums: Mapping[str, Any]) -> Iterator[None]:
    """In this process, too, torchvision takes the small files for the real ones."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in sums.items():
            patch.setattr(CIFAR10, name, value)
        yield


def knowing(sums: Mapping[str, Any]) -> str:
    """The same for other processes, as source."""
    return f"""
from torchvision.datasets import CIFAR10

for name, value in {dict(sums)!r}.items():
    setattr(CIFAR10, name, value)
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A `data-dir`, and what torchvision must know of it."""
    folder = tmp_path_factory.mktemp("data")
    write_mnist(folder / "MNIST" / "raw", *scaled_digits(28), packed=True)
    images, labels = scaled_digits(32)
    names = {"train": "train", "t10k": "test"}
    colors = {names[part]: x[:, None].repeat(3, axis=1) for part, x in images.items()}
    files = cifar_files("cifar10", colors, {names[part]: y for part, y in labels.items()})
    base = folder / CIFAR10.base_folder
    base.mkdir()
    for name, content in files:
        (base / name).write_bytes(content)
    return folder, known_sums(CIFAR10, files)


@pytest.fixture(scope="module")
def runs(
    superlink: SuperLink,
    data: tuple[Path, dict[str, Any]],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[tuple[str, str], Path]:
    """Folders of results by workload and run."""
    here, (folder, sums) = tmp_path_factory.mktemp("vision"), data
    write_all_rules(here / "app", RUNS, knowing(sums))
    found = {}
    for name, changes in SEEN.items():
        values = LEARNING | changes | {"data-dir": str(folder)}
        for result in run(superlink, here / "app", 8, here / name, **values):
            found[name, result.name.rpartition("-")[2]] = result
    return found


def arrays(folder: Path) -> list[dict[str, np.ndarray]]:
    return [load_file(folder / f"agent-{vertex:03d}.safetensors") for vertex in range(8)]


@pytest.mark.parametrize("name", SEEN)
def test_the_average_model_reads_digits(runs: dict[tuple[str, str], Path], name: str) -> None:
    last = history(runs[name, "whole"])[-1]
    assert last["accuracy_average_model"] >= 0.97, last
    assert last["missing"] == []


@pytest.mark.parametrize("name", SEEN)
def test_the_engine_gives_the_same_numbers(
    runs: dict[tuple[str, str], Path], data: tuple[Path, dict[str, Any]], name: str
) -> None:
    """With group normalization, and with batch normalization and its statistics."""
    settings = Settings.of(LEARNING | SEEN[name] | {"data-dir": str(data[0])})
    with small_cifar(data[1]):
        samples = settings.workload.load(train=True)
        parts = parts_of(settings, 8)
    problem = Supervised(
        settings.new_model(),
        settings.workload.prepare(samples.x),
        samples.y,
        parts,
        batch_size=settings.batch_size,
        local_steps=settings.local_steps,
        optimizer=settings.optimizer,
        seed=settings.seed,
    )
    engine = Engine(
        problem,
        Topology.parse("ring:8"),
        method("safeguarded"),
        learning_rate=settings.learning_rate,
        schedule=settings.schedule,
        rounds=settings.rounds,
    )
    engine.run(EARLY)
    agents, layout = engine.agents, problem.model.layout
    found = arrays(runs[name, "early"])
    for kind, rows in (("parameter", agents.parameters), ("statistic", agents.statistics)):
        entries = [entry for entry in layout.entries if entry.kind == kind]
        assert bool(entries) == (kind == "parameter" or name == "cifar10")
        if not entries:
            continue
        theirs = np.stack([np.concatenate([a[e.name].ravel() for e in entries]) for a in found])
        start = torch.cat([settings.new_model().state_dict()[e.name].ravel() for e in entries])
        # float32; AdamW divides by the root of squares near 0 in its first steps, so roundings
        # of single gradients count. What is learned meanwhile is a hundred times larger.
        error = np.abs(theirs - rows.numpy())
        assert np.quantile(error, 0.99) < 1e-3, (kind, np.quantile(error, [0.5, 0.99, 1.0]))
        assert np.median(np.abs(theirs - start.numpy())) > 1e-3
    for entry in (e for e in layout.entries if e.kind == "local"):
        assert [int(a[entry.name]) for a in found] == [EARLY * settings.local_steps] * 8


def test_peers_give_the_same_numbers_statistics_and_counters(
    runs: dict[tuple[str, str], Path], data: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    """To the bit: the same code in the same order on the same machine."""
    values = LEARNING | SEEN["cifar10"] | {"data-dir": str(data[0]), "rounds": EARLY}
    overrides = {key.replace("-", "_"): value for key, value in values.items()}
    write_all_rules(tmp_path / "app", first=knowing(data[1]))
    app = tmp_path / "app"
    with Mesh(tmp_path / "mesh", app=app, evaluate_every=0, peer=PATIENT, **overrides) as mesh:
        mesh.start()
        mesh.finish(300)
        assert not mesh.missing_edges()
        for v, theirs in enumerate(arrays(runs["cifar10", "early"])):
            mine = mesh.model(v)
            assert mine.keys() == theirs.keys()
            for name, array in mine.items():
                np.testing.assert_array_equal(array, theirs[name], err_msg=name)
