"""Gradient tracking (DSGT): agents follow a running estimate of the average gradient.

Sources: Di Lorenzo & Scutari, "NEXT: in-network nonconvex optimization", IEEE TSIPN
2016; Nedic, Olshevsky & Shi, "Achieving geometric convergence for distributed
optimization over time-varying graphs", SIAM J. Optim. 2017 (DIGing, combine-then-adapt);
Pu & Nedic, "Distributed stochastic gradient tracking methods", Math. Program. 2021
(arXiv 1805.11454, adapt-then-combine).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from flower_dhb.algorithms.base import (
    ADAPT_THEN_COMBINE,
    COMBINE_THEN_ADAPT,
    Algorithm,
    check_choice,
)
from flower_dhb.types import Payload, State, Vector

__all__ = ["GradientTracking"]


@dataclass(frozen=True, kw_only=True)
class GradientTracking(Algorithm):
    """Every agent moves by its estimate `y` of the average local step.

    With `s = z - x`: `y+ = W y + s - s_previous` (first round `y+ = s`), then
    `x+ = W (x + y+)` adapt-then-combine, the default, or `x+ = W x + y+`
    combine-then-adapt. A payload carries parameters and `y+`.

    Raises ConfigError for an unknown order.
    """

    order: str = ADAPT_THEN_COMBINE

    name: ClassVar[str] = "dsgt"
    linear: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("order", self.order, (ADAPT_THEN_COMBINE, COMBINE_THEN_ADAPT))

    @property
    def vectors(self) -> tuple[str, ...]:
        return ("parameters", "tracker")

    @property
    def memory(self) -> tuple[str, ...]:
        return ("mixed_tracker", "last_step")

    @property
    def conserved(self) -> tuple[str, ...]:
        return self.memory  # the correction is their difference

    @property
    def exact(self) -> bool:
        return True

    def outgoing(self, state: State, trained: Vector) -> Payload:
        y = self._tracker(state, trained)
        adapts_first = self.order == ADAPT_THEN_COMBINE
        return {
            "parameters": state.parameters + y if adapts_first else state.parameters,
            "tracker": y,
        }

    def combine(self, state: State, trained: Vector, mixed: Payload) -> State:
        x = mixed["parameters"]
        if self.order == COMBINE_THEN_ADAPT:
            x = x + self._tracker(state, trained)
        last_step = trained - state.parameters
        return State(x, {"mixed_tracker": mixed["tracker"], "last_step": last_step})

    def _tracker(self, state: State, trained: Vector) -> Vector:
        change = (trained - state.parameters) - state.memory["last_step"]
        return state.memory["mixed_tracker"] + change
