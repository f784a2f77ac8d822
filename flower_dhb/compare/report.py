"""Tables of a comparison: as text for 80 columns, in Markdown and in LaTeX."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, TypeAlias

from flower_dhb.compare.results import CONFIDENCE, VIEWS, Numbers, Outcome, Spread
from flower_dhb.compare.settings import Case

__all__ = ["NOT_REACHED", "Results"]

NOT_REACHED = "not reached"
_WIDTH = 80  # columns of a terminal that has not been made wider

Form: TypeAlias = Callable[[float], str]
# Of what is special in LaTeX's text.
_ESCAPES = {c: f"\\{c}" for c in "&%$#_{}"} | {
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
}


@dataclass(frozen=True)
class Column:
    """A column of numbers: its heading, where its spread is found, and how it is written.

    goal: whether it is the way to a target, which not every seed may reach. best: whether
    the least (-1) or the largest (1) is best. interval: whether it is shown, where the mean is.
    """

    title: str
    short: str
    find: Callable[[dict[str, Any]], Spread]
    form: Form
    goal: bool = False
    best: int = 0
    interval: bool = True


@dataclass(frozen=True)
class Table:
    """A case's table: a row for each method, its spreads in the order of the columns."""

    case: Case
    columns: Sequence[Column]
    rows: Sequence[tuple[Outcome, Sequence[Spread]]]

    def best(self) -> list[float]:
        """The best mean of each column, NaN where there is none."""
        found = []
        for at, column in enumerate(self.columns):
            means = [s[at].mean for _, s in self.rows if math.isfinite(s[at].mean)]
            pick = max if column.best > 0 else min
            found.append(pick(means) if means and column.best and len(self.rows) > 1 else math.nan)
        return found


class Results(Numbers):
    """Outcomes of a comparison, and what is made of them: numbers, tables, files.

    `print(results)` shows the tables; `flower_dhb.figures.comparisons.save` draws pictures.
    """

    def tables(self, wide: bool = False) -> list[Table]:
        """A table for each case. wide: with all views, megabytes and consensus distance."""
        columns = _columns(self, wide)
        found = []
        for case in self.comparison.cases:
            summaries = [(outcome, self.summary(outcome)) for outcome in self.of(case)]
            rows = [(outcome, [c.find(s) for c in columns]) for outcome, s in summaries]
            found.append(Table(case, columns, rows))
        return found

    def text(self, wide: bool = False) -> str:
        """Tables for a terminal of 80 columns, with what the numbers are below them."""
        parts = [
            f"{self.comparison.task.name}, {table.case.name}\n{_lines(table, wide)}"
            for table in self.tables(wide)
        ]
        return "\n\n".join([*parts, "\n".join(self.notes())]) + "\n"

    def __str__(self) -> str:
        return self.text()

    def markdown(self) -> str:
        """All tables, wide, for a document."""
        parts = []
        for table in self.tables(wide=True):
            header = ["method", "rate", *(column.title for column in table.columns)]
            lines = [f"### {table.case.name}", "", _line(header), _line(["---"] * len(header))]
            for outcome, spreads in table.rows:
                cells = [_cell(s, c) for s, c in zip(spreads, table.columns, strict=True)]
                lines.append(_line([_method(outcome), f"{outcome.learning_rate:g}", *cells]))
            parts.append("\n".join([*lines, ""]))
        return "\n".join([*parts, *(f"{note}  " for note in self.notes()), ""])

    def latex(self, wide: bool = False) -> str:
        """Tables for LaTeX with the package `booktabs`; the best of each column is bold."""
        notes = " ".join(_escaped(note) for note in self.notes())
        parts = []
        for table in self.tables(wide):
            header = ["method", "rate", *(c.title if wide else c.short for c in table.columns)]
            title = _escaped(f"{self.comparison.task.name}, {table.case.name}")
            best, body = table.best(), []
            for outcome, spreads in table.rows:
                cells = [
                    _latex(spread, column, spread.mean == most)
                    for spread, column, most in zip(spreads, table.columns, best, strict=True)
                ]
                name = _escaped(_method(outcome))
                body.append(" & ".join([name, f"{outcome.learning_rate:g}", *cells]) + r" \\")
            parts.append(
                "\n".join(
                    [
                        r"\begin{table}",
                        r"\centering",
                        rf"\caption{{{title}. {notes}}}",
                        rf"\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}",
                        r"\toprule",
                        " & ".join(_escaped(title) for title in header) + r" \\",
                        r"\midrule",
                        *body,
                        r"\bottomrule",
                        r"\end{tabular}",
                        r"\end{table}",
                    ]
                )
            )
        head = "% Needs \\usepackage{booktabs}.\n"
        return head + "\n\n".join(parts) + "\n"

    def notes(self) -> list[str]:
        """What the numbers are, and why runs were stopped: sentences."""
        comparison = self.comparison
        said = []
        if comparison.targets:
            said.append("'to' a score: rounds until the mean over agents has reached it.")
        said.append(
            f"Mean ± {CONFIDENCE:.0%} confidence interval over {comparison.seeds} seeds (Student's "
            "t)."
            if comparison.seeds > 1
            else "One seed."
        )
        if any(outcome.tried for outcome in self.outcomes):
            held = comparison.task.splits
            said.append(
                "Tuned on validation data; scores are of test data."
                if held
                else "Tuned; the optimum is known, so there is nothing to hold out."
            )
        else:
            said.append("One learning rate for all, not tuned.")
        if comparison.attack:
            count = comparison.attackers
            who = "agent of each graph lies" if count == 1 else f"{count} agents of each graph lie"
            said.append(
                f"The last {who} ('{comparison.attack}') from round {comparison.attack_from} on; "
                "all scores are of the others."
            )
        return [*said, *self._stopped()]

    def _stopped(self) -> list[str]:
        """Which runs were stopped, and why."""
        found = []
        for outcome in self.outcomes:
            reasons = [(run.stopped, seed) for seed, run in enumerate(outcome.runs) if run.stopped]
            for why, group in groupby(sorted(reasons), key=lambda each: each[0]):
                seeds = [str(seed) for _, seed in group]
                word = "seed" if len(seeds) == 1 else "seeds"
                found.append(
                    f"Stopped: {outcome.method} on {outcome.case.name}, {word} "
                    f"{', '.join(seeds)}: {why}."
                )
        return found


