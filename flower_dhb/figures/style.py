"""Colors and settings that all figures share."""

from __future__ import annotations

from typing import Any

__all__ = ["ACCENT", "GRID", "INK", "MAIN", "MUTED", "SECOND", "STYLE"]

INK, MUTED, GRID = "#1f2933", "#7b8794", "#e4e7eb"
MAIN, SECOND, ACCENT = "#2f6fb0", "#c2571a", "#2a9d8f"
STYLE: Any = {
    "font.size": 10,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.titlecolor": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "grid.color": GRID,
    "axes.grid": True,
    "axes.axisbelow": True,
}
