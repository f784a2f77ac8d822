"""What `flower-dhb run` shows: lines as they come, one line that moves, a table at the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from flower_dhb.cli.run_log import Line
from flower_dhb.metrics import LOWER_IS_BETTER

__all__ = ["Live", "Plain", "Row", "View", "print_table"]


@dataclass(frozen=True, kw_only=True)
class Row:
    """A finished round of any strategy. rounds: how many there will be, 0 if it is not known.

    metrics: over all agents; where there are `NAME-worst` and `NAME-best`, `NAME` is the
    mean of the agents' own models. told: whether the log tells the round in words, too.
    """

    round: int
    rounds: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    average_model: dict[str, float] = field(default_factory=dict)
    consensus_distance: float | None = None
    missing: list[int] = field(default_factory=list)
    events: list[tuple[list[int], str]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    seconds: float | None = None
    told: bool = False

    def __str__(self) -> str:
        """One plain line."""
        names = [n for n in self.metrics if not n.endswith(("-worst", "-best"))]
        parts = [f"{name} {self.metrics[name]:.4g}" for name in names]
        return " | ".join([f"round {self.round}/{self.rounds or '?'}", *parts])


class View(Protocol):
    """Shows a run while it goes on."""

    def __enter__(self) -> View:
        """Begin."""

    def __exit__(self, *_: object) -> None:
        """Leave the terminal as it was."""

    def line(self, line: Line) -> None:
        """Something that the run says."""

    def row(self, row: Row) -> None:
        """A round is finished."""


class Plain:
    """Lines for a file or a pipe: one a round, what the app prints, whatever went wrong."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def __enter__(self) -> Plain:
        return self

    def __exit__(self, *_: object) -> None: ...

    def line(self, line: Line) -> None:
        """Print it."""
        _print(self._console, line.text)

    def row(self, row: Row) -> None:
        """Print it, unless a line of the log tells it."""
        if not row.told:
            _print(self._console, str(row))


class Live:
    """One line that moves below what the app prints."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("round"),
            MofNCompleteColumn(),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[state]}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self._task = self._progress.add_task("", total=None, state="starting the agents")
        self._warnings = 0

    def __enter__(self) -> Live:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def line(self, line: Line) -> None:
        """Print it above the line that moves, which tells the rounds."""
        if line.kind != "round":
            style = "yellow" if line.kind == "trouble" else ""
            _print(self._progress.console, line.text, style)

    def row(self, row: Row) -> None:
        """Move the line."""
        total = row.rounds or None
        self._warnings += len(row.warnings)
        state = _state(row, self._warnings)
        self._progress.update(self._task, completed=row.round, total=total, state=state)


def _print(console: Console, text: str, style: str = "") -> None:
    # The app's own words: no markup, no colors of numbers, no breaks.
    console.print(text, style=style, highlight=False, markup=False, soft_wrap=True)


def _state(row: Row, warnings: int) -> str:
    name = main_metric(row.metrics)
    parts = []
    if name is not None:
        parts.append(f"{name} {row.metrics[name]:.3f}")
        if (worst := row.metrics.get(f"{name}-worst")) is not None:
            parts.append(f"worst {worst:.3f}")
    if row.consensus_distance is not None:
        parts.append(f"distance {row.consensus_distance:.3g}")
    if row.missing:
        parts.append(f"missing {row.missing}")
    if warnings:
        parts.append(f"warnings {warnings}, see above")
    return "  ".join(parts)


def main_metric(metrics: Sequence[str] | dict[str, float]) -> str | None:
    """The metric that tells most: an accuracy, else what is no loss, else the first."""
    names = [name for name in metrics if not name.endswith(("-worst", "-best"))]
    accuracies = [name for name in names if "acc" in name.lower()]
    gains = [name for name in names if not _lower_is_better(name)]
    return next(iter([*accuracies, *gains, *names]), None)


def print_table(rows: Sequence[Row], console: Console) -> None:
    """The first, the best and the last round that was evaluated."""
    name = next((n for row in reversed(rows) if (n := main_metric(row.metrics))), None)
    if name is None:
        return
    measured = [row for row in rows if name in row.metrics]
    worst = f"{name}-worst"

    def score(row: Row) -> float:
        value = row.metrics.get(worst, row.metrics[name])
        return -value if _lower_is_better(name) else value

    columns = {
        "round": [str(row.round) for row in measured],
        name: [_number(name, row.metrics[name]) for row in measured],
        "worst agent": [_number(name, row.metrics.get(worst)) for row in measured],
        "average model": [_number(name, row.average_model.get(name)) for row in measured],
        "distance": [_number("", row.consensus_distance) for row in measured],
    }
    if any(row.metrics.get(worst) is not None for row in measured):
        columns = {n if n != name else f"{name}, mean": cells for n, cells in columns.items()}
    shown = {title: cells for title, cells in columns.items() if set(cells) != {"-"}}
    seconds = sum(row.seconds or 0.0 for row in rows)
    table = Table(title=f"{len(rows)} rounds" + (f", {seconds:.0f} s" if seconds else ""))
    for title in ("", *shown):
        table.add_column(title, justify="right")
    best = max(range(len(measured)), key=lambda i: score(measured[i]))
    for title, i in (("first", 0), ("best", best), ("last", len(measured) - 1)):
        table.add_row(title, *(cells[i] for cells in shown.values()))
    console.print(table)


def _number(name: str, value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.1%}" if "acc" in name.lower() and 0.0 <= value <= 1.0 else f"{value:.3g}"


def _lower_is_better(name: str) -> bool:
    return any(fnmatchcase(name.lower(), pattern) for pattern in LOWER_IS_BETTER)
