"""Rules that someone might write: one with norms, one that is not linear."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from flower_dhb.algorithms import Algorithm, register
from flower_dhb.types import Payload, State, Vector


@register
@dataclass(frozen=True, kw_only=True)
class Bounded(Algorithm):
    """`x+ = W (z + g d)`: momentum no longer than `bound` times the local step.

    `g = min(1, bound |s| / |d|)` with `s = z - x`, and 0 where there is no displacement.
    """

    bound: float = 0.5

    name: ClassVar[str] = "bounded"
    linear: ClassVar[bool] = True

    vectors = ("parameters",)
    memory = ("displacement",)
    products = (("step", "step"), ("memory/displacement", "memory/displacement"))
    preserves_average = False

    def measure(self, products: Mapping[tuple[str, str], Any]) -> dict[str, Any]:
        step, displacement = (np.sqrt(products[pair]) for pair in self.products)
        moved = displacement > 0.0
        gain = self.bound * step / np.where(moved, displacement, 1.0)
        return {"gain": np.where(moved, np.minimum(gain, 1.0), 0.0)}

    def outgoing(self, state: State, trained: Vector) -> Payload:
        return {"parameters": trained + state.measured["gain"] * state.memory["displacement"]}

    def combine(self, state: State, trained: Vector, mixed: Payload) -> State:
        x = mixed["parameters"]
        return State(x, {"displacement": x - state.parameters})


@register
@dataclass(frozen=True, kw_only=True)
class Clipped(Algorithm):
    """`x+ = W (x + clip(s))`: elementwise, linear near zero and not beyond `bound`."""

    bound: float = 5.0

    name: ClassVar[str] = "clipped"

    vectors = ("parameters",)
    memory = ()

    def outgoing(self, state: State, trained: Vector) -> Payload:
        step = (trained - state.parameters).clip(-self.bound, self.bound)
        return {"parameters": state.parameters + step}

    def combine(self, state: State, trained: Vector, mixed: Payload) -> State:
        return State(mixed["parameters"], {})
