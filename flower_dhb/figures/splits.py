"""Figures of splits: which classes each agent has, and how many samples of each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from flower_dhb.errors import ConfigError
from flower_dhb.extras import needs_extra
from flower_dhb.figures.style import INK, MAIN, STYLE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["count_classes", "draw_split"]

_NUMBERED_UP_TO = 20  # agents and classes; more numbers than that are too small to read


def count_classes(
    labels: NDArray[np.integer], parts: Sequence[NDArray[np.integer]]
) -> NDArray[np.int64]:
    """How many samples of each class an agent has: `(classes, agents)`.

    labels: (m,), the class of each sample, from 0 on. parts: positions of each agent's samples.
    Raises ConfigError if there is no agent, or a class is negative.
    """
    labels = np.asarray(labels)
    if not len(parts) or not len(labels) or labels.min() < 0:
        raise ConfigError(
            f"a split has agents and samples with classes from 0 on, got {len(parts)} agents and "
            f"{len(labels)} samples"
        )
    classes = int(labels.max()) + 1
    return np.stack([np.bincount(labels[part], minlength=classes) for part in parts], axis=1)


def draw_split(
    labels: NDArray[np.integer], parts: Sequence[NDArray[np.integer]], title: str = ""
) -> Figure:
    """Draw a split: a row for each class, a column for each agent, dark where samples are many.

    labels, parts: as for `count_classes`. Returns a matplotlib figure. Raises ConfigError that
    names the `plot` extra where matplotlib is not installed.
    """
    try:
        import matplotlib as mpl
        from matplotlib.colors import LinearSegmentedColormap
        from matplotlib.figure import Figure
    except ImportError as error:
        raise needs_extra("a picture", "plot") from error
    counts = count_classes(labels, parts)
    classes, agents = counts.shape
    with mpl.rc_context(STYLE):
        size = (min(14.0, max(4.8, 1.6 + 0.42 * agents)), min(12.0, max(3.2, 1.7 + 0.34 * classes)))
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.add_subplot()
        colors = LinearSegmentedColormap.from_list("split", ["white", MAIN])
        axes.imshow(counts, cmap=colors, vmin=0, aspect="auto", interpolation="nearest")
        axes.grid(visible=False)
        each = counts.sum(axis=0)
        axes.set(
            xlabel=f"agent\n{each.sum():,} samples, {each.min():,} to {each.max():,} per agent"
        )
        axes.set(ylabel="class")
        for axis, number in ((axes.xaxis, agents), (axes.yaxis, classes)):
            if number <= _NUMBERED_UP_TO:
                axis.set_ticks(range(number))
        if max(agents, classes) <= _NUMBERED_UP_TO:
            for row, column in zip(*counts.nonzero(), strict=True):
                count = counts[row, column]
                color = "white" if count > 0.55 * counts.max() else INK
                axes.text(
                    column, row, f"{count}", ha="center", va="center", color=color, fontsize=7.5
                )
        axes.set_title(title or "Samples of each class that each agent has")
    return figure
