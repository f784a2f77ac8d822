"""Workload `digits`: real handwritten digits that ship with scikit-learn."""

from __future__ import annotations

from torch import nn

from clients.workload import Samples, Workload
from flower_dhb.problems.digits import load_digits
from flower_dhb.problems.models import new_model

__all__ = ["Digits"]


class Digits(Workload):
    """1,200 training and 360 test digits of 8 x 8 pixels, in ten classes."""

    models = ("mlp", "logistic", "cnn")

    def load(self, *, train: bool) -> Samples:  # noqa: D102
        data = load_digits()
        return Samples(data.train_x, data.train_y) if train else Samples(data.test_x, data.test_y)

    def build(self, model: str) -> nn.Module:  # noqa: D102
        return new_model(model)
