"""`flower-dhb mesh renew` and `mesh revoke`: certificates for years, and none for thieves."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flower_dhb.cli.values import AUTHORITY_DAYS, DEVICE_DAYS, check_days
from flower_dhb.errors import ConfigError

if TYPE_CHECKING:
    from flower_dhb.peer.mesh.publish import Published
    from flower_dhb.peer.mesh.renewal import Renewed

__all__ = ["configure_certificates", "renew", "revoke"]


def configure_certificates(actions: Any) -> None:
    """Declare the arguments."""
    parser = actions.add_parser("renew", help="new keys and certificates, or a new authority")
    parser.add_argument("mesh", type=Path, help="directory of the mesh")
    whom = parser.add_mutually_exclusive_group(required=True)
    whom.add_argument("--vertex", type=int, metavar="V", help="one device")
    whom.add_argument("--operator", action="store_true", help="whoever calls 'mesh status'")
    whom.add_argument("--all", action="store_true", help="all devices and the operator")
    whom.add_argument(
        "--authority",
        action="store_true",
        help="the next step from one authority to another, while devices go on",
    )
    parser.add_argument(
        "--days",
        type=int,
        help=f"how long they are valid (default: {DEVICE_DAYS}; an authority {AUTHORITY_DAYS})",
    )
    parser.add_argument(
        "--online",
        action="store_true",
        help="have devices make their keys themselves: nothing is carried",
    )
    parser.add_argument(
        "--revoke-old", action="store_true", help="believe the certificates before no longer"
    )
    parser.add_argument(
        "--force",
        action="store_true",
        help="with --authority: though devices are cut off until new files are carried there",
    )
    parser = actions.add_parser("revoke", help="have all devices refuse a certificate")
    parser.add_argument("mesh", type=Path, help="directory of the mesh")
    parser.add_argument(
        "vertex", nargs="?", help="all certificates of this device, or of 'operator'"
    )
    parser.add_argument(
        "--serial", action="append", default=[], help="this one, in hexadecimal digits; repeat"
    )
    parser.add_argument("--reason", default="", help="for logs, such as 'stolen'")


def renew(arguments: argparse.Namespace) -> int:
    """New keys and certificates. Returns the exit status."""
    from flower_dhb.peer.mesh import renewal
    from flower_dhb.peer.wire.identity import OPERATOR

    if arguments.days is not None:
        check_days(arguments.days)
    if arguments.online and (arguments.authority or arguments.operator):
        raise ConfigError("--online is for devices: --vertex or --all")
    if arguments.authority:
        return _authority(arguments)
    if arguments.force:
        raise ConfigError("--force is for --authority: nothing else cuts a device off")
    vertices = None if arguments.all else [arguments.vertex]
    if arguments.operator:
        vertices = [OPERATOR]
    days = arguments.days or DEVICE_DAYS
    failures: dict[int, str] = {}
    if arguments.online:
        renewed, failures = renewal.renew_online(arguments.mesh, vertices, days)
        for new in renewed:
            print(f"{_called(new.vertex)} has made a new key; {_until(new)}")
        for vertex, why in failures.items():
            print(f"! {_called(vertex)} has not: {why}")
        if failures:
            print("they get new files from 'mesh renew' without --online")
        if arguments.all:
            own = renewal.renew(arguments.mesh, [OPERATOR], days)
            _tell_renewed(own)
            renewed += own
    else:
        renewed = renewal.renew(arguments.mesh, vertices, days)
        _tell_renewed(renewed)
    if arguments.revoke_old and renewed:
        for new in renewed:
            found = renewal.revoke(arguments.mesh, new.vertex, "renewed", keep=[new.serial])
        _tell_published(found, "list of revoked certificates")
    return 1 if failures else 0


def _authority(arguments: argparse.Namespace) -> int:
    from flower_dhb.peer.mesh import renewal

    if arguments.revoke_old:
        raise ConfigError("--revoke-old is for certificates; an old authority is retired as a step")
    mesh = arguments.mesh
    step = renewal.change_authority(mesh, arguments.days or AUTHORITY_DAYS, force=arguments.force)
    until = f"valid until {step.ends:%Y-%m-%d}"
    if step.published is not None:
        _tell_published(step.published, "list of authorities")
    if step.step == "begun":
        print(
            f"step 1 of 3: devices believe the new authority, {until}, beside the old one\n"
            f"step 2: flower-dhb mesh renew {mesh} --all, and copy the files to the devices\n"
            f"step 3: flower-dhb mesh renew {mesh} --authority, which retires the old one"
        )
    elif step.step == "finished":
        print(f"step 3 of 3: the old authority is retired; the new one is {until}")
        for vertex, why in sorted(step.cut_off.items()):
            print(f"! {_called(vertex)} is cut off until new files are there: {why}")
    else:
        print(f"the authority was replaced at once; the new one is {until}")
        _tell_renewed(renewal.renew(mesh, None, DEVICE_DAYS))
        print("every device needs its new files: until then it is cut off from the others")
    return 0


def revoke(arguments: argparse.Namespace) -> int:
    """Have all devices refuse certificates. Returns the exit status."""
    from flower_dhb.peer.mesh import renewal
    from flower_dhb.peer.wire.identity import OPERATOR

    if (arguments.vertex is None) == (not arguments.serial):
        raise ConfigError("say whose certificates to revoke: a VERTEX, or one by its --serial")
    if arguments.serial:
        found = renewal.revoke_serials(arguments.mesh, arguments.serial, arguments.reason)
    else:
        who = arguments.vertex
        if who != "operator" and not who.isdecimal():
            raise ConfigError(f"a vertex is a number, or 'operator'; got '{who}'")
        vertex = OPERATOR if who == "operator" else int(who)
        found = renewal.revoke(arguments.mesh, vertex, arguments.reason)
        option = "--operator" if vertex == OPERATOR else f"--vertex {vertex}"
        print(f"a new one: flower-dhb mesh renew {arguments.mesh} {option}")
    _tell_published(found, "list of revoked certificates")
    return 0


def _called(vertex: int) -> str:
    from flower_dhb.peer.wire.identity import Identity

    return str(Identity("", vertex))


def _tell_renewed(renewed: list[Renewed]) -> None:
    for new in renewed:
        print(f"{_called(new.vertex)}: {new.folder}, {_until(new)}")
    print(
        "copy key.pem, certificate.pem and authority.pem over the old ones on the\n"
        "device; a running peer uses them from its next connection on"
    )


def _until(new: Renewed) -> str:
    days = (new.ends - new.begins).days
    return f"valid until {new.ends:%Y-%m-%d} ({days} days), serial {new.serial}"


def _tell_published(found: Published, what: str) -> None:
    took = ", ".join(map(str, found.took)) or "nobody yet"
    print(f"{what}, number {found.bulletin.number}, is on the disk of: {took}")
    for vertex, why in found.failures.items():
        print(f"  {_called(vertex)} not yet: {why}")
    if found.failures:
        print(
            f"they learn it from their neighbors, or from {found.path}\nin the folder bulletins/ "
            "beside their peer.toml"
        )
