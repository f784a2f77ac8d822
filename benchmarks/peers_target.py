"""Real peers on slow links: seconds until their models are good, with and without compression.

`python -m benchmarks.peers_target` runs eight peers on a ring, each edge a proxy on loopback with
a link of its own (`tests/support/links.py`). Each trains an MLP of a million parameters on its
share of digits (Dirichlet 0.1), ten steps of SGD at rate 0.3 in a round, and evaluates after every
round. A run ends when the mean over agents of the test accuracy, and the worst agent's, have been
95 %. It prints the round and the seconds, from the first process's start until the last agent has
finished that round, and the megabytes of payload that all agents have sent by then.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.peers import APP
from benchmarks.peers_links import link
from tests.support.links import ShapedLinks
from tests.support.peers import DIGITS, Mesh

N, TARGET, ROUNDS = 8, 0.95, 40
LINKS = {"1 Mbit/s": 1e6, "100 kbit/s": 1e5}
COMPRESSIONS = ("none", "int8", "topk:0.5+int4")
VIEWS: dict[str, Callable[[list[float]], float]] = {
    "mean": lambda values: sum(values) / len(values),
    "worst": min,
}
Found = dict[str, tuple[int, float, float]]


class Watch:
    """When each agent finished each round, and how good its model was then."""

    def __init__(self, mesh: Mesh) -> None:
        self.mesh, self.began = mesh, time.monotonic()
        self.scores: dict[int, dict[int, float]] = {}
        self.done: dict[int, float] = {}
        self.read = dict.fromkeys(mesh.paths, 0)

    def over(self) -> bool:
        """Whether all targets are reached, or an agent has ended. Called when events came."""
        for v, process in self.mesh.processes.items():
            events = list(process.events)
            for event in events[self.read[v] :]:
                if event["event"] == "round":
                    scores = self.scores.setdefault(event["round"], {})
                    scores[v] = event["metrics"]["accuracy"]
                    if len(scores) == N:
                        self.done[event["round"]] = time.monotonic() - self.began
                elif event["event"] == "ended":
                    return True
            self.read[v] = len(events)
        return len(self.reached()) == len(VIEWS)

    def reached(self) -> dict[str, int]:
        """The first round at whose end each view is at the target."""
        found: dict[str, int] = {}
        for k in sorted(self.done):
            values = list(self.scores[k].values())
            for name, view in VIEWS.items():
                if view(values) >= TARGET:
                    found.setdefault(name, k)
        return found

    def found(self) -> Found:
        """Round, seconds and megabytes at each target."""
        lines = [line for v in self.mesh.paths for line in self.mesh.history(v)]
        return {
            name: (
                k,
                self.done[k],
                sum(line.get("bytes", 0) for line in lines if line["round"] <= k) / 1e6,
            )
            for name, k in self.reached().items()
        }


def run(bits_s: float, compression: str, algorithm: str, hidden: str) -> tuple[Found, int]:
    """Run one mesh until it is good enough. Returns what was found, and how many edges missed."""
    links = ShapedLinks(link(bits_s))
    settings: dict[str, int | str | float] = {
        "algorithm": algorithm,
        "rounds": ROUNDS,
        "round-timeout-s": 3600.0,  # a payload of 4 MB takes 320 s at 100 kbit/s
        "evaluate-every": 1,
        "hidden": hidden,
        "split": "dirichlet:0.1",
        "local-steps": 10,
        "learning-rate": 0.3,
        "compression": compression,
    }
    with (
        tempfile.TemporaryDirectory() as directory,
        Mesh(Path(directory) / "mesh", app=APP, n=N, load=DIGITS, **settings) as mesh,
    ):
        links.place(mesh)
        watch = Watch(mesh)
        try:
            mesh.start()
            mesh.wait(watch.over, 4 * 3600.0, "good models")
            return watch.found(), sum(map(len, mesh.missing_edges().values()))
        finally:
            links.close()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--link", choices=LINKS, action="append", help="only these links")
    parser.add_argument("--compression", action="append", help="only these compressions")
    parser.add_argument("--algorithm", default="safeguarded")
    parser.add_argument("--hidden", default="960,960", help="widths of the MLP's layers")
    arguments = parser.parse_args()
    print("| link | compression | mean: round, s, MB | worst: round, s, MB | missing |")
    print("|---|---|---|---|---|")
    for name in arguments.link or LINKS:
        for compression in arguments.compression or COMPRESSIONS:
            found, missing = run(LINKS[name], compression, arguments.algorithm, arguments.hidden)
            cells = [
                "{}, {:.0f}, {:.1f}".format(*found[view]) if view in found else "never"
                for view in VIEWS
            ]
            print(f"| {name} | {compression} | {' | '.join(cells)} | {missing} |", flush=True)


if __name__ == "__main__":
    main()
