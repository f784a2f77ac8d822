"""Logistic regression with l2 penalty: strongly convex, its optimum found by Newton's method."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flower_dhb.errors import ConfigError
from flower_dhb.problems.splits import split

__all__ = ["LogisticRegression"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class LogisticRegression:
    """Agent i has `f_i(x) = mean_m log(1 + exp(-y_m a_m'x)) + penalty |x|^2 / 2`.

    features: one (m_i, d) per agent. labels: one (m_i,) per agent, -1 or +1. The network
    minimizes the mean of the f_i: every agent counts the same, whatever its m_i.
    """

    features: Sequence[Array]
    labels: Sequence[Array]
    penalty: float

    def __post_init__(self) -> None:
        if not self.penalty > 0.0:
            raise ConfigError(f"penalty must be above 0, got {self.penalty}")

    @classmethod
    def breast_cancer(
        cls, n_agents: int, how: str = "iid", *, penalty: float = 0.01, seed: int = 0
    ) -> LogisticRegression:
        """The 569 samples of scikit-learn's breast cancer data, standardized, with a constant.

        how: a split of `flower_dhb.problems.splits.split`, such as `iid` or `classes:1`.
        Source: Street, Wolberg & Mangasarian, IS&T/SPIE 1993.
        """
        from sklearn import datasets

        raw, target = datasets.load_breast_cancer(return_X_y=True)
        scaled = (raw - raw.mean(axis=0)) / raw.std(axis=0)
        features = np.column_stack([scaled, np.ones(len(scaled))])
        labels = np.where(target > 0, 1.0, -1.0)
        parts = split(target, n_agents, how, seed)
        return cls([features[p] for p in parts], [labels[p] for p in parts], penalty)

    @classmethod
    def synthetic(
        cls,
        n_agents: int,
        samples: int = 50,
        size: int = 10,
        *,
        heterogeneity: float = 1.0,
        penalty: float = 0.01,
        seed: int = 0,
    ) -> LogisticRegression:
        """Gaussian features; agents' true weights are `heterogeneity` apart from a common one."""
        rng = np.random.default_rng([seed, n_agents, samples, size])
        common = rng.standard_normal(size)
        features, labels = [], []
        for _ in range(n_agents):
            a = rng.standard_normal((samples, size))
            weights = common + heterogeneity * rng.standard_normal(size)
            chance = 1.0 / (1.0 + np.exp(-a @ weights))
            features.append(a)
            labels.append(np.where(rng.random(samples) < chance, 1.0, -1.0))
        return cls(features, labels, penalty)

    @property
    def n_agents(self) -> int:
        """Number of agents."""
        return len(self.features)

    @property
    def start(self) -> Array:
        """Where all agents start: zero, `(d,)`."""
        return np.zeros(self.features[0].shape[1])

    @property
    def largest_curvature(self) -> float:
        """An upper bound on any agent's curvature: largest eigenvalue of A'A / 4m + penalty."""
        bounds = [np.linalg.norm(a, 2) ** 2 / (4.0 * len(a)) for a in self.features]
        return float(max(bounds)) + self.penalty

    def gradient(self, x: NDArray[Any]) -> NDArray[Any]:
        """Each agent's own gradient at its own parameters: (n, d) of (n, d)."""
        rows = []
        for a, y, point in zip(self.features, self.labels, x, strict=True):
            pull = -y / (1.0 + np.exp(y * (a @ point)))
            rows.append(a.T @ pull / len(y) + self.penalty * point)
        return np.stack(rows)

    def optimum(self) -> Array:
        """Minimizer of the mean, by Newton's method to machine precision: (d,)."""
        x = self.start
        for _ in range(100):
            gradient = self.gradient(np.broadcast_to(x, (self.n_agents, len(x)))).mean(axis=0)
            hessian = self.penalty * np.eye(len(x))
            for a in self.features:
                chance = 1.0 / (1.0 + np.exp(-a @ x))
                hessian += a.T @ (a * (chance * (1.0 - chance))[:, None]) / (len(a) * self.n_agents)
            step = np.linalg.solve(hessian, gradient)
            x = x - step
            if np.abs(step).max() <= 1e-14 * max(1.0, float(np.abs(x).max())):
                break
        return x

    def local_step(self, learning_rate: float) -> Callable[[NDArray[Any], int], NDArray[Any]]:
        """`z = x - learning_rate * gradient(x)`, as `simulate` takes it."""
        return lambda x, _round: x - learning_rate * self.gradient(x)
