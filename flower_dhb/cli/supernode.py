"""`flower-dhb supernode`: a SuperNode whose policy is asked before an app is loaded."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess  # nosec B404
import sys
import tempfile
from pathlib import Path

from flower_dhb.errors import ConfigError

__all__ = ["configure", "execute"]


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "words",
        nargs=argparse.REMAINDER,
        metavar="-- ARGUMENTS",
        help="arguments of flower-supernode, after two dashes",
    )


def execute(arguments: argparse.Namespace) -> int:
    """Run flower-supernode until it ends; its exit status."""
    from flower_dhb.site.gate import check_flower, environment

    words = arguments.words[1:] if arguments.words[:1] == ["--"] else arguments.words
    if "process" in words or "--isolation=process" in words:
        raise ConfigError(
            "--isolation process leaves it to others to start the app's process; start the "
            "SuperNode without it"
        )
    check_flower()
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    program = shutil.which("flower-supernode", path=path)
    if program is None:
        raise ConfigError("there is no flower-supernode here; it comes with Flower (flwr)")
    with tempfile.TemporaryDirectory(prefix="flower-dhb-") as folder:
        surroundings = environment(Path(folder), os.environ)
        process = subprocess.Popen([program, *words], env=surroundings)  # noqa: S603  # nosec B603
        try:
            return process.wait()
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
