"""`flower-dhb replay`: compute a recorded run again, and say who followed the law."""

from __future__ import annotations

import argparse
import tomllib
from pathlib import Path

from flower_dhb.errors import ConfigError

__all__ = ["configure", "execute"]


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("mesh", type=Path, help="mesh directory with the devices' records")


def execute(arguments: argparse.Namespace) -> int:
    """Returns 0 if every recorded round is as the law says, 1 if not."""
    from flower_dhb.peer.replay import of_mesh

    path = arguments.mesh / "mesh.toml"
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    replay = of_mesh(document, arguments.mesh)
    findings = list(replay.findings())
    for finding in findings:
        print(finding)
    print(
        f"{replay.rounds_checked} rounds of peers checked, {replay.rounds_computed} of them "
        f"computed again: {len(findings)} not as the law says"
    )
    return 1 if findings else 0
