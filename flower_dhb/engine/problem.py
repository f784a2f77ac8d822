"""What the engine trains: the agents' arrays as stacked tensors, and their local training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flower_dhb.errors import ConfigError
from flower_dhb.topology.graph import digest_of

__all__ = ["Agents", "Analytic", "Problem"]


@dataclass
class Agents:
    """All agents' arrays, one row an agent.

    parameters: (n, d). statistics: (n, s), running statistics, s = 0 for most models.
    local: arrays that never leave an agent, (n, …) by name.
    """

    parameters: Tensor
    statistics: Tensor
    local: dict[str, Tensor] = field(default_factory=dict)


class Problem(Protocol):
    """Local training of all agents: where they start, and how they adapt."""

    @property
    def n_agents(self) -> int:
        """Number of agents that hold data."""

    @property
    def digest(self) -> str:
        """What a checkpoint must be of: data, split, batches, seed, as far as they are known."""

    def start(self, device: torch.device) -> Agents:
        """Arrays at round 0."""

    def adapt(self, agents: Agents, round: int, learning_rate: float, trained: Tensor) -> None:
        """Train every agent locally and write the parameters to `trained`, `(n, d)`.

        Statistics and local arrays are updated in place, parameters are left alone.
        Rounds count from 1.
        """


class Analytic:
    """A problem given by its gradient: `z = x - learning_rate * gradient(x, round)`.

    start: (n, d) or (d,), float32 or float64. gradient: maps all agents' parameters
    `(n, d)` and the round to `(n, d)`; computed by NumPy, on the CPU.
    """

    def __init__(
        self,
        start: NDArray[Any],
        gradient: Callable[[NDArray[Any], int], NDArray[Any]],
        n_agents: int | None = None,
    ) -> None:
        start = np.atleast_2d(np.asarray(start))
        self._n = len(start) if n_agents is None else n_agents
        if len(start) not in (1, self._n):
            raise ConfigError(f"start has {len(start)} rows, expected 1 or {self._n}")
        self._start = start
        self._gradient = gradient

    @property
    def n_agents(self) -> int:
        """Number of agents."""
        return self._n

    @property
    def digest(self) -> str:
        """Of the start alone: a gradient is a function, and has no digest."""
        return digest_of(self._n, self._start)

    def start(self, device: torch.device) -> Agents:
        """The given start, on the device."""
        rows = np.broadcast_to(self._start, (self._n, self._start.shape[1])).copy()
        x = torch.from_numpy(rows).to(device)
        return Agents(x, x.new_zeros(self._n, 0))

    def adapt(self, agents: Agents, round: int, learning_rate: float, trained: Tensor) -> None:
        """One gradient step."""
        x = agents.parameters.cpu().numpy()
        with np.errstate(over="ignore", invalid="ignore"):  # a run may diverge
            step = x - learning_rate * self._gradient(x, round)
        trained.copy_(torch.from_numpy(np.ascontiguousarray(step, dtype=x.dtype)))
