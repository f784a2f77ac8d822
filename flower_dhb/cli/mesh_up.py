"""`flower-dhb mesh up`: all peers of a mesh on this machine, started, watched, and ended."""

from __future__ import annotations

import argparse
import json
import os
import subprocess  # nosec B404
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flower_dhb.cli.mesh_status import watch
from flower_dhb.peer.device.ending import Ending

if TYPE_CHECKING:
    from flower_dhb.peer.mesh.fleet import Fleet
    from flower_dhb.peer.mesh.status import FleetStatus
    from flower_dhb.peer.wire import relay_pb2 as pb

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
    processes: dict[int, subprocess.Popen[bytes]] = {}
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
            processes[vertex] = subprocess.Popen(  # noqa: S603  # nosec B603
                command, stdout=log, stderr=log, env=environment
            )
        if arguments.quiet:
            for process in processes.values():
                process.wait()
        else:
            watch(Local(fleet, processes))
    finally:
        for process in processes.values():
            if process.poll() is None:
                process.terminate()
        for process in processes.values():
            process.wait()
        for log in logs:
            log.close()
        fleet.close()
    alone = [v for v, p in processes.items() if p.returncode == Ending.ALONE]
    stopped = [v for v, p in processes.items() if p.returncode == Ending.STOPPED]
    fine = (0, Ending.ALONE, Ending.STOPPED)
    failed = [v for v, p in processes.items() if p.returncode not in fine]
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
    if stopped:
        print(f"{len(stopped)} peers were stopped; 'mesh up' goes on where they were")
    elif not failed:
        print(_summary(arguments.mesh, sorted(fleet.hosts)))
    return 1 if failed else Ending.STOPPED if stopped else Ending.ALONE if alone else 0


class Local:
    """Peers that this process has started: silence has another meaning while they load."""

    def __init__(self, fleet: Fleet, processes: Mapping[int, subprocess.Popen[bytes]]) -> None:
        self._fleet, self._processes = fleet, processes
        self._seen: dict[int, pb.StatusReply] = {}

    @property
    def ended(self) -> bool:
        """Whether all of them have."""
        return all(process.poll() is not None for process in self._processes.values())

    def look(self) -> FleetStatus:
        """How they are, those that have ended as they were last, and which are starting."""
        from flower_dhb.peer.mesh.status import OVER
        from flower_dhb.peer.watch.status import FINISHED

        found = self._fleet.status(timeout_s=1.0)
        self._seen |= found.replies
        codes = {v: process.poll() for v, process in self._processes.items()}
        replies, gone = dict(found.replies), {}
        for vertex, code in codes.items():
            if code in (0, Ending.ALONE, Ending.STOPPED) and vertex in self._seen:
                last = self._seen[vertex]  # asked before its last round, as a rule
                if code == Ending.STOPPED:
                    last.phase = "stopped"
                elif last.phase not in OVER:
                    last.phase, last.round = FINISHED, last.rounds
                replies[vertex] = last
            elif code is not None:
                gone[vertex] = f"its process has ended with status {code}"
        starting = frozenset(v for v, code in codes.items() if code is None) - self._seen.keys()
        failures = {v: why for v, why in found.failures.items() if v not in replies}
        return replace(found, replies=replies, failures=failures, gone=gone, starting=starting)


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
