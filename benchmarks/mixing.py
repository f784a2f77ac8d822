"""Mix and combine, as a fraction of the machine's copy bandwidth measured in the same run.

The bytes that must move are every input once and every output once: the agent's
parameters, displacement and trained parameters, its neighbors' payloads, and the new
parameters and displacement, written where the old ones were.
Usage: python benchmarks/mixing.py [--size 25000000] [--turns 9]
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
import tracemalloc
from collections.abc import Callable

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from flower_dhb import HeavyBall
from flower_dhb.agent.mixing import BLOCK, combine
from flower_dhb.types import State


def seconds(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def naive(state: State, trained: np.ndarray, payloads: list[np.ndarray], weight: float) -> None:
    """The law as one writes it down: a pass over memory for every operator."""
    d = state.memory["displacement"]
    mixed = weight * (trained + 0.45 * d)
    for payload in payloads:
        mixed = mixed + weight * payload
    new = mixed + 0.45 * d
    state.memory["displacement"][:] = new - state.parameters
    state.parameters[:] = new


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=25_000_000)
    parser.add_argument("--turns", type=int, default=9)
    arguments = parser.parse_args()
    size, rule = arguments.size, HeavyBall()
    rng = np.random.default_rng(0)

    def vector() -> np.ndarray:
        return rng.standard_normal(size, dtype=np.float32)

    state = State(vector(), {"displacement": vector()})
    trained, copy = vector(), np.zeros(size, np.float32)
    print(f"{size:,} float32 parameters, blocks of {BLOCK:,}, one thread, medians")
    print(
        f"{'degree':>6}{'copy GB/s':>11}{'blocked':>9}{'naive':>7}{'extra, million elements':>24}"
    )
    for degree in (2, 4, 8):
        payloads = [vector() for _ in range(degree)]
        measured = measure(rule, state, trained, payloads, copy, arguments.turns)
        print(f"{degree:>6}" + "".join(f"{value:>{width}}" for value, width in measured))


def measure(
    rule: HeavyBall,
    state: State,
    trained: np.ndarray,
    payloads: list[np.ndarray],
    copy: np.ndarray,
    turns: int,
) -> list[tuple[str, int]]:
    degree, size = len(payloads), len(trained)
    weight = 1.0 / (degree + 1)
    weights = dict.fromkeys(range(degree + 1), weight)
    received = {j: {"folded": payload} for j, payload in enumerate(payloads, start=1)}

    def blocked() -> None:
        combine(rule, state, trained, 0, weights, received, out=state)

    must_move = 4 * size * (3 + degree + 2)
    bandwidth, ours, theirs = [], [], []
    for turn in range(turns + 1):
        rate = 2 * 4 * size / seconds(lambda: np.copyto(copy, trained))
        took = seconds(blocked)
        naive_took = seconds(lambda: naive(state, trained, payloads, weight))
        if turn > 0:
            bandwidth.append(rate / 1e9)
            ours.append(must_move / took / rate)
            theirs.append(must_move / naive_took / rate)
    tracemalloc.start()
    blocked()
    extra = tracemalloc.get_traced_memory()[1] / 4 / 1e6
    tracemalloc.stop()
    medians = [statistics.median(values) for values in (bandwidth, ours, theirs)]
    return [
        (f"{medians[0]:.1f}", 11),
        (f"{medians[1]:.2f}", 9),
        (f"{medians[2]:.2f}", 7),
        (f"{extra:.2f}", 24),
    ]


if __name__ == "__main__":
    main()
