"""Workload `cancer`: a table of measurements that ships with scikit-learn.

The shortest of the workloads: copy it for data of your own, and name it in `clients/settings.py`.
"""

from __future__ import annotations

import numpy as np
import torch
from sklearn.datasets import load_breast_cancer
from torch import nn

from clients.workload import Samples, Workload

__all__ = ["Cancer"]


class Cancer(Workload):
    """Is a tumor benign? 30 measurements each of 426 to train on and 143 to test with.

    Source: Street, Wolberg & Mangasarian, IS&T/SPIE 1993.
    """

    models = ("logistic", "mlp")

    def load(self, *, train: bool) -> Samples:  # noqa: D102
        x, y = load_breast_cancer(return_X_y=True)
        test = np.arange(len(y)) % 4 == 0
        mean, deviation = x[~test].mean(axis=0), x[~test].std(axis=0)
        mine = ~test if train else test
        inputs = torch.from_numpy((x[mine] - mean) / deviation).float()
        return Samples(inputs, torch.from_numpy(y[mine]).long())

    def build(self, model: str) -> nn.Module:  # noqa: D102
        if model == "logistic":
            return nn.Linear(30, 2)
        return nn.Sequential(nn.Linear(30, 16), nn.ReLU(), nn.Linear(16, 2))
