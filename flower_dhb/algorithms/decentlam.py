"""DecentLaM: momentum whose bias does not grow with the momentum.

Source: Yuan, Chen, Huang, Zhang, Pan, Xu & Yin, "DecentLaM: decentralized momentum SGD
for large-batch deep training", ICCV 2021 (arXiv 2104.11981).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from flower_dhb.algorithms.base import ADAPT_THEN_COMBINE
from flower_dhb.algorithms.heavy_ball import HeavyBall, fixed

__all__ = ["DecentLaM"]


@dataclass(frozen=True, kw_only=True)
class DecentLaM(HeavyBall):
    """Heavy ball on the step that averaging and gradient make together.

    The paper's `g~ = (x - W (x - a g)) / a`, `m+ = b m + g~`, `x+ = x - a m+` is, with
    `d = x - x_previous = -a m`: `x+ = W z + b d`. So it is `HeavyBall` with momentum
    mixing 0. `momentum` is `b`, in [0, 1).

    Raises ConfigError for a value outside its range.
    """

    momentum_mixing: float = fixed(0.0)
    form: str = fixed("displacement")
    order: str = fixed(ADAPT_THEN_COMBINE)
    payload: str = fixed("folded")

    name: ClassVar[str] = "decentlam"
    linear: ClassVar[bool] = True
