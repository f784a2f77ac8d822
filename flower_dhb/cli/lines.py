"""Tables as aligned lines: words to the left, numbers to the right, and no number is ever cut."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from textwrap import fill

__all__ = ["aligned", "folded", "terminal_width"]

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
