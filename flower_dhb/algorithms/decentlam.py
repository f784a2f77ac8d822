"""DecentLaM: momentum whose bias does not grow with the momentum.

Source: Yuan, Chen, Huang, Zhang, Pan, Xu & Yin, "DecentLaM: decentralized momentum SGD
for large-batch deep training", ICCV 2021 (arXiv 2104.11981).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from flower_dhb.algorithms.base import Algorithm, check_fraction
from flower_dhb.types import Payload, State, Vector

__all__ = ["DecentLaM"]


@dataclass(frozen=True, kw_only=True)
class DecentLaM(Algorithm):
    """Heavy ball on the step that averaging and gradient make together.

    The paper's `g~ = (x - W (x - a g)) / a`, `m+ = b m + g~`, `x+ = x - a m+` is, with
    `d = x - x_previous = -a m`: `x+ = W z + b d`. So it equals `HeavyBall` with momentum
    mixing 0. `momentum` is `b`, in [0, 1).

    Raises ConfigError for a value outside its range.
    """

    momentum: float = 0.9

    name: ClassVar[str] = "decentlam"
    linear: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fraction("momentum", self.momentum)

    @property
    def vectors(self) -> tuple[str, ...]:
        return ("parameters",)

    @property
    def memory(self) -> tuple[str, ...]:
        return ("displacement",)

    def outgoing(self, state: State, trained: Vector) -> Payload:  # noqa: ARG002
        return {"parameters": trained}

    def combine(self, state: State, trained: Vector, mixed: Payload) -> State:  # noqa: ARG002
        x = mixed["parameters"] + self.momentum * state.memory["displacement"]
        return State(x, {"displacement": x - state.parameters})
