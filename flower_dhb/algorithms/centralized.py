"""Centralized heavy ball: what a server that averages all agents every round would do.

Source: Polyak, "Some methods of speeding up the convergence of iteration methods",
USSR Comput. Math. Math. Phys. 1964.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from flower_dhb.algorithms.base import COMPLETE, Algorithm, check_fraction
from flower_dhb.types import Payload, State, Vector

__all__ = ["Centralized"]


@dataclass(frozen=True, kw_only=True)
class Centralized(Algorithm):
    """The upper bound: `x+ = mean z + b d`, `d+ = x+ - x`, the same for every agent.

    The runtime averages over all agents, whatever their graph. `momentum` is `b`, in
    [0, 1); with 0 it is parallel SGD (FedAvg, with several local steps).

    Raises ConfigError for a value outside its range.
    """

    momentum: float = 0.9

    name: ClassVar[str] = "centralized"
    linear: ClassVar[bool] = True
    graph: ClassVar[str] = COMPLETE

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fraction("momentum", self.momentum)

    @property
    def vectors(self) -> tuple[str, ...]:
        return ("parameters",)

    @property
    def memory(self) -> tuple[str, ...]:
        return ("displacement",)

    @property
    def exact(self) -> bool:
        return True

    def outgoing(self, state: State, trained: Vector) -> Payload:  # noqa: ARG002
        return {"parameters": trained}

    def combine(self, state: State, trained: Vector, mixed: Payload) -> State:  # noqa: ARG002
        x = mixed["parameters"] + self.momentum * state.memory["displacement"]
        return State(x, {"displacement": x - state.parameters})
