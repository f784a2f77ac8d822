"""Workload `digits`: real handwritten digits that ship with scikit-learn."""

from __future__ import annotations

from functools import cache

from clients.workload import Workload
from flower_dhb.problems.digits import load_digits
from flower_dhb.problems.models import make_model
from flower_dhb.problems.splits import split

__all__ = ["load"]


@cache
def load(model: str, how: str, n_agents: int, seed: int, data_dir: str) -> Workload:  # noqa: ARG001
    """1,200 training digits over `n_agents` agents, 360 test digits.

    model: `logistic`, `mlp` or `cnn`. how: `iid`, `classes:K` or `dirichlet:A`.
    """
    digits = load_digits()
    return Workload(
        digits.train_x,
        digits.train_y,
        digits.test_x,
        digits.test_y,
        split(digits.train_y.numpy(), n_agents, how, seed),
        lambda: make_model(model, seed),
    )
