"""`flower-dhb doctor`: what would keep a device from taking part, and what to do about it."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from flower_dhb.cli.lines import folded
from flower_dhb.peer.doctor.examination import device, machine_alone
from flower_dhb.peer.doctor.finding import Finding, Grade

__all__ = ["configure", "execute"]

_INDENT = 6


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "settings",
        type=Path,
        nargs="?",
        help="the device's peer.toml; without it the machine alone",
    )
    parser.add_argument(
        "--timeout", type=float, default=5.0, metavar="SECONDS", help="for each neighbor"
    )
    parser.add_argument(
        "--no-app", action="store_true", help="do not load the app, whose code would run"
    )
    parser.add_argument(
        "--train", action="store_true", help="have the app train once, and say how long it takes"
    )
    parser.add_argument(
        "--no-rates",
        action="store_true",
        help="do not measure how fast the links are, for which up to 0.9 MB go each way",
    )
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")


def execute(arguments: argparse.Namespace) -> int:
    """Print what was found as it is found. Returns 1 if something is wrong, 0 otherwise."""
    if arguments.settings is None:
        findings = machine_alone(Path.cwd())
    else:
        findings = device(
            arguments.settings,
            arguments.timeout,
            app=not arguments.no_app,
            train=arguments.train,
            rates=not arguments.no_rates,
        )
    found = list(findings if arguments.json else _printed(findings))
    if arguments.json:
        print(json.dumps([asdict(finding) for finding in found], indent=2))
    else:
        print(_summary(found))
    return int(any(finding.grade is Grade.WRONG for finding in found))


def _printed(findings: Iterable[Finding]) -> Iterable[Finding]:
    for finding in findings:
        head = f"{finding.grade.value:<{_INDENT}}"
        print(folded(f"{head}{finding.subject}: {finding.text}", " " * _INDENT))
        if finding.remedy:
            print(folded(" " * _INDENT + finding.remedy, " " * _INDENT), flush=True)
        yield finding


def _summary(found: list[Finding]) -> str:
    counts = Counter(finding.grade for finding in found)
    bad, notes = counts[Grade.WRONG], counts[Grade.NOTE]
    worth = f"{notes} worth knowing" if notes else ""
    if not bad:
        return "Nothing is wrong" + (f", {worth}." if worth else ".")
    return f"{bad} to mend" + (f", {worth}." if worth else ".")
