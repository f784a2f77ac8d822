"""`flower-dhb mesh add | remove | replace | set-address | set`: change a mesh that runs."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flower_dhb.cli.values import DEVICE_DAYS, check_days, pairs
from flower_dhb.errors import ConfigError

if TYPE_CHECKING:
    from flower_dhb.peer.mesh.changes import Written
    from flower_dhb.peer.mesh.editions import Draft, MeshFolder, Moment
    from flower_dhb.peer.mesh.publish import Published

__all__ = ["DAY_TWO", "configure_day_two"]


def configure_day_two(actions: Any) -> None:
    """Declare the arguments."""
    add = _action(actions, "add", "let one more device take part")
    add.add_argument("--vertex", type=int, help="its number; the next free one if left out")
    add.add_argument("--neighbors", required=True, help="numbers or names, such as 3,7")
    add.add_argument("--name", help="what it is called")
    _placed(add)
    add.add_argument("--app", help="directory of the app on that device, if elsewhere")
    add.add_argument(
        "--node-config", action="append", default=[], metavar="KEY=VALUE", help="repeat"
    )
    _weighted(add)
    remove = _action(actions, "remove", "let a device take part no longer")
    remove.add_argument("vertex", help="number or name")
    remove.add_argument(
        "--connect", action="append", default=[], metavar="A-B", help="a new edge; repeat"
    )
    _weighted(remove)
    replace = _action(actions, "replace", "put another device in the place of one")
    replace.add_argument("vertex", help="number or name")
    _placed(replace)
    moved = _action(actions, "set-address", "say where a device is reached now")
    moved.add_argument("vertex", help="number or name")
    moved.add_argument("address", help="host:port, or 'none' for a device behind NAT")
    moved.add_argument("--listen", help="address to bind, if not all interfaces")
    changed = _action(actions, "set", "change rounds, time limits and bounds of all devices")
    changed.add_argument(
        "values",
        nargs="*",
        metavar="KEY=VALUE",
        help="rounds=200, evaluate-every=5, timing.ceiling-s=20, limits.frames=[2000, 500]",
    )
    _weighted(changed)


def _action(actions: Any, name: str, summary: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = actions.add_parser(name, help=summary, description=summary)
    parser.add_argument("mesh", type=Path)
    parser.add_argument(
        "--at-round",
        type=int,
        metavar="N",
        help="when it begins; else in a margin of 30 s and 5 rounds",
    )
    parser.add_argument(
        "--offline", action="store_true", help="only write it; needs --at-round, asks nobody"
    )
    parser.add_argument("--timeout-s", type=float, default=5.0, help="for each device's answer")
    return parser


def _placed(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--address", help="host:port where neighbors reach it; none behind NAT")
    parser.add_argument("--listen", help="address to bind, if not all interfaces")
    parser.add_argument(
        "--days", type=int, default=DEVICE_DAYS, help="how long its certificate is valid"
    )


def _weighted(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--weights", help="scheme of the mixing weights; the mesh's if left out")


def _add(arguments: argparse.Namespace) -> int:
    from flower_dhb.peer.mesh.devices import Host
    from flower_dhb.peer.mesh.editions import add

    def draft(folder: MeshFolder, begins: int) -> Draft:
        vertex = folder.next_vertex if arguments.vertex is None else arguments.vertex
        neighbors = [folder.vertex(word.strip()) for word in arguments.neighbors.split(",")]
        node_config = pairs(arguments.node_config, "--node-config")
        host = Host(vertex, arguments.address, arguments.listen, arguments.app, node_config)
        return add(folder, begins, neighbors, host, name=arguments.name, weights=arguments.weights)

    check_days(arguments.days)
    return _change(arguments, draft)


def _remove(arguments: argparse.Namespace) -> int:
    from flower_dhb.peer.mesh.editions import remove

    def draft(folder: MeshFolder, begins: int) -> Draft:
        connect = [_edge(folder, word) for word in arguments.connect]
        vertex = folder.vertex(arguments.vertex)
        return remove(folder, begins, vertex, connect=connect, weights=arguments.weights)

    return _change(arguments, draft)


def _replace(arguments: argparse.Namespace) -> int:
    from dataclasses import replace

    from flower_dhb.peer.mesh.editions import replace_device

    def draft(folder: MeshFolder, begins: int) -> Draft:
        vertex = folder.vertex(arguments.vertex)
        host = folder.hosts[vertex]
        if arguments.address is not None:
            address = _address(arguments.address)
            host = replace(host, address=address, listen=arguments.listen)
        elif arguments.listen is not None:
            host = replace(host, listen=arguments.listen)
        return replace_device(folder, begins, vertex, host)

    check_days(arguments.days)
    return _change(arguments, draft)


def _set_address(arguments: argparse.Namespace) -> int:
    from dataclasses import replace

    from flower_dhb.peer.mesh.editions import set_address

    def draft(folder: MeshFolder, begins: int) -> Draft:
        vertex = folder.vertex(arguments.vertex)
        address = _address(arguments.address)
        host = replace(folder.hosts[vertex], address=address, listen=arguments.listen)
        return set_address(folder, begins, vertex, host)

    return _change(arguments, draft)


def _set(arguments: argparse.Namespace) -> int:
    from flower_dhb.peer.mesh.editions import set_values

    values = pairs(arguments.values, "set")
    if not values and arguments.weights is None:
        raise ConfigError("nothing to set: give KEY=VALUE such as rounds=200, or --weights")
    rounds = values.get("rounds")
    if rounds is not None and (isinstance(rounds, bool) or not isinstance(rounds, int)):
        raise ConfigError(f"rounds must be an integer, got {rounds!r}")

    def draft(folder: MeshFolder, begins: int) -> Draft:
        return set_values(folder, begins, values, weights=arguments.weights)

    return _change(arguments, draft, rounds=rounds)


DAY_TWO: dict[str, Callable[[argparse.Namespace], int]] = {
    "add": _add,
    "remove": _remove,
    "replace": _replace,
    "set-address": _set_address,
    "set": _set,
}


def _change(
    arguments: argparse.Namespace,
    draft: Callable[[MeshFolder, int], Draft],
    *,
    rounds: int | None = None,
) -> int:
    """Make the next edition, write it, hand it out, and say what is left to do."""
    from flower_dhb.peer.mesh.changes import desk, moment_of
    from flower_dhb.peer.mesh.editions import Moment, beginning
    from flower_dhb.peer.mesh.publish import hand_out
    from flower_dhb.peer.wire.bulletin import EDITION, REVOCATIONS

    if arguments.offline and arguments.at_round is None:
        raise ConfigError("--offline asks nobody which round it is: say --at-round N")
    with desk(arguments.mesh) as held:
        folder = held.folder
        # What cannot be, whenever it begins, is refused before anybody is asked.
        draft(folder, min(folder.edition.begins, rounds or folder.edition.begins))
        moment = Moment(None)
        if not arguments.offline:
            moment = moment_of(arguments.mesh, arguments.timeout_s)
        begins = beginning(folder.edition, moment, rounds=rounds, at_round=arguments.at_round)
        written = held.write(draft(folder, begins), getattr(arguments, "days", DEVICE_DAYS))
    published = None
    if not arguments.offline:
        former = {v: about.address for v, about in folder.edition.vertices.items()}
        published = hand_out(
            arguments.mesh, EDITION, former=former, timeout_s=2.0 * arguments.timeout_s
        )
        if written.revoked:
            hand_out(arguments.mesh, REVOCATIONS, timeout_s=2.0 * arguments.timeout_s)
    _tell(arguments.mesh, written, moment, published)
    return 0 if published is None or not published.refused else 1


def _tell(mesh: Path, written: Written, moment: Moment, published: Published | None) -> None:
    from flower_dhb.peer.mesh.publish import bulletin_path
    from flower_dhb.peer.wire.bulletin import EDITION

    edition, new = written.draft.edition, written.draft.new
    newest = "" if moment.newest is None else f"; the newest round is {moment.newest}"
    print(
        f"edition {edition.number}: {len(edition.vertices)} devices, {len(edition.edges)} edges, "
        f"{edition.rounds} rounds; it begins in round {edition.begins}{newest}"
    )
    path = bulletin_path(mesh, EDITION)
    others = [v for v in edition.vertices if v != new]
    if published is not None:
        took = [v for v in published.took if v != new]
        if took:
            print(f"has it: {_listed(took)}")
        waiting = {v: why for v, why in published.failures.items() if v != new}
        for v, why in waiting.items():
            if v in published.refused:
                print(f"refused by vertex {v}, which stays with what it has: {why}")
            else:
                print(f"learns it from a neighbor: vertex {v} ({why})")
        others = [] if took else others
    if others:
        print(
            f"nobody has it yet: copy {path} into the folder bulletins/ beside the peer.toml of "
            "any device; the others learn it from there"
        )
    if new is not None:
        print(
            f"carry {written.folder} to the device of vertex {new}, with the app, and start it: "
            f"flower-dhb peer {written.folder.name if written.folder else ''}/peer.toml"
        )
    if written.revoked:
        print(
            f"revoked: {len(written.revoked)} certificate(s) of the device that was vertex {new} "
            f"({', '.join(written.revoked)}); nobody lets it in any more"
        )
    if written.settings is not None:
        print(
            f"carry {written.settings} to its device (or set 'listen' in the file there), and "
            "start it again: it listens elsewhere now"
        )


def _listed(vertices: list[int]) -> str:
    return ", ".join(str(v) for v in sorted(vertices))


def _address(text: str) -> str | None:
    return None if text == "none" else text


def _edge(folder: MeshFolder, word: str) -> tuple[int, int]:
    """Two vertices from a text such as `4-6`. Names may hold dashes of their own."""
    places = [i for i, letter in enumerate(word) if letter == "-"]
    for i in places:
        try:
            return folder.vertex(word[:i]), folder.vertex(word[i + 1 :])
        except ConfigError:
            if len(places) == 1:
                raise
    raise ConfigError(f"--connect {word}: expected two vertices, such as 4-6")
