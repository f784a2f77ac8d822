"""Quadratics with a given condition number and heterogeneity; the optimum is known exactly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flower_dhb.errors import ConfigError

__all__ = ["Quadratic"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Quadratic:
    """Agent i has `f_i(x) = (x - c_i)' H_i (x - c_i) / 2`; the network minimizes their mean.

    curvature: (n, d, d), symmetric positive definite. centers: (n, d).
    """

    curvature: Array
    centers: Array

    @classmethod
    def random(
        cls,
        n_agents: int,
        size: int = 10,
        *,
        condition: float = 10.0,
        heterogeneity: float = 1.0,
        curvature_spread: float = 0.0,
        seed: int = 0,
    ) -> Quadratic:
        """Quadratics whose mean has largest curvature 1 and smallest `1 / condition`.

        heterogeneity: distance between agents' minimizers and the common one, 0 for equal
        data. curvature_spread: in [0, 1), how much agents' curvatures differ from their
        mean; 0 gives all agents the same matrix.
        Raises ConfigError for a value outside its range.
        """
        if not condition >= 1.0:
            raise ConfigError(f"condition must be at least 1, got {condition}")
        if not heterogeneity >= 0.0:
            raise ConfigError(f"heterogeneity must be at least 0, got {heterogeneity}")
        if not 0.0 <= curvature_spread < 1.0:
            raise ConfigError(f"curvature_spread must be in [0, 1), got {curvature_spread}")
        if not (size >= 1 and n_agents >= 1):
            raise ConfigError(f"need at least 1 agent and size 1, got {n_agents} and {size}")
        rng = np.random.default_rng([seed, n_agents, size])
        basis = np.linalg.qr(rng.standard_normal((size, size)))[0]
        eigenvalues = np.geomspace(1.0 / condition, 1.0, size)
        scale = np.ones((n_agents, size))
        if n_agents > 1:
            noise = rng.standard_normal((n_agents, size))
            noise -= noise.mean(axis=0)
            scale += curvature_spread * noise / np.abs(noise).max(axis=0)
        curvature = np.einsum("ab,ib,cb->iac", basis, scale * eigenvalues, basis)
        common = rng.standard_normal(size)
        centers = common + heterogeneity * rng.standard_normal((n_agents, size))
        return cls(curvature, centers)

    @property
    def n_agents(self) -> int:
        """Number of agents."""
        return len(self.centers)

    @property
    def start(self) -> Array:
        """Where all agents start: zero, `(d,)`."""
        return np.zeros(self.centers.shape[1])

    @property
    def largest_curvature(self) -> float:
        """The largest eigenvalue of any agent's curvature."""
        return float(np.linalg.eigvalsh(self.curvature).max())

    def gradient(self, x: NDArray[Any]) -> NDArray[Any]:
        """Each agent's own gradient at its own parameters: (n, d) of (n, d)."""
        found: NDArray[Any] = np.einsum("iab,ib->ia", self.curvature, x - self.centers)
        return found

    def optimum(self) -> Array:
        """Minimizer of the mean, from its linear system: (d,)."""
        right = np.einsum("iab,ib->a", self.curvature, self.centers)
        return np.asarray(np.linalg.solve(self.curvature.sum(axis=0), right))

    def local_step(self, learning_rate: float) -> Callable[[NDArray[Any], int], NDArray[Any]]:
        """`z = x - learning_rate * gradient(x)`, as `simulate` takes it."""
        return lambda x, _round: x - learning_rate * self.gradient(x)
