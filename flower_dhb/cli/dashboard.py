"""`flower-dhb dashboard`: runs or a mesh as they are now, in a browser on this machine."""

from __future__ import annotations

import argparse
from pathlib import Path

from flower_dhb.errors import ConfigError

__all__ = ["configure", "execute"]

_EPILOG = """Open the address that is printed in a browser on this machine. Its token
changes with each start; whoever does not know it sees nothing. The page changes
nothing. Ctrl-C ends it. From another machine, with the same --port here and
there: ssh -L PORT:127.0.0.1:PORT HOST"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _EPILOG
    parser.add_argument(
        "path",
        type=Path,
        metavar="RUNS|MESH",
        help="a run that goes on, the folder in which runs are or will be, or that of a mesh",
    )
    parser.add_argument("--port", type=int, default=0, help="on 127.0.0.1 (default: a free one)")


def execute(arguments: argparse.Namespace) -> int:
    """Serve until interrupted."""
    from flower_dhb.dashboard.server import Server
    from flower_dhb.dashboard.sources import source_of

    if not 0 <= arguments.port < 2**16:
        raise ConfigError(f"--port must be 0 to 65535, got {arguments.port}")
    server = Server(source_of(arguments.path), arguments.port)
    print(f"dashboard: {server.url}", flush=True)
    server.run()
    return 0
