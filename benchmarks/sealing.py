"""What processor time it takes to seal a payload and to open the neighbors', and how long it gets.

Usage: python -m benchmarks.sealing [--parameters 5000000] [--degree 4] [--times 5]
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from flower_dhb.peer.mesh.identities import IdentityPlan, create_identities
from flower_dhb.site.keys import MeshKeys
from flower_dhb.site.sealing import Sealer

RUN = f"{1:016x}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parameters", type=int, default=5_000_000, help="of four bytes each")
    parser.add_argument("--degree", type=int, default=4)
    parser.add_argument("--times", type=int, default=5)
    arguments = parser.parse_args()
    n = arguments.degree + 1
    with tempfile.TemporaryDirectory() as scratch:
        plan = IdentityPlan(out=Path(scratch) / "mesh", vertices=n)
        keys = [MeshKeys.load(home, v) for v, home in enumerate(create_identities(plan))]
    secrets = [os.urandom(32) for _ in range(n)]
    announced = {v: Sealer(keys[v], RUN, secrets[v], {}).announcement() for v in range(n)}

    def sealer(vertex: int) -> Sealer:
        others = {j: text for j, text in announced.items() if j != vertex}
        return Sealer(keys[vertex], RUN, secrets[vertex], others)

    frame = os.urandom(4 * arguments.parameters)
    refused: list[str] = []
    sealed = sealer(0).seal(frame, 1, refused.append)
    seal = median_of(lambda: sealer(0).seal(frame, 1, refused.append), arguments.times)
    opened = median_of(lambda: sealer(1).open(sealed, 0, 1), arguments.times)
    assert not refused
    print(f"{arguments.parameters} parameters, {arguments.degree} neighbors")
    print(f"seal once a round             {1e3 * seal:8.1f} ms")
    print(f"open one neighbor's           {1e3 * opened:8.1f} ms")
    print(f"a round of one agent          {1e3 * (seal + arguments.degree * opened):8.1f} ms")
    print(f"bytes                         {len(sealed) / len(frame):8.5f} times")


def median_of(call: Callable[[], object], times: int) -> float:
    """Median processor time of some calls in seconds, the sealer made anew as for each message."""
    seconds = []
    for _ in range(times):
        begin = time.process_time()
        call()
        seconds.append(time.process_time() - begin)
    return statistics.median(seconds)


if __name__ == "__main__":
    main()
