"""The rounds of a run as people see them: one line each, and a table of the first, best and last.

The command that follows a run and the run itself make the same rows of the same facts.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from flower_dhb.metrics import LOWER_IS_BETTER, is_better_when_lower

__all__ = ["Row", "main_metric", "table"]


@dataclass(frozen=True, kw_only=True)
class Row:
    """A finished round of any strategy. rounds: how many there will be, 0 if it is not known.

    metrics: over all agents; where there are `NAME-worst` and `NAME-best`, `NAME` is the
    mean of the agents' own models. lower_is_better: name patterns of metrics of which less
    is better. told: whether the log tells the round in words, too.
    """

    round: int
    rounds: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    average_model: dict[str, float] = field(default_factory=dict)
    lower_is_better: Sequence[str] = LOWER_IS_BETTER
    consensus_distance: float | None = None
    missing: list[int] = field(default_factory=list)
    events: list[tuple[list[int], str]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    seconds: float | None = None
    profile: dict[str, float] = field(default_factory=dict)
    told: bool = False

    def __str__(self) -> str:
        """One plain line."""
        parts = [f"{name} {self.metrics[name]:.4g}" for name in _names(self.metrics)]
        return " | ".join([f"round {self.round}/{self.rounds or '?'}", *parts])

    @property
    def main(self) -> str | None:
        """The metric that tells most, None if nothing was measured."""
        return main_metric(self.metrics, self.lower_is_better)

    def score(self, name: str) -> float:
        """How good a metric is, by the worst agent where that is known; more is better."""
        value = self.metrics.get(f"{name}-worst", self.metrics[name])
        if math.isnan(value):
            return -math.inf
        return -value if is_better_when_lower(name, self.lower_is_better) else value


def main_metric(
    metrics: Iterable[str], lower_is_better: Sequence[str] = LOWER_IS_BETTER
) -> str | None:
    """The metric that tells most: an accuracy, else what is no loss, else the first."""
    names = _names(metrics)
    accuracies = [name for name in names if "acc" in name.lower()]
    gains = [name for name in names if not is_better_when_lower(name, lower_is_better)]
    return next(iter([*accuracies, *gains, *names]), None)


def table(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """The first, the best and the last round that was evaluated: titles of columns, and cells.

    The best is that of the best worst agent. Columns of which nothing is known are left out.
    Both lists are empty if no round was evaluated.
    """
    name = next((main for row in reversed(rows) if (main := row.main)), None)
    if name is None:
        return [], []
    measured = [row for row in rows if name in row.metrics]
    worst = f"{name}-worst"
    of_agents = any(worst in row.metrics for row in measured)
    columns = {
        "round": [str(row.round) for row in measured],
        f"{name}, mean" if of_agents else name: [_cell(name, r.metrics[name]) for r in measured],
        "worst agent": [_cell(name, row.metrics.get(worst)) for row in measured],
        "average model": [_cell(name, row.average_model.get(name)) for row in measured],
        "distance": [_cell("", row.consensus_distance) for row in measured],
    }
    shown = {title: cells for title, cells in columns.items() if set(cells) != {"-"}}
    best = max(range(len(measured)), key=lambda i: measured[i].score(name))
    lines = [
        [which, *(cells[i] for cells in shown.values())]
        for which, i in (("first", 0), ("best", best), ("last", len(measured) - 1))
    ]
    return ["", *shown], lines


def _names(metrics: Iterable[str]) -> list[str]:
    return [name for name in metrics if not name.endswith(("-worst", "-best"))]


def _cell(name: str, value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.1%}" if "acc" in name.lower() and 0.0 <= value <= 1.0 else f"{value:.3g}"
