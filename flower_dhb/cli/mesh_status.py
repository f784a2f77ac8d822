"""`flower-dhb mesh status`, and the same view of the peers that `mesh up` has started."""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from flower_dhb.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console, Group

    from flower_dhb.cli.fleet_view import View
    from flower_dhb.peer.mesh.fleet import Fleet
    from flower_dhb.peer.mesh.status import FleetStatus

__all__ = ["Watched", "configure_status", "status", "watch"]

_LOOKS_S = 1.0  # between two looks


def configure_status(actions: Any) -> None:
    """Declare the arguments."""
    status = actions.add_parser(
        "status",
        help="how the devices are, and what needs somebody",
        description="How the devices are. Exit status 1 if something needs somebody.",
    )
    status.add_argument("mesh", type=Path, help="directory of the mesh")
    status.add_argument(
        "--json", action="store_true", help="for machines; with --watch a line each"
    )
    status.add_argument("--watch", action="store_true", help="again and again, until interrupted")
    status.add_argument("--all", action="store_true", help="a line for each device, however many")
    status.add_argument(
        "--metric",
        action="append",
        default=[],
        metavar="NAME",
        help="metric of the app to show (default: those that its evaluation reports); repeat",
    )
    status.add_argument(
        "--timeout-s",
        type=float,
        default=5.0,
        help="how long to wait for a device's answer (default: %(default)s)",
    )


def status(arguments: argparse.Namespace) -> int:
    """Ask all peers how they are. Returns the exit status."""
    from flower_dhb.peer.mesh.findings import findings
    from flower_dhb.peer.mesh.fleet import Fleet

    if not 0.0 < arguments.timeout_s < math.inf:
        raise ConfigError(f"--timeout-s must be seconds above 0, got {arguments.timeout_s}")
    fleet = Fleet(arguments.mesh)
    try:
        if arguments.watch and arguments.json:
            _print_for_ever(fleet, arguments.timeout_s)
        if arguments.watch:
            watch(_Remote(fleet), metrics=tuple(arguments.metric), every=arguments.all)
        found = fleet.status(arguments.timeout_s)
        if arguments.json:
            print(json.dumps(document(found)))
        else:
            _print(found, tuple(arguments.metric), every=arguments.all)
    finally:
        fleet.close()
    return int(any(finding.needs for finding in findings(found)))


def _print_for_ever(fleet: Fleet, timeout_s: float) -> None:
    while True:
        print(json.dumps(document(fleet.status(timeout_s))), flush=True)
        time.sleep(_LOOKS_S)


class Watched(Protocol):
    """Peers that are watched."""

    @property
    def ended(self) -> bool:
        """Whether there is no more to see."""

    def look(self) -> FleetStatus:
        """How they are."""


class _Remote:
    """Peers somewhere, watched until interrupted."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self.ended = False

    def look(self) -> FleetStatus:
        """How they are."""
        return self._fleet.status(timeout_s=1.0)


def watch(watched: Watched, *, metrics: tuple[str, ...] = (), every: bool = False) -> None:
    """Show peers until there is no more to see, as many as the terminal holds."""
    from rich.console import Console
    from rich.live import Live

    console = Console()
    found = watched.look()
    if not console.is_terminal:  # nobody looks meanwhile
        while not watched.ended:
            time.sleep(_LOOKS_S)
            found = watched.look()
    else:
        with Live(console=console, screen=True, auto_refresh=False) as live:
            while not watched.ended:
                live.update(_group(found, _view(console, metrics, every=every)), refresh=True)
                time.sleep(_LOOKS_S)
                found = watched.look()
    _print(found, metrics, every=every)


def _print(found: FleetStatus, metrics: tuple[str, ...], *, every: bool) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    view = _view(console, metrics, every=every or not console.is_terminal)
    console.print(_group(found, view), soft_wrap=not console.is_terminal)


def _view(console: Console, metrics: tuple[str, ...], *, every: bool) -> View:
    from flower_dhb.cli.fleet_view import View

    height = None if every else max(console.height - 1, 1)
    return View(console.width, height, metrics)


def _group(found: FleetStatus, view: View) -> Group:
    from rich.console import Group

    from flower_dhb.cli.fleet_view import draw

    return Group(*draw(found, view))


def document(fleet: FleetStatus) -> dict[str, Any]:
    """A fleet for machines; docs/peers.md says what each name means."""
    from flower_dhb.peer.mesh.findings import findings

    found, pace = findings(fleet), fleet.pace
    return {
        "asked_at": fleet.now_s,
        "needs_somebody": any(finding.needs for finding in found),
        "findings": [
            {
                "kind": f.kind,
                "needs_somebody": f.needs,
                "vertices": list(f.vertices),
                "who": f.who,
                "what": f.what,
                "remedy": f.remedy,
            }
            for f in found
        ],
        "rounds": fleet.rounds,
        "left_s": fleet.left_s,
        "pace": None
        if pace is None
        else {
            "round_s": pace.round_s,
            "edge": None if pace.edge is None else list(pace.edge),
            "vertex": pace.vertex,
            "part_s": pace.part_s,
        },
        "links": [
            {"edge": list(link.edge), "way_s": link.way_s, "round_s": link.round_s}
            for link in fleet.links
        ],
        "parts": fleet.parts,
        "consensus_distance": fleet.consensus_distance,
        "devices": {v: _device(fleet, v) for v in fleet.vertices},
    }


def _device(fleet: FleetStatus, vertex: int) -> dict[str, Any]:
    from google.protobuf.json_format import MessageToDict

    reply = fleet.replies.get(vertex)
    answer: dict[str, Any] | None = None
    if reply is not None:
        answer = MessageToDict(
            reply,
            preserving_proto_field_name=True,
            always_print_fields_with_no_presence=True,
        )
        del answer["sketch"]
    return {
        "name": fleet.names.get(vertex),
        "address": fleet.addresses.get(vertex),
        "state": fleet.state(vertex),
        "round": fleet.round(vertex),
        "seen_s": fleet.seen_s(vertex),
        "failure": fleet.failures.get(vertex),
        "heard_by": sorted(j for j, n in fleet.told_of(vertex).items() if n.up),
        "answer": answer,
    }
