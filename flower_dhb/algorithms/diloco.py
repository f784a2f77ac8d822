"""DiLoCo: outer Nesterov momentum on the average of all agents' local work.

Source: Douillard, Feng, Rusu, Chhaparia, Donchev, Kuncoro, Ranzato, Szlam & Shen,
"DiLoCo: distributed low-communication training of language models", 2023
(arXiv 2311.08105).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from flower_dhb.algorithms.base import COMPLETE, Algorithm, check_fraction, check_positive
from flower_dhb.types import Payload, State, Vector

__all__ = ["DiLoCo"]


@dataclass(frozen=True, kw_only=True)
class DiLoCo(Algorithm):
    """The upper bound of training with many local steps: a server averages all agents.

    With the pseudo-gradient `S = mean (z - x)`, the paper's `v+ = b v + S` and
    `x+ = x + a (S + b v+)` is, with `y = x + a S`: `x+ = y + b (y - y_previous)`, where
    `y_previous` is `x` in the first round. All agents are the same. The defaults are the
    paper's. With `a = 1` and `b = 0` it is FedAvg.

    Parameters
    ----------
    outer_rate : float
        `a`, above 0.
    momentum : float
        `b`, in [0, 1).

    Raises
    ------
    ConfigError
        For a value outside its range.
    """

    outer_rate: float = 0.7
    momentum: float = 0.9

    name: ClassVar[str] = "diloco"
    linear: ClassVar[bool] = True
    graph: ClassVar[str] = COMPLETE

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("outer_rate", self.outer_rate)
        check_fraction("momentum", self.momentum)

    @property
    def vectors(self) -> tuple[str, ...]:
        return ("parameters",)

    @property
    def memory(self) -> tuple[str, ...]:
        return ("lead",)

    @property
    def exact(self) -> bool:
        return True

    def outgoing(self, state: State, trained: Vector) -> Payload:
        return {"parameters": state.parameters + self.outer_rate * (trained - state.parameters)}

    def combine(self, state: State, trained: Vector, mixed: Payload) -> State:  # noqa: ARG002
        y = mixed["parameters"]
        # The lead is x - y_previous, zero at the start.
        x = y + self.momentum * ((y - state.parameters) + state.memory["lead"])
        return State(x, {"lead": x - y})
