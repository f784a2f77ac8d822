"""Decentralized SGD: average with the neighbors, no momentum across agents.

Sources: Lian et al., "Can decentralized algorithms outperform centralized algorithms?",
NeurIPS 2017 (D-PSGD); Jiang et al., "Collaborative deep learning in fixed topology
networks", NeurIPS 2017 (CDSGD). Both are combine-then-adapt.
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

__all__ = ["DSGD"]


@dataclass(frozen=True, kw_only=True)
class DSGD(Algorithm):
    """Decentralized SGD, which is `HeavyBall` with momentum 0.

    With `z` the locally trained parameters, adapt-then-combine (the default) is
    `x+ = W z`; combine-then-adapt, the papers' order, is `x+ = W x + (z - x)`.
    """

    order: str = ADAPT_THEN_COMBINE

    name: ClassVar[str] = "dsgd"
    linear: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("order", self.order, (ADAPT_THEN_COMBINE, COMBINE_THEN_ADAPT))

    @property
    def vectors(self) -> tuple[str, ...]:
        return ("parameters",)

    @property
    def memory(self) -> tuple[str, ...]:
        return ()

    @property
    def shares_before_training(self) -> bool:
        return self.order == COMBINE_THEN_ADAPT

    def outgoing(self, state: State, trained: Vector) -> Payload:
        return {"parameters": state.parameters if self.shares_before_training else trained}

    def combine(self, state: State, trained: Vector, mixed: Payload) -> State:
        if self.shares_before_training:
            return State(mixed["parameters"] + (trained - state.parameters), {})
        return State(mixed["parameters"], {})
