"""Rounds and bytes to 95 % with compressed payloads: digits, two classes per agent, 16 agents.

For each rule and graph the learning rate is the one of the grid with which the mean of the agents
is soonest at 95 % without compression, on validation data and one seed; a compression takes the
same. Cells are kept, so a study may be run in parts. Usage:
python -m benchmarks.compression [--rounds 300] [--seeds 3] [--out runs/compression]
                                 [--graph SPEC ...] [--rule NAME ...]
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import os
import statistics
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from flower_dhb.algorithms import method
from flower_dhb.compare.tasks import make_task
from flower_dhb.compare.training import TEST, VALIDATION
from flower_dhb.engine.engine import Engine
from flower_dhb.errors import ConfigError
from flower_dhb.files import write_durably
from flower_dhb.topology.turns import parse_graph, share_every

TARGET, LOOKED = 0.95, 2
GRID = (0.05, 0.1, 0.2, 0.4)
VIEWS = ("average", "mean", "worst")
RULES = ("dmsgd", "safeguarded", "dmsgd-gt")
BESIDE = ("motef", "dsgd", "dsgt")  # with estimates: MoTEF, CHOCO-SGD and, nearly, BEER
# "every 5": only each fifth round has an exchange.
GRAPHS = ("ring:16", "torus:4x4", "exponential:16", "one-peer:16", "base:16:1", "base:16:3")
SELDOM = ("ring:16 every 5",)
COMPRESSIONS = (
    "none",
    "bf16",
    "int8",
    "int4",
    "topk:0.5+int4",
    "topk:0.1",
    "topk:0.01",
    "randk:0.1",
    "lowrank:2",
)


def run(rule: str, graph: str, compression: str, rate: float, seed: int, part: str, rounds: int):
    """Rounds and bytes at which each view is at the target for the first time."""
    task = make_task("digits-mlp")
    spec, _, every = graph.partition(" every ")
    topology = share_every(parse_graph(spec), int(every or 1))
    problem = task.problem(topology.n_agents, "classes:2", seed)
    engine = Engine(problem, topology, method(rule), learning_rate=rate, compression=compression)
    found: dict[str, tuple[int, int]] = {}
    last = dict.fromkeys(VIEWS, 0.0)
    while engine.round < rounds and len(found) < len(VIEWS):
        engine.run(LOOKED)
        if not engine.finite:
            break
        scores = task.scores(engine, part)
        last = {
            "average": scores.average,
            "mean": float(scores.agents.mean()),
            "worst": float(scores.agents.min()),
        }
        for view, value in last.items():
            if value >= TARGET:
                found.setdefault(view, (engine.round, engine.bytes_sent))
    return {"reached": found, "last": last, "rounds": engine.round}


def tuned(rule: str, graph: str, rounds: int, out: Path) -> float:
    """The rate that is soonest at the target; the one with the best mean if none is."""
    name = f"rate {rule} {graph}"

    def best() -> Any:
        def rank(rate: float) -> tuple[float, float]:
            end = run(rule, graph, "none", rate, 100, VALIDATION, rounds)
            return end["reached"].get("mean", (rounds + 1, 0))[0], -end["last"]["mean"]

        return min(GRID, key=rank)

    return float(kept(out, name, best))


def kept(out: Path, name: str, make: Any) -> Any:
    """What is in the folder under a name, or is made now."""
    path = out / f"{name.replace(':', '-').replace(' ', '_')}.json"
    if not path.exists():
        write_durably(path, json.dumps(make()).encode())
    return json.loads(path.read_text())


def cells(
    wanted: Iterable[tuple[str, str]], seeds: int, rounds: int, out: Path
) -> Iterator[dict[str, Any]]:
    """One row for each graph, rule and compression: medians over seeds."""
    for graph, rule in wanted:
        for compression in COMPRESSIONS:
            if rule in BESIDE and compression not in ("none", "topk:0.1", "topk:0.01"):
                continue
            row: dict[str, Any] = {"graph": graph, "rule": rule, "compression": compression}
            try:
                rate = tuned(rule, graph, rounds, out)
                found = [
                    kept(
                        out,
                        f"{rule} {graph} {compression} {seed}",
                        lambda g=graph, r=rule, c=compression, a=rate, s=seed: run(
                            r, g, c, a, s, TEST, rounds
                        ),
                    )
                    for seed in range(seeds)
                ]
            except ConfigError as error:
                yield {**row, "refused": str(error)}
                continue
            row["rate"] = rate
            for view in VIEWS:
                hits = [f["reached"].get(view) for f in found]
                if all(hits):
                    row[f"rounds {view}"] = statistics.median(hit[0] for hit in hits)
                    row[f"MB {view}"] = statistics.median(hit[1] for hit in hits) / 1e6
            row["mean at the end"] = statistics.median(f["last"]["mean"] for f in found)
            yield row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--graph", action="append", help="only these graphs")
    parser.add_argument("--rule", action="append", help="only these rules")
    parser.add_argument("--out", type=Path, default=Path("runs/compression"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    names = ["graph", "rule", "compression", "rate"]
    names += [f"{what} {view}" for view in VIEWS for what in ("rounds", "MB")]
    names += ["mean at the end", "refused"]
    rows = []
    rules = arguments.rule or (*RULES, *BESIDE)
    wanted = itertools.product(arguments.graph or (*GRAPHS, *SELDOM), rules)
    for row in cells(wanted, arguments.seeds, arguments.rounds, arguments.out):
        rows.append(row)
        print(*(f"{row.get(name, '-')}"[:40] for name in names), sep="  ", flush=True)
    with (arguments.out / "compression.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
