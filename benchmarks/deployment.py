"""Seconds per round in a deployment, by turns in one run: the floor, FedAvg, and the relay.

Eight SuperNodes with registered keys and a SuperLink with TLS and a database run on this machine.
The floor is FedAvg with an app that returns at once: what Flower itself needs for a round. Usage:
python -m benchmarks.deployment [--app numpy | digits] [--rounds 3] [--turns 2] [--nodes 8]
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
from pathlib import Path

import tomli_w

from deploy.local import Deployment
from flower_dhb.flower.profile import PARTS, mean_profile

ROOT = Path(__file__).resolve().parents[1]
APP = Path(__file__).resolve().parent / "deployment_app"


def write_app(path: Path) -> None:
    """The app that takes turns, with the root app's own modules beside it."""
    shutil.copytree(APP, path, ignore=shutil.ignore_patterns("*.pyc", "__pycache__"))
    for folder in ("strategies", "clients"):
        shutil.copytree(ROOT / folder, path / folder, ignore=shutil.ignore_patterns("*.pyc"))
    document = {
        "project": {"name": "turns", "version": "1.0.0", "license": "Apache-2.0"},
        "tool": {
            "flwr": {
                "app": {
                    "publisher": "benchmarks",
                    "fab-include": ["turns/**/*.py", "strategies/**/*.py", "clients/**/*.py"],
                    "components": {
                        "serverapp": "turns.server_app:app",
                        "clientapp": "turns.client_app:app",
                    },
                    "config": {
                        "topology": "ring:8",
                        "rounds": 3,
                        "turns": 2,
                        "work": "numpy",
                        "output": "",
                        "parameters": 1000,
                        "only": "",
                    },
                }
            }
        },
    }
    (path / "pyproject.toml").write_text(tomli_w.dumps(document), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--app", choices=("numpy", "digits"), default="numpy")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--nodes", type=int, default=8)
    parser.add_argument("--parameters", type=int, default=1000, help="of the NumPy app")
    parser.add_argument("--only", default="", help="rows of the table, separated by semicolons")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder, output = Path(scratch) / "deployment", Path(scratch) / "seconds.json"
        app = Path(scratch) / "app"
        write_app(app)
        folder.mkdir()
        with Deployment(folder) as deployment:
            deployment.start_link()
            deployment.make_mesh(arguments.nodes)  # keys, for payloads that are sealed
            deployment.start_nodes(range(arguments.nodes))
            settings = {"work": arguments.app, "rounds": arguments.rounds}
            settings |= {"turns": arguments.turns, "output": str(output)}
            settings |= {"topology": f"ring:{arguments.nodes}", "parameters": arguments.parameters}
            settings["only"] = arguments.only
            deployment.end_of(deployment.submit(app, settings), 24 * 3600.0)
            if not output.exists():
                log = deployment.log("link").read_text(errors="replace")
                raise SystemExit(f"the run failed: {log[-4000:]}")
        show(json.loads(output.read_text(encoding="utf-8")))


def show(found: dict[str, dict[str, list[object]]]) -> None:
    """Medians over rounds, in seconds and as multiples of the first row; and where time goes."""
    first = next(iter(found["seconds"]))
    floor = statistics.median(found["seconds"][first])
    print(f"{'':<44}{'s a round':>10}{f'/ {first}':>9}{'rounds':>8}")
    for name, seconds in found["seconds"].items():
        middle = statistics.median(seconds)
        print(f"{name:<44}{middle:>10.2f}{middle / floor:>9.2f}{len(seconds):>8}")
    print(f"\n{'':<44}" + "".join(f"{name:>14}" for name in PARTS))
    for name, profiles in found["profiles"].items():
        print(f"{name:<44}" + "".join(f"{s:>14.2f}" for s in mean_profile(profiles).values()))


if __name__ == "__main__":
    main()
