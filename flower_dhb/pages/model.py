"""What a page shows of a run, whichever runtime it ran in: numbers, without words and shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "MISSING",
    "REJOINED",
    "TOOK_PART",
    "UNKNOWN",
    "Event",
    "Floats",
    "Link",
    "Run",
]

Floats: TypeAlias = NDArray[np.float64]

# What an agent did in a round.
TOOK_PART, MISSING, REJOINED, UNKNOWN = 0, 1, 2, 3


@dataclass(frozen=True, kw_only=True)
class Link:
    """An edge of the graph. a, b: positions of its agents. weight: None if it is not known.

    failed: rounds in which it did not count. bytes: both ways, None if they are not known.
    """

    a: int
    b: int
    weight: float | None = None
    failed: int = 0
    bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something that went wrong: where, what, how often, and the first and the last round."""

    agents: Sequence[int]
    what: str
    times: int
    first: int
    last: int


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run with `k` recorded rounds of `n` agents. NaN is what was not measured.

    runtime: where it ran, in words. agents: names, `(n,)`. rounds: numbers of the recorded
    rounds, `(k,)`, ascending. planned: how many there were to be, 0 if that is not known.
    seconds, bytes: since the start, `(k,)`. bands: mean, worst and best agent of each metric,
    `(k, 3)`; the best is NaN where only the others are known. average_model: metrics of the
    network average, `(k,)`. consensus: distance, `(k,)`.
    part: what each agent did, `(k, n)`, one of `TOOK_PART`, `MISSING`, `REJOINED`, `UNKNOWN`.
    last: each agent's last value of each metric, `(n,)`. agent_bytes: sent or received by each,
    `(n,)`. graph: name of the communication graph, empty if unknown. places: where to draw its
    agents, `(n, 2)`, within -1 and 1; None if there is nothing to draw. warnings: with the round
    in which each was told. split: samples of each class that each agent has, `(classes, n)`.
    again: the command that repeats it, empty if that is not known. notes: what could not be read.
    way: root mean square over agents of the distance from the start, `(k,)`, empty if unknown.
    """

    name: str
    path: str
    runtime: str
    agents: Sequence[str]
    rounds: NDArray[np.int64]
    planned: int
    seconds: Floats
    bytes: Floats
    bands: Mapping[str, Floats]
    average_model: Mapping[str, Floats]
    consensus: Floats
    part: NDArray[np.int8]
    last: Mapping[str, Floats]
    agent_bytes: Floats
    graph: str = ""
    places: Floats | None = None
    links: Sequence[Link] = ()
    warnings: Sequence[tuple[int, str]] = ()
    events: Sequence[Event] = ()
    split: NDArray[np.int64] | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    again: str = ""
    notes: Sequence[str] = ()
    way: Floats = field(default_factory=lambda: np.zeros(0))

    @property
    def n_agents(self) -> int:
        """Number of agents."""
        return len(self.agents)

    @property
    def missed(self) -> NDArray[np.int64]:
        """In how many recorded rounds each agent was missing, `(n,)`."""
        return np.asarray((self.part == MISSING).sum(axis=0), np.int64)

    @property
    def last_round(self) -> int:
        """Number of the last recorded round, 0 if there is none."""
        return int(self.rounds[-1]) if len(self.rounds) else 0
