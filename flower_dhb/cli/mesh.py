"""`flower-dhb mesh`: create a mesh, renew certificates, run it here, ask how it is."""

from __future__ import annotations

import argparse
import json
import os
import subprocess  # nosec B404
import sys
import time
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flower_dhb.errors import ConfigError
from flower_dhb.peer.device.ending import Ending

if TYPE_CHECKING:
    from rich.console import Group

    from flower_dhb.peer.mesh.fleet import Fleet, FleetStatus
    from flower_dhb.peer.wire import relay_pb2 as pb

__all__ = ["configure", "execute"]

_PEER = "from flower_dhb.cli import main; raise SystemExit(main())"


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    create = actions.add_parser("create", help="write configurations, keys and certificates")
    create.add_argument("--app", type=Path, default=Path(), help="directory of the Flower App")
    create.add_argument("--out", type=Path, required=True, help="directory to write")
    create.add_argument("--topology", help="such as torus:3x3; else the app's run config says")
    create.add_argument("--weights", help="such as metropolis; else the app's run config says")
    create.add_argument("--hosts", type=Path, help="TOML file of devices; else all on this machine")
    create.add_argument("--rounds", type=int, help="number of rounds")
    create.add_argument(
        "--run-config", action="append", default=[], metavar="KEY=VALUE", help="TOML value; repeat"
    )
    create.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a key of peer.toml, such as timing.ceiling-s=5 or record='payloads'; repeat",
    )
    create.add_argument(
        "--start", help="initial arrays: FILE.safetensors, or module:name of a function or model"
    )
    create.add_argument("--days", type=int, default=365, help="how long certificates are valid")
    create.add_argument(
        "--insecure-plaintext", action="store_true", help="no TLS; loopback addresses only"
    )
    create.add_argument("--force", action="store_true", help="replace the mesh in --out")
    renew = actions.add_parser("renew", help="new key and certificate for one device")
    renew.add_argument("mesh", type=Path)
    renew.add_argument("--vertex", type=int, help="which device; the operator if left out")
    renew.add_argument("--days", type=int, default=365)
    up = actions.add_parser("up", help="run all peers on this machine and watch them")
    up.add_argument("mesh", type=Path)
    up.add_argument("--quiet", action="store_true", help="no live view")
    status = actions.add_parser("status", help="ask all peers how they are")
    status.add_argument("mesh", type=Path)
    status.add_argument("--json", action="store_true", help="for machines")
    status.add_argument("--watch", action="store_true", help="again and again, until interrupted")
    status.add_argument("--timeout-s", type=float, default=5.0)


def execute(arguments: argparse.Namespace) -> int:
    """Do what was asked. Returns the exit status."""
    return int(
        {"create": _create, "renew": _renew, "up": _up, "status": _status}[arguments.action](
            arguments
        )
    )


def _create(arguments: argparse.Namespace) -> int:
    from flower_dhb.peer.mesh import create as mesh

    _check_days(arguments.days)
    overrides = _pairs(arguments.run_config, "--run-config")
    for key in ("topology", "weights", "rounds"):
        if getattr(arguments, key) is not None:
            overrides[key] = getattr(arguments, key)
    if arguments.hosts is not None:
        hosts = mesh.read_hosts(arguments.hosts)
    else:
        hosts = mesh.local_hosts(mesh.n_agents(arguments.app, overrides))
    mesh.check_empty(arguments.out, force=arguments.force)
    paths = mesh.create_mesh(
        mesh.MeshPlan(
            app=arguments.app,
            out=arguments.out,
            hosts=hosts,
            overrides=overrides,
            start=arguments.start,
            days=arguments.days,
            plaintext=arguments.insecure_plaintext,
            peer=_nested(_pairs(arguments.set, "--set")),
            force=arguments.force,
        )
    )
    print(f"{len(paths)} devices in {arguments.out}; start one with: flower-dhb peer {paths[0]}")
    if not arguments.insecure_plaintext:
        print(f"keep {arguments.out / 'authority'} off the devices: its key signs certificates")
    return 0


def _renew(arguments: argparse.Namespace) -> int:
    from flower_dhb.peer.mesh.create import renew
    from flower_dhb.peer.wire.identity import OPERATOR

    _check_days(arguments.days)
    vertex = OPERATOR if arguments.vertex is None else arguments.vertex
    renew(arguments.mesh, vertex, arguments.days)
    print("new key and certificate; a running peer uses them from its next connection on")
    return 0


