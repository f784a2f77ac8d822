"""Numbers as people read them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from flower_dhb.metrics import is_better_when_lower

__all__ = ["count", "duration", "is_share", "names_text", "ranges", "score"]

_NAMED = 6


def score(name: str, value: float) -> str:
    """A metric's value: an accuracy in percent."""
    if not math.isfinite(value):
        return "–"
    return f"{value:.1%}" if is_share(name) and 0.0 <= value <= 1.0 else f"{value:.4g}"


def is_share(name: str) -> bool:
    """Whether a metric is a share of 1 by its name."""
    return "acc" in name.lower() and not is_better_when_lower(name)


def duration(seconds: float) -> str:
    """Seconds with the unit that fits."""
    if not math.isfinite(seconds):
        return "–"
    if seconds < 120:
        return f"{seconds:.3g} s"
    minutes = round(seconds / 60)
    if minutes < 120:
        return f"{minutes} min"
    if minutes < 60 * 48:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes // 1440} days"


def count(n: int, one: str, many: str = "") -> str:
    """`1 round`, `12,000 rounds`."""
    return f"{n:,} {one if n == 1 else many or one + 's'}"


def names_text(names: Sequence[str]) -> str:
    """`agent 3`, `agents 3 and 4`, `agents 0, 1, 2, 3, 4, 5 and 9 more`."""
    shown = list(names[:_NAMED])
    if len(names) > _NAMED:
        shown.append(f"{len(names) - _NAMED} more")
    if len(shown) == 1:
        return f"agent {shown[0]}"
    return f"agents {', '.join(shown[:-1])} and {shown[-1]}"


def ranges(numbers: Iterable[int], most: int = 8) -> str:
    """`3, 7 to 9 and 2 more ranges`; empty for none."""
    runs: list[list[int]] = []
    for k in numbers:
        if runs and k == runs[-1][1] + 1:
            runs[-1][1] = k
        else:
            runs.append([k, k])
    parts = [str(a) if a == b else f"{a} to {b}" for a, b in runs[:most]]
    if len(runs) > most:
        parts.append(f"{len(runs) - most} more times")
    return ", ".join(parts)
