"""Decentralized heavy-ball SGD with momentum-accelerated consensus (DMSGD).

Source: Balu, Jiang, Tan, Hegde, Lee & Sarkar, "Decentralized Deep Learning using
Momentum-Accelerated Consensus", ICASSP 2021 (arXiv 2010.11166). The tracking form is
this project's own: gradient tracking (Di Lorenzo & Scutari 2016) under the same
momentum. Derivations: `docs/algorithm.md`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, cast

import numpy as np
from numpy.typing import NDArray

from flower_dhb.algorithms.base import (
    ADAPT_THEN_COMBINE,
    COMBINE_THEN_ADAPT,
    Algorithm,
    Graph,
    check_choice,
    check_fraction,
    check_share,
    refuse_unmixed,
)
from flower_dhb.errors import ConfigError
from flower_dhb.types import Payload, State, Vector

__all__ = ["HeavyBall", "fixed"]

DISPLACEMENT, BUFFER, TRACKING = "displacement", "buffer", "tracking"
FOLDED, SEPARATE = "folded", "separate"


def fixed(value: Any) -> Any:
    """A setting that a rule derived from another one has settled: it cannot be given."""
    return field(default=value, init=False, repr=False)


@dataclass(frozen=True, kw_only=True)
class HeavyBall(Algorithm):
    """DMSGD in all its forms; the default is displacement, adapt-then-combine.

    With `z` the locally trained parameters, `s = z - x`, `Pt = (1 - w) I + w W`:

    - displacement, adapt-then-combine: `x+ = W z + b Pt d`, `d+ = x+ - x`
    - displacement, combine-then-adapt: `x+ = W x + s + b Pt d`, `d+ = x+ - x`
    - buffer, combine-then-adapt: `v+ = b Pt v + s`, `x+ = W x + v+`
    - buffer, adapt-then-combine: `v+ = b Pt v + s`, `x+ = W (x + v+)`
    - tracking: `y+ = W y + s - s_previous`, `x+ = W (x + y+ + b w d) + b (1 - w) d`

    Parameters
    ----------
    momentum : float
        `b`, in [0, 1).
    momentum_mixing : float, optional
        `w`, in [0, 1]: 0 keeps each agent's own momentum, 1 averages it like the
        parameters. None takes the form's default: 1 for buffer adapt-then-combine,
        0.5 for all others.
    form, order : str
        As above. Tracking is adapt-then-combine.
    payload : str, optional
        `folded` carries parameters and momentum in one vector, `separate` in two.
        None is folded where the form has it (displacement and tracking).

    Raises
    ------
    ConfigError
        For a value outside its range, and for combinations that do not exist.
    """

    momentum: float = 0.9
    momentum_mixing: float = cast(float, None)  # resolved to a number on construction
    form: str = DISPLACEMENT
    order: str = ADAPT_THEN_COMBINE
    payload: str = cast(str, None)  # resolved to a name on construction

    name: ClassVar[str] = "dmsgd"
    linear: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("form", self.form, (DISPLACEMENT, BUFFER, TRACKING))
        check_choice("order", self.order, (ADAPT_THEN_COMBINE, COMBINE_THEN_ADAPT))
        if self.form == TRACKING and self.order != ADAPT_THEN_COMBINE:
            raise ConfigError(f"form 'tracking' is {ADAPT_THEN_COMBINE} only, got '{self.order}'")
        if self.momentum_mixing is None:
            mixes_fully = self.form == BUFFER and self.order == ADAPT_THEN_COMBINE
            object.__setattr__(self, "momentum_mixing", 1.0 if mixes_fully else 0.5)
        check_fraction("momentum", self.momentum)
        check_share("momentum_mixing", self.momentum_mixing)
        if self.payload is None:
            object.__setattr__(self, "payload", SEPARATE if self.form == BUFFER else FOLDED)
        check_choice("payload", self.payload, (FOLDED, SEPARATE))
        if self.payload == FOLDED and self.form == BUFFER:
            raise ConfigError(
                "form 'buffer' has no folded payload: its update needs the neighbors' momentum "
                "by itself; use payload='separate' or form='displacement'"
            )

    @property
    def vectors(self) -> tuple[str, ...]:
        if self.form == TRACKING:
            return ("folded", "tracker") if self._folded else ("parameters", "momentum", "tracker")
        if self._folded:  # where no momentum is mixed, what is sent is the model itself
            return ("folded",) if self._mixed_part else ("parameters",)
        # The buffer forms leave at home a momentum that nobody would use.
        mixes = self.momentum * self.momentum_mixing > 0
        return ("parameters", "momentum") if mixes or self.form != BUFFER else ("parameters",)

    @property
    def memory(self) -> tuple[str, ...]:
        if self.form == TRACKING:
            return ("displacement", "mixed_tracker", "last_step")
        if self.form == BUFFER:
            return ("momentum",)
        # Without momentum nothing is remembered, unless it is sent to be looked at.
        return ("displacement",) if self.momentum or not self._folded else ()

    @property
    def shares_before_training(self) -> bool:
        return self.order == COMBINE_THEN_ADAPT

    @property
    def conserved(self) -> tuple[str, ...]:
        return ("mixed_tracker", "last_step") if self.form == TRACKING else ()

    @property
    def exact(self) -> bool:
        return self.form == TRACKING

    def outgoing(self, state: State, trained: Vector) -> Payload:
        base = state.parameters if self.shares_before_training else trained
        if self.form == BUFFER:
            return self._outgoing_buffer(state, trained)
        payload: dict[str, Vector] = {}
        if self.form == TRACKING:
            payload["tracker"] = y = self._tracker(state, trained)
            base = state.parameters + y
        if "folded" in self.vectors:
            payload["folded"] = base + self._mixed_part * state.memory["displacement"]
        else:
            payload["parameters"] = base
        if not self._folded:
            payload["momentum"] = state.memory["displacement"]
        return {name: payload[name] for name in self.vectors}

    def combine(self, state: State, trained: Vector, mixed: Payload) -> State:
        if self.form == BUFFER:
            return self._combine_buffer(state, trained, mixed)
        x, new = state.parameters, mixed[self.vectors[0]]
        if not self._folded:
            new = new + self._mixed_part * mixed["momentum"]
        if "displacement" in self.memory:
            new = new + self._own_part * state.memory["displacement"]
        if self.shares_before_training:
            new = new + (trained - x)
        memory = {"displacement": new - x} if "displacement" in self.memory else {}
        if self.form == TRACKING:
            memory |= {"mixed_tracker": mixed["tracker"], "last_step": trained - x}
        return State(new, memory)

    def _tracker(self, state: State, trained: Vector) -> Vector:
        """`y+`: the running estimate of the average local step. It starts as `s`."""
        return state.memory["mixed_tracker"] + (
            (trained - state.parameters) - state.memory["last_step"]
        )

    def _outgoing_buffer(self, state: State, trained: Vector) -> Payload:
        x, m = state.parameters, state.memory["momentum"]
        if self.shares_before_training:  # m is v
            payload = {"parameters": x, "momentum": m}
        else:  # m is Pt v, formed when the last round's payloads were at hand
            v = self.momentum * m + (trained - x)
            payload = {"parameters": x + v, "momentum": v}
        return {name: payload[name] for name in self.vectors}

    def _combine_buffer(self, state: State, trained: Vector, mixed: Payload) -> State:
        x, m = state.parameters, state.memory["momentum"]
        step = trained - x
        if self.shares_before_training:
            v = self._own_part * m + step
            if "momentum" in mixed:
                v = v + self._mixed_part * mixed["momentum"]
            return State(mixed["parameters"] + v, {"momentum": v})
        v = self.momentum * m + step
        if "momentum" in mixed:
            v = (1.0 - self.momentum_mixing) * v + self.momentum_mixing * mixed["momentum"]
        return State(mixed["parameters"], {"momentum": v})

    @property
    def _folded(self) -> bool:
        return self.payload == FOLDED

    @property
    def _mixed_part(self) -> float:
        return self.momentum * self.momentum_mixing

    @property
    def _own_part(self) -> float:
        return self.momentum * (1.0 - self.momentum_mixing)

    # --- stability ------------------------------------------------------------------

    def check_spectrum(self, graph: Graph) -> None:
        """Refuse what diverges for every step size.

        A displacement mode with eigenvalue u of W is stable only if
        `1 + u + 2 b (1 - w + w u) > 0`, whatever the curvature.
        """
        if self.form != BUFFER:
            refuse_unmixed(f"form '{self.form}'", graph, self.momentum, self.momentum_mixing)

    @property
    def has_closed_form(self) -> bool:
        """Whether `stability_limit` can say something."""
        return self.form != TRACKING

    def stability_limit(self, eigenvalues: NDArray[np.float64]) -> float:
        """Largest stable `step size x curvature` on a quadratic; 0 if there is none.

        eigenvalues: (n,) float64, of the mixing matrix. Raises ConfigError where the limit
        has no closed form (tracking, Nesterov). Derivation: `docs/algorithm.md`.
        """
        if not self.has_closed_form:
            raise ConfigError(f"{self} has no closed-form stability limit")
        return max(0.0, min(self._limit(float(u)) for u in eigenvalues))

    def _limit(self, u: float) -> float:
        """Stability limit of the mode with eigenvalue `u` of the mixing matrix."""
        b, nu = self.momentum, self._mixing_of(u)
        always = 1.0 + u + 2.0 * b * nu
        adapt_first = self.order == ADAPT_THEN_COMBINE
        if self.form == DISPLACEMENT and (not adapt_first or always <= 0.0):
            return always
        if self.form == BUFFER and not adapt_first:
            return (1.0 + u) * (1.0 + b * nu)
        if u == 0.0:
            return float("inf")
        if self.form == DISPLACEMENT:
            return always / u if u > 0.0 else (1.0 - u) / -u
        if u > 0.0:
            return (1.0 + u) * (1.0 + b * nu) / u
        return (1.0 - u) * (1.0 - b * nu) / -u

    def _mixing_of(self, u: float) -> float:
        """Eigenvalue of `Pt` that belongs to the eigenvalue `u` of W."""
        return 1.0 - self.momentum_mixing + self.momentum_mixing * u
