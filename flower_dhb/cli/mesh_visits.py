"""`flower-dhb mesh stop | fetch`: what an operator does with devices that run."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flower_dhb.errors import ConfigError, unknown

if TYPE_CHECKING:
    from flower_dhb.peer.mesh.fleet import Fleet

__all__ = ["VISITS", "configure_visits"]

_KINDS = ("models", "histories", "logs", "records", "status")
_USUAL = ("models", "histories", "logs", "status")


def configure_visits(actions: Any) -> None:
    """Declare the arguments."""
    stop = actions.add_parser("stop", help="let devices end, and keep everything")
    stop.add_argument("mesh", type=Path)
    _vertices(stop)
    stop.add_argument("--timeout-s", type=float, default=5.0, help="for a device's answer")
    stop.add_argument(
        "--wait-s",
        type=float,
        default=120.0,
        help="for a device to end, after the current call of its app (default: %(default)s)",
    )
    fetch = actions.add_parser("fetch", help="fetch models, histories and logs of devices")
    fetch.add_argument("mesh", type=Path)
    fetch.add_argument("out", type=Path, help="directory to write; what is there is made newer")
    _vertices(fetch)
    fetch.add_argument(
        "--what",
        default=",".join(_USUAL),
        help=f"of {', '.join(_KINDS)}, with commas between (default: %(default)s)",
    )


def _vertices(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--vertex", type=int, action="append", help="which device; repeat; all if left out"
    )


def _stop(arguments: argparse.Namespace) -> int:
    from flower_dhb.peer.mesh.fleet import Fleet
    from flower_dhb.peer.mesh.visits import stop

    fleet = Fleet(arguments.mesh)
    try:
        chosen = _chosen(fleet, arguments.vertex)
        done = stop(fleet, chosen, arguments.timeout_s, arguments.wait_s)
    finally:
        fleet.close()
    for vertex, k in sorted(done.stopped.items()):
        print(f"vertex {vertex}: stopped after round {k}")
    for vertex, k in sorted(done.ending.items()):
        print(
            f"vertex {vertex}: will stop (round {k} is over, and its app still computes); ask again"
        )
    _tell(
        done.failures,
        fleet,
        "stop it there: systemctl stop flower-dhb-peer@vertex-{vertex}, or SIGTERM",
    )
    if done.stopped:
        print("a stopped device is started there again: systemctl start flower-dhb-peer@vertex-…")
    return 1 if done.failures or done.ending else 0


def _fetch(arguments: argparse.Namespace) -> int:
    from flower_dhb.peer.mesh.fleet import Fleet
    from flower_dhb.peer.mesh.visits import fetch

    kinds = [word.strip() for word in arguments.what.split(",") if word.strip()]
    for kind in kinds:
        if kind not in _KINDS:
            raise ConfigError(f"--what: {unknown('kind', kind, _KINDS)}")
    fleet = Fleet(arguments.mesh)
    try:
        found, failures = fetch(fleet, arguments.out, _chosen(fleet, arguments.vertex), kinds)
    finally:
        fleet.close()
    for vertex, fetched in found.items():
        where = arguments.out / f"vertex-{vertex}"
        names = [*fetched.sizes]
        names = names if len(names) <= 6 else [*names[:5], "…"]
        print(
            f"vertex {vertex}: {sum(fetched.sizes.values()):,} bytes in {where}: {', '.join(names)}"
        )
        for kind, why in fetched.absent.items():
            print(f"vertex {vertex}: no {kind}: {why}")
    _tell(failures, fleet, "copy the files of its state directory there")
    return 1 if failures else 0


VISITS: Mapping[str, Callable[[argparse.Namespace], int]] = {"stop": _stop, "fetch": _fetch}


def _chosen(fleet: Fleet, vertices: list[int] | None) -> set[int] | None:
    for vertex in vertices or ():
        if vertex not in fleet.hosts:
            raise ConfigError(f"--vertex: {unknown('vertex', vertex, map(str, fleet.hosts))}")
    return None if vertices is None else set(vertices)


def _tell(failures: Mapping[int, str], fleet: Fleet, remedy: str) -> None:
    for vertex, why in sorted(failures.items()):
        hint = f"; {remedy.format(vertex=vertex)}" if fleet.hosts[vertex] is None else ""
        print(f"vertex {vertex}: not reached: {why}{hint}", file=sys.stderr)
