"""Where the time of a round goes, as ServerApp and agents measured it together."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["PARTS", "Profile", "Spent", "mean_profile", "started_at"]

# What a round's seconds are divided into; the sum of the parts is the round.
PARTS = {
    "queueing": "from the message's upload to the start of the node's process for it",
    "process-start": "until the app is called: Python, Flower, the app's imports, the download",
    "app": "the app's own train and evaluate",
    "ours": "combining, codec and state at the agent, and the relay's own work",
    "transfer": "the ServerApp's uploads and downloads",
    "polling": "from the agent's answer until the ServerApp finds it",
    "slowest": "until the last agent has answered, when an average one has",
}


@dataclass(frozen=True)
class Spent:
    """What an agent says of its time: three moments of its clock, in seconds since 1970.

    started: the start of its process, 0 if the process has answered a message before. began:
    when it was called. ended: when it had its answer. app_s: of that, in the app.
    """

    started: float
    began: float
    ended: float
    app_s: float


@dataclass
class _Exchange:
    """Messages to agents, and their answers. found: by vertex, when which pull began and ended."""

    begin: float
    pushed: float
    end: float
    found: dict[int, tuple[float, float]] = field(default_factory=dict)
    spent: dict[int, Spent] = field(default_factory=dict)

    def parts(self) -> dict[str, float]:
        trips = [self._trip(v) for v in self.spent if v in self.found]
        total = max(self.end - self.begin, 0.0)
        push = min(max(self.pushed - self.begin, 0.0), total)
        parts = {name: _mean(trip.get(name, 0.0) for trip in trips) for name in PARTS}
        parts["transfer"] += push
        parts["slowest"] = max(total - sum(parts.values()), 0.0)
        return parts

    def _trip(self, vertex: int) -> dict[str, float]:
        """One agent's way from the upload of its message to the download of its answer."""
        spent, (found, pulled) = self.spent[vertex], self.found[vertex]
        whole = max(pulled - self.pushed, 0.0)
        inside = min(max(spent.ended - spent.began, 0.0), whole)
        pull = min(max(pulled - found, 0.0), whole - inside)
        outside = whole - inside - pull
        start = min(spent.began - spent.started, outside) if spent.started > 0.0 else 0.0
        outside -= max(start, 0.0)
        waited = spent.began - start - self.pushed
        if not 0.0 <= waited <= outside:  # the clocks of the two machines differ
            waited = outside / 2
        app = min(max(spent.app_s, 0.0), inside)
        return {
            "queueing": waited,
            "process-start": max(start, 0.0),
            "app": app,
            "ours": inside - app,
            "transfer": pull,
            "polling": outside - waited,
        }


class Profile:
    """Takes down when what happened in a round; times are seconds since 1970."""

    def __init__(self) -> None:
        self._exchanges: list[_Exchange] = []

    def pushed(self, begin: float, end: float) -> None:
        """Messages were uploaded."""
        self._exchanges.append(_Exchange(begin, end, end))

    def pulled(self, vertices: Iterable[int], begin: float, end: float) -> None:
        """Answers of these agents were downloaded."""
        if self._exchanges:
            self._exchanges[-1].found |= dict.fromkeys(vertices, (begin, end))

    def collected(self, end: float) -> None:
        """Nothing is waited for any more."""
        if self._exchanges:
            self._exchanges[-1].end = end

    def told(self, vertex: int, spent: Spent | None) -> None:
        """An agent has said how long it took."""
        if self._exchanges and spent is not None:
            self._exchanges[-1].spent[vertex] = spent

    def parts(self, seconds: float) -> dict[str, float]:
        """Seconds of a round by `PARTS`: means over agents. Empty if nothing was measured."""
        if not any(exchange.spent for exchange in self._exchanges):
            return {}
        found = [exchange.parts() for exchange in self._exchanges]
        parts = {name: sum(one[name] for one in found) for name in PARTS}
        parts["ours"] += max(seconds - sum(parts.values()), 0.0)
        return parts


def mean_profile(profiles: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Means over rounds, of those that were measured."""
    known = [profile for profile in profiles if profile]
    return {name: _mean(one.get(name, 0.0) for one in known) for name in PARTS} if known else {}


def started_at() -> float:
    """When this process began, in seconds since 1970; 0 where the system does not tell."""
    try:
        # Linux: the 20th word after the name, in ticks since the machine was switched on.
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        up = time.clock_gettime(time.CLOCK_BOOTTIME)
        return time.time() - (up - ticks / os.sysconf("SC_CLK_TCK"))
    except (OSError, AttributeError, ValueError, IndexError):
        return 0.0


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found) if found else 0.0
