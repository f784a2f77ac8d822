"""`make demo-deployment`: Flower's own deployment on this machine, with nobody who averages.

A SuperLink with TLS, node authentication and a database on the disk; a SuperNode with a registered
key for each vertex of a graph; the app at the root of this repository on handwritten digits.
Payloads go from neighbor to neighbor, or with `--transport relay` through the SuperLink. What
happens is shown as it happens, and all that was started is ended.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path

from rich.console import Console

from deploy.local import ROOT, Deployment
from flower_dhb.cli.run import Watch
from flower_dhb.errors import FlowerDhbError
from flower_dhb.flower.progress import VARIABLE, Progress
from flower_dhb.topology.graph import Topology

__all__ = ["main"]

_ROUNDS = {"direct": 100, "relay": 10}


def main(words: list[str] | None = None) -> int:
    """Run the demonstration; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m deploy.demo", description=__doc__)
    parser.add_argument("--topology", default="torus:2x4", help="the graph (default: torus:2x4)")
    parser.add_argument(
        "--transport",
        choices=list(_ROUNDS),
        default="direct",
        help="how payloads travel: direct, neighbor to neighbor, or through the SuperLink",
    )
    parser.add_argument(
        "--rounds", type=int, help="number of rounds (default: 100, or 10 through the SuperLink)"
    )
    parser.add_argument("--runs-dir", type=Path, default=ROOT / "runs", help="where results go")
    arguments = parser.parse_args(words)
    console = Console()
    folder = Path(tempfile.mkdtemp(prefix="flower-dhb-deployment-"))
    try:
        _show(console, folder, arguments)
    except (FlowerDhbError, OSError) as error:
        console.print(f"{error}\nThe logs are in {folder}", markup=False, soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        console.print("Stopped.")
        shutil.rmtree(folder, ignore_errors=True)
        return 130
    shutil.rmtree(folder, ignore_errors=True)
    return 0


def _show(console: Console, folder: Path, arguments: argparse.Namespace) -> None:
    rounds = arguments.rounds or _ROUNDS[arguments.transport]
    n_agents = Topology.parse(arguments.topology).n_agents
    progress = folder / "progress.jsonl"
    say = lambda text: console.print(text, highlight=False, markup=False)  # noqa: E731
    with Deployment(folder, {VARIABLE: str(progress)}) as deployment:
        say("Starting a SuperLink: TLS, node authentication, database on the disk.")
        deployment.start_link()
        if arguments.transport == "direct":
            say(f"Making {n_agents} identities, by which neighbors know each other.")
            deployment.make_mesh(n_agents)
        say(f"Registering {n_agents} keys and starting {n_agents} SuperNodes.")
        deployment.start_nodes(range(n_agents))
        settings = {
            "topology": arguments.topology,
            "transport": arguments.transport,
            "rounds": rounds,
            "runs-dir": str(arguments.runs_dir.resolve()),
            "name": "demo-deployment",
        }
        run_id = deployment.submit(ROOT, settings)
        say(f"Run {run_id} has begun: {rounds} rounds on {arguments.topology}.")
        watch = Watch(deployment.flower, Progress(progress), folder / "run.log")
        watch.follow(run_id, console)
    watch.print_results(console)
    say("The SuperLink and the SuperNodes have ended.")


if __name__ == "__main__":
    raise SystemExit(main())
