"""lightning_digits: a Lightning module with Adam on scikit-learn's digits."""

import logging
import warnings
from functools import cache
from pathlib import Path

import lightning as L  # noqa: N812 (as its documentation has it)
import numpy as np
import torch
from flwr.app import ArrayRecord
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", module="lightning")


class LitNet(L.LightningModule):
    """A network of two layers."""

    def __init__(self, learning_rate: float = 0.003) -> None:
        super().__init__()
        self.learning_rate = learning_rate
        self.layers = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)

    def training_step(self, batch, batch_index: int) -> torch.Tensor:
        x, y = batch
        return nn.functional.cross_entropy(self(x), y)

    def test_step(self, batch, batch_index: int) -> None:
        x, y = batch
        scores = self(x)
        self.log("loss", nn.functional.cross_entropy(scores, y))
        self.log("accuracy", (scores.argmax(dim=1) == y).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=self.learning_rate)


def new_model(seed: int, learning_rate: float) -> LitNet:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LitNet(learning_rate)


@cache
def _split(seed: int):
    x, y = load_digits(return_X_y=True)
    x = (x / 8.0 - 1.0).astype(np.float32)
    return train_test_split(x, y, test_size=0.2, random_state=seed, stratify=y)


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


def _trainer(epochs: int) -> L.Trainer:
    return L.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def train(model: LitNet, data: TensorDataset, epochs: int, seed: int) -> float:
    """Train with Lightning's loop; the last loss."""
    order = torch.Generator().manual_seed(seed)
    trainer = _trainer(epochs)
    trainer.fit(model, DataLoader(data, batch_size=16, shuffle=True, generator=order))
    x, y = data.tensors
    with torch.no_grad():
        return nn.functional.cross_entropy(model(x), y).item()


def test(model: LitNet, data: TensorDataset) -> tuple[float, float]:
    """Loss and accuracy."""
    (found,) = _trainer(1).test(model, DataLoader(data, batch_size=len(data)), verbose=False)
    return found["loss"], found["accuracy"]


def load_final(path: Path) -> ArrayRecord:
    return ArrayRecord(torch.load(path))
