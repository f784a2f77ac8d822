"""Stochastic gradient push (SGP): averaging over one-way links.

Source: Assran, Loizou, Ballas & Rabbat, "Stochastic gradient push for distributed deep
learning", ICML 2019 (arXiv 1811.10792), on the push-sum of Kempe, Dobra & Gehrke,
FOCS 2003.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from flower_dhb.algorithms.base import DIRECTED, Algorithm
from flower_dhb.types import Payload, State, Vector

__all__ = ["PushSum"]


@dataclass(frozen=True, kw_only=True)
class PushSum(Algorithm):
    """Each agent divides its value among those it can send to, and keeps count.

    The columns of W sum to 1, its rows need not. Beside the parameters travels one
    number, the push weight `w` (1 at the start): `w+ = W w` and
    `x+ = W (w x + s) / w+` with `s = z - x`; `x` is the unbiased model that is trained
    from. The average weighted by `w` is preserved.
    """

    name: ClassVar[str] = "sgp"
    graph: ClassVar[str] = DIRECTED

    @property
    def vectors(self) -> tuple[str, ...]:
        return ("parameters",)

    @property
    def scalars(self) -> tuple[str, ...]:
        return ("push_weight",)

    @property
    def memory(self) -> tuple[str, ...]:
        return ("push_weight",)

    @property
    def preserves_average(self) -> bool:
        return False

    def start(self, parameters: Vector) -> State:
        first = parameters[..., :1]
        return State(parameters, {"push_weight": first - first + 1.0})

    def outgoing(self, state: State, trained: Vector) -> Payload:
        w = state.memory["push_weight"]
        step = trained - state.parameters
        return {"parameters": w * state.parameters + step, "push_weight": w}

    def combine(self, state: State, trained: Vector, mixed: Payload) -> State:  # noqa: ARG002
        w = mixed["push_weight"]
        return State(mixed["parameters"] / w, {"push_weight": w})
