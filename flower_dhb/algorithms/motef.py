"""MoTEF: gradient tracking of momentum that is an average of steps.

Source: Islamov, Gao & Stich, "Towards faster decentralized stochastic optimization with
communication compression", ICLR 2025 (arXiv 2405.20114). Its error feedback has nothing to
feed back where payloads are sent as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from flower_dhb.algorithms.base import Algorithm, check_fraction
from flower_dhb.errors import ConfigError
from flower_dhb.types import Payload, State, Vector

__all__ = ["MoTEF"]


@dataclass(frozen=True, kw_only=True)
class MoTEF(Algorithm):
    """Every agent moves by its estimate `y` of the average of all agents' smoothed steps.

    With `s = z - x` and `Wc = (1 - c) I + c W`: `m+ = b m + (1 - b) s`, in the first round
    `m+ = s`; `y+ = Wc y + m+ - m`, and `x+ = Wc x + y+`. A payload carries `x` and `y+`. The
    momentum smooths the steps and does not lengthen them, unlike a heavy ball's. With `b = 0`
    and `c = 1` it is gradient tracking, combine-then-adapt.

    Parameters
    ----------
    momentum : float
        `b`, in [0, 1); the paper writes `1 - b`.
    consensus_rate : float
        `c`, in (0, 1]. The paper makes it small where compression is strong.

    Raises
    ------
    ConfigError
        For a value outside its range.
    """

    momentum: float = 0.9
    consensus_rate: float = 1.0

    name: ClassVar[str] = "motef"
    linear: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fraction("momentum", self.momentum)
        c = self.consensus_rate
        if isinstance(c, bool) or not isinstance(c, int | float) or not 0.0 < c <= 1.0:
            raise ConfigError(f"consensus_rate must be a number in (0, 1], got {c!r}")

    @property
    def vectors(self) -> tuple[str, ...]:
        return ("parameters", "tracker")

    @property
    def memory(self) -> tuple[str, ...]:
        return ("momentum", "mixed_tracker")

    @property
    def conserved(self) -> tuple[str, ...]:
        return self.memory  # the correction is their difference

    @property
    def exact(self) -> bool:
        return True

    def outgoing(self, state: State, trained: Vector) -> Payload:
        _, y = self._tracked(state, trained)
        return {"parameters": state.parameters, "tracker": y}

    def combine(self, state: State, trained: Vector, mixed: Payload) -> State:
        m, y = self._tracked(state, trained)
        x = self._damped(state.parameters, mixed["parameters"])
        memory = {"momentum": m, "mixed_tracker": self._damped(y, mixed["tracker"])}
        return State(x + y, memory)

    def _tracked(self, state: State, trained: Vector) -> tuple[Vector, Vector]:
        """`m+` and `y+`."""
        step, old = trained - state.parameters, state.memory["momentum"]
        m = step if state.round == 0 else self.momentum * old + (1.0 - self.momentum) * step
        return m, state.memory["mixed_tracker"] + (m - old)

    def _damped(self, own: Vector, mixed: Vector) -> Vector:
        if self.consensus_rate == 1.0:
            return mixed
        return (1.0 - self.consensus_rate) * own + self.consensus_rate * mixed
