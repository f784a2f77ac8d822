"""Runs of the app at the root with eight agents on a ring, all in one `flwr run`.

Ray and its workers start once for all of them; each asks for what it looks at.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flower_dhb.runs.superlink import SuperLink
from tests.support.flower_runs import run, write_all_rules
from tests.support.originals import cifar_files, known_sums, scaled_digits, write_mnist

__all__ = ["IMAGES", "MAIN_JOB", "ROUNDS", "SEEN", "knowing", "run_all", "write_images"]

# Digits with two classes per agent: what peers give is what `flwr run` gives.
MAIN_JOB: dict[str, Any] = {
    "topology": "ring:8",
    "split": "classes:2",
    "rounds": 30,
    "seed": 4,
    "local-steps": 2,
    "evaluate-every": 10,
}
IMAGES: dict[str, Any] = {
    "topology": "ring:8",
    "split": "iid",
    "seed": 1,
    "model": "cnn",
    "algorithm": "safeguarded",
    "normalization": "batch",
    "local-steps": 8,
    "batch-size": 16,
    "augment": False,  # a mirrored digit is none
}
# Some rounds in which much is learned.
LEARN: dict[str, Any] = {
    "rounds": 10,
    "evaluate-every": 10,
    "observe-average": True,
    "optimizer": "adamw",
    "learning-rate": 0.004,
    "schedule": "step:0.3@5,8",
}
# A few after which peers are compared.
ROUNDS = 2
COMPARE: dict[str, Any] = {
    "rounds": ROUNDS,
    "local-steps": 3,
    "evaluate-every": 0,
    "optimizer": "momentum:0.8",
    "learning-rate": 0.02,
    "schedule": "step:0.5@1",
}
# Images of 28 x 28 in IDX files, and of 32 x 32 in three colors in pickled batches.
SEEN: dict[str, dict[str, Any]] = {
    "mnist-learn": {**IMAGES, "workload": "mnist", **LEARN},
    "cifar10-learn": {**IMAGES, "workload": "cifar10", **LEARN},
    "cifar10-batch": {**IMAGES, "workload": "cifar10", **COMPARE},
    "main-job": MAIN_JOB,
}


def write_images(folder: Path) -> dict[str, Any]:
    """Write the files of a `data-dir`. Returns what torchvision must know of them."""
    from torchvision.datasets import CIFAR10

    write_mnist(folder / "MNIST" / "raw", *scaled_digits(28), packed=True)
    images, labels = scaled_digits(32)
    names = {"train": "train", "t10k": "test"}
    colors = {names[part]: x[:, None].repeat(3, axis=1) for part, x in images.items()}
    files = cifar_files("cifar10", colors, {names[part]: y for part, y in labels.items()})
    base = folder / CIFAR10.base_folder
    base.mkdir()
    for name, content in files:
        (base / name).write_bytes(content)
    return known_sums(CIFAR10, files)


def knowing(sums: Mapping[str, Any]) -> str:
    """Source by which a process of the app takes the small files for the real ones."""
    return f"""
from torchvision.datasets import CIFAR10

for name, value in {dict(sums)!r}.items():
    setattr(CIFAR10, name, value)
"""


def run_all(
    superlink: SuperLink, here: Path, data: Path, sums: Mapping[str, Any]
) -> dict[str, Path]:
    """Folders of results by name."""
    write_all_rules(here / "app", SEEN, knowing(sums))
    folders = run(superlink, here / "app", 8, here / "runs", **{"data-dir": str(data)})
    found = {name: [f for f in folders if f.name.endswith(f"-{name}")] for name in SEEN}
    assert all(len(each) == 1 for each in found.values()), folders
    return {name: each[0] for name, each in found.items()}
