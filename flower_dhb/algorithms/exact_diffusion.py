"""Exact Diffusion, also known as D2, and the same with heavy-ball momentum.

Sources: Yuan, Ying, Zhao & Sayed, "Exact diffusion for distributed optimization and
learning", IEEE TSP 2019 (arXiv 1702.05122); Tang, Lian, Yan, Zhang & Liu, "D2:
decentralized training over decentralized data", ICML 2018 (arXiv 1803.07068). With
momentum: Hu, Chen, Liu & Mao, "A bias-correction decentralized stochastic gradient
algorithm with momentum acceleration", 2025 (arXiv 2501.19082), here with the momentum
undamped (`v+ = b v + s`), as in the other rules.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from flower_dhb.algorithms.base import Algorithm, Graph, check_flag, check_fraction
from flower_dhb.errors import ConfigError
from flower_dhb.types import Payload, State, Vector

__all__ = ["ExactDiffusion"]


@dataclass(frozen=True, kw_only=True)
class ExactDiffusion(Algorithm):
    """Diffusion that takes back what averaging moved in the round before.

    With `s = z - x`: `v+ = b v + s`, `p+ = x + v+`, `x+ = A (p+ + x - p)`, where the
    correction `c = x - p` is 0 in the first round. `A = (I + W) / 2` if `lazy`, the
    default of the Exact Diffusion paper, else `A = W` (D2), for which every eigenvalue
    of W must be above -1/3. `momentum` is `b`, in [0, 1); 0 is the papers' rule.

    Raises ConfigError for a value outside its range.
    """

    momentum: float = 0.0
    lazy: bool = True

    name: ClassVar[str] = "exact-diffusion"
    linear: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fraction("momentum", self.momentum)
        check_flag("lazy", self.lazy)

    @property
    def vectors(self) -> tuple[str, ...]:
        return ("parameters",)

    @property
    def memory(self) -> tuple[str, ...]:
        return ("correction", "momentum") if self.momentum else ("correction",)

    @property
    def conserved(self) -> tuple[str, ...]:
        # The momentum that the correction balances goes with it: alone it would throw the agents
        # three times as far (docs/decisions/0013).
        return self.memory

    @property
    def exact(self) -> bool:
        return True

    def outgoing(self, state: State, trained: Vector) -> Payload:
        return {"parameters": self._moved(state, trained) + state.memory["correction"]}

    def combine(self, state: State, trained: Vector, mixed: Payload) -> State:
        moved = self._moved(state, trained)
        x = mixed["parameters"]
        if self.lazy:
            x = 0.5 * (x + (moved + state.memory["correction"]))
        memory = {"correction": x - moved}
        if self.momentum:
            memory["momentum"] = moved - state.parameters
        return State(x, memory)

    def check_spectrum(self, graph: Graph) -> None:
        """Refuse D2 on a graph on which it diverges for every step size."""
        if self.lazy:
            return
        lowest = graph.smallest_eigenvalue
        if not lowest > -1.0 / 3.0:
            raise ConfigError(
                "exact-diffusion with lazy=False (D2) diverges for every step size unless each "
                f"eigenvalue of the mixing matrix is above -1/3; the smallest is {lowest:.4g}. "
                "Remedies: lazy=True, or lazy weights (I + W) / 2 (weights='lazy')"
            )

    def _moved(self, state: State, trained: Vector) -> Vector:
        if not self.momentum:
            return trained
        return trained + self.momentum * state.memory["momentum"]
