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
from numpy.typing import NDArray

from flower_dhb.algorithms.base import Algorithm, Products, check_fraction
from flower_dhb.types import Payload, State, Vector

__all__ = ["SafeguardedHeavyBall"]

# Half of the momentum is mixed, half stays with the agent. With this share the rule is
# stable on every graph; with others it is not (docs/algorithm.md).
_MIXED = 0.5

# What the step does not confirm moves an agent in a round by this share of its parameters'
# length at most. Without such a limit, convolutional networks that train for an epoch at a
# large rate end at chance; its value hardly matters between 0.02 and 0.07, and with 0.2 they
# lose several points (docs/decisions/0012).
_REACH = 0.05


@dataclass(frozen=True, kw_only=True)
class SafeguardedHeavyBall(Algorithm):
    """Momentum that goes no further than the local step confirms, but for a small reach.

    With `z` the locally trained parameters, `s = z - x` the local step, `d` the last
    displacement, `c` what mixing moved the agent by in the last round, and `b` the
    momentum setting:

    - `u` is the part of `d` that the step does not confirm: `d` without its component
      along `s` where `<s, d>` is positive, all of `d` where it is not;
    - `g = min(b, |s| / |u|)` (0 if `s` is 0), and `m = g d + b c`;
    - `m` is shortened to `|m| <= 0.05 |x| + min(g |d|, <s, d>+ / |d|) +
      min(b |c|, <s, -c>+ / |c|)`: a reach of the agent's own, and what the step confirms of
      either part: as far as it goes along the displacement, and against the last mixing.
      `|x|` is of those parameters that the step changes;
    - `x+ = W (z + m / 2) + m / 2`, `d+ = x+ - x`, `c+ = x+ - z - m`.

    One vector is sent, `z + m / 2`; two are remembered. The average over the agents moves
    by the average of `s + m` on every graph. Multiplying all parameters by a number, and
    parameters that never change, do not alter what is added.

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
        d, c = "memory/displacement", "memory/correction"
        pairs = (("step", "step"), ("step", d), (d, d), ("step", c), (c, c), (d, c))
        return (*pairs, ("moving", "moving"))

    def measure(self, products: Products) -> Mapping[str, Any]:
        ss, sd, dd, sc, cc, dc, xx = (np.asarray(products[pair]) for pair in self.products)
        step, b = np.sqrt(ss), self.momentum
        still = step == 0.0
        confirmed = np.maximum(sd, 0.0) / np.where(still, 1.0, step)
        # Rounding may leave a little less than nothing of two parallel vectors.
        unconfirmed = np.sqrt(np.maximum(dd - confirmed**2, 0.0))
        short = b * unconfirmed <= step
        g = np.where(short, b, step / np.where(short, 1.0, unconfirmed))
        length = np.sqrt(np.maximum(g**2 * dd + 2.0 * g * b * dc + b**2 * cc, 0.0))
        confirmed_d = np.minimum(g * np.sqrt(dd), _along(sd, dd))
        confirmed_c = np.minimum(b * np.sqrt(cc), _along(-sc, cc))
        reach = _REACH * np.sqrt(xx) + confirmed_d + confirmed_c
        within = length <= reach
        share = np.where(within, 1.0, reach / np.where(within, 1.0, length))
        share = np.where(still, 0.0, share)
        return {"momentum": share * g, "correction": share * b}

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
        return state.measured["momentum"] * d + state.measured["correction"] * c


def _along(product: NDArray[np.float64], square: NDArray[np.float64]) -> NDArray[np.float64]:
    """How far one vector goes along another, 0 if it goes against it: `<a, b>+ / |b|`."""
    length = np.sqrt(square)
    return np.maximum(product, 0.0) / np.where(length == 0.0, 1.0, length)
