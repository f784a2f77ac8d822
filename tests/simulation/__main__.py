"""The command: a campaign, or one schedule with its trace."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from .campaign import Report, campaign, run_one
from .leaving import leave
from .plan import profile_of
from .profiles import PROFILES
from .trace import Trace


def _show(report: Report) -> None:
    if not sys.stderr.isatty():
        return
    print(
        f"\r{report.schedules:,} schedules, {report.events:,} events, "
        f"{len(report.broken)} violations",
        end="",
        file=sys.stderr,
        flush=True,
    )


def main() -> int:
    """Exit status 1 if a promise was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="of the schedule, or the first one")
    parser.add_argument("--profile", choices=sorted(PROFILES), help="default: by seed")
    parser.add_argument("--events", type=float, help="run schedules until there are so many")
    parser.add_argument("--jobs", type=int, default=1, help="processes of a campaign")
    parser.add_argument("--trace", action="store_true", help="print every event of the schedule")
    parser.add_argument("--heartbeats", action="store_true", help="signs of life, too")
    parser.add_argument(
        "--out", type=Path, help="of one schedule: a folder for 'flower-dhb report'"
    )
    options = parser.parse_args()
    if options.events is not None:
        report = campaign(
            options.events,
            first=options.seed,
            jobs=options.jobs,
            profile=options.profile,
            progress=_show,
        )
        print(report.text())
        return bool(report.broken)
    trace = Trace(quiet=not options.heartbeats) if options.trace else None
    began = time.perf_counter()
    world, found = run_one(options.seed, options.profile or profile_of(options.seed), trace=trace)
    seconds = time.perf_counter() - began
    for name, number in sorted(world.counts.items()):
        print(f"{number:>8}  {name}")
    print(f"{world.events} events, {world.now:.3f} s of virtual time in {seconds:.3f} s")
    if options.out is not None:
        leave(world, options.out)
    if found is not None:
        print(f"VIOLATION: {found}")
    return found is not None


if __name__ == "__main__":
    sys.exit(main())
