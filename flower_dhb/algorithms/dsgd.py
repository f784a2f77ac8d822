"""Decentralized SGD: average with the neighbors, no momentum across agents.

Sources: Lian et al., "Can decentralized algorithms outperform centralized algorithms?",
NeurIPS 2017 (D-PSGD); Jiang et al., "Collaborative deep learning in fixed topology
networks", NeurIPS 2017 (CDSGD). Both are combine-then-adapt.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from flower_dhb.algorithms.heavy_ball import HeavyBall, fixed

__all__ = ["DSGD"]


@dataclass(frozen=True, kw_only=True)
class DSGD(HeavyBall):
    """Decentralized SGD: `HeavyBall` with momentum 0, which remembers nothing.

    With `z` the locally trained parameters, adapt-then-combine (the default) is
    `x+ = W z`; combine-then-adapt, the papers' order, is `x+ = W x + (z - x)`.

    Raises ConfigError for an unknown order.
    """

    momentum: float = fixed(0.0)
    momentum_mixing: float = fixed(0.0)
    form: str = fixed("displacement")
    payload: str = fixed("folded")

    name: ClassVar[str] = "dsgd"
    linear: ClassVar[bool] = True
