"""Tables as aligned lines: words to the left, numbers to the right, and no number is ever cut."""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Mapping, Sequence
from textwrap import fill
from typing import Any

__all__ = ["aligned", "folded", "table_of", "terminal_width", "value_text"]

_NUMBER = re.compile(r"[-+]?[\d.,]+(e[-+]?\d+)?( ?%| s)?|never|-|")


def terminal_width() -> int:
    """Columns of the terminal; 80 where there is none."""
    return shutil.get_terminal_size((80, 24)).columns


def folded(text: str, indent: str = "  ") -> str:
    """A text in lines of the terminal's width, broken between words only.

    indent: of all lines but the first.
    """
    return fill(
        text,
        terminal_width(),
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def aligned(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A line of titles and a line for each row."""
    columns = list(zip(*rows, strict=True))
    widths = [max(len(t), *map(len, cells)) for t, cells in zip(titles, columns, strict=True)]
    right = [all(_NUMBER.fullmatch(cell) for cell in cells) for cells in columns]
    return [
        "  ".join(
            cell.rjust(width) if to_the_right else cell.ljust(width)
            for cell, width, to_the_right in zip(line, widths, right, strict=True)
        ).rstrip()
        for line in (titles, *rows)
    ]


def table_of(
    rows: Sequence[Mapping[str, Any]], titles: Mapping[str, str] | None = None
) -> list[str]:
    """Rows of values by name as lines. titles: of columns that are not called as their values."""
    names = [(titles or {}).get(name, name) for name in rows[0]]
    return aligned(names, [[value_text(value) for value in row.values()] for row in rows])


def value_text(value: Any) -> str:
    """A number in four digits, or whole; `never` if it is infinite; other values as they are."""
    if isinstance(value, float):
        return "never" if math.isinf(value) else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
