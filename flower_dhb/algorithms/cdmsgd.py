"""Consensus SGD with local momentum (CDMSGD): parameters are averaged, momentum is not.

Source: Jiang, Balu, Hegde & Sarkar, "Collaborative deep learning in fixed topology
networks", NeurIPS 2017 (arXiv 1706.07880). The Nesterov flavor is the one of deep
learning libraries (Sutskever et al., ICML 2013, with the gradient taken at `x`), as in
the group's later code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from flower_dhb.algorithms.base import COMBINE_THEN_ADAPT, check_flag
from flower_dhb.algorithms.heavy_ball import HeavyBall, fixed
from flower_dhb.types import Payload, State, Vector

__all__ = ["CDMSGD"]


@dataclass(frozen=True, kw_only=True)
class CDMSGD(HeavyBall):
    """Every agent runs heavy ball on its own data; `x` is averaged before the step.

    With `s = z - x`: `v+ = b v + s` and `x+ = W x + v+`, which is `HeavyBall` in the buffer
    form, combine-then-adapt, with momentum mixing 0; with `nesterov`,
    `x+ = W x + s + b v+`. `momentum` is `b`, in [0, 1).

    Raises ConfigError for a value outside its range.
    """

    momentum_mixing: float = fixed(0.0)
    form: str = fixed("buffer")
    order: str = fixed(COMBINE_THEN_ADAPT)
    payload: str = fixed("separate")
    nesterov: bool = False

    name: ClassVar[str] = "cdmsgd"
    linear: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_flag("nesterov", self.nesterov)

    @property
    def has_closed_form(self) -> bool:
        return not self.nesterov

    def combine(self, state: State, trained: Vector, mixed: Payload) -> State:
        new = super().combine(state, trained, mixed)
        if not self.nesterov:
            return new
        move = (trained - state.parameters) + self.momentum * new.memory["momentum"]
        return State(mixed["parameters"] + move, new.memory)
