"""Global Update Tracking (GUT): each agent follows what its neighbors have moved by.

Source: Aketi, Hashemi & Roy, "Global Update Tracking: a decentralized learning algorithm
for heterogeneous data", NeurIPS 2023 (arXiv 2305.04792), as the authors' program computes it,
and without the quasi-global momentum that the paper adds to it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from flower_dhb.algorithms.base import Algorithm, Graph, check_fraction
from flower_dhb.errors import ConfigError
from flower_dhb.types import Payload, State, Vector

__all__ = ["GlobalUpdateTracking"]


@dataclass(frozen=True, kw_only=True)
class GlobalUpdateTracking(Algorithm):
    """CDSGD with most of its bias taken back, for the traffic of CDSGD.

    With the local step `s = z - x` and the last displacement `d`:

    `x+ = W x + s + t (W d - s_previous)` and `d+ = x+ - x`,

    where `d` and `s_previous` are zero in the first round. The neighbors' displacements stand
    for what all agents do; what an agent's own data made of its last step is taken off. So the
    average over agents moves by the average local step, and at rest the pull of the neighbors
    has to balance `(1 - t) s` only: of the bias that different data cause in CDSGD, `1 - t` is
    left. With `t = 0` it is CDSGD.

    One vector is sent, `x + t d`. The default is the authors' for the rule without momentum.

    Parameters
    ----------
    tracking : float
        `t`, in [0, 1): the paper's scaling factor.

    Raises
    ------
    ConfigError
        For a value outside its range.
    """

    tracking: float = 0.9

    name: ClassVar[str] = "gut"
    linear: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fraction("tracking", self.tracking)

    @property
    def vectors(self) -> tuple[str, ...]:
        return ("folded",) if self.tracking else ("parameters",)

    @property
    def memory(self) -> tuple[str, ...]:
        return ("displacement", "last_step") if self.tracking else ()

    @property
    def shares_before_training(self) -> bool:
        return True

    def outgoing(self, state: State, trained: Vector) -> Payload:  # noqa: ARG002
        if not self.tracking:
            return {"parameters": state.parameters}
        return {"folded": state.parameters + self.tracking * state.memory["displacement"]}

    def combine(self, state: State, trained: Vector, mixed: Payload) -> State:
        step = trained - state.parameters
        if not self.tracking:
            return State(mixed["parameters"] + step, {})
        x = mixed["folded"] + (step - self.tracking * state.memory["last_step"])
        return State(x, {"displacement": x - state.parameters, "last_step": step})

    def check_spectrum(self, graph: Graph) -> None:
        """Refuse what diverges for every step size.

        Without steps, a mode with eigenvalue u of W is `r^2 - (1 + t) u r + t u`: stable only
        if `u > -1 / (1 + 2 t)`.
        """
        if not self.tracking:
            return
        bound = -1.0 / (1.0 + 2.0 * self.tracking)
        lowest = graph.smallest_eigenvalue
        if not lowest > bound:
            raise ConfigError(
                f"gut with tracking {self.tracking} diverges for every step size unless each "
                f"eigenvalue of the mixing matrix is above {bound:.4g}; the smallest is "
                f"{lowest:.4g}. Remedies: a smaller tracking, or lazy weights (I + W) / 2 "
                "(weights='lazy')"
            )
