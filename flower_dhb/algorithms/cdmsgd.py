"""Consensus SGD with local momentum (CDMSGD): parameters are averaged, momentum is not.

Source: Jiang, Balu, Hegde & Sarkar, "Collaborative deep learning in fixed topology
networks", NeurIPS 2017 (arXiv 1706.07880). The Nesterov flavor is the one of deep
learning libraries (Sutskever et al., ICML 2013, with the gradient taken at `x`), as in
the group's later code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from flower_dhb.algorithms.base import Algorithm, check_flag, check_fraction
from flower_dhb.types import Payload, State, Vector

__all__ = ["CDMSGD"]


@dataclass(frozen=True, kw_only=True)
class CDMSGD(Algorithm):
    """Every agent runs heavy ball on its own data; `x` is averaged before the step.

    With `s = z - x`: `v+ = b v + s` and `x+ = W x + v+`; with `nesterov`,
    `x+ = W x + s + b v+`. `momentum` is `b`, in [0, 1).

    Raises ConfigError for a value outside its range.
    """

    momentum: float = 0.9
    nesterov: bool = False

    name: ClassVar[str] = "cdmsgd"
    linear: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fraction("momentum", self.momentum)
        check_flag("nesterov", self.nesterov)

    @property
    def vectors(self) -> tuple[str, ...]:
        return ("parameters",)

    @property
    def memory(self) -> tuple[str, ...]:
        return ("momentum",)

    @property
    def shares_before_training(self) -> bool:
        return True

    def outgoing(self, state: State, trained: Vector) -> Payload:  # noqa: ARG002
        return {"parameters": state.parameters}

    def combine(self, state: State, trained: Vector, mixed: Payload) -> State:
        step = trained - state.parameters
        v = self.momentum * state.memory["momentum"] + step
        move = step + self.momentum * v if self.nesterov else v
        return State(mixed["parameters"] + move, {"momentum": v})
