"""What `flower-dhb run` shows: lines as they come, one line that moves, a table at the end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from flower_dhb.cli.run_log import Line
from flower_dhb.flower.profile import PARTS, mean_profile
from flower_dhb.runs.table import Row, table

__all__ = ["Live", "Plain", "View", "print_profile", "print_table"]


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
    name = row.main
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


def print_table(rows: Sequence[Row], console: Console) -> None:
    """The first, the best and the last round that was evaluated; as columns if rows are too wide.

    Names of metrics may be long: they are folded, and numbers never are.
    """
    titles, lines = table(rows)
    if not lines:
        return
    if _width([titles, *lines]) > console.width:
        titles, *lines = (list(cells) for cells in zip(titles, *lines, strict=True))
    seconds = sum(row.seconds or 0.0 for row in rows)
    shown = Table(title=f"{len(rows)} rounds" + (f", {seconds:.0f} s" if seconds else ""))
    for at, title in enumerate(titles):
        shown.add_column(title, justify="right", no_wrap=at > 0, overflow="fold")
    for cells in lines:
        shown.add_row(*cells)
    console.print(shown)


def _width(lines: Sequence[Sequence[str]]) -> int:
    """Of a table with its frame."""
    return 1 + sum(3 + max(map(len, cells)) for cells in zip(*lines, strict=True))


def print_profile(rows: Sequence[Row], console: Console) -> None:
    """Where the time of a round went, as the mean of those that were measured."""
    profile = mean_profile(row.profile for row in rows)
    if not profile:
        _print(console, "No round's time was measured: its strategy is none of ServerlessStrategy.")
        return
    total = sum(profile.values())
    shown = Table(title=f"a round takes {total:.3g} s")
    shown.add_column("part")
    shown.add_column("seconds", justify="right", no_wrap=True)
    shown.add_column("share", justify="right", no_wrap=True)
    shown.add_column("what it is")
    for name, seconds in profile.items():
        share = seconds / total if total > 0.0 else 0.0
        shown.add_row(name, f"{seconds:.3f}", f"{share:.0%}", PARTS[name])
    console.print(shown)
