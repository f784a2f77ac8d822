"""Global Update Tracking (GUT): the pull of the neighbors, sharpened by what it was before.

Source: Aketi, Hashemi & Roy, "Global Update Tracking: a decentralized learning algorithm
for heterogeneous data", NeurIPS 2023 (arXiv 2305.04792), without the quasi-global momentum
that the paper adds to it.
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
    """Each agent follows a damped estimate of how all agents move, steps and averaging alike.

    The paper tracks the update `e = s + (W - I) x` that CDSGD would make (`s = z - x`) by
    `y+ = e + t (W y - e_previous)`, and `x+ = x + y+`. Since `y = x - x_previous`, the agent
    knows `W y` from the neighbors' parameters alone. With the pull `p = (W - I) x` and the
    correction `c = W y - e_previous - p`, zero at the start where all agents are alike, this is

    `x+ = x + s + (1 + t) p + t c` and `c+ = t c - (1 - t) p`.

    So `c` is an average of earlier pulls with the sign turned: the local steps have left it.
    At rest `c = -p`, and the bias that different data cause is CDSGD's. With `t = 0` it is
    CDSGD; exact diffusion, which removes the bias, remembers `x - z` in its place.

    Parameters
    ----------
    tracking : float
        `t`, in [0, 1): the paper's scaling factor.

    Raises
    ------
    ConfigError
        For a value outside its range.
    """

    tracking: float = 0.1

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
        return ("correction",)

    @property
    def shares_before_training(self) -> bool:
        return True

    def outgoing(self, state: State, trained: Vector) -> Payload:  # noqa: ARG002
        return {"parameters": state.parameters}

    def combine(self, state: State, trained: Vector, mixed: Payload) -> State:
        t, c = self.tracking, state.memory["correction"]
        pull = mixed["parameters"] - state.parameters
        return State(trained + ((1.0 + t) * pull + t * c), {"correction": t * c - (1.0 - t) * pull})

    def check_spectrum(self, graph: Graph) -> None:
        """Refuse what diverges for every step size.

        Without steps, a mode with eigenvalue u of W is `r^2 - (1 + t) u r + t (2 u - 1)`:
        stable only if `u > -(1 - t) / (1 + 3 t)`.
        """
        bound = -(1.0 - self.tracking) / (1.0 + 3.0 * self.tracking)
        if bound <= -1.0:
            return
        lowest = graph.smallest_eigenvalue
        if not lowest > bound:
            raise ConfigError(
                f"gut with tracking {self.tracking} diverges for every step size unless each "
                f"eigenvalue of the mixing matrix is above {bound:.4g}; the smallest is "
                f"{lowest:.4g}. Remedies: a smaller tracking, or lazy weights (I + W) / 2 "
                "(weights='lazy')"
            )
