"""What faults cost a run on Flower's deployment: rounds, seconds, accuracy.

    python -m benchmarks.deployment_faults --transport relay

Four SuperNodes with registered keys, a SuperLink with TLS and a database, a small classification
over a ring. One run goes on while one fault after the other is injected; before the next one the
run must have had two rounds without anybody missing. Lost are the rounds in which an agent was
missing, and the seconds by which the rounds from a fault to its end were longer than the median.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from deploy.local import Deployment
from flower_dhb import HeavyBall, Topology, simulate
from tests.integration.apps.deployed.deployed import clusters
from tests.support.deployment import Run
from tests.support.deployment_faults import FAULTS

N, VERTEX, WELL, MOMENTUM = 4, 2, 2, 0.5
Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--transport", default="relay", choices=["relay", "direct"])
    parser.add_argument("--rounds", type=int, default=5000, help="at most")
    parser.add_argument("--step-s", type=float, default=0.0, help="seconds that a training takes")
    parser.add_argument("--timeout-s", type=float, default=30.0, help="of a round")
    parser.add_argument("--only", nargs="*", default=list(FAULTS), help="faults by name")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        print(measured(Path(folder), arguments))


def measured(folder: Path, arguments: argparse.Namespace) -> str:
    """The table."""
    direct = arguments.transport == "direct"
    trouble = folder / "trouble"
    trouble.mkdir()
    for vertex in range(N):
        (trouble / f"slow-{vertex}").write_text(str(arguments.step_s))
    values = {"topology": f"ring:{N}", "rounds": arguments.rounds, "momentum": MOMENTUM}
    values |= {"task": "clusters", "trouble": str(trouble)}
    strategy = {"round_timeout_s": arguments.timeout_s, "evaluate_every": 0}
    strategy |= {"transport": "direct"} if direct else {}
    begun: dict[str, int] = {}
    with Deployment(folder, executor=True) as deployment:
        deployment.start_link()
        if direct:
            deployment.make_mesh(N)
        deployment.start_nodes(range(N))
        run = Run.submit(deployment, values, **strategy)
        for name in arguments.only:
            since = begun[name] = len(run.wait_for(lambda rows: well(rows, 0), 300.0))
            FAULTS[name](deployment, trouble, VERTEX)
            run.wait_for(lambda rows, since=since: well(rows, since + 1), 400.0)  # type: ignore[misc]
            print(f"{name}: over", flush=True)
        (trouble / "enough").touch()
        rows = run.finish(600.0)
        found = [clusters.accuracy(model) for model in run.models("x")]
    usual = statistics.median(row["seconds"] for row in rows if not row["missing"])
    lines = [f"{len(rows)} rounds, {arguments.transport}, {usual:.2f} s a round without a fault"]
    lines += ["| fault | rounds lost | seconds lost |", "|---|---|---|"]
    ends = [*list(begun.values())[1:], len(rows)]
    for (name, start), end in zip(begun.items(), ends, strict=True):
        part = rows[start:end]
        lost = sum(bool(row["missing"]) for row in part)
        seconds = sum(row["seconds"] - usual for row in part if row["seconds"] > 1.5 * usual)
        lines.append(f"| {name} | {lost} | {seconds:.0f} |")
    alone = [clusters.accuracy(model) for model in undisturbed(len(rows))]
    lines.append(f"accuracy, worst agent: {min(found):.4f}, undisturbed {min(alone):.4f}")
    return "\n".join(lines)


def well(rows: list[Row], since: int) -> bool:
    """Whether the last rounds, all of them after `since`, had nobody missing."""
    last = rows[since:][-WELL:]
    return len(last) == WELL and not any(row["missing"] for row in last)


def undisturbed(rounds: int) -> np.ndarray:
    """Final models of the same run in which nothing goes wrong."""
    step = lambda x, _: np.stack([clusters.step(x[v], v) for v in range(N)])  # noqa: E731
    rule = HeavyBall(momentum=MOMENTUM)
    return simulate(rule, Topology.ring(N), np.zeros((N, clusters.SIZE)), step, rounds)[-1]


if __name__ == "__main__":
    main()
