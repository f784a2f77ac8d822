"""A rule of the app's own: it looks at the round, measures whole vectors, and has settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from flower_dhb.algorithms import Algorithm
from flower_dhb.types import Payload, State, Vector


@dataclass(frozen=True, kw_only=True)
class Warming(Algorithm):
    """`x+ = W (z + g d)`: momentum that grows with the rounds, no longer than the step.

    In round `k`, `g = strength k / (k + warmup)`, at most `|s| / |d|` with `s = z - x`.
    """

    strength: float = 0.9
    warmup: int = 3

    linear: ClassVar[bool] = True

    vectors = ("parameters",)
    memory = ("displacement",)
    products = (("step", "step"), ("memory/displacement", "memory/displacement"))
    preserves_average = False

    def measure(self, products: Mapping[tuple[str, str], Any]) -> dict[str, Any]:
        step, displacement = (np.sqrt(products[pair]) for pair in self.products)
        return {"most": step / np.where(displacement > 0.0, displacement, 1.0)}

    def outgoing(self, state: State, trained: Vector) -> Payload:
        k, most = state.round + 1, state.measured["most"]
        gain = self.strength * k / (k + self.warmup)
        # The smaller of the two, for a float and for the numbers of all agents alike.
        gain = 0.5 * (gain + most - abs(gain - most))
        return {"parameters": trained + gain * state.memory["displacement"]}

    def combine(self, state: State, trained: Vector, mixed: Payload) -> State:
        x = mixed["parameters"]
        return State(x, {"displacement": x - state.parameters})
