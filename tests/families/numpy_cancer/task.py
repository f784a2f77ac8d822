"""numpy_cancer: logistic regression in NumPy, in double precision, on the breast cancer data."""

from functools import cache
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord
from numpy.typing import NDArray
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler


def new_model() -> NDArray:
    """Weights of the thirty features, and the intercept."""
    return np.zeros(31)


@cache
def _split(seed: int):
    x, y = load_breast_cancer(return_X_y=True)
    x = np.hstack([StandardScaler().fit_transform(x), np.ones((len(x), 1))])
    return train_test_split(x, y, test_size=0.3, random_state=seed, stratify=y)


def load_data(partition_id: int, num_partitions: int, seed: int) -> tuple[NDArray, NDArray]:
    """One client's part; the last client has about three times the data of the first."""
    x, _, y, _ = _split(seed)
    shares = np.arange(num_partitions, 3 * num_partitions, 2)
    ends = (np.cumsum(shares) / shares.sum() * len(x)).astype(int)[:-1]
    part = np.split(np.random.default_rng(seed).permutation(len(x)), ends)[partition_id]
    return x[part], y[part]


def load_test_data(seed: int) -> tuple[NDArray, NDArray]:
    _, x, _, y = _split(seed)
    return x, y


def train(weights: NDArray, x: NDArray, y: NDArray, epochs: int, lr: float, seed: int) -> NDArray:
    """Gradient descent in batches of eight."""
    rng = np.random.default_rng(seed)
    for _ in range(epochs):
        for batch in np.array_split(rng.permutation(len(x)), max(1, len(x) // 8)):
            error = _probability(weights, x[batch]) - y[batch]
            weights = weights - lr * (x[batch].T @ error) / len(batch)
    return weights


def test(weights: NDArray, x: NDArray, y: NDArray) -> tuple[float, float]:
    """Loss and accuracy."""
    p = np.clip(_probability(weights, x), 1e-12, 1 - 1e-12)
    loss = -np.mean(y * np.log(p) + (1 - y) * np.log(1 - p))
    return float(loss), float(np.mean((p > 0.5) == y))


def _probability(weights: NDArray, x: NDArray) -> NDArray:
    return 1.0 / (1.0 + np.exp(-(x @ weights)))


def load_final(path: Path) -> ArrayRecord:
    with np.load(path) as file:
        return ArrayRecord([file["weights"]])
