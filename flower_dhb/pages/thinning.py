"""A long run in as many points as a page can show: what is left out lies between what is shown."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

__all__ = ["blocks", "kept"]


def kept(band: NDArray[np.float64], most: int) -> NDArray[np.int64]:
    """Positions of at most about `most` rounds: first, last, and each stretch's extremes.

    band: (k, c), the curves that must not lose a peak. Rounds without any number are left out.
    """
    known = np.flatnonzero(np.isfinite(band).any(axis=1))
    if len(known) <= most:
        return known
    found = {int(known[0]), int(known[-1])}
    stretches = max((most - 2) // (2 * band.shape[1]), 1)
    for stretch in np.array_split(known, stretches):
        for column in band[stretch].T:
            if np.isfinite(column).any():
                found |= {int(stretch[np.nanargmin(column)]), int(stretch[np.nanargmax(column)])}
    return np.array(sorted(found), np.int64)


def blocks(n: int, most: int) -> list[tuple[int, int]]:
    """`n` things in at most `most` blocks of about the same size: first, and one after the last."""
    if n <= most:
        return [(i, i + 1) for i in range(n)]
    bounds = np.linspace(0, n, most + 1).astype(int).tolist()
    return list(pairwise(bounds))
