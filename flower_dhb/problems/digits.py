"""Handwritten digits: 1,797 real 8 x 8 images that ship with scikit-learn.

Source: Alpaydin & Kaynak, "Optical Recognition of Handwritten Digits", UCI 1998.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn

from flower_dhb.errors import ConfigError, unknown

__all__ = ["MODELS", "Digits", "load_digits", "make_model"]

TRAIN, VALIDATION, TEST = 1200, 237, 360
_SHUFFLE_SEED = 2021  # one fixed division; a run's seed must not choose its own test set


@dataclass(frozen=True)
class Digits:
    """Images `(m, 64)` float32 and labels `(m,)` int64, in three disjoint parts.

    Pixels are standardized by the mean and the deviation of all training pixels, as is
    the custom for MNIST.
    """

    train_x: Tensor
    train_y: Tensor
    validation_x: Tensor
    validation_y: Tensor
    test_x: Tensor
    test_y: Tensor


@cache
def load_digits() -> Digits:
    """1,200 training, 237 validation and 360 test digits, always the same ones."""
    from sklearn import datasets

    images, labels = datasets.load_digits(return_X_y=True)
    order = np.random.default_rng(_SHUFFLE_SEED).permutation(len(images))
    x = torch.from_numpy((images[order] / 16.0).astype(np.float32))
    y = torch.from_numpy(labels[order].astype(np.int64))
    a, b = TRAIN, TRAIN + VALIDATION
    x = (x - x[:a].mean()) / x[:a].std()
    return Digits(x[:a], y[:a], x[a:b], y[a:b], x[b : b + TEST], y[b : b + TEST])


def _logistic() -> nn.Module:
    return nn.Linear(64, 10)


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


def _cnn() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        nn.Conv2d(1, 8, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16 * 4 * 4, 10),
    )


MODELS = {"logistic": _logistic, "mlp": _mlp, "cnn": _cnn}


def make_model(name: str, seed: int) -> nn.Module:
    """Model with weights drawn from `seed` alone; the global generator is left as it was.

    `logistic` is multinomial logistic regression, `mlp` is 64-32-10, `cnn` two small
    convolutions and a linear layer. Raises ConfigError for another name.
    """
    if name not in MODELS:
        raise ConfigError(unknown("model", name, MODELS))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MODELS[name]()
