"""Global Update Tracking (GUT): most of the bias of different data, taken back for no traffic.

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
    """D-PSGD that takes back a part of what averaging moved in the round before.

    `x+ = W (z + t c)` and `c+ = x+ - z`, with `c` zero in the first round.

    The authors' agents have parameters `w` and train at `W w`, which is `x` here. They track the
    update `e = s + (W - I) w` of CDSGD (`s = z - x`) by `d+ = e + t (W d - s_previous)`, with
    `w+ = w + d+`. Since `W d = x - x_previous`, that is `w+ = z + t (x - z_previous)`: what an
    agent's own data made of its last step goes, and what all agents made of it stays.

    So the average over agents moves by the average local step, and at rest
    `(I - W) x = (1 - t) W s`: of D-PSGD's bias, `1 - t` is left. With `t = 0` it is D-PSGD;
    with `t = 1` it would be D2, which is `ExactDiffusion(lazy=False)`. One vector is sent. The
    default is the authors' for the rule without momentum.

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
        return ("parameters",)

    @property
    def memory(self) -> tuple[str, ...]:
        return ("correction",) if self.tracking else ()

    def outgoing(self, state: State, trained: Vector) -> Payload:
        if not self.tracking:
            return {"parameters": trained}
        return {"parameters": trained + self.tracking * state.memory["correction"]}

    def combine(self, state: State, trained: Vector, mixed: Payload) -> State:  # noqa: ARG002
        x = mixed["parameters"]
        return State(x, {"correction": x - trained} if self.tracking else {})

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
