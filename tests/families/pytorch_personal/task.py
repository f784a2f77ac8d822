"""pytorch_personal: a shared body and a head of each client's own, on three digits each."""

from functools import cache
from pathlib import Path

import numpy as np
import torch
from flwr.app import ArrayRecord
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn


class Net(nn.Module):
    """A body that all clients share and a head that each keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU())
        self.head = nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x))


def new_model(seed: int) -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Net()


@cache
def _split(seed: int):
    x, y = load_digits(return_X_y=True)
    x = (x / 8.0 - 1.0).astype(np.float32)
    return train_test_split(x, y, test_size=0.3, random_state=seed, stratify=y)


def load_data(partition_id: int, seed: int, test: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """A client's images of its own three digits, to train or to test."""
    x, x_test, y, y_test = _split(seed)
    x, y = (x_test, y_test) if test else (x, y)
    mine = np.isin(y, [(partition_id + k) % 10 for k in range(3)])
    return torch.from_numpy(x[mine]), torch.from_numpy(y[mine])


def train(net: Net, x: torch.Tensor, y: torch.Tensor, lr: float, seed: int) -> float:
    """One epoch of SGD; the mean loss."""
    optimizer = torch.optim.SGD(net.parameters(), lr=lr)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    batches = order.split(16)
    total = 0.0
    for batch in batches:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(x[batch]), y[batch])
        loss.backward()
        optimizer.step()
        total += loss.item()
    return total / len(batches)


def test(net: Net, x: torch.Tensor, y: torch.Tensor) -> float:
    """Accuracy."""
    with torch.no_grad():
        return (net(x).argmax(dim=1) == y).float().mean().item()


def load_final(path: Path) -> ArrayRecord:
    return ArrayRecord(torch.load(path))
