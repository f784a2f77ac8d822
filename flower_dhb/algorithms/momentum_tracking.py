"""Momentum Tracking: gradient tracking applied to the agents' momentum.

Source: Takezawa, Bao, Niwa, Sato & Yamada, "Momentum Tracking: momentum acceleration
for decentralized deep learning on heterogeneous data", TMLR 2023 (arXiv 2209.15505).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from flower_dhb.algorithms.base import Algorithm, check_fraction
from flower_dhb.types import Payload, State, Vector

__all__ = ["MomentumTracking"]


@dataclass(frozen=True, kw_only=True)
class MomentumTracking(Algorithm):
    """Every agent moves by its estimate of the average momentum step.

    The paper corrects a local momentum `u` by `c`, with `c+ = W (c - u) + u`. In
    displacement (`s = z - x`, `v = -a u`, `y = v - (correction)`), that is
    `v+ = b v + s`, `y+ = W y + v+ - v` (first round `y+ = v+`), `x+ = W (x + y+)`.
    A payload carries `x + y+` and `y+`. `momentum` is `b`, in [0, 1).

    Raises ConfigError for a value outside its range.
    """

    momentum: float = 0.9

    name: ClassVar[str] = "momentum-tracking"
    linear: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fraction("momentum", self.momentum)

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
        change = self._momentum(state, trained) - state.memory["momentum"]
        y = state.memory["mixed_tracker"] + change
        return {"parameters": state.parameters + y, "tracker": y}

    def combine(self, state: State, trained: Vector, mixed: Payload) -> State:
        v = self._momentum(state, trained)
        return State(mixed["parameters"], {"momentum": v, "mixed_tracker": mixed["tracker"]})

    def _momentum(self, state: State, trained: Vector) -> Vector:
        return self.momentum * state.memory["momentum"] + (trained - state.parameters)
