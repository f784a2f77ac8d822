"""Direct rounds of a deployment beside peers and relayed rounds: the root app, eight nodes.

Eight SuperNodes with registered keys and identities of a mesh, and a SuperLink with TLS and a
database, run on this machine. By turns they hold direct rounds and relayed ones, and eight peers
train the same app on the same graph. A round takes as long as its slowest agent says; the whole
run of direct rounds counts what Flower takes for the messages that open segments, too. Usage:
python -m benchmarks.deployment_direct [--rounds 200] [--relayed 3] [--turns 2]
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from deploy.local import ROOT, Deployment
from tests.support.peers import Mesh

N, GRAPH = 8, "torus:2x4"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=200, help="direct ones, and of the peers")
    parser.add_argument("--relayed", type=int, default=3, help="relayed rounds")
    parser.add_argument("--turns", type=int, default=2)
    arguments = parser.parse_args()
    rounds: dict[str, list[float]] = {"direct": [], "relay": [], "peers": []}
    whole: list[float] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "deployment"
        folder.mkdir()
        with Deployment(folder) as deployment:
            deployment.start_link()
            deployment.make_mesh(N)
            deployment.start_nodes(range(N))
            for turn in range(arguments.turns):
                here = Path(scratch) / str(turn)
                seconds = deployed(deployment, here / "direct", "direct", arguments.rounds)
                rounds["direct"] += seconds[1:]
                whole.append(sum(seconds))
                rounds["peers"] += peers(here / "peers", arguments.rounds)
                rounds["relay"] += deployed(deployment, here / "relay", "relay", arguments.relayed)
    middle = {name: statistics.median(found) for name, found in rounds.items()}
    for name, seconds_a_round in middle.items():
        print(f"{name:<40}{seconds_a_round:>10.3f} s a round{len(rounds[name]):>8} rounds")
    print(f"{'direct / peers':<40}{middle['direct'] / middle['peers']:>10.2f}")
    took = statistics.median(whole)
    print(f"{f'{arguments.rounds} direct rounds, with their messages':<40}{took:>10.1f} s")
    relayed = arguments.rounds * middle["relay"]
    print(f"{'as many relayed ones / that':<40}{relayed / took:>10.1f}")


def deployed(deployment: Deployment, runs: Path, transport: str, rounds: int) -> list[float]:
    """Seconds of each round of a run of the root app. The last relayed one is not counted."""
    relayed = transport == "relay"
    settings: dict[str, Any] = {"topology": GRAPH, "transport": transport, "runs-dir": str(runs)}
    settings |= {"rounds": rounds + relayed, "evaluate-every": 10}
    ended = deployment.end_of(deployment.submit(ROOT, settings), 3600.0)
    if ended[0] != "finished:completed":
        raise SystemExit(f"{ended}: {deployment.log('link').read_text(errors='replace')[-3000:]}")
    (path,) = runs.glob("*/history.jsonl")
    found = [json.loads(line)["seconds"] for line in path.read_text().splitlines()]
    return found[: len(found) - relayed]


def peers(home: Path, rounds: int) -> list[float]:
    """Seconds of each round of as many peers."""
    settings = {"topology": GRAPH, "rounds": rounds, "evaluate-every": 10}
    with Mesh(home, app=ROOT, n=N, **settings) as mesh:
        mesh.start()
        mesh.finish(60.0 + rounds)
        histories = [mesh.history(v) for v in range(N)]
    slowest = [max(entry["seconds"] for entry in row) for row in zip(*histories, strict=True)]
    return slowest[1:]


if __name__ == "__main__":
    main()
