"""Images from their original files to trained agents: `flwr run` and peers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from support.flower_runs import history, run, write_all_rules
from support.originals import cifar_files, known_sums, scaled_digits, write_mnist
from torchvision.datasets import CIFAR10

from flower_dhb.runs.superlink import SuperLink
from tests.support.peers import PATIENT, Mesh

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600), pytest.mark.xdist_group("superlink")]

APP: dict[str, Any] = {
    "topology": "ring:8",
    "split": "iid",
    "seed": 1,
    "model": "cnn",
    "algorithm": "safeguarded",
    "local-steps": 8,
    "batch-size": 16,
    "augment": False,  # a mirrored digit is none
}
# Some rounds in which much is learned.
LEARN: dict[str, Any] = {
    "normalization": "batch",
    "rounds": 10,
    "evaluate-every": 5,
    "observe-average": True,
    "optimizer": "adamw",
    "learning-rate": 0.004,
    "schedule": "step:0.3@5,8",
}
# A few after which peers are compared.
ROUNDS = 2
COMPARE: dict[str, Any] = {
    "rounds": ROUNDS,
    "evaluate-every": 0,
    "optimizer": "momentum:0.8",
    "learning-rate": 0.02,
    "schedule": "step:0.5@1",
}
# Images of 28 x 28 in IDX files, and of 32 x 32 in three colors in pickled batches.
SEEN: dict[str, dict[str, Any]] = {
    "mnist-learn": {"workload": "mnist", **LEARN},
    "cifar10-learn": {"workload": "cifar10", **LEARN},
    "cifar10-batch": {"workload": "cifar10", "normalization": "batch", **COMPARE},
}


def knowing(sums: Mapping[str, Any]) -> str:
    """Source by which a process of the app takes the small files for the real ones."""
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
) -> dict[str, Path]:
    """Folders of results by name."""
    here, (folder, sums) = tmp_path_factory.mktemp("vision"), data
    write_all_rules(here / "app", {"run": {}}, knowing(sums))
    found = {}
    for name, changes in SEEN.items():
        values = APP | changes | {"data-dir": str(folder)}
        (found[name],) = run(superlink, here / "app", 8, here / name, **values)
    return found


def arrays(folder: Path) -> list[dict[str, np.ndarray]]:
    return [load_file(folder / f"agent-{vertex:03d}.safetensors") for vertex in range(8)]


@pytest.mark.parametrize("name", ["mnist-learn", "cifar10-learn"])
def test_the_average_model_reads_digits(runs: dict[str, Path], name: str) -> None:
    rows = history(runs[name])
    assert rows[-1]["accuracy_average_model"] >= 0.97, rows[-1]
    assert [row["missing"] for row in rows] == [[]] * 10
    assert (runs[name] / "split.png").exists()


def test_peers_give_the_same_numbers_and_statistics(
    runs: dict[str, Path], data: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    """To the bit: the same code in the same order on the same machine."""
    values = APP | SEEN["cifar10-batch"] | {"data-dir": str(data[0])}
    overrides = {key.replace("-", "_"): value for key, value in values.items()}
    app = tmp_path / "app"
    write_all_rules(app, first=knowing(data[1]))
    with Mesh(tmp_path / "mesh", app=app, peer=PATIENT, **overrides) as mesh:
        mesh.start()
        mesh.finish(300)
        assert not mesh.missing_edges()
        for v, theirs in enumerate(arrays(runs["cifar10-batch"])):
            mine = mesh.model(v)
            assert mine.keys() == theirs.keys()
            for name, array in mine.items():
                if name.endswith("num_batches_tracked"):  # it never leaves an agent
                    assert (int(array), int(theirs[name])) == (ROUNDS * values["local-steps"], 0)
                else:
                    np.testing.assert_array_equal(array, theirs[name], err_msg=name)
