"""What a comparison showed: rounds and megabytes to the targets, in tables and in JSON."""

from __future__ import annotations

import math
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

import numpy as np

from flower_dhb.compare.comparison import Outcome
from flower_dhb.compare.runs import Curves
from flower_dhb.compare.settings import Case, Comparison

__all__ = ["NOT_REACHED", "Spread", "markdown", "rows", "to_json"]

NOT_REACHED = "not reached"
VIEWS = ("average", "mean", "worst")  # the average model, the mean over agents, the worst agent


@dataclass(frozen=True)
class Spread:
    """Median and range over seeds; infinite where a seed did not get there."""

    median: float
    low: float
    high: float
    reached: int
    seeds: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of one number a seed. NaN counts as not reached."""
        numbers = sorted(math.inf if math.isnan(v) else v for v in values)
        middle = len(numbers) // 2
        odd = len(numbers) % 2 == 1
        median = numbers[middle] if odd else (numbers[middle - 1] + numbers[middle]) / 2.0
        reached = sum(math.isfinite(v) for v in numbers)
        return cls(median, numbers[0], numbers[-1], reached, len(numbers))

    def text(self, form: Callable[[float], str]) -> str:
        """`70 (60-90)`, or what was not reached, and by how many seeds it was."""
        if not math.isfinite(self.median):
            some = f" ({self.reached} of {self.seeds} seeds)" if self.reached else ""
            return NOT_REACHED + some
        if self.low == self.high:
            return form(self.median)
        high = form(self.high) if math.isfinite(self.high) else NOT_REACHED
        return f"{form(self.median)} ({form(self.low)}-{high})"

    def to_json(self) -> dict[str, Any]:
        """Plain values; null where nothing was reached."""
        values = {"median": self.median, "low": self.low, "high": self.high}
        finite = {k: v if math.isfinite(v) else None for k, v in values.items()}
        return {**finite, "reached": self.reached, "seeds": self.seeds}


def first_reaching(curves: Curves, view: str, target: float, rising: bool, over: str) -> float:
    """`rounds` or `megabytes` at the first evaluation that reached the target; else infinite."""
    for value, at in zip(getattr(curves, view), getattr(curves, over), strict=True):
        if value >= target if rising else value <= target:
            return float(at)
    return math.inf


def summarize(outcome: Outcome, comparison: Comparison) -> dict[str, Any]:
    """Spreads of one method on one case, by name."""
    rising = comparison.task.rising
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
        for target in comparison.targets
    ]
    final = {view: Spread.of([_last(c, view) for c in outcome.runs]) for view in VIEWS}
    consensus = Spread.of([_last(c, "consensus") for c in outcome.runs])
    return {"targets": reached, "final": final, "consensus_distance": consensus}


def rows(outcomes: Sequence[Outcome], comparison: Comparison, case: Case) -> list[list[str]]:
    """Table of a case, its header first."""
    rising = comparison.task.rising
    goals = [f"{t:.0%}" if rising else f"{t:.0e}" for t in comparison.targets]
    header = ["method", "rate"]
    for goal in goals:
        header += [f"rounds to {goal}: {view}" for view in VIEWS]
        header += [f"MB to {goal}: average"]
    header += [f"final: {view}" for view in VIEWS] + ["consensus distance"]
    table = [header]

    def score(value: float) -> str:
        return f"{value:.1%}" if rising else f"{value:.1e}"

    for outcome in (o for o in outcomes if o.case == case):
        found = summarize(outcome, comparison)
        row = [outcome.method, f"{outcome.learning_rate:g}"]
        for target in found["targets"]:
            row += [target["rounds"][view].text(lambda v: f"{v:.0f}") for view in VIEWS]
            row += [target["megabytes"]["average"].text(_megabytes)]
        row += [_final_text(found["final"][view], score) for view in VIEWS]
        row += [_final_text(found["consensus_distance"], lambda v: f"{v:.2g}")]
        table.append(row)
    return table


def markdown(outcomes: Sequence[Outcome], comparison: Comparison) -> str:
    """All tables, for a document."""
    parts = []
    for case in comparison.cases:
        header, *body = rows(outcomes, comparison, case)
        lines = [f"### {case.name}", "", _line(header), _line(["---"] * len(header))]
        parts.append("\n".join([*lines, *(_line(row) for row in body), ""]))
    return "\n".join(parts)


def to_json(outcomes: Sequence[Outcome], comparison: Comparison) -> dict[str, Any]:
    """Everything: settings, versions, machine, spreads and curves."""
    return {
        "settings": asdict(comparison),
        "metric": comparison.task.metric,
        "versions": {name: version(name) for name in ("flower-dhb", "torch", "numpy")},
        "machine": {"processor": platform.processor() or platform.machine()},
        "outcomes": [
            {
                "topology": outcome.case.topology,
                "split": outcome.case.split,
                "method": outcome.method,
                "learning_rate": outcome.learning_rate,
                "tried": {
                    f"{rate:g}": score if math.isfinite(score) else None
                    for rate, score in outcome.tried.items()
                },
                **_plain(summarize(outcome, comparison)),
                "runs": [asdict(curves) for curves in outcome.runs],
            }
            for outcome in outcomes
        ],
    }


def _final_text(spread: Spread, form: Callable[[float], str]) -> str:
    return "diverged" if not math.isfinite(spread.median) else spread.text(form)


def _last(curves: Curves, name: str) -> float:
    values = getattr(curves, name)
    return math.nan if curves.diverged or not values else float(values[-1])


def _megabytes(value: float) -> str:
    return f"{value:.3g}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _plain(value: Any) -> Any:
    if isinstance(value, Spread):
        return value.to_json()
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_plain(v) for v in value]
    return float(value) if isinstance(value, np.floating) else value
