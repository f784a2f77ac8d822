"""Values that a file holds, taken as they are found: whatever is no number is not a number."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flower_dhb.errors import ConfigError

__all__ = ["number", "numbers", "read_rounds", "running", "text", "texts", "vertices"]

_LONGEST = 2_000  # characters of a text that a run tells
_LAST_ROUND = 10**12


def read_rounds(path: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """The lines of a `history.jsonl` in the order of their rounds, and what is wrong with others.

    Of a round that is told twice the later line holds. Raises ConfigError if the file cannot be
    read.
    """
    found: dict[int, dict[str, Any]] = {}
    damaged = 0
    try:
        with path.open("rb") as file:
            for line in file:
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                    k = row["round"]
                    if isinstance(k, bool) or not isinstance(k, int) or not 0 <= k <= _LAST_ROUND:
                        raise ValueError
                except (ValueError, KeyError, TypeError, RecursionError):
                    damaged += 1
                    continue
                found[k] = row
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; name the folder of a run") from None
    some = f"{damaged} lines are" if damaged > 1 else "1 line is"
    notes = [f"{path.name}: {some} cut off or damaged, and left out"] if damaged else []
    return [found[k] for k in sorted(found)], notes


def number(value: Any) -> float:
    """A finite number, NaN for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return math.nan
    try:
        found = float(value)
    except OverflowError:
        return math.nan
    return found if math.isfinite(found) else math.nan


def numbers(value: Any, n: int) -> NDArray[np.float64]:
    """`n` numbers of a list, `(n,)`, NaN where it has none."""
    listed = value[:n] if isinstance(value, list) else []
    found = np.full(n, np.nan)
    try:
        plain = {*map(type, listed)} <= {int, float}  # ten times as fast as one by one
        found[: len(listed)] = listed if plain else [number(v) for v in listed]
    except OverflowError:
        found[: len(listed)] = [number(v) for v in listed]
    found[np.isinf(found)] = np.nan
    return found


def vertices(value: Any, n: int) -> list[int]:
    """Those of a list that are vertices of a graph of `n`."""
    listed = value if isinstance(value, list) else []
    return [v for v in listed if isinstance(v, int) and not isinstance(v, bool) and 0 <= v < n]


def text(value: Any) -> str:
    """A text of bounded length."""
    found = value if isinstance(value, str) else str(value)
    return found if len(found) <= _LONGEST else f"{found[:_LONGEST]} …"


def texts(value: Any) -> list[str]:
    """The texts of a list."""
    return [text(v) for v in value] if isinstance(value, Sequence | Mapping) else []


def running(values: Sequence[float] | NDArray[np.float64]) -> NDArray[np.float64]:
    """Sums from the start on; NaN everywhere if nothing was measured."""
    array = np.array(values, np.float64)
    return np.cumsum(np.nan_to_num(array)) if np.isfinite(array).any() else array * np.nan
