"""`flower-dhb mesh up`: all peers of a mesh on this machine, started, watched, and ended."""

from __future__ import annotations

import argparse
import json
import os
import subprocess  # nosec B404
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flower_dhb.cli.mesh_status import watch
from flower_dhb.peer.device.ending import Ending

if TYPE_CHECKING:
    from flower_dhb.peer.mesh.fleet import Fleet, FleetStatus

__all__ = ["Local", "configure_up", "up"]

_PEER = "from flower_dhb.cli import main; raise SystemExit(main())"


def configure_up(actions: Any) -> None:
    """Declare the arguments."""
    up = actions.add_parser("up", help="run all peers on this machine and watch them")
    up.add_argument("mesh", type=Path)
    up.add_argument("--quiet", action="store_true", help="no live view")


def up(arguments: argparse.Namespace) -> int:
    """Run all peers here. Returns the exit status."""
    from flower_dhb.peer.mesh.fleet import Fleet

    fleet = Fleet(arguments.mesh)
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    processes: list[subprocess.Popen[bytes]] = []
    logs = []
    try:
        for vertex in sorted(fleet.hosts):
            home = arguments.mesh / f"vertex-{vertex}"
            log = (home / "peer.log").open("ab")
            logs.append(log)
            command = [
                sys.executable,
                "-c",
                _PEER,
                "peer",
                str(home / "peer.toml"),
                "--log",
                "json",
            ]
            command += ["--with-parent", str(os.getpid())]
            processes.append(
                subprocess.Popen(  # noqa: S603  # nosec B603
                    command, stdout=log, stderr=log, env=environment
                )
            )
        if arguments.quiet:
            for process in processes:
                process.wait()
        else:
            watch(Local(fleet, processes))
    finally:
        for process in processes:
            if process.poll() is None:
                process.terminate()
        for process in processes:
            process.wait()
        for log in logs:
            log.close()
        fleet.close()
    alone = [v for v, p in enumerate(processes) if p.returncode == Ending.ALONE]
    failed = [v for v, p in enumerate(processes) if p.returncode not in (0, Ending.ALONE)]
    for vertex in alone:
        print(
            f"vertex {vertex} finished alone: no neighbor had a part in its last rounds; see "
            f"{arguments.mesh / f'vertex-{vertex}' / 'peer.log'}",
            file=sys.stderr,
        )
    for vertex in failed:
        print(
            f"vertex {vertex} ended with status {processes[vertex].returncode}; see "
            f"{arguments.mesh / f'vertex-{vertex}' / 'peer.log'}",
            file=sys.stderr,
        )
    if not failed:
        print(_summary(arguments.mesh, sorted(fleet.hosts)))
    return 1 if failed else Ending.ALONE if alone else 0


class Local:
    """Peers that this process has started: silence has another meaning while they load."""

    def __init__(self, fleet: Fleet, processes: list[subprocess.Popen[bytes]]) -> None:
        self._fleet, self._processes = fleet, processes
        self._seen: dict[int, Any] = {}

    @property
    def ended(self) -> bool:
        """Whether all of them have."""
        return all(process.poll() is not None for process in self._processes)

    def look(self) -> tuple[FleetStatus, list[int]]:
        """How they are, those that have ended as they were last, and which are starting."""
        from flower_dhb.peer.mesh.fleet import FleetStatus
        from flower_dhb.peer.watch.status import FINISHED

        found = self._fleet.status(timeout_s=1.0)
        self._seen |= found.replies
        alive = [v for v, process in enumerate(self._processes) if process.poll() is None]
        starting = [v for v in alive if v not in self._seen]
        failures = {v: why for v, why in found.failures.items() if v in alive and v in self._seen}
        for vertex, process in enumerate(self._processes):
            if process.poll() not in (None, 0, Ending.ALONE):
                failures[vertex] = f"it ended with status {process.returncode}"
            elif vertex not in alive and vertex in self._seen:
                last = self._seen[vertex]  # asked before its last round, as a rule
                last.phase, last.round = FINISHED, last.rounds
        return FleetStatus(dict(self._seen), failures, found.edges), starting


def _summary(mesh: Path, vertices: list[int]) -> str:
    """Mean and worst final accuracy, if the app reports one."""
    final = []
    for vertex in vertices:
        lines = (mesh / f"vertex-{vertex}" / "state" / "history.jsonl").read_text().splitlines()
        entries = [json.loads(line) for line in lines]
        found = [e["evaluate"]["accuracy"] for e in entries if "accuracy" in e.get("evaluate", {})]
        if found:
            final.append(found[-1])
    if not final:
        return f"{len(vertices)} peers finished"
    mean, worst = sum(final) / len(final), min(final)
    return f"{len(vertices)} peers finished; accuracy mean {mean:.4f}, worst {worst:.4f}"
