"""`flower-dhb replay`: compute a recorded run again, and say who followed the law."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flower_dhb.peer.watch.records import Spans
    from flower_dhb.peer.watch.replay import Finding, Replay

__all__ = ["configure", "execute"]

_VERTICES = re.compile(r"vertex (\d+)|edge (\d+)–(\d+)|edge to (\d+)|payload of (\d+)")
_STATUSES = """exit status:
  0  everything was checked, and is as the law says
  1  something is not as the law says
  2  there is nothing to check: no mesh, or no records
  3  nothing is against the law, but not everything could be checked"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _STATUSES
    parser.add_argument("mesh", type=Path, help="mesh directory with the devices' records")
    parser.add_argument(
        "--records", type=Path, help="what 'mesh fetch --what records' wrote, if they lie there"
    )
    parser.add_argument("--json", action="store_true", help="for machines")


def execute(arguments: argparse.Namespace) -> int:
    """Returns 0 if all is as the law says, 1 if something is not, 3 if something is not known."""
    from flower_dhb.peer.mesh.overview import read_overview
    from flower_dhb.peer.watch.replay import of_mesh

    document = read_overview(arguments.mesh)
    replay = of_mesh(document, arguments.mesh, arguments.records)
    groups = grouped(replay.findings())
    if arguments.json:
        print(json.dumps(_document(replay, groups), indent=2))
    else:
        names = {host["vertex"]: host["name"] for host in document["hosts"] if "name" in host}
        print("\n".join(_text(replay, groups, names)))
    return 1 if groups else 3 if replay.no_evidence else 0


@dataclass
class Group:
    """Findings of one kind at one vertex. off: the largest; detail: that of the first."""

    vertex: int
    text: str
    rounds: Spans
    off: float | None = None
    details: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        off = "" if self.off is None else f", by up to {self.off:.3g}"
        return f"vertex {self.vertex}, {self.rounds}: {self.text}{off}{''.join(self.details)}"


def grouped(findings: Sequence[Finding]) -> list[Group]:
    """What is the same in many rounds, once. findings: by vertex and round."""
    from flower_dhb.peer.watch.records import Spans

    groups: dict[tuple[int, str], Group] = {}
    for found in findings:
        group = groups.setdefault(
            (found.vertex, found.text), Group(found.vertex, found.text, Spans(), found.off)
        )
        if found.detail and not len(group.rounds):
            group.details.append(found.detail)
        group.rounds.add(found.round)
        if found.off is not None:
            group.off = max(group.off or 0.0, found.off)
    return sorted(groups.values(), key=lambda group: (group.vertex, group.rounds.ranges[0]))


def _text(replay: Replay, groups: Sequence[Group], names: dict[int, str]) -> list[str]:
    parts = (
        ("not as the law says", groups),
        ("counted in doubt, at one end only, and known to have been", replay.doubts),
        ("no evidence", replay.no_evidence),
    )
    lines = []
    for title, entries in parts:
        if entries:
            lines += [f"{title}:", *(f"  {entry}" for entry in entries)]
    found = {int(v) for line in lines for each in _VERTICES.findall(line) for v in each if v}
    if shown := found & names.keys():
        lines.append("names: " + ", ".join(f"{v} is {names[v]}" for v in sorted(shown)))
    devices = len(replay.records)
    deviations = sum(len(group.rounds) for group in groups)
    lines += [
        f"{replay.rounds_checked:,} rounds of {devices} devices checked, "
        f"{replay.rounds_computed:,} of them computed again: {deviations:,} not as the law says",
        f"{replay.one_sided:,} edges of a round counted in doubt, {replay.unseen:,} unknown",
    ]
    return lines


def _document(replay: Replay, groups: Sequence[Group]) -> dict[str, Any]:
    return {
        "rounds_checked": replay.rounds_checked,
        "rounds_computed": replay.rounds_computed,
        "edges_in_doubt": replay.one_sided,
        "edges_without_evidence": replay.unseen,
        "not_as_the_law_says": [
            {
                "vertex": group.vertex,
                "rounds": group.rounds.ranges,
                "text": group.text,
                "off": group.off,
                "first": "".join(group.details),
            }
            for group in groups
        ],
        "in_doubt": [
            {"edge": d.edge, "rounds": d.rounds.ranges, "evidence": d.evidence}
            for d in replay.doubts
        ],
        "no_evidence": [
            {"subject": u.subject, "rounds": u.rounds.ranges, "text": u.text}
            for u in replay.no_evidence
        ],
    }
