"""What a decentralized rule is: share something, then combine what came back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from flower_dhb.errors import ConfigError
from flower_dhb.types import Payload, State, Vector

__all__ = ["Algorithm", "check_choice", "zeros_like"]

ADAPT_THEN_COMBINE = "adapt-then-combine"
COMBINE_THEN_ADAPT = "combine-then-adapt"

# The graphs that rules run on: a symmetric mixing matrix on the agents' own links; one
# whose columns alone sum to 1, so that links may be one-way; or everyone with everyone.
UNDIRECTED, DIRECTED, COMPLETE = "undirected", "directed", "complete"


@dataclass(frozen=True, kw_only=True)
class Algorithm(ABC):
    """One decentralized training rule: pure, elementwise, for one agent or for all.

    A round, for an agent with state `x(k)`: the app trains locally and returns `z`;
    `outgoing(state, z)` is what the agent sends to its neighbors; the runtime forms
    `mixed = sum_j W[i, j] payload_j` for every vector of the payload, the agent's own
    included; `combine(state, z, mixed)` is the state `x(k+1)`.

    Only elementwise arithmetic is allowed in the methods. So the same body serves
    vectors `(d,)` and stacks `(n, d)`, blocks of either, NumPy and torch; and the
    arithmetic stays in the dtype of its inputs.
    """

    name: ClassVar[str]
    graph: ClassVar[str] = UNDIRECTED

    @property
    @abstractmethod
    def vectors(self) -> tuple[str, ...]:
        """Names of the vectors that one payload carries, each as long as the parameters."""

    @property
    @abstractmethod
    def memory(self) -> tuple[str, ...]:
        """Names of the vectors that an agent remembers beside its parameters."""

    @property
    def shares_before_training(self) -> bool:
        """Whether `outgoing` does not depend on `z`, so that sending can overlap training."""
        return False

    @property
    def scalars(self) -> tuple[str, ...]:
        """Names of what a payload carries beside its vectors: one number each, shape `(..., 1)`."""
        return ()

    @property
    def exact(self) -> bool:
        """Whether full gradients lead every agent to the optimum, however the data differ."""
        return False

    @property
    def preserves_average(self) -> bool:
        """Whether the average over agents moves as if one agent took the average local step."""
        return True

    def start(self, parameters: Vector) -> State:
        """State at round 0: the common initial parameters, and zero memory."""
        return State(parameters, {name: zeros_like(parameters) for name in self.memory})

    @abstractmethod
    def outgoing(self, state: State, trained: Vector) -> Payload:
        """What the agent sends to each neighbor this round."""

    @abstractmethod
    def combine(self, state: State, trained: Vector, mixed: Payload) -> State:
        """The state after the round, from the weighted sums `mixed` of all payloads."""

    def check(self, eigenvalues: NDArray[np.float64]) -> None:  # noqa: B027 (most rules have no limit)
        """Raise ConfigError if the rule diverges on this mixing matrix whatever the step size.

        eigenvalues: (n,) float64, of the mixing matrix.
        """

    def to_config(self) -> dict[str, Any]:
        """Name and settings as plain values; `algorithm_from_config` is the inverse."""
        return {"name": self.name, **{f.name: getattr(self, f.name) for f in fields(self)}}


def zeros_like(vector: Vector) -> Vector:
    """Zeros of the same shape, dtype and device, for NumPy arrays and torch tensors."""
    return (
        np.zeros_like(vector) if isinstance(vector, np.ndarray) else vector.new_zeros(vector.shape)
    )


def check_choice(what: str, value: object, choices: tuple[str, ...]) -> None:
    """Raise ConfigError unless `value` is one of the choices."""
    if value not in choices:
        raise ConfigError(f"{what} must be one of {', '.join(choices)}; got {value!r}")


def check_fraction(what: str, value: object) -> None:
    """Raise ConfigError unless `value` is a number in [0, 1)."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 <= value < 1.0:
        raise ConfigError(f"{what} must be a number in [0, 1), got {value!r}")


def check_flag(what: str, value: object) -> None:
    """Raise ConfigError unless `value` is true or false."""
    if not isinstance(value, bool):
        raise ConfigError(f"{what} must be true or false, got {value!r}")
