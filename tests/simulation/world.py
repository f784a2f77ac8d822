"""A whole mesh in virtual time: one heap of things to come, one generator, one thread.

A plain heap, and not a library: the core takes some ten microseconds an event, and what drives
it should not take more. Measured on one core: a heap of tuples 950,000 steps/s; SimPy 4.1
400,000 (each step resumes a generator, and a crash in the middle of one would need interrupts
wherever it may wait); Hypothesis' stateful testing 5,500 (it draws every step so that it can
shrink it), without any core in it.
"""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any

from flower_dhb.peer.protocol.agent import Agent, Phase

from .faults import Faults
from .field import PRIME
from .plan import Plan
from .process import Host, Process
from .trace import Trace
from .watch import ViolationError, Watch

__all__ = ["World"]

_EVENTS_LIMIT = 400_000
_LOOK_EVENTS = 1000  # between two looks at whether those who are left can get anywhere


class World:
    """A schedule as it runs.

    live: processes by vertex (two while an agent runs twice). make: the core's class, or what
    stands for it. counts: how often something happened. seen: digests of payloads.
    """

    def __init__(
        self, plan: Plan, make: Callable[..., Any] = Agent, trace: Trace | None = None
    ) -> None:
        self.plan, self.rng, self.trace = plan, plan.rng, trace
        self.make = make
        self.random = plan.rng.random
        self.now = 0.0
        self.events = 0
        self.over = False
        self.counts: Counter[str] = Counter()
        self.blocked: dict[tuple[int, int], float] = {}
        self.seen: list[int] = []
        self._heap: list[tuple[float, int, Callable[[Any, Any], None], Any, Any]] = []
        self._ids = 0
        self._pushed = 0
        self.start_x = self.rng.randrange(PRIME)
        self.live: list[list[Process]] = [[] for _ in range(plan.size)]
        self.hosts = [Host(self, vertex) for vertex in range(plan.size)]
        self.twins: list[Host] = []
        self.faults = Faults(self)
        self.watch = Watch(self)

    def push(self, at: float, fn: Callable[[Any, Any], None], a: Any, b: Any) -> None:
        """Let something happen at a time."""
        self._pushed = number = self._pushed + 1
        heappush(self._heap, (at, number, fn, a, b))

    def next_id(self) -> int:
        """A number that nothing else has."""
        self._ids += 1
        return self._ids

    def count(self, name: str) -> None:
        """Count something for the report."""
        self.counts[name] += 1

    def check_over(self) -> None:
        """Nobody lives, and nobody will, but for those that wait for somebody to begin from."""
        live = [process for there in self.live for process in there]
        lost = all(process.core.phase is Phase.JOINING for process in live)
        self.over = lost and not any(h.due for h in (*self.hosts, *self.twins))
        if self.over and live:
            self.count("nobody to begin from")

    def run(self) -> None:
        """Run until all have ended. Raises `ViolationError` as soon as a promise is broken."""
        collects = gc.isenabled()
        gc.disable()  # what a schedule leaves in circles is little, and goes when it is over
        try:
            self._run()
        finally:
            if collects:
                gc.enable()

    def _run(self) -> None:
        heap = self._heap
        self.faults.begin()
        while not self.over:
            self.now, _, fn, a, b = heappop(heap)
            fn(a, b)
            if self.events > _EVENTS_LIMIT:
                raise ViolationError("liveness", f"no end after {self.events} events")
            if self.now > self.faults.calm_at:
                self.watch.in_time()
                if not self.events % _LOOK_EVENTS:
                    self.check_over()
        self.watch.at_the_end()
