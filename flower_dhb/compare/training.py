"""The nouns of a comparison: local training, and scores."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["TEST", "USUAL", "VALIDATION", "Scores", "Training"]

VALIDATION, TEST = "validation", "test"


@dataclass(frozen=True, kw_only=True)
class Training:
    """How an agent trains between two exchanges.

    batch_size: examples of a step. local_steps: in a round. optimizer: words of
    `problems.optimizers`.
    """

    batch_size: int = 32
    local_steps: int = 1
    optimizer: str = "sgd"


USUAL = Training()


@dataclass(frozen=True)
class Scores:
    """How good models are: the average's of the honest agents, and each agent's own, `(n,)`."""

    average: float
    agents: NDArray[np.float64]
