"""Handwritten digits, three classes an agent, and a small network."""

from functools import cache

import numpy as np
import torch
from flwr.app import ArrayRecord
from sklearn.datasets import load_digits
from torch import nn

CLASSES = 10


class Net(nn.Sequential):
    """64 pixels, 32 units, 10 classes."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, CLASSES))


@cache
def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """All images, `(1797, 64)` in 0 to 1, shuffled, and what they show."""
    x, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    return torch.tensor(x, dtype=torch.float32)[order] / 16.0, torch.tensor(labels)[order]


def load(agent: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images of an agent: of three classes, and of each a share of its own."""
    x, labels = digits()
    x, labels = x[360:], labels[360:]
    wanted = torch.tensor([agent % CLASSES, (agent + 1) % CLASSES, (agent + 5) % CLASSES])
    mine = torch.isin(labels, wanted).nonzero().flatten()[agent % 2 :: 2]
    return x[mine], labels[mine]


def test_set() -> tuple[torch.Tensor, torch.Tensor]:
    """Images of all digits, which no agent trains on."""
    x, labels = digits()
    return x[:360], labels[:360]


def initial_arrays() -> ArrayRecord:
    """The model that all begin with."""
    torch.manual_seed(0)
    return ArrayRecord(Net().state_dict())


def start() -> dict[str, np.ndarray]:
    """The same, for a mesh of peers."""
    return {name: array.numpy() for name, array in initial_arrays().items()}
