"""Editions of the mesh: which graph holds for an agent in which round.

An operator changes a running mesh by a new edition with a higher number. Nobody can make all
agents learn of it at once, so it is not a moment that decides: **the newest edition that an agent
knows, of those that begin by a round, is the edition of its payload of that round**, and two
payloads count for each other only if they are of the same edition. Whoever learned of it late
loses a few edges, and never mixes with other weights than the other end.

Of graphs that take turns, an edition says which edges are due in which round, so both ends of an
edge know the schedule. Between two rounds in which an edge is due its ends may be some rounds
apart: neither follows the other before it has missed such a round.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TypeVar

from flower_dhb.errors import ConfigError

__all__ = ["NEVER_DUE", "Edition", "Editions", "in_turn"]

T = TypeVar("T")

NEVER_DUE = 2**62  # a round that no run has


def in_turn(turns: Sequence[T], round: int) -> T:
    """The entry of a round among those of a period: round k has entry (k - 1) modulo their number.

    Every table of a mesh that has an entry for each round of a period is read by this.
    """
    return turns[(round - 1) % len(turns)]


@dataclass(frozen=True, slots=True)
class Edition:
    """What an edition of the mesh says of one agent.

    number: 1 is the mesh as it was created; the newest wins. begins: first round for which it is
    meant. rounds: last round of the run. neighbors: of this agent, ascending; none if it is no
    member any more. members_since: the newest edition up to this one in which the set of members
    changed, 1 if it never did: a rule that conserves a sum over all members begins anew there.
    turns: which of the neighbors are due in the rounds of a period (`in_turn`); none where all are
    due in every round. Raises ConfigError if these contradict each other.
    """

    number: int
    begins: int
    rounds: int
    neighbors: tuple[int, ...]
    member: bool = True
    members_since: int = 1
    turns: tuple[tuple[int, ...], ...] = ()
    _places: Mapping[int, tuple[int, ...]] = field(init=False, repr=False, compare=False)
    _busy: tuple[int, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        who = f"edition {self.number}"
        if self.number < 1 or self.begins < 1:
            raise ConfigError(f"{who} begins in round {self.begins}; both are counted from 1")
        if self.rounds < self.begins:
            raise ConfigError(
                f"{who} begins in round {self.begins}, after its last round {self.rounds}; let the "
                "run end in the round in which the edition begins, or later"
            )
        if not 1 <= self.members_since <= self.number:
            raise ConfigError(
                f"{who}: members-since is {self.members_since}, expected 1 to {self.number}"
            )
        if tuple(sorted(set(self.neighbors))) != self.neighbors:
            raise ConfigError(f"{who}: neighbors {self.neighbors} are not in ascending order")
        if self.neighbors and not self.member:
            raise ConfigError(f"{who}: an agent that is no member has neighbors {self.neighbors}")
        places: dict[int, list[int]] = {}
        for at, near in enumerate(self.turns):
            for j in near:
                places.setdefault(j, []).append(at)
        if not places.keys() <= set(self.neighbors):
            raise ConfigError(
                f"{who}: its neighbors are {self.neighbors}, and in turn it meets {sorted(places)}"
            )
        object.__setattr__(self, "_places", {j: tuple(found) for j, found in places.items()})
        busy = accumulate((bool(near) for near in self.turns), initial=0)
        object.__setattr__(self, "_busy", tuple(busy))

    def due(self, round: int) -> tuple[int, ...]:
        """The neighbors with whom a round is shared, ascending."""
        return in_turn(self.turns, round) if self.turns else self.neighbors

    def next_due(self, neighbor: int, after: int) -> int:
        """The first round after another in which an edge is due."""
        places = self._places.get(neighbor)
        if places is None:
            return NEVER_DUE if self.turns and neighbor in self.neighbors else after + 1
        whole, at = divmod(after, len(self.turns))  # round `after` + 1 has the entry `at`
        found = bisect_left(places, at)
        if found == len(places):
            whole, found = whole + 1, 0
        return whole * len(self.turns) + places[found] + 1

    def last_due(self, neighbor: int, before: int) -> int:
        """The last round before another in which an edge was due; below 1 if there was none."""
        places = self._places.get(neighbor)
        if places is None:
            return 0 if self.turns and neighbor in self.neighbors else before - 1
        whole, at = divmod(before - 1, len(self.turns))  # the entry of round `before`
        found = bisect_left(places, at) - 1
        return whole * len(self.turns) + places[found] + 1 - len(self.turns) * (found < 0)

    def shared_rounds(self, after: int, until: int) -> int:
        """How many rounds, after one and up to another, are shared with anybody."""
        if not self.turns:
            return until - after

        def shared(round: int) -> int:
            whole, rest = divmod(round, len(self.turns))
            return whole * self._busy[-1] + self._busy[rest]

        return shared(until) - shared(after)


class Editions:
    """The editions that an agent knows, in the order of their numbers.

    Raises ConfigError if there are none, or two of one number.
    """

    def __init__(self, known: Iterable[Edition]) -> None:
        self.known = sorted(known, key=lambda edition: edition.number)
        if not self.known:
            raise ConfigError("an agent needs to know an edition of its mesh")
        numbers = [edition.number for edition in self.known]
        if len(set(numbers)) < len(numbers):
            raise ConfigError(f"two editions of one number: {numbers}")

    @property
    def newest(self) -> Edition:
        """The one with the highest number, whether or not it has begun."""
        return self.known[-1]

    @property
    def rounds(self) -> int:
        """The last round of the run, as far as this agent knows."""
        return self.known[-1].rounds

    @property
    def longest(self) -> int:
        """The last round of the run in any edition: not everybody may know a newer one."""
        return max(edition.rounds for edition in self.known)

    def get(self, number: int) -> Edition | None:
        """The edition of a number, None if it is not known."""
        return next((e for e in self.known if e.number == number), None)

    def at(self, round: int) -> Edition | None:
        """The edition of a payload of this round; None before the first that is known."""
        return next((e for e in reversed(self.known) if e.begins <= round), None)

    def then(self, round: int) -> Edition:
        """The edition of a round, or the first that is known after it."""
        first = min(edition.begins for edition in self.known)
        return next(e for e in reversed(self.known) if e.begins <= max(round, first))

    def next(self, after: int) -> int | None:
        """The first round after another in which this agent is a member, None if there is none."""
        begins = {after + 1, *(e.begins for e in self.known if e.begins > after)}
        for first in sorted(begins):
            edition = self.at(first)
            if first <= self.rounds and edition is not None and edition.member:
                return first
        return None

    def last_due(self, neighbor: int, before: int) -> int:
        """The last round before another in which an edge was due, in any edition.

        A neighbor that lags behind may know none but the older ones.
        """
        return max(e.last_due(neighbor, before) for e in self.known if neighbor in e.neighbors)

    def shared_rounds(self, after: int, until: int) -> int:
        """How many rounds, after one and up to another, this agent shares with anybody.

        Each by the edition that holds in it.
        """
        shared = 0
        for last in sorted({until, *(e.begins - 1 for e in self.known if e.begins <= until)}):
            if last > after or last == until:
                shared += self.then(last).shared_rounds(after, last)
                after = last
        return shared

    def partners(self, now: Edition) -> set[int]:
        """Neighbors in this edition, or in one that may hold later."""
        later = [e for e in self.known if e.number > now.number]
        return {j for edition in (now, *later) for j in edition.neighbors}

    def learn(self, edition: Edition) -> bool:
        """Add an edition. Returns whether it is newer than all that were known."""
        if edition.number <= self.newest.number:
            return False
        self.known.append(edition)
        return True
