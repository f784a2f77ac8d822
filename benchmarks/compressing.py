"""Time to compress a payload and to make it whole again, beside its time on the wire.

Usage: python -m benchmarks.compressing [--parameters 1000000] [--mbit 100]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np

from benchmarks.compression import COMPRESSIONS
from flower_dhb.agent.compression import Compression, Compressor
from flower_dhb.types import Layout


def median_ms(call: Callable[[], object], times: int = 7) -> float:
    """Milliseconds of a call, the median."""
    found = []
    for _ in range(times):
        begin = time.perf_counter()
        call()
        found.append(1e3 * (time.perf_counter() - begin))
    return statistics.median(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parameters", type=int, default=1_000_000)
    parser.add_argument("--mbit", type=float, default=100.0)
    arguments = parser.parse_args()
    side = round(arguments.parameters**0.5)
    rng = np.random.default_rng(0)
    arrays = {"weight": rng.normal(size=(side, side)).astype(np.float32)}
    layout = Layout.of(arrays)
    known = {"p": layout.flatten(arrays)[0]}
    payload = {"p": known["p"] + rng.normal(size=layout.size).astype(np.float32) * 1e-2}
    plain = 4 * layout.size
    print(f"{'':<16}{'bytes':>12}{'encode ms':>11}{'decode ms':>11}{'wire ms':>9}{'saved ms':>10}")
    print(f"{'none':<16}{plain:>12,}{'':>22}{8e-3 * plain / arguments.mbit:>9.0f}")
    for kind in COMPRESSIONS[1:]:
        compressor = Compressor.of(Compression.parse(kind), ("p",), layout)
        codes = compressor.encode(payload, known, 1, 0) or {}
        encode = median_ms(lambda c=compressor: c.encode(payload, known, 1, 0))
        decode = median_ms(lambda c=compressor, k=codes: c.decode(k, known, 1))
        n = compressor.n_bytes
        wire, saved = 8e-3 * n / arguments.mbit, 8e-3 * (plain - n) / arguments.mbit
        print(f"{kind:<16}{n:>12,}{encode:>11.1f}{decode:>11.1f}{wire:>9.1f}{saved:>10.0f}")


if __name__ == "__main__":
    main()
