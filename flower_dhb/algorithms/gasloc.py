"""GASLoC: gossip in place of the averaging of DiLoCo, with its outer momentum.

Source: Cagnasso, Belilovsky & Oyallon, "Unifying local communications and local updates
for LLM pretraining", 2026 (arXiv 2606.11081), with its gossip step `I - a L` as the mixing
matrix. The momentum mixing is this project's addition.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from flower_dhb.algorithms.base import (
    Algorithm,
    Graph,
    check_fraction,
    check_positive,
    check_share,
    refuse_unmixed,
)
from flower_dhb.types import Payload, State, Vector

__all__ = ["GASLoC"]


@dataclass(frozen=True, kw_only=True)
class GASLoC(Algorithm):
    """Nesterov momentum on what agents share, kept by each agent for itself.

    With `s = z - x` and `y = x + a s`: `x+ = W y + b Pt (y - y_previous)`, where
    `y_previous` is `x` in the first round and `Pt = (1 - w) I + w W`. The paper has `w = 0`.
    The average over the agents moves as DiLoCo moves one model with the average step; on a
    complete graph with `w = 1` every agent is DiLoCo. Without momentum it is D-PSGD on steps
    that are multiplied by `a`.

    What is remembered is the lead `x - y_previous`, which is zero at the start: so
    `y - y_previous = lead + a s`. One vector is sent, `y + b w (y - y_previous)`.

    Parameters
    ----------
    outer_rate : float
        `a`, above 0.
    momentum : float
        `b`, in [0, 1).
    momentum_mixing : float
        `w`, in [0, 1].

    Raises
    ------
    ConfigError
        For a value outside its range.
    """

    outer_rate: float = 0.7
    momentum: float = 0.9
    momentum_mixing: float = 0.0

    name: ClassVar[str] = "gasloc"
    linear: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("outer_rate", self.outer_rate)
        check_fraction("momentum", self.momentum)
        check_share("momentum_mixing", self.momentum_mixing)

    @property
    def vectors(self) -> tuple[str, ...]:
        return ("folded",) if self._mixed_part else ("parameters",)

    @property
    def memory(self) -> tuple[str, ...]:
        return ("lead",)

    def outgoing(self, state: State, trained: Vector) -> Payload:
        y, change = self._stepped(state, trained)
        if self._mixed_part:
            return {"folded": y + self._mixed_part * change}
        return {"parameters": y}

    def combine(self, state: State, trained: Vector, mixed: Payload) -> State:
        y, change = self._stepped(state, trained)
        (sent,) = self.vectors
        x = mixed[sent] + (self.momentum - self._mixed_part) * change
        return State(x, {"lead": x - y})

    def check_spectrum(self, graph: Graph) -> None:
        """Refuse what diverges for every step size: the condition is that of `HeavyBall`."""
        refuse_unmixed("gasloc", graph, self.momentum, self.momentum_mixing)

    def _stepped(self, state: State, trained: Vector) -> tuple[Vector, Vector]:
        """`y` and `y - y_previous`."""
        step = self.outer_rate * (trained - state.parameters)
        return state.parameters + step, state.memory["lead"] + step

    @property
    def _mixed_part(self) -> float:
        return self.momentum * self.momentum_mixing