def _columns(numbers: Numbers, wide: bool) -> list[Column]:
    task, found = numbers.comparison.task, []
    score, unit = _score_form(task.share, task.rising)
    for at, target in enumerate(numbers.comparison.targets):
        goal = f"{100 * target:g}%" if task.share else f"{target:g}"
        views = VIEWS if wide else ("mean",)
        found += [_way(at, "rounds", view, f"rounds to {goal}: {view}", goal) for view in views]
        if wide:
            found.append(_way(at, "megabytes", "average", f"MB to {goal}: average", goal))
    found += [_final(view, f"final {task.metric}", unit, score, task.rising) for view in VIEWS]
    if wide:
        title = "consensus distance"
        found.append(Column(title, title, lambda s: s["consensus_distance"], _short))
    return found


def _way(at: int, over: str, view: str, title: str, goal: str) -> Column:
    """Rounds or megabytes to the target at a place."""

    def find(summary: dict[str, Any]) -> Spread:
        spread: Spread = summary["targets"][at][over][view]
        return spread

    form: Form = _rounds if over == "rounds" else _short
    return Column(title, f"to {goal}", find, form, goal=True, best=-1)


def _final(view: str, what: str, unit: str, form: Form, rising: bool) -> Column:
    def find(summary: dict[str, Any]) -> Spread:
        spread: Spread = summary["final"][view]
        return spread

    return Column(f"{what}{unit}: {view}", f"{view}{unit}", find, form, best=1 if rising else -1)


def _rounds(value: float) -> str:
    return f"{value:.0f}"


def _score_form(share: bool, rising: bool) -> tuple[Form, str]:
    """How scores are written, and their unit for the heading."""
    if share:
        return lambda v: f"{100.0 * v:.1f}", " %"
    return (_short, "") if rising else (_scientific, "")


def _short(value: float) -> str:
    return f"{value:.3g}"


def _scientific(value: float, digits: int = 2) -> str:
    """`1.2e-3`, or `0.12` where that is as short."""
    if value == 0.0 or 0.01 <= abs(value) < 1000.0:
        return f"{value:.{digits}g}"
    mantissa, _, exponent = f"{value:.{digits - 1}e}".partition("e")
    return f"{mantissa}e{int(exponent)}"


def _half(spread: Spread, form: Form) -> str:
    return form(spread.half) if math.isfinite(spread.half) else ""


