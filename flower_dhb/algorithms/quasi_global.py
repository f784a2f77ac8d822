"""Quasi-global momentum (QG-DSGDm): momentum from how the averaged parameters moved.

Source: Lin, Karimireddy, Stich & Jaggi, "Quasi-global momentum: accelerating
decentralized deep learning on heterogeneous data", ICML 2021 (arXiv 2102.04761).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from flower_dhb.algorithms.base import Algorithm, check_flag, check_fraction
from flower_dhb.types import Payload, State, Vector

__all__ = ["QuasiGlobal"]


@dataclass(frozen=True, kw_only=True)
class QuasiGlobal(Algorithm):
    """A running average of displacements stands in for the network's momentum.

    The paper's `m = b m^ + g`, `x+ = W (x - a m)`, `m^+ = b m^ + (1 - b) (x - x+) / a`
    in units of displacement (`q = -a m^`, `s = z - x`), which needs no step size `a`:

    `x+ = W (z + b q)` and `q+ = b q + (1 - b) (x+ - x)`;
    with `nesterov`, `x+ = W (z + b (b q + s))`. `momentum` is `b`, in [0, 1).

    Raises ConfigError for a value outside its range.
    """

    momentum: float = 0.9
    nesterov: bool = False

    name: ClassVar[str] = "qg"
    linear: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fraction("momentum", self.momentum)
        check_flag("nesterov", self.nesterov)

    @property
    def vectors(self) -> tuple[str, ...]:
        return ("parameters",)

    @property
    def memory(self) -> tuple[str, ...]:
        return ("quasi_global",)

    def outgoing(self, state: State, trained: Vector) -> Payload:
        b, q = self.momentum, state.memory["quasi_global"]
        ahead = b * q + (trained - state.parameters) if self.nesterov else q
        return {"parameters": trained + b * ahead}

    def combine(self, state: State, trained: Vector, mixed: Payload) -> State:  # noqa: ARG002
        x, b = mixed["parameters"], self.momentum
        q = b * state.memory["quasi_global"] + (1.0 - b) * (x - state.parameters)
        return State(x, {"quasi_global": q})
