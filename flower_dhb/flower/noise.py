"""Normal values from the system's randomness, which no app can foresee or repeat."""

from __future__ import annotations

import os

import numpy as np
from numpy.typing import NDArray

__all__ = ["gaussian"]

_STEP = 2**-53  # of uniform values, as fine as double precision has them


def gaussian(n: int) -> NDArray[np.float64]:
    """So many standard normal values, `(n,)` (Box & Muller, 1958)."""
    half = (n + 1) // 2
    bits = np.frombuffer(os.urandom(16 * half), np.uint64).reshape(2, half) >> np.uint64(11)
    uniform = bits.astype(np.float64) * _STEP
    radius = np.sqrt(-2.0 * np.log(uniform[0] + _STEP))  # of (0, 1]
    angle = 2.0 * np.pi * uniform[1]
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:n]
