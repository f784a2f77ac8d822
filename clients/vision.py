"""Workloads `mnist`, `fashion-mnist` and `cifar10`, read by torchvision (extra `vision`).

The files are looked for in `data-dir`, in the data sets' original formats, and never
downloaded behind your back; torchvision fetches them once with `download=True`.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn

from clients.workload import Workload
from flower_dhb import ConfigError
from flower_dhb.extras import needs_extra
from flower_dhb.problems.splits import split

__all__ = ["DATASETS", "load_named"]

DATASETS = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST", "cifar10": "CIFAR10"}


@cache
def load_named(
    dataset: str, model: str, how: str, n_agents: int, seed: int, data_dir: str
) -> Workload:
    """All training images over `n_agents` agents, all test images for everyone.

    dataset: a key of `DATASETS`. model: `cnn` (two convolutions, two linear layers).
    """
    if model != "cnn":
        raise ConfigError(f"run config: workload '{dataset}' has the model 'cnn', got '{model}'")
    train_x, train_y = _read(dataset, data_dir, train=True)
    test_x, test_y = _read(dataset, data_dir, train=False)
    channels, side = train_x.shape[1], train_x.shape[2]
    parts = split(train_y.numpy(), n_agents, how, seed)
    return Workload(train_x, train_y, test_x, test_y, parts, lambda: _cnn(channels, side, seed))


def _read(dataset: str, data_dir: str, *, train: bool) -> tuple[Tensor, Tensor]:
    """Images `(m, channels, side, side)` float32 in [0, 1] and labels `(m,)` int64."""
    try:
        from torchvision import datasets
    except ImportError as error:
        raise needs_extra(f"workload '{dataset}'", "vision") from error
    kind = DATASETS[dataset]
    try:
        data = getattr(datasets, kind)(data_dir, train=train, download=False)
    except RuntimeError:
        raise ConfigError(
            f"workload '{dataset}': no {kind} files in '{data_dir}', or damaged ones. Fetch them "
            f'once: python -c "from torchvision.datasets import {kind}; '
            f'{kind}({data_dir!r}, download=True)"'
        ) from None
    images = torch.as_tensor(data.data).to(torch.float32) / 255.0
    images = images.unsqueeze(1) if images.ndim == 3 else images.permute(0, 3, 1, 2).contiguous()
    return images, torch.as_tensor(data.targets, dtype=torch.int64)


def _cnn(channels: int, side: int, seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(channels, 16, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(32 * (side // 4) ** 2, 64),
            nn.ReLU(),
            nn.Linear(64, 10),
        )
