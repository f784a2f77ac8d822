"""Peers on slow, long and lossy links: how many edges count, and how long a round takes.

`python -m benchmarks.peers_links` runs three peers, each with both others as neighbors and each
edge a proxy on loopback with a link of its own (`tests/support/links.py`), at the default limits
but for `round-timeout-s`, which is an hour.
It prints for each case the edges that counted, the median seconds of a round after the first,
and the seconds that the link needs: the payload at its rate, and the way there and back. A lost
segment delays what is behind it; that TCP sends less after a loss, a proxy cannot show. Where a
payload is compressed, the link needs the time of what is sent of it.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np

from flower_dhb.agent.compression import Compression
from flower_dhb.agent.node import compressor_of
from flower_dhb.algorithms import method
from flower_dhb.types import Layout
from tests.support.links import Shape, ShapedLinks
from tests.support.peers import Mesh

KB, MB = 1000, 1000 * 1000
RULE = "dsgd"
COMPRESSIONS = ("int8", "topk:0.01")


@dataclass(frozen=True)
class Case:
    """A payload on a link, and so many rounds."""

    name: str
    payload_bytes: int
    shape: Shape
    rounds: int
    compression: str = "none"

    @property
    def needs_s(self) -> float:
        """Seconds that a round cannot go below."""
        return self.sent_bytes / self.shape.bytes_s + 2 * self.shape.way_s

    @property
    def sent_bytes(self) -> int:
        """What is sent of a payload, without its header."""
        layout = Layout.of({"x": np.zeros(self.payload_bytes // 4, np.float32)})
        compressor = compressor_of(Compression.parse(self.compression), method(RULE), layout)
        return self.payload_bytes if compressor is None else compressor.n_bytes


def link(bits_s: float, way_s: float = 0.0, loss: float = 0.0) -> Shape:
    """A link by its bits a second."""
    return Shape(bits_s / 8, way_s, loss)


CASES = (
    Case("200 KB, 100 kbit/s", 200 * KB, link(100e3), 5),
    Case("4 MB, 1 Mbit/s", 4 * MB, link(1e6), 4),
    Case("4 MB, 2 Mbit/s", 4 * MB, link(2e6), 4),
    Case("1 MB, 10 Mbit/s, 600 ms there and back", MB, link(10e6, 0.3), 10),
    Case("1 MB, 10 Mbit/s, 50 ms, 5 % loss", MB, link(10e6, 0.025, 0.05), 8),
    Case("100 MB, 10 Mbit/s", 100 * MB, link(10e6), 2),
    Case("4 MB, 100 kbit/s", 4 * MB, link(100e3), 3),
    *(Case(f"4 MB, 1 Mbit/s, {c}", 4 * MB, link(1e6), 4, c) for c in COMPRESSIONS),
    *(Case(f"4 MB, 100 kbit/s, {c}", 4 * MB, link(100e3), 4, c) for c in COMPRESSIONS),
)


def run(case: Case, out: Path) -> tuple[float, float]:
    """Run a case. Returns the share of edges that counted, and the seconds of a round."""
    links = ShapedLinks(case.shape)
    overrides: dict[str, int | str] = {
        "rounds": case.rounds,
        "size": case.payload_bytes // 4,
        "dtype": "float32",
    }
    if case.compression != "none":
        overrides |= {"algorithm": RULE, "compression": case.compression}
    with Mesh(out, n=3, topology="complete:3", round_timeout_s=3600.0, **overrides) as mesh:
        links.place(mesh)
        try:
            mesh.start()
            mesh.finish(3.0 * case.rounds * case.needs_s + 60.0, alone=mesh.paths)
        finally:
            links.close()
        lines = [line for v in mesh.paths for line in mesh.history(v)]
        missing = sum(len(line.get("missing", ())) for line in lines)
        seconds = [line["seconds"] for line in lines if line["round"] > 1 and "seconds" in line]
        return 1.0 - missing / (2 * 3 * case.rounds), median(seconds)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="cases that have this text in their name")
    only = parser.parse_args().only
    print(
        "| link | edges that count | round, s | the link needs, s | ratio |\n|---|---|---|---|---|"
    )
    for case in CASES:
        if only in case.name:
            with tempfile.TemporaryDirectory() as directory:
                counted, seconds = run(case, Path(directory) / "mesh")
            print(
                f"| {case.name} | {100 * counted:.0f} % | {seconds:.2f} | {case.needs_s:.2f} | "
                f"{seconds / case.needs_s:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
