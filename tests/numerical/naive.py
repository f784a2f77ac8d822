"""The law once more, as plainly as it is written: the yardstick of the numerical tests."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

FORMS = [
    ("displacement", "adapt-then-combine"),
    ("displacement", "combine-then-adapt"),
    ("buffer", "combine-then-adapt"),
    ("buffer", "adapt-then-combine"),
    ("tracking", "adapt-then-combine"),
]


def law(
    form: str,
    order: str,
    *,
    beta: float,
    omega: float,
    matrices: list[Array],
    start: Array,
    local_step: Callable[[Array, int], Array],
) -> Array:
    """Parameters after every round, `(rounds + 1, n, d)`; one mixing matrix a round.

    Where the momentum is mixed before it is used (buffer, adapt-then-combine) or the
    tracker is (tracking), that happens with the matrix of the round that made it.
    """
    x = start
    d, v = np.zeros_like(x), np.zeros_like(x)
    mixed_v, mixed_y, last = np.zeros_like(x), np.zeros_like(x), np.zeros_like(x)
    trajectory = [x]
    for k, w in enumerate(matrices, start=1):
        mixing = (1 - omega) * np.eye(len(w)) + omega * w
        delta = local_step(x, k) - x
        if (form, order) == ("displacement", "adapt-then-combine"):
            new = w @ (x + delta) + beta * mixing @ d
        elif (form, order) == ("displacement", "combine-then-adapt"):
            new = w @ x + delta + beta * mixing @ d
        elif (form, order) == ("buffer", "combine-then-adapt"):
            v = beta * mixing @ v + delta
            new = w @ x + v
        elif (form, order) == ("buffer", "adapt-then-combine"):
            v = beta * mixed_v + delta
            mixed_v = mixing @ v
            new = w @ (x + v)
        else:
            y = mixed_y + delta - last
            mixed_y, last = w @ y, delta
            new = w @ (x + y + beta * omega * d) + beta * (1 - omega) * d
        x, d = new, new - x
        trajectory.append(x)
    return np.array(trajectory)


def pull(n: int, d: int, seed: int = 0) -> Callable[[Array, int], Array]:
    """A local step that differs by agent, element and round, and is not linear."""
    rng = np.random.default_rng(seed)
    target, curvature = rng.normal(size=(n, d)), rng.uniform(0.2, 1.0, size=(n, d))

    def local_step(x: Array, k: int) -> Array:
        return x - 0.1 * (curvature * (x - target) + np.sin(x + k) / 5)

    return local_step