def _cell(spread: Spread, column: Column, brief: bool = False) -> str:
    """`120 ± 12`, or what was not reached and by how many seeds it was."""
    if spread.reached < spread.seeds:
        if column.goal:
            if brief:
                return f"{spread.reached}/{spread.seeds}" if spread.reached else "–"
            return f"{spread.reached} of {spread.seeds} seeds" if spread.reached else NOT_REACHED
        lost = spread.seeds - spread.reached
        return "stopped" if not spread.reached else f"{lost}/{spread.seeds} stopped"
    half = _half(spread, column.form) if column.goal or column.interval else ""
    if brief and half and column.form is _scientific:
        half = _scientific(float(f"{spread.half:.0e}"), digits=1)
    return column.form(spread.mean) + (f"{'±' if brief else ' ± '}{half}" if half else "")


def _latex(spread: Spread, column: Column, best: bool) -> str:
    if spread.reached < spread.seeds:
        return _escaped(_cell(spread, column))
    mean, half = column.form(spread.mean), _half(spread, column.form)
    mean = rf"\mathbf{{{mean}}}" if best else mean
    return rf"${mean} \pm {half}$" if half else f"${mean}$"


def _method(outcome: Outcome) -> str:
    """The method's name, with what tuning has chosen beside the rate."""
    tuned = [f"{n.replace('_', '-')}={v:g}" for n, v in outcome.settings.items()]
    return ":".join([outcome.method, *tuned])


def _lines(table: Table, wide: bool) -> str:
    """The table as aligned lines; names of methods are folded at their colons.

    Where it is to be narrow and still is not, scores go without their intervals; then names
    have lines of their own, above the numbers; and numbers too many for a line are divided.
    """
    columns = list(table.columns)
    names = [_method(outcome) for outcome, _ in table.rows]
    header = ["rate", *(c.title if wide else c.short for c in columns)]
    body, widths, room = _measured(table, header, brief=not wide)
    least = max(len(piece) for name in names for piece in _folded(name, 1))
    if not wide and room < max(least, len("method")):
        bare = [replace(column, interval=False) for column in columns]
        body, widths, room = _measured(replace(table, columns=bare), header, brief=True)
    if not wide and room < 0 and len(columns) > 1:
        return "\n\n".join(_lines(part, wide) for part in _halves(table))
    longest = max(len(name) for name in ["method", *names])
    apart = not wide and room < max(least, len("method"))
    most = longest if wide else _WIDTH if apart else min(longest, room)
    folded = [_folded(name, most) for name in names]
    width = 0 if apart else max(len(line) for lines in [["method"], *folded] for line in lines)

    def row(name: Sequence[str], cells: Sequence[str]) -> list[str]:
        padded = [cell.rjust(w) for cell, w in zip(cells, widths, strict=True)]
        if apart:
            return [*name, "  ".join(["", *padded]).rstrip()]
        return ["  ".join([name[0].ljust(width), *padded]).rstrip(), *name[1:]]

    lines = [*row(["method"], header), "─" * (width + sum(widths) + 2 * len(widths))]
    for name, cells in zip(folded, body, strict=True):
        lines += row(name, cells)
    return "\n".join(lines)


def _halves(table: Table) -> list[Table]:
    """The table's columns in two tables."""
    half = len(table.columns) // 2
    return [
        replace(
            table,
            columns=table.columns[part],
            rows=[(outcome, spreads[part]) for outcome, spreads in table.rows],
        )
        for part in (slice(half), slice(half, None))
    ]


def _measured(
    table: Table, header: Sequence[str], brief: bool
) -> tuple[list[list[str]], list[int], int]:
    """Cells of all rows, the width of each column, and what is left for the methods' names."""
    body = [
        [
            f"{outcome.learning_rate:g}",
            *(_cell(s, c, brief) for s, c in zip(spreads, table.columns, strict=True)),
        ]
        for outcome, spreads in table.rows
    ]
    widths = [max(len(row[at]) for row in [header, *body]) for at in range(len(header))]
    return body, widths, _WIDTH - sum(widths) - 2 * len(widths)


def _folded(name: str, width: int) -> list[str]:
    """A method's name in lines of a width, broken at colons; each next line is indented.

    What is longer than a whole line of the terminal is broken where that ends.
    """
    lines = [""]
    for at, word in enumerate(name.split(":")):
        piece = word if at == 0 else f":{word}"
        while len(piece) > _WIDTH - 2:
            lines += [piece[: _WIDTH - 2], "  "]
            piece = piece[_WIDTH - 2 :]
        if len(lines[-1]) + len(piece) > width and lines[-1].strip():
            lines.append("  ")
        lines[-1] += piece
    return lines


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _escaped(text: str) -> str:
    found = "".join(_ESCAPES.get(c, c) for c in text)
    return found.replace("±", r"$\pm$").replace("–", "--")
