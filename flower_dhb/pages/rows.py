"""The rounds of runs as one table: a row for each round of each run, numbers only."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from flower_dhb.pages.model import MISSING, REJOINED, UNKNOWN, Run

__all__ = ["as_csv"]

Row = Mapping[str, object]


def as_csv(runs: Sequence[Run]) -> str:
    """All runs as CSV (RFC 4180), the first line naming the columns.

    `run`, `round`; `seconds` and `bytes` since the start; `missing` and `rejoined`, how many agents
    were, where it is known; `consensus_distance`, `distance_from_start`; for each metric
    `NAME_mean`, `NAME_worst`, `NAME_best` and `NAME_average_model`. What was not measured is empty.
    """
    rows = [row for run in runs for row in _rows(run)]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns or ["run", "round"])
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _rows(run: Run) -> Iterator[Row]:
    for k, number in enumerate(run.rounds):
        known = run.part[k] != UNKNOWN
        row: dict[str, object] = {"run": _inert(run.name), "round": int(number)}
        row["seconds"] = _cell(run.seconds[k])
        row["bytes"] = _cell(run.bytes[k])
        row["missing"] = int((run.part[k] == MISSING).sum()) if known.any() else ""
        row["rejoined"] = int((run.part[k] == REJOINED).sum()) if known.any() else ""
        row["consensus_distance"] = _cell(run.consensus[k])
        row["distance_from_start"] = _cell(run.way[k]) if len(run.way) else ""
        for name, band in run.bands.items():
            for which, value in zip(("mean", "worst", "best"), band[k], strict=True):
                row[f"{_inert(name)}_{which}"] = _cell(value)
        for name, values in run.average_model.items():
            row[f"{_inert(name)}_average_model"] = _cell(values[k])
        yield row


def _cell(value: np.float64) -> object:
    """A number as short as it can be without losing a bit, whole ones without a point."""
    if not np.isfinite(value):
        return ""
    return int(value) if value == int(value) else float(value)


def _inert(text: str) -> str:
    """A name that no spreadsheet takes for a formula."""
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text
