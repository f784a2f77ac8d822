"""The rounds of runs as one table: a row for each round of each run, numbers only."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from flower_dhb.extras import load
from flower_dhb.pages.model import MISSING, REJOINED, UNKNOWN, Run

__all__ = ["as_csv", "as_parquet"]

Cell = str | int | float | None
Row = Mapping[str, Cell]
_FIRST = ("run", "round")  # columns that every table has
_WHOLE = ("round", "bytes", "missing", "rejoined")  # columns of whole numbers


def as_csv(runs: Sequence[Run]) -> str:
    """All runs as CSV (RFC 4180), the first line naming the columns.

    `run`, `round`; `seconds` and `bytes` since the start; `missing` and `rejoined`, how many agents
    were, where it is known; `consensus_distance`, `distance_from_start`; for each metric
    `NAME_mean`, `NAME_worst`, `NAME_best` and `NAME_average_model`. What was not measured is empty.
    """
    columns, rows = _table(runs)
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow([_inert(name) for name in columns])
    writer.writerows([_short(row.get(name)) for name in columns] for row in rows)
    return text.getvalue()


def as_parquet(runs: Sequence[Run]) -> bytes:
    """The same table as a Parquet file; what was not measured is null.

    Raises ConfigError without the extra `parquet`.
    """
    arrow = load("pyarrow", "a table as Parquet")
    columns, rows = _table(runs)
    kinds = {"run": arrow.string(), **dict.fromkeys(_WHOLE, arrow.int64())}
    arrays = [
        arrow.array([_utf8(row.get(name)) for row in rows], kinds.get(name, arrow.float64()))
        for name in columns
    ]
    sink = io.BytesIO()
    parquet = load("pyarrow.parquet", "a table as Parquet")
    parquet.write_table(arrow.table(arrays, names=[_utf8(n) for n in columns]), sink)
    return sink.getvalue()


def _table(runs: Sequence[Run]) -> tuple[list[str], list[Row]]:
    """Columns and rows; a row lacks the columns that other runs alone have."""
    rows = [row for run in runs for row in _rows(run)]
    columns = dict.fromkeys(name for row in rows for name in row)
    return list(columns or _FIRST), rows


def _rows(run: Run) -> Iterator[Row]:
    for k, number in enumerate(run.rounds):
        known = bool((run.part[k] != UNKNOWN).any())
        row: dict[str, Cell] = {"run": run.name, "round": int(number)}
        row["seconds"] = _cell(run.seconds[k])
        row["bytes"] = None if (sent := _cell(run.bytes[k])) is None else int(sent)
        row["missing"] = int((run.part[k] == MISSING).sum()) if known else None
        row["rejoined"] = int((run.part[k] == REJOINED).sum()) if known else None
        row["consensus_distance"] = _cell(run.consensus[k])
        row["distance_from_start"] = _cell(run.way[k]) if len(run.way) else None
        for name, band in run.bands.items():
            for which, value in zip(("mean", "worst", "best"), band[k], strict=True):
                row[f"{name}_{which}"] = _cell(value)
        for name, values in run.average_model.items():
            row[f"{name}_average_model"] = _cell(values[k])
        yield row


def _cell(value: np.float64) -> float | None:
    return float(value) if np.isfinite(value) else None


def _short(value: Cell) -> object:
    """A number as short as it can be without losing a bit, whole ones without a point."""
    if isinstance(value, str):
        return _inert(value)
    if isinstance(value, float) and value == int(value):
        return int(value)
    return "" if value is None else value


def _utf8(value: Cell) -> Cell:
    """A text that can be written; others stay as they are."""
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value


def _inert(text: str) -> str:
    """A name that no spreadsheet takes for a formula."""
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text
