"""Tuning: the same search and the same measure for every method, on validation data."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TypeAlias

import numpy as np

from flower_dhb.compare.runs import Curves

__all__ = ["MAX_WIDENINGS", "Point", "Scored", "best_point", "learning_score", "search", "widen"]

MAX_WIDENINGS = 6
MAX_SWEEPS = 3
COORDINATE, GRID = "coordinate", "grid"


@dataclass(frozen=True, order=True)
class Point:
    """What tuning tries: a learning rate, and settings of the rule by name."""

    learning_rate: float
    settings: tuple[tuple[str, float], ...] = ()

    def having(self, name: str, value: float) -> Point:
        """The point with one setting changed."""
        return Point(
            self.learning_rate, tuple((n, value if n == name else v) for n, v in self.settings)
        )

    def at(self, learning_rate: float) -> Point:
        """The point with another learning rate."""
        return Point(rounded(learning_rate), self.settings)


Scored: TypeAlias = Mapping[Point, Sequence[float]]  # a score for each seed
Search: TypeAlias = Generator[list[Point], Scored, Point]


def learning_score(curves: Curves, rounds: int, rising: bool) -> float:
    """How well a run learned: area under its curve, mean of the average model and the agents.

    It rewards speed and final quality at once and depends on no target. For scores of which
    more is better (`rising`) the curve itself; for errors, which span decades, minus its
    logarithm. A run that was stopped scores minus infinity.
    """
    if curves.stopped or not curves.rounds:
        return -math.inf
    both = (np.array(curves.average) + np.array(curves.mean)) / 2.0
    values = both if rising else -np.log10(np.maximum(both, 1e-16))
    return float((np.diff([0, *curves.rounds]) * values).sum() / rounds)


def best_point(scores: Scored) -> Point:
    """The point with the best mean score over seeds; of equals, the one of the smallest values."""
    return max(sorted(scores), key=lambda point: float(np.mean(scores[point])))


def search(
    grid: Sequence[float],
    start: Mapping[str, float],
    axes: Mapping[str, Sequence[float]],
    how: str = COORDINATE,
) -> Search:
    """What to try next, given the scores of all that was tried; returns the best point.

    grid: learning rates. start: the method's own values of the settings in `axes`, which are
    the values to try. Every search of rates goes on beyond the grid while the best one lies at
    its edge (`widen`).

    `coordinate`: the rate first, at the method's own settings; then one setting after the
    other, all else held, and the rate again around the best one; until a sweep changes nothing,
    or three times. Values of `momentum` are tried at the best rate and at the rate that keeps
    `rate / (1 - momentum)`, since they trade against each other. `grid`: every combination.
    """
    first = Point(rounded(grid[0]), tuple((name, start[name]) for name in axes))
    scores: dict[Point, Sequence[float]] = {}
    if how == GRID:
        places = [Point(0.0, tuple(zip(axes, v, strict=True))) for v in product(*axes.values())]
        yield from _try([p.at(rate) for p in places for rate in grid], scores)
        yield from _rates(best_point(scores), grid, scores)
        return best_point(scores)
    yield from _rates(first, grid, scores)
    for _sweep in range(MAX_SWEEPS if axes else 0):
        before = best_point(scores)
        for name, values in axes.items():
            best = best_point(scores)
            points = [best.having(name, value) for value in values]
            if name == "momentum":
                now = dict(best.settings)[name]
                points += [
                    p.at(best.learning_rate * (1.0 - v) / (1.0 - now))
                    for p, v in zip(points, values, strict=True)
                ]
            yield from _try(points, scores)
        best, ratio = best_point(scores), _ratio(grid)
        around = [best.learning_rate / ratio, best.learning_rate, best.learning_rate * ratio]
        yield from _rates(best, around if len(grid) > 1 else grid[:1], scores)
        if best_point(scores) == before:
            break
    return best_point(scores)


def most_points(grid: Sequence[float], axes: Mapping[str, Sequence[float]], how: str) -> int:
    """How many points `search` tries at most."""
    rates = len(grid) + (MAX_WIDENINGS if len(grid) > 1 else 0)
    if how == GRID:
        return len(grid) * math.prod(len(v) for v in axes.values()) + rates - len(grid)
    if not axes:
        return rates
    sweep = sum(len(v) * (2 if name == "momentum" else 1) for name, v in axes.items())
    again = 2 + MAX_WIDENINGS if len(grid) > 1 else 0
    return rates + MAX_SWEEPS * (sweep + again)


def least_points(grid: Sequence[float], axes: Mapping[str, Sequence[float]], how: str) -> int:
    """How many points `search` tries at least."""
    if how == GRID:
        return len(grid) * math.prod(len(v) for v in axes.values())
    return len(grid) + sum(len(v) - 1 for v in axes.values())


def widen(scores: Mapping[float, Sequence[float]], widenings: int) -> float | None:
    """The next learning rate to try if the best one lies at the edge of those tried.

    The grid goes on with the ratio of its two rates at that edge. None if the best rate
    lies inside, or after `MAX_WIDENINGS`. A single rate is a choice, not a grid.
    """
    rates = sorted(scores)
    if len(rates) < 2 or widenings >= MAX_WIDENINGS:
        return None
    best = max(rates, key=lambda rate: float(np.mean(scores[rate])))
    if best == rates[0]:
        return rounded(rates[0] * rates[0] / rates[1])
    if best == rates[-1]:
        return rounded(rates[-1] * rates[-1] / rates[-2])
    return None


def rounded(value: float) -> float:
    """Three digits, so that it reads well and is the same after JSON."""
    return float(f"{value:.3g}")


def _rates(
    at: Point, rates: Iterable[float], scores: dict[Point, Sequence[float]]
) -> Generator[list[Point], Scored, None]:
    """Try rates with the settings of a point, and more while the best is at the edge."""
    yield from _try([Point(rate, at.settings) for rate in rates], scores)
    for widenings in range(MAX_WIDENINGS):
        tried = {p.learning_rate: s for p, s in scores.items() if p.settings == at.settings}
        following = widen(tried, widenings)
        if following is None:
            return
        yield from _try([at.at(following)], scores)


def _try(
    points: Iterable[Point], scores: dict[Point, Sequence[float]]
) -> Generator[list[Point], Scored, None]:
    fresh = [point for point in dict.fromkeys(points) if point not in scores]
    if fresh:
        scores.update((yield fresh))


def _ratio(grid: Sequence[float]) -> float:
    """What one learning rate of the grid is to the next, on average."""
    rates = sorted(grid)
    return (rates[-1] / rates[0]) ** (1.0 / (len(rates) - 1)) if len(rates) > 1 else 2.0
