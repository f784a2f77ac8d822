"""Command line: `flower-dhb COMMAND`, one module per command."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from importlib import import_module

from flower_dhb import __version__
from flower_dhb.errors import ConfigError, FlowerDhbError, lacking
from flower_dhb.extras import EXTRAS

__all__ = ["main"]

# command: what it does. The module of the same name has `configure(parser)`, which
# declares its arguments, and `execute(arguments) -> exit status`; if it has `status_of(error)`,
# that is the status after an error. A module is imported only when its command is typed.
_COMMANDS = {
    "compare": "compare methods on the same problem, graph and data",
    "topology": "show what a communication graph can do, and make it better",
    "run": "run a Flower App on this machine and watch its agents agree",
    "report": "make a page of runs that answers at a glance: did it work, what did it cost",
    "dashboard": "show runs or a mesh as they are now, in a browser on this machine",
    "peer": "take part in a mesh, on one device",
    "doctor": "find what would keep this device from taking part, and say what to do",
    "supernode": "run a Flower SuperNode that looks at apps before it loads them",
    "mesh": "create a mesh of peers, renew certificates, run it here, ask how it is",
    "export": "write the current model of a peer's state directory to a file",
    "replay": "compute a recorded run of peers again and say who followed the law",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns its exit status.

    0: done. 1: it failed, and one message on standard error says why. 2: wrong usage, an
    argument or a setting is refused, so that another try is of no use. 130: interrupted.
    `peer` has statuses of its own, in `peer/device/ending.py`.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(
        prog="flower-dhb", description="Training without a server, for Flower apps."
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    chosen = next((word for word in words if not word.startswith("-")), None)
    modules = {}
    for name, summary in _COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=summary)
        if name == chosen:
            try:
                modules[name] = import_module(f"{__name__}.{name}")
            except ModuleNotFoundError as error:
                return _fail(name, _missing(error))
            except ConfigError as error:  # an extra that the whole command needs
                return _fail(name, error, status=2)
            modules[name].configure(command)
            _say_defaults(command)
    parsed = parser.parse_args(words)
    if parsed.command is None:
        parser.print_help(sys.stderr)
        return 2
    # Whatever stops this command, what it started is ended, too; a shell's background
    # jobs would otherwise ignore the first of these.
    signal.signal(signal.SIGINT, _interrupt)
    signal.signal(signal.SIGTERM, _interrupt)
    status_of = getattr(modules[parsed.command], "status_of", _status_of)
    try:
        status = int(modules[parsed.command].execute(parsed))
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read our output has enough of it, as `head` does.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (FlowerDhbError, OSError, ModuleNotFoundError, KeyboardInterrupt) as error:
        return _fail(parsed.command, _words(error), status=int(status_of(error)))
    except (MemoryError, RuntimeError) as error:
        if lacking(error) is None:
            raise
        return _fail(parsed.command, lacking(error), status=int(status_of(error)))
    return status


def _say_defaults(parser: argparse.ArgumentParser) -> None:
    """Have the help of a command say what holds where an option is left out."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for each in action.choices.values():
                _say_defaults(each)
        elif _has_default(action) and "default" not in (words := action.help or ""):
            action.help = f"{words} (default %(default)s)".strip()


def _has_default(action: argparse.Action) -> bool:
    value = action.default
    return not (value is None or value is False or value in ("", [], argparse.SUPPRESS))


def _status_of(error: BaseException) -> int:
    """The status after an error, of a command that has none of its own."""
    if isinstance(error, KeyboardInterrupt):
        return 130
    return 2 if isinstance(error, ConfigError) else 1


def _words(error: BaseException) -> object:
    match error:
        case OSError():
            return _of_system(error)
        case ModuleNotFoundError():
            return _missing(error)
        case KeyboardInterrupt():
            return "stopped"
    return error


def _fail(command: str, why: object, status: int = 1) -> int:
    print(f"flower-dhb {command}: {why}", file=sys.stderr)
    return status


def _of_system(error: OSError) -> str:
    """What the system refused, and about which file."""
    files = " and ".join(str(f) for f in (error.filename, error.filename2) if f is not None)
    return f"{files}: {error.strerror}" if files and error.strerror else str(error)


def _missing(error: ModuleNotFoundError) -> str:
    """The remedy if an optional package is missing. Raises the error again if it is not that."""
    package = (error.name or "").partition(".")[0]
    extra = EXTRAS.get(package)
    if extra is None:
        raise error
    return f"'{package}' is not installed, which this needs: pip install 'flower-dhb[{extra}]'"


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt
