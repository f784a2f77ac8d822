"""Learning rates: the same grid and the same measure for every method, on validation data."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from flower_dhb.compare.runs import Curves

__all__ = ["MAX_WIDENINGS", "best_rate", "learning_score", "widen"]

MAX_WIDENINGS = 6


def learning_score(curves: Curves, rounds: int, rising: bool) -> float:
    """How well a run learned: area under its curve, mean of the average model and the agents.

    It rewards speed and final quality at once and depends on no target. For accuracies
    (`rising`) the curve itself; for errors, which span decades, minus its logarithm. A run
    that diverged scores minus infinity.
    """
    if curves.diverged or not curves.rounds:
        return -math.inf
    both = (np.array(curves.average) + np.array(curves.mean)) / 2.0
    values = both if rising else -np.log10(np.maximum(both, 1e-16))
    return float((np.diff([0, *curves.rounds]) * values).sum() / rounds)


def best_rate(scores: Mapping[float, Sequence[float]]) -> float:
    """The learning rate with the best mean score over seeds; of equals, the smallest."""
    return max(sorted(scores), key=lambda rate: float(np.mean(scores[rate])))


def widen(scores: Mapping[float, Sequence[float]], widenings: int) -> float | None:
    """The next learning rate to try if the best one lies at the edge of those tried.

    The grid goes on with the ratio of its two rates at that edge. None if the best rate
    lies inside, or after `MAX_WIDENINGS`. A single rate is a choice, not a grid.
    """
    rates = sorted(scores)
    if len(rates) < 2 or widenings >= MAX_WIDENINGS:
        return None
    best = best_rate(scores)
    if best == rates[0]:
        return _rounded(rates[0] * rates[0] / rates[1])
    if best == rates[-1]:
        return _rounded(rates[-1] * rates[-1] / rates[-2])
    return None


def _rounded(rate: float) -> float:
    """Three digits, so that the rate reads well and is the same after JSON."""
    return float(f"{rate:.3g}")
