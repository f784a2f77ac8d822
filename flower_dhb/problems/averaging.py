"""Average consensus alone: agents hold different values and want their mean."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flower_dhb.errors import ConfigError

__all__ = ["Averaging"]


@dataclass(frozen=True)
class Averaging:
    """values: (n, d), what each agent starts from. Nothing is trained."""

    values: NDArray[np.float64]

    @classmethod
    def random(cls, n_agents: int, size: int = 1000, *, seed: int = 0) -> Averaging:
        """Standard normal values."""
        if not (size >= 1 and n_agents >= 1):
            raise ConfigError(f"need at least 1 agent and size 1, got {n_agents} and {size}")
        return cls(np.random.default_rng([seed, n_agents]).standard_normal((n_agents, size)))

    @property
    def n_agents(self) -> int:
        """Number of agents."""
        return len(self.values)

    @property
    def start(self) -> NDArray[np.float64]:
        """Every agent's own value, `(n, d)`."""
        return self.values

    def gradient(self, x: NDArray[Any]) -> NDArray[Any]:
        """Zero: (n, d) of (n, d)."""
        return np.zeros_like(x)

    def optimum(self) -> NDArray[np.float64]:
        """The mean of all values, (d,)."""
        return np.asarray(self.values.mean(axis=0))

    def local_step(self, learning_rate: float = 0.0) -> Callable[[Any, int], Any]:  # noqa: ARG002
        """No training: `z = x`."""
        return lambda x, _round: x
