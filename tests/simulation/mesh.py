"""Editions of a simulated mesh: how its graph, its weights and its rounds change in a schedule."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from random import Random

from flower_dhb.peer.protocol.edition import Edition

from .field import PRIME

__all__ = ["Mesh", "changed", "turns_of"]

Pair = tuple[int, int]

_KINDS = ("weights", "add edge", "drop edge", "join", "join", "leave", "leave", "more", "fewer")


@dataclass(frozen=True)
class Mesh:
    """One edition for all agents. weights: symmetric field elements, by edge (smaller first).

    kinds: what has changed since the edition before. turns: the edges of each round of a period;
    none where all have their turn in every round.
    """

    number: int
    begins: int
    rounds: int
    members: frozenset[int]
    weights: dict[Pair, int]
    members_since: int = 1
    kinds: tuple[str, ...] = ()
    turns: tuple[frozenset[Pair], ...] = ()

    @cached_property
    def rows(self) -> dict[int, Edition]:
        """What it says of each agent that is a member."""
        return {v: self._row(v) for v in self.members}

    def row(self, vertex: int) -> Edition:
        """What it says of an agent."""
        return self.rows.get(vertex) or self._row(vertex)

    def _row(self, v: int) -> Edition:
        ends = sorted(i if j == v else j for i, j in self.weights if v in (i, j))
        about = self.number, self.begins, self.rounds, tuple(ends)
        turns = tuple(tuple(j for j in ends if _pair((v, j)) in edges) for edges in self.turns)
        return Edition(*about, v in self.members, self.members_since, turns if ends else ())

    def weight(self, i: int, j: int, round: int) -> int:
        """Of an edge that this edition has; another one at each place of the period."""
        place = (round - 1) % len(self.turns) if self.turns else 0
        return self.weights[min(i, j), max(i, j)] * (place + 1) % PRIME


def turns_of(rng: Random, weights: dict[Pair, int]) -> tuple[frozenset[Pair], ...]:
    """Rounds of a period, in which each edge has its turn: divided, rare, or anyhow."""
    kind, edges = rng.choice(("divided", "rare", "both", "anyhow")), sorted(weights)
    length = rng.randint(2, 4)
    rounds: list[set[Pair]] = [set() for _ in range(length)]
    for edge in edges:
        rounds[-1 if kind == "rare" else rng.randrange(length)].add(edge)
        if kind == "anyhow" and rng.random() < 0.5:
            rounds[rng.randrange(length)].add(edge)
    if kind == "both":
        rounds = [found for shared in rounds for found in (set(), shared)]
    return tuple(frozenset(found) for found in rounds)


def changed(rng: Random, before: Mesh, size: int, most: int) -> Mesh:
    """The next edition: one to three changes at once. size: vertices so far; most: of members."""
    members, weights = set(before.members), dict(before.weights)
    begins = rng.randint(max(2, before.begins - 1), before.rounds)
    rounds, kinds = before.rounds, []
    for _ in range(rng.choice((1, 1, 2, 3))):
        kind = rng.choice(_KINDS)
        if kind == "weights":
            weights = {edge: rng.randrange(1, PRIME) for edge in weights}
        elif kind == "add edge":
            weights.setdefault(_pair(rng.sample(sorted(members), 2)), rng.randrange(1, PRIME))
        elif kind == "drop edge":
            edge = rng.choice(sorted(weights))
            left = {e: w for e, w in weights.items() if e != edge}
            if not _connected(members, left):
                continue
            weights = left
        elif kind == "join" and len(members) < most:
            away = sorted(set(range(size)) - members)
            new = rng.choice(away) if away and rng.random() < 0.3 else size
            size = max(size, new + 1)
            for j in rng.sample(sorted(members), rng.randint(1, min(2, len(members)))):
                weights[_pair((new, j))] = rng.randrange(1, PRIME)
            members.add(new)
        elif kind == "leave" and len(members) > 2:
            gone = rng.choice(sorted(members))
            members.discard(gone)
            ends = sorted({*(j for e in weights if gone in e for j in e)} - {gone})
            weights = {e: w for e, w in weights.items() if gone not in e}
            if not _connected(members, weights):
                for edge in pairwise(ends):
                    weights.setdefault(edge, rng.randrange(1, PRIME))
        elif kind == "more":
            rounds += rng.randint(1, 8)
        elif kind == "fewer":
            rounds = max(begins, rounds - rng.randint(1, 8))
        else:
            continue
        kinds.append(kind)
    number = before.number + 1
    since = number if members != before.members else before.members_since
    turns = turns_of(rng, weights) if before.turns else ()
    about = number, begins, rounds, frozenset(members), weights, since, tuple(kinds)
    return Mesh(*about, turns)


def _pair(ends: list[int] | Pair) -> Pair:
    return min(ends), max(ends)


def _connected(members: set[int], weights: dict[Pair, int]) -> bool:
    reached, border = {min(members)}, [min(members)]
    while border:
        v = border.pop()
        found = {i if j == v else j for i, j in weights if v in (i, j)} - reached
        reached |= found
        border += found
    return reached == members
