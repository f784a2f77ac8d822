"""The command `python -m tests.mutation.protocol`: is every rule of the peers' protocol tested?

Each mistake of the lists beside this module (`protocol_rules`, `_words`, `_payloads`, `_life`,
`_editions`) is put into a copy of the tree. The unit tests of the protocol run on it, and, if they
let it pass, schedules of the simulator. A table says what caught it; the exit status is 1 if a
mistake was not caught and is not argued for in `EQUIVALENT`.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .calls import MARKS
from .fork import changed, copy_of, in_child, preload
from .protocol_editions import EDITIONS
from .protocol_life import AGENT, PATIENCE
from .protocol_payloads import PAYLOADS
from .protocol_rules import EDGE, ROUNDS, Mistake
from .protocol_words import WORDS

__all__ = ["CORE", "EQUIVALENT", "MISTAKES"]

ROOT = Path(__file__).parents[2]
CORE = "flower_dhb/peer/protocol"
# From the rules of one edge to any order of anything.
TESTS = [
    f"tests/unit/test_protocol_{name}.py"
    for name in (
        *("edge", "settling", "connection", "waiting", "rounds"),
        *("absence", "following", "restart", "editions", "turns", "docs", "pair"),
    )
]
LIMIT_S = 180.0
BLOCK = 20  # schedules at a time

MISTAKES: tuple[Mistake, ...] = (*EDGE, *ROUNDS, *WORDS, *PAYLOADS, *AGENT, *PATIENCE, *EDITIONS)

# Rules whose mistake nobody can notice, and why: the text is there for the reader or for a shell
# that does not keep its promises.
EQUIVALENT: dict[str, str] = {
    "a round is settled by the same payloads": (
        "other payloads of the same round are found by the comparison that follows, which says "
        "that the round is one-sided and settles it"
    ),
}


class First:
    """A pytest plugin that keeps the name of the first test to fail."""

    def __init__(self) -> None:
        self.failed = ""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and not self.failed:
            self.failed = report.nodeid

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed and not self.failed:
            self.failed = f"{report.nodeid} (at import)"


def unit_tests() -> str:
    """The first unit test of the protocol that fails, empty if none does (in the child)."""
    first = First()
    code = pytest.main([*TESTS, "-x", *MARKS], plugins=[first])
    return first.failed or (f"pytest ended with {int(code)}" if code else "")


def simulated(schedules: int) -> str:
    """The first broken promise in so many schedules, empty if there is none (in the child)."""
    campaign: Any = importlib.import_module("tests.simulation.campaign")
    for first in range(0, schedules, BLOCK):
        broken = campaign.run_seeds(range(first, first + BLOCK)).broken
        if broken:
            seed, profile, promise, _ = broken[0]
            return f"simulation, seed {seed} ({profile}): {promise}"
    return ""


def caught_by(tree: Path, mistake: Mistake, watchers: list[Callable[[], str]]) -> str:
    """What noticed the mistake: a test, the simulator, the clock; empty if nothing did."""
    path = tree / CORE / mistake.file
    source = path.read_text(encoding="utf-8").replace(mistake.old, mistake.new)
    with changed(path, source):
        for watcher in watchers:
            found = in_child(tree, watcher, LIMIT_S)
            if found is None:
                return "time, or the end of the process"
            if found:
                return str(found)
    return ""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutation.protocol", description=__doc__)
    parser.add_argument("--only", default="", help="rules that have this text in them (all)")
    parser.add_argument("--schedules", type=int, default=200, help="of the simulator (200)")
    parser.add_argument("--simulation-only", action="store_true", help="no unit tests")
    args = parser.parse_args()
    watchers: list[Callable[[], str]] = [] if args.simulation_only else [unit_tests]
    if args.schedules:
        watchers.append(lambda: simulated(args.schedules))
    os.nice(10)
    preload("pytest _pytest.assertion.rewrite hypothesis psutil")
    chosen = [m for m in MISTAKES if args.only in m.rule]
    survived = by_simulation = 0
    begin = time.monotonic()
    with copy_of(ROOT) as tree:
        for watcher in watchers:
            if (found := in_child(tree, watcher, LIMIT_S)) != "":
                print(f"the unchanged tree does not pass: {found}")
                return 2
        for mistake in chosen:
            by = caught_by(tree, mistake, watchers)
            by_simulation += bool(by) and not by.startswith(("tests/unit", "time"))
            if not by and mistake.rule in EQUIVALENT:
                by = f"nothing can: {EQUIVALENT[mistake.rule]}"
            survived += not by
            name = by.removeprefix("tests/unit/test_protocol_").replace(".py::", ": ")
            print(f"{mistake.file:16} {mistake.rule}\n{'':16} {name or 'SURVIVED'}", flush=True)
    print(
        f"{len(chosen)} mistakes, {survived} survived, {by_simulation} caught by simulation alone, "
        f"{sum(m.rule in EQUIVALENT for m in chosen)} equivalent; {time.monotonic() - begin:.0f} s"
    )
    return int(survived > 0)


if __name__ == "__main__":
    sys.exit(main())
