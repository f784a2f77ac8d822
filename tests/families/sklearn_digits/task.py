"""sklearn_digits: logistic regression on scikit-learn's digits."""

import warnings
from functools import cache
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import train_test_split

CLASSES = np.arange(10)


def new_model(local_epochs: int) -> LogisticRegression:
    """A model that goes on from its parameters, and begins at zero."""
    model = LogisticRegression(max_iter=local_epochs, warm_start=True)
    set_params(model, [np.zeros((10, 64)), np.zeros(10)])
    return model


def get_params(model: LogisticRegression) -> list[NDArray]:
    return [model.coef_, model.intercept_]


def set_params(model: LogisticRegression, params: list[NDArray]) -> None:
    model.classes_ = CLASSES
    model.coef_, model.intercept_ = params


@cache
def _split(seed: int):
    x, y = load_digits(return_X_y=True)
    return train_test_split(x / 16.0, y, test_size=0.2, random_state=seed, stratify=y)


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


def train(model: LogisticRegression, x: NDArray, y: NDArray) -> float:
    """Some iterations; the loss after them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # one iteration does not converge
        model.fit(x, y)
    return float(log_loss(y, model.predict_proba(x), labels=CLASSES))


def test(model: LogisticRegression, x: NDArray, y: NDArray) -> tuple[float, float]:
    """Loss and accuracy."""
    return float(log_loss(y, model.predict_proba(x), labels=CLASSES)), float(model.score(x, y))


def load_final(path: Path) -> ArrayRecord:
    with np.load(path) as file:
        return ArrayRecord([file["coef"], file["intercept"]])
