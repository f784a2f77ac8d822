"""Handwritten digits, three classes an agent, and a linear classifier of scikit-learn's."""

from functools import cache

import numpy as np
from flwr.app import ArrayRecord
from sklearn.datasets import load_digits
from sklearn.linear_model import SGDClassifier

CLASSES, PIXELS = 10, 64


@cache
def digits() -> tuple[np.ndarray, np.ndarray]:
    """All images, `(1797, 64)` in 0 to 1, shuffled, and what they show."""
    x, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    return x[order] / 16.0, labels[order]


def load(agent: int) -> tuple[np.ndarray, np.ndarray]:
    """Images of an agent: of three classes, and of each a share of its own."""
    x, labels = digits()
    x, labels = x[360:], labels[360:]
    wanted = [agent % CLASSES, (agent + 1) % CLASSES, (agent + 5) % CLASSES]
    mine = np.flatnonzero(np.isin(labels, wanted))
    return x[mine[agent % 2 :: 2]], labels[mine[agent % 2 :: 2]]


def test_set() -> tuple[np.ndarray, np.ndarray]:
    """Images of all digits, which no agent trains on."""
    x, labels = digits()
    return x[:360], labels[:360]


def classifier(arrays: ArrayRecord, learning_rate: float) -> SGDClassifier:
    """A classifier with these parameters, which goes on from them."""
    model = SGDClassifier(
        loss="log_loss", penalty=None, learning_rate="constant", eta0=learning_rate, random_state=0
    )
    model.classes_ = np.arange(CLASSES)
    coefficients, intercept = arrays.to_numpy_ndarrays()
    model.coef_, model.intercept_ = coefficients.astype(float), intercept.astype(float)
    model.t_, model.n_features_in_ = 1.0, PIXELS
    return model


def parameters(model: SGDClassifier) -> list[np.ndarray]:
    """What travels: coefficients `(10, 64)` and intercept `(10,)`."""
    return [model.coef_.astype(np.float32), model.intercept_.astype(np.float32)]


def initial_arrays() -> ArrayRecord:
    """The model that all begin with."""
    return ArrayRecord([np.zeros((CLASSES, PIXELS), np.float32), np.zeros(CLASSES, np.float32)])


def start() -> dict[str, np.ndarray]:
    """The same, for a mesh of peers."""
    return {name: array.numpy() for name, array in initial_arrays().items()}
