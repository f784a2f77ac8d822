"""pytorch_digits: a convolutional network on scikit-learn's digits."""

from functools import cache
from pathlib import Path

import numpy as np
import torch
from flwr.app import ArrayRecord
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Net(nn.Module):
    """Two convolutions and two dense layers, with batch normalization if asked for."""

    def __init__(self, batch_norm: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 8, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(8) if batch_norm else nn.Identity()
        self.conv2 = nn.Conv2d(8, 16, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(16) if batch_norm else nn.Identity()
        self.pool = nn.MaxPool2d(2)
        self.fc1 = nn.Linear(16 * 2 * 2, 32)
        self.fc2 = nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.pool(torch.relu(self.norm1(self.conv1(x))))
        x = self.pool(torch.relu(self.norm2(self.conv2(x))))
        return self.fc2(torch.relu(self.fc1(x.flatten(1))))


def new_model(seed: int, batch_norm: bool) -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Net(batch_norm)


@cache
def _split(seed: int):
    x, y = load_digits(return_X_y=True)
    images = ((x - 4.9) / 6.0).astype(np.float32).reshape(-1, 1, 8, 8)
    return train_test_split(images, y, test_size=0.2, random_state=seed, stratify=y)


def load_data(partition_id: int, num_partitions: int, seed: int) -> TensorDataset:
    """One client's part; the last client has about three times the data of the first."""
    x, _, y, _ = _split(seed)
    shares = np.arange(num_partitions, 3 * num_partitions, 2)
    ends = (np.cumsum(shares) / shares.sum() * len(x)).astype(int)[:-1]
    part = np.split(np.random.default_rng(seed).permutation(len(x)), ends)[partition_id]
    return TensorDataset(torch.from_numpy(x[part]), torch.from_numpy(y[part]))


def load_test_data(seed: int) -> TensorDataset:
    _, x, _, y = _split(seed)
    return TensorDataset(torch.from_numpy(x), torch.from_numpy(y))


def train(net: Net, data: TensorDataset, epochs: int, lr: float, seed: int) -> float:
    """Train with SGD and momentum; the mean loss."""
    order = torch.Generator().manual_seed(seed)
    loader = DataLoader(data, batch_size=16, shuffle=True, generator=order)
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9)
    net.train()
    total = 0.0
    for _ in range(epochs):
        for images, labels in loader:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(net(images), labels)
            loss.backward()
            optimizer.step()
            total += loss.item()
    return total / (epochs * len(loader))


def test(net: Net, data: TensorDataset) -> tuple[float, float]:
    """Loss and accuracy."""
    images, labels = data.tensors
    net.eval()
    with torch.no_grad():
        scores = net(images)
    loss = nn.functional.cross_entropy(scores, labels).item()
    return loss, (scores.argmax(dim=1) == labels).float().mean().item()


def load_final(path: Path) -> ArrayRecord:
    return ArrayRecord(torch.load(path))
