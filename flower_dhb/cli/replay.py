"""`flower-dhb replay`: compute a recorded run again, and say who followed the law."""

from __future__ import annotations

import argparse
from pathlib import Path

__all__ = ["configure", "execute"]


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("mesh", type=Path, help="mesh directory with the devices' records")


def execute(arguments: argparse.Namespace) -> int:
    """Returns 0 if every recorded round is as the law says, 1 if not."""
    from flower_dhb.peer.mesh.overview import read_overview
    from flower_dhb.peer.watch.replay import of_mesh

    replay = of_mesh(read_overview(arguments.mesh), arguments.mesh)
    findings = list(replay.findings())
    for finding in findings:
        print(finding)
    print(
        f"{replay.rounds_checked} rounds of peers checked, {replay.rounds_computed} of them "
        f"computed again: {len(findings)} not as the law says"
    )
    if replay.one_sided:
        print(f"{replay.one_sided} edges of a round counted at one end only, and are known to have")
    if replay.unseen:
        print(f"{replay.unseen} edges of a round cannot be judged: the other end has no record")
    return 1 if findings else 0
