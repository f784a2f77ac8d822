"""Many schedules, on several processes, and the report of what they met.

A schedule depends on its seed and profile alone, so the same seeds give the same events and the
same violations whatever the number of processes. Seeds are taken in blocks of a fixed size until
the events are enough; the number of blocks is settled by their events, in the order of seeds.
"""

from __future__ import annotations

import multiprocessing
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from .coverage import never_seen, watched
from .plan import Plan, profile_of
from .watch import ViolationError
from .world import World

__all__ = ["Report", "campaign", "run_one", "run_seeds"]

_BLOCK = 20


@dataclass
class Report:
    """What happened in a number of schedules.

    broken: for each schedule that failed, its seed, profile, promise, and what was found.
    """

    schedules: int = 0
    events: int = 0
    seconds: float = 0.0
    counts: Counter[str] = field(default_factory=Counter)
    transitions: Counter[str] = field(default_factory=Counter)
    broken: list[tuple[int, str, str, str]] = field(default_factory=list)

    def add(self, other: Report) -> None:
        """Take in another report."""
        self.schedules += other.schedules
        self.events += other.events
        self.counts.update(other.counts)
        self.transitions.update(other.transitions)
        self.broken += other.broken

    def text(self) -> str:
        """The report as lines."""
        lines = [
            f"schedules {self.schedules:,}, events {self.events:,}, "
            f"{self.events / max(self.seconds, 1e-9):,.0f} events/s"
        ]
        lines += [f"  {number:>10,}  {name}" for name, number in sorted(self.counts.items())]
        lines += [f"  transition never seen: {name}" for name in never_seen(self.transitions)]
        lines.append(f"violations {len(self.broken)}")
        by_kind = Counter(kind for _, _, kind, _ in self.broken)
        lines += [f"  {number:>10,}  {kind}" for kind, number in sorted(by_kind.items())]
        lines += [
            f"  python -m tests.simulation --seed {seed} --profile {profile} --trace  # {text}"
            for seed, profile, _, text in self.broken[:20]
        ]
        return "\n".join(lines)


def run_one(seed: int, profile: str, **options: Any) -> tuple[World, ViolationError | None]:
    """Run one schedule. A core that raises has broken a promise, too."""
    world = World(Plan(seed, profile), **options)
    try:
        world.run()
    except ViolationError as found:
        return world, found
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        text = f"{type(error).__name__}: {error} ({place.filename.split('/')[-1]}:{place.lineno})"
        return world, ViolationError("no exception", text)
    return world, None


def run_seeds(
    seeds: range, profile: str | None = None, make: Callable[..., Any] | None = None
) -> Report:
    """Run the schedules of some seeds. profile: of all; by default each seed has its own."""
    report = Report()
    options = {} if make is None else {"make": make}
    with watched(report.transitions):
        for seed in seeds:
            name = profile or profile_of(seed)
            world, found = run_one(seed, name, **options)
            report.schedules += 1
            report.events += world.events
            report.counts.update(world.counts)
            if found is not None:
                report.broken.append((seed, name, found.promise, str(found)))
    return report


def _block(work: tuple[int, str | None]) -> Report:
    start, profile = work
    return run_seeds(range(start, start + _BLOCK), profile)


def _blocks(first: int, profile: str | None) -> Iterator[tuple[int, str | None]]:
    while True:
        yield first, profile
        first += _BLOCK


def campaign(
    events: float,
    *,
    first: int = 0,
    jobs: int = 1,
    profile: str | None = None,
    schedules: int = 0,
    progress: Callable[[Report], None] | None = None,
) -> Report:
    """Run schedules from a first seed on until there are enough events, and enough schedules."""
    total = Report()
    began = time.perf_counter()
    work = _blocks(first, profile)
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        waiting = [pool.apply_async(_block, (next(work),)) for _ in range(2 * jobs)]
        while total.events < events or total.schedules < schedules:
            total.add(waiting.pop(0).get())
            waiting.append(pool.apply_async(_block, (next(work),)))
            total.seconds = time.perf_counter() - began
            if progress is not None:
                progress(total)
        pool.terminate()
    return total
