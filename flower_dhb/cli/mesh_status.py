"""`flower-dhb mesh status`, and the same view of the peers that `mesh up` has started."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from rich.console import Group

    from flower_dhb.peer.mesh.fleet import Fleet, FleetStatus
    from flower_dhb.peer.wire import relay_pb2 as pb

__all__ = ["View", "configure_status", "status", "watch"]


def configure_status(actions: Any) -> None:
    """Declare the arguments."""
    status = actions.add_parser("status", help="ask all peers how they are")
    status.add_argument("mesh", type=Path)
    status.add_argument("--json", action="store_true", help="for machines")
    status.add_argument("--watch", action="store_true", help="again and again, until interrupted")
    status.add_argument("--timeout-s", type=float, default=5.0)


def status(arguments: argparse.Namespace) -> int:
    """Ask all peers how they are. Returns the exit status."""
    from rich.console import Console

    from flower_dhb.peer.mesh.fleet import Fleet

    fleet = Fleet(arguments.mesh)
    try:
        if arguments.watch:
            watch(_Remote(fleet))
        found = fleet.status(arguments.timeout_s)
        if arguments.json:
            print(json.dumps(_document(found)))
        else:
            Console().print(_table(found))
    finally:
        fleet.close()
    return 1 if found.warnings else 0


class View(Protocol):
    """Peers that are watched."""

    @property
    def ended(self) -> bool:
        """Whether there is no more to see."""

    def look(self) -> tuple[FleetStatus, list[int]]:
        """How they are, and which of them are starting."""


class _Remote:
    """Peers somewhere, watched until interrupted."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self.ended = False

    def look(self) -> tuple[FleetStatus, list[int]]:
        """How they are, and which of them are starting, as far as one can know."""
        return self._fleet.status(timeout_s=1.0), []


def watch(view: View) -> None:
    """Show peers until there is no more to see."""
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


def _size(count: int) -> str:
    amount = float(count)
    for unit in ("B", "KiB", "MiB"):
        if amount < 1024.0:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024.0
    return f"{amount:.1f} GiB"
