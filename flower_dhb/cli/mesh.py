"""`flower-dhb mesh`: create a mesh, change it while it runs, run it here, ask how it is."""

from __future__ import annotations

import argparse
from pathlib import Path

from flower_dhb.cli.lines import folded, table_of
from flower_dhb.cli.mesh_certificates import configure_certificates, renew, revoke
from flower_dhb.cli.mesh_day_two import DAY_TWO, configure_day_two
from flower_dhb.cli.mesh_status import configure_status, status
from flower_dhb.cli.mesh_up import configure_up, up
from flower_dhb.cli.mesh_visits import VISITS, configure_visits
from flower_dhb.cli.values import (
    AUTHORITY_DAYS,
    DEVICE_DAYS,
    check_days,
    nested,
    pairs,
    read_settings,
)

__all__ = ["configure", "execute"]


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    create = actions.add_parser("create", help="write configurations, keys and certificates")
    create.add_argument("--app", type=Path, default=Path(), help="directory of the Flower App")
    create.add_argument("--out", type=Path, required=True, help="directory to write")
    create.add_argument("--topology", help="such as torus:3x3; else the app's run config says")
    create.add_argument(
        "--share-every", type=int, metavar="ROUNDS", help="from one exchange to the next"
    )
    create.add_argument("--link", type=float, metavar="MBIT/S", help="say what a round costs on it")
    create.add_argument("--weights", help="such as metropolis; else the app's run config says")
    create.add_argument("--hosts", type=Path, help="TOML file of devices; else all on this machine")
    create.add_argument("--rounds", type=int, help="number of rounds")
    create.add_argument(
        "--run-config",
        action="append",
        default=[],
        metavar="KEY=VALUE|FILE",
        help="as for flwr run: settings, or a TOML file of settings",
    )
    create.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a key of peer.toml, such as timing.ceiling-s=5 or record='payloads'; repeat",
    )
    create.add_argument("--compression", help="of payloads, such as int8 or topk:0.01")
    create.add_argument(
        "--start", help="initial arrays: FILE.safetensors, or module:name of a function or model"
    )
    _days(create)
    create.add_argument(
        "--insecure-plaintext", action="store_true", help="no TLS; loopback addresses only"
    )
    create.add_argument("--force", action="store_true", help="replace the mesh in --out")
    identities = actions.add_parser(
        "identities", help="write keys and certificates alone, for the nodes of Flower's SuperLink"
    )
    identities.add_argument("--vertices", type=int, required=True, help="how many nodes")
    identities.add_argument("--out", type=Path, required=True, help="directory to write")
    _days(identities)
    identities.add_argument("--force", action="store_true", help="replace the mesh in --out")
    configure_certificates(actions)
    configure_day_two(actions)
    configure_visits(actions)
    configure_up(actions)
    configure_status(actions)


def _days(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--days",
        type=int,
        default=DEVICE_DAYS,
        help="how long certificates are valid (default: %(default)s)",
    )
    parser.add_argument(
        "--authority-days",
        type=int,
        default=AUTHORITY_DAYS,
        help="how long the authority that issues them is valid (default: %(default)s)",
    )


def execute(arguments: argparse.Namespace) -> int:
    """Do what was asked. Returns the exit status."""
    done = {
        "create": _create,
        "identities": _identities,
        "renew": renew,
        "revoke": revoke,
        "up": up,
        "status": status,
        **DAY_TWO,
        **VISITS,
    }
    return int(done[arguments.action](arguments))


def _create(arguments: argparse.Namespace) -> int:
    from flower_dhb.cli.costs import OF_COSTS, cost_rows
    from flower_dhb.engine.traffic import exchange_s
    from flower_dhb.peer.mesh import create as mesh
    from flower_dhb.runs.config import said_of_rounds

    check_days(arguments.days)
    check_days(arguments.authority_days, "--authority-days")
    overrides = read_settings(arguments.run_config)
    for key in ("topology", "weights", "share-every", "compression", "rounds"):
        value = getattr(arguments, key.replace("-", "_"))
        if value is not None:
            overrides[key] = value
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
            authority_days=arguments.authority_days,
            plaintext=arguments.insecure_plaintext,
            peer=nested(pairs(arguments.set, "--set")),
            force=arguments.force,
        )
    )
    about_rounds = said_of_rounds(mesh.run_config_of(arguments.app, overrides))
    if about_rounds:
        print(f"{about_rounds}; --rounds says it for this mesh")
    print(f"{len(paths)} devices in {arguments.out}; start one with: flower-dhb peer {paths[0]}")
    if arguments.link is not None:
        config, size = mesh.payload_of(arguments.out, arguments.app, overrides)
        rows = cost_rows(config.topology, size, arguments.link)
        print("\n".join(["costs", *table_of(rows)]))
        print(folded(OF_COSTS))
        needs = exchange_s(config.topology, str(config.compression), size, arguments.link)
        if needs > (limit := mesh.ceiling_s(config)):
            print(
                folded(
                    f"on such a link no edge would count: what a device sends in a round takes "
                    f"{needs:,.0f} s, and round-timeout-s gives a round {limit:,.0f} s. Compress, "
                    f"or create the mesh with --run-config round-timeout-s={2 * needs:.0f}"
                )
            )
    if not arguments.insecure_plaintext:
        print(f"keep {arguments.out / 'authority'} off the devices: its key signs certificates")
    return 0


def _identities(arguments: argparse.Namespace) -> int:
    from flower_dhb.peer.mesh.identities import IdentityPlan, create_identities

    check_days(arguments.days)
    check_days(arguments.authority_days, "--authority-days")
    homes = create_identities(
        IdentityPlan(
            out=arguments.out,
            vertices=arguments.vertices,
            days=arguments.days,
            authority_days=arguments.authority_days,
            force=arguments.force,
        )
    )
    print(
        f"{len(homes)} identities in {arguments.out}; carry each folder to its node, and start it"
    )
    print(f"with: flower-supernode --node-config 'vertex=0 mesh=\"{homes[0]}\"' …")
    print(f"keep {arguments.out / 'authority'} off nodes and SuperLink: its key signs certificates")
    return 0
