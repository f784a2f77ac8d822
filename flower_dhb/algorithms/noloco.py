"""NoLoCo: an outer momentum that pulls agents together while it takes their steps.

Source: Kolehmainen, Blagoev, Donaghy, Ersoy & Nies, "NoLoCo: no-all-reduce low
communication training method for large models", 2025 (arXiv 2506.10911), with the mixing
matrix in place of the mean over a random pair.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, cast

from flower_dhb.algorithms.base import Algorithm, Graph, check_fraction, check_positive
from flower_dhb.errors import ConfigError
from flower_dhb.types import Payload, State, Vector

__all__ = ["NoLoCo"]


@dataclass(frozen=True, kw_only=True)
class NoLoCo(Algorithm):
    """Heavy ball whose force is the mixed step, and the distance to the neighbors.

    With `s = z - x`: `d+ = b d + a W s + c (W x - x)` and `x+ = x + d+`. With `c = a`, the
    default, that is `d+ = b d + a (W z - x)`; with `a = c = 1` it is DecentLaM.

    One vector is sent, `x + (a / c) s`, which stands for a model.

    Parameters
    ----------
    outer_rate : float
        `a`, above 0.
    momentum : float
        `b`, in [0, 1).
    consensus_rate : float, optional
        `c`, above 0; None takes the outer rate.

    Raises
    ------
    ConfigError
        For a value outside its range.
    """

    outer_rate: float = 0.7
    momentum: float = 0.5
    consensus_rate: float = cast(float, None)  # resolved to a number on construction

    name: ClassVar[str] = "noloco"
    linear: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("outer_rate", self.outer_rate)
        check_fraction("momentum", self.momentum)
        if self.consensus_rate is None:
            object.__setattr__(self, "consensus_rate", self.outer_rate)
        check_positive("consensus_rate", self.consensus_rate)

    @property
    def vectors(self) -> tuple[str, ...]:
        return ("parameters",)

    @property
    def memory(self) -> tuple[str, ...]:
        return ("displacement",)

    def outgoing(self, state: State, trained: Vector) -> Payload:
        if self.outer_rate == self.consensus_rate:
            return {"parameters": trained}
        share = self.outer_rate / self.consensus_rate
        return {"parameters": state.parameters + share * (trained - state.parameters)}

    def combine(self, state: State, trained: Vector, mixed: Payload) -> State:  # noqa: ARG002
        pull = mixed["parameters"] - state.parameters
        d = self.momentum * state.memory["displacement"] + self.consensus_rate * pull
        return State(state.parameters + d, {"displacement": d})

    def check_spectrum(self, graph: Graph) -> None:
        """Refuse what diverges for every step size.

        Without steps, a mode with eigenvalue u of W is `r^2 - (1 + b - c (1 - u)) r + b`:
        stable only if `c (1 - u) < 2 (1 + b)`.
        """
        most = 2.0 * (1.0 + self.momentum)
        if 2.0 * self.consensus_rate <= most:
            return  # holds on every graph, so its spectrum need not be known
        lowest = graph.smallest_eigenvalue
        if not self.consensus_rate * (1.0 - lowest) < most:
            raise ConfigError(
                f"noloco with consensus_rate {self.consensus_rate} diverges for every step size on "
                f"this graph, whose mixing matrix has the smallest eigenvalue {lowest:.4g}: it "
                f"must be below {most / (1.0 - lowest):.4g}"
            )
