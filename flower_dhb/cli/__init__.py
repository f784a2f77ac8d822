"""Command line: `flower-dhb COMMAND`, one module per command."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from importlib import import_module

from flower_dhb.errors import FlowerDhbError

__all__ = ["main"]

# command: what it does. The module of the same name has `configure(parser)`, which
# declares its arguments, and `execute(arguments) -> exit status`. A module is imported
# only when its command is typed.
_COMMANDS = {
    "compare": "compare methods on the same problem, graph and data",
    "topology": "show what a communication graph can do, and make it better",
    "run": "run a Flower App on this machine and watch its agents agree",
    "peer": "take part in a mesh, on one device",
    "mesh": "create a mesh of peers, renew certificates, run it here, ask how it is",
    "replay": "compute a recorded run of peers again and say who followed the law",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns its exit status: 0 done, 1 failed, 2 wrong usage."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(
        prog="flower-dhb", description="Training without a server, for Flower apps."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    chosen = next((word for word in words if not word.startswith("-")), None)
    modules = {}
    for name, summary in _COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=summary)
        if name == chosen:
            modules[name] = import_module(f"{__name__}.{name}")
            modules[name].configure(command)
    parsed = parser.parse_args(words)
    # Whatever stops this command, what it started is ended, too; a shell's background
    # jobs would otherwise ignore the first of these.
    signal.signal(signal.SIGINT, _interrupt)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        return int(modules[parsed.command].execute(parsed))
    except FlowerDhbError as error:
        print(f"flower-dhb {parsed.command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"flower-dhb {parsed.command}: stopped", file=sys.stderr)
        return 130


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt
