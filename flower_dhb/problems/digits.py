"""Handwritten digits: 1,797 real 8 x 8 images that ship with scikit-learn.

Source: Alpaydin & Kaynak, "Optical Recognition of Handwritten Digits", UCI 1998.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

__all__ = ["Digits", "load_digits"]

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