def _up(arguments: argparse.Namespace) -> int:
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
            _watch(_Local(fleet, processes))
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


def _status(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from flower_dhb.peer.mesh.fleet import Fleet

    fleet = Fleet(arguments.mesh)
    try:
        if arguments.watch:
            _watch(_Remote(fleet))
        found = fleet.status(arguments.timeout_s)
        if arguments.json:
            print(json.dumps(_document(found)))
        else:
            Console().print(_table(found))
    finally:
        fleet.close()
    return 1 if found.warnings else 0


class _Remote:
    """Peers somewhere, watched until interrupted."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self.ended = False

    def look(self) -> tuple[FleetStatus, list[int]]:
        """How they are, and which of them are starting, as far as one can know."""
        return self._fleet.status(timeout_s=1.0), []


class _Local:
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


def _watch(view: _Remote | _Local) -> None:
    from rich.live import Live

    with Live(refresh_per_second=4) as live:
        while not view.ended:
            live.update(_table(*view.look()))
            time.sleep(0.5)
        live.update(_table(*view.look()))


def _table(found: FleetStatus, starting: list[int] | None = None) -> Group:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table()
    for title in (
        "vertex",
        "round",
        "phase",
        "s/round",
        "neighbors",
        "sent",
        "received",
        "metrics",
    ):
        table.add_column(
            title, justify="left" if title in ("phase", "neighbors", "metrics") else "right"
        )
    for vertex in sorted({*found.replies, *(starting or ())}):
        if vertex not in found.replies:
            table.add_row(str(vertex), "", "starting")
            continue
        reply = found.replies[vertex]
        metrics = " ".join(
            f"{name} {value:.3g}"
            for name, value in sorted(reply.metrics.items())
            if name in ("accuracy", "loss", "train_loss")
        )
        table.add_row(
            str(vertex),
            f"{reply.round}/{reply.rounds}",
            reply.phase,
            f"{reply.seconds_per_round:.3f}",
            _neighbors(reply),
            _size(reply.bytes_sent),
            _size(reply.bytes_received),
            metrics,
        )
    distance = found.consensus_distance
    lines: list[Any] = [table]
    if distance is not None:
        lines.append(Text(f"consensus distance about {distance:.3g}"))
    lines += [Text(f"! {warning}", style="yellow") for warning in found.warnings]
    return Group(*lines)


def _neighbors(reply: pb.StatusReply) -> str:
    from flower_dhb.peer.watch.status import FINISHED

    if reply.phase == FINISHED:
        return " ".join(str(n.vertex) for n in reply.neighbors)
    return " ".join(
        f"[green]{n.vertex}[/green]" if n.up else f"[red]{n.vertex}✗[/red]" for n in reply.neighbors
    )


def _document(found: FleetStatus) -> dict[str, Any]:
    return {
        "consensus_distance": found.consensus_distance,
        "parts": found.parts,
        "warnings": found.warnings,
        "peers": {
            v: {
                "round": r.round,
                "rounds": r.rounds,
                "phase": r.phase,
                "seconds_per_round": r.seconds_per_round,
                "bytes_sent": r.bytes_sent,
                "bytes_received": r.bytes_received,
                "neighbors": {
                    n.vertex: {
                        "up": n.up,
                        "deadline_s": n.deadline_s,
                        "misses": n.misses,
                        "one_sided": n.one_sided,
                        "in_doubt": n.in_doubt,
                    }
                    for n in r.neighbors
                },
                "alone_since": r.alone_since if r.HasField("alone_since") else None,
                "counts": dict(r.counts),
                "metrics": dict(r.metrics),
            }
            for v, r in sorted(found.replies.items())
        },
    }


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


def _size(count: int) -> str:
    amount = float(count)
    for unit in ("B", "KiB", "MiB"):
        if amount < 1024.0:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024.0
    return f"{amount:.1f} GiB"


def _check_days(days: int) -> None:
    if not days >= 1:
        raise ConfigError(f"--days must be at least 1, got {days}: no device would be let in")


def _pairs(words: list[str], option: str) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for word in words:
        key, mark, text = word.partition("=")
        if not mark:
            raise ConfigError(f"{option}: expected KEY=VALUE, got '{word}'")
        try:
            values[key.strip()] = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            values[key.strip()] = text
    return values


def _nested(flat: dict[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        table, _, name = key.rpartition(".")
        (nested.setdefault(table, {}) if table else nested)[name] = value
    return nested
