"""Heavy ball whose momentum each agent checks against its own local step; the default.

Sources: Polyak 1964 and Balu et al., ICASSP 2021 (arXiv 2010.11166), for the momentum;
Yuan, Ying, Zhao & Sayed, "Exact diffusion for distributed optimization and learning",
IEEE TSP 2019 (arXiv 1702.05122), for what is remembered of the mixing. The bound on the
momentum and the form are this project's own: `docs/decisions/0012` has the study,
`docs/algorithm.md` the derivations.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from flower_dhb.algorithms.base import Algorithm, Products, check_fraction
from flower_dhb.types import Payload, State, Vector

__all__ = ["SafeguardedHeavyBall"]

# Half of the momentum is mixed, half stays with the agent. With this share the rule is
# stable on every graph; with others it is not (docs/algorithm.md).
_MIXED = 0.5


@dataclass(frozen=True, kw_only=True)
class SafeguardedHeavyBall(Algorithm):
    """Momentum that is never longer than the local step, but for what the step confirms.

    With `z` the locally trained parameters, `s = z - x` the local step, `d` the last
    displacement, `c` what mixing moved the agent by in the last round, and `b` the
    momentum setting:

    - `u` is the part of `d` that the step does not confirm: `d` without its component
      along `s` where `<s, d>` is positive, all of `d` where it is not;
    - `g = min(b, |s| / |u|)`, this agent's momentum in this round (0 if `s` is 0);
    - `m = g d + b c`;
    - `x+ = W (z + m / 2) + m / 2`, `d+ = x+ - x`, `c+ = x+ - z - m`.

    One vector is sent, `z + m / 2`; two are remembered. `c` sums to zero over the agents,
    so their average moves by the average of `s + g d` on every graph. Multiplying all
    parameters by a number, and parameters that never change, do not alter `g`.

    Parameters
    ----------
    momentum : float
        `b`, in [0, 1); 0 is D-PSGD.

    Raises
    ------
    ConfigError
        If `momentum` is outside its range.
    """

    momentum: float = 0.9

    name: ClassVar[str] = "safeguarded"
    linear: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fraction("momentum", self.momentum)

    @property
    def vectors(self) -> tuple[str, ...]:
        return ("folded",)

    @property
    def memory(self) -> tuple[str, ...]:
        return ("displacement", "correction")

    @property
    def preserves_average(self) -> bool:
        return False  # each agent has a momentum of its own; the local steps are preserved

    @property
    def products(self) -> tuple[tuple[str, str], ...]:
        d = "memory/displacement"
        return (("step", "step"), ("step", d), (d, d))

    def measure(self, products: Products) -> Mapping[str, Any]:
        steps, along, moves = (np.asarray(products[pair]) for pair in self.products)
        step = np.sqrt(steps)
        still = step == 0.0
        confirmed = np.maximum(along, 0.0) / np.where(still, 1.0, step)
        # Rounding may leave a little less than nothing of two parallel vectors.
        unconfirmed = np.sqrt(np.maximum(moves - confirmed**2, 0.0))
        short = self.momentum * unconfirmed <= step
        bounded = step / np.where(short, 1.0, unconfirmed)
        return {"momentum": np.where(still, 0.0, np.where(short, self.momentum, bounded))}

    def outgoing(self, state: State, trained: Vector) -> Payload:
        return {"folded": trained + _MIXED * self._added(state)}

    def combine(self, state: State, trained: Vector, mixed: Payload) -> State:
        added = self._added(state)
        new = mixed["folded"] + (1.0 - _MIXED) * added
        memory = {"displacement": new - state.parameters, "correction": new - (trained + added)}
        return State(new, memory)

    def _added(self, state: State) -> Vector:
        """`m`, what momentum adds to the local step."""
        d, c = state.memory["displacement"], state.memory["correction"]
        return state.measured["momentum"] * d + self.momentum * c
