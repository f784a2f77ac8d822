"""What a comparison showed: outcomes, and the numbers that tables and files are made of."""

from __future__ import annotations

import csv
import io
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from scipy.special import stdtrit

from flower_dhb.compare.runs import Curves
from flower_dhb.compare.settings import Case, Comparison
from flower_dhb.compare.sources import versions
from flower_dhb.extras import load

__all__ = ["CONFIDENCE", "VIEWS", "Numbers", "Outcome", "Spread", "Trial", "first_reaching"]

VIEWS = ("average", "mean", "worst")  # the average model, the mean over agents, the worst agent
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Trial:
    """A point that tuning tried, and its score on validation data, the mean over seeds."""

    learning_rate: float
    settings: Mapping[str, float]
    score: float


@dataclass(frozen=True)
class Outcome:
    """One method on one case: what it ran with, what tuning tried, and a run per seed."""

    case: Case
    method: str
    learning_rate: float
    settings: Mapping[str, float] = field(default_factory=dict)
    tried: Sequence[Trial] = ()
    runs: Sequence[Curves] = ()


@dataclass(frozen=True)
class Spread:
    """One number a seed: mean, confidence interval, median and range.

    mean, half: `mean ± half` is the 95 % confidence interval of the mean by Student's t,
    `half = t(0.975, n - 1) s / √n`, which takes the seeds' numbers for independent draws of a
    normal distribution; NaN where a seed has no number or, for `half`, there is only one.
    median, low, high: infinite where a seed did not get there. reached: how many did.
    """

    mean: float
    half: float
    median: float
    low: float
    high: float
    reached: int
    seeds: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of one number a seed. NaN counts as not reached."""
        numbers = sorted(math.inf if math.isnan(v) else float(v) for v in values)
        n, reached = len(numbers), sum(math.isfinite(v) for v in numbers)
        middle = n // 2
        median = numbers[middle] if n % 2 else (numbers[middle - 1] + numbers[middle]) / 2.0
        mean = sum(numbers) / n if reached == n else math.nan
        half = math.nan
        if reached == n > 1:
            deviation = float(np.std(numbers, ddof=1))
            half = float(stdtrit(n - 1, 0.5 + CONFIDENCE / 2.0)) * deviation / math.sqrt(n)
        return cls(mean, half, median, numbers[0], numbers[-1], reached, n)

    def to_json(self) -> dict[str, Any]:
        """Plain values; null where nothing was reached."""
        return {name: _finite(value) for name, value in asdict(self).items()}


def first_reaching(curves: Curves, view: str, target: float, rising: bool, over: str) -> float:
    """`rounds` or `megabytes` at the first evaluation that reached the target; else infinite."""
    for value, at in zip(getattr(curves, view), getattr(curves, over), strict=True):
        if value >= target if rising else value <= target:
            return float(at)
    return math.inf


class Numbers:
    """Outcomes of a comparison, and their numbers.

    outcomes: one for each method on each case, in the order in which they were named.
    """

    def __init__(self, comparison: Comparison, outcomes: Sequence[Outcome]) -> None:
        self.comparison = comparison
        self.outcomes = tuple(outcomes)

    def of(self, case: Case) -> list[Outcome]:
        """The outcomes of a case."""
        return [outcome for outcome in self.outcomes if outcome.case == case]

    def summary(self, outcome: Outcome) -> dict[str, Any]:
        """Spreads of an outcome, by name."""
        rising = self.comparison.task.rising
        reached = [
            {
                "target": target,
                **{
                    over: {
                        view: Spread.of(
                            [first_reaching(c, view, target, rising, over) for c in outcome.runs]
                        )
                        for view in VIEWS
                    }
                    for over in ("rounds", "megabytes")
                },
            }
            for target in self.comparison.targets
        ]
        final = {view: Spread.of([_last(c, view) for c in outcome.runs]) for view in VIEWS}
        consensus = Spread.of([_last(c, "consensus") for c in outcome.runs])
        return {"targets": reached, "final": final, "consensus_distance": consensus}

    def records(self) -> list[dict[str, Any]]:
        """A row for each run: its settings, rounds and megabytes to targets, final scores.

        Empty (None) is what was not reached, or what a run that was stopped does not have.
        """
        rising = self.comparison.task.rising
        rows = []
        for outcome, seed, curves in self._runs():
            row = self._row(outcome, seed)
            for target in self.comparison.targets:
                for over in ("rounds", "megabytes"):
                    for view in VIEWS:
                        value = first_reaching(curves, view, target, rising, over)
                        row[f"{over}_to_{target:g}_{view}"] = _finite(value)
            row |= {f"final_{view}": _finite(_last(curves, view)) for view in VIEWS}
            row["consensus_distance"] = _finite(_last(curves, "consensus"))
            row["megabytes"] = curves.megabytes[-1] if curves.megabytes else 0.0
            row["rounds"] = curves.rounds[-1] if curves.rounds else 0
            row["stopped"] = curves.stopped
            rows.append(row)
        return rows

    def curves(self) -> list[dict[str, Any]]:
        """A row for each evaluation of each run."""
        columns = ("average", "mean", "worst", "consensus", "megabytes")
        return [
            {
                **self._row(outcome, seed),
                "round": k,
                **{name: getattr(curves, name)[at] for name in columns},
            }
            for outcome, seed, curves in self._runs()
            for at, k in enumerate(curves.rounds)
        ]

    def frame(self, curves: bool = False) -> Any:
        """`records`, or with `curves` every evaluation, as a pandas DataFrame.

        Raises ConfigError if pandas is not installed.
        """
        pandas = load("pandas", "a data frame")
        return pandas.DataFrame(self.curves() if curves else self.records())

    def csv(self, curves: bool = False) -> str:
        """The same as text with commas; the first line names the columns."""
        rows = self.curves() if curves else self.records()
        text = io.StringIO()
        names = list(dict.fromkeys(name for row in rows for name in row))
        writer = csv.DictWriter(text, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue()

    def to_json(self) -> dict[str, Any]:
        """Everything: settings, versions, machine, spreads and curves."""
        return {
            "settings": self.comparison.to_json(),
            "metric": self.comparison.task.metric,
            "versions": versions(),
            "machine": {"processor": platform.processor() or platform.machine()},
            "outcomes": [
                {
                    **asdict(outcome.case),
                    "method": outcome.method,
                    "learning_rate": outcome.learning_rate,
                    "tuned": dict(outcome.settings),
                    "tried": [
                        {"learning_rate": t.learning_rate, **t.settings, "score": _finite(t.score)}
                        for t in outcome.tried
                    ],
                    **_plain(self.summary(outcome)),
                    "runs": [asdict(curves) for curves in outcome.runs],
                }
                for outcome in self.outcomes
            ],
        }

    def _runs(self) -> list[tuple[Outcome, int, Curves]]:
        return [(o, seed, run) for o in self.outcomes for seed, run in enumerate(o.runs)]

    def _row(self, outcome: Outcome, seed: int) -> dict[str, Any]:
        return {
            "problem": self.comparison.task.name,
            **asdict(outcome.case),
            "method": outcome.method,
            "learning_rate": outcome.learning_rate,
            **{f"tuned_{name}": value for name, value in outcome.settings.items()},
            "seed": seed,
        }


def _last(curves: Curves, name: str) -> float:
    values = getattr(curves, name)
    return math.nan if curves.stopped or not values else float(values[-1])


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _plain(value: Any) -> Any:
    if isinstance(value, Spread):
        return value.to_json()
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_plain(v) for v in value]
    return float(value) if isinstance(value, np.floating) else value
