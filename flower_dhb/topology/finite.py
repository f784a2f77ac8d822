"""Graphs that take turns and average exactly after finitely many rounds: the base-(k+1) graph.

Source: Takezawa, Sato, Bao, Niwa & Yamada, "Beyond exponential graph: communication-efficient
topologies for decentralized learning via finite-time convergence", NeurIPS 2023, arXiv
2305.11420.

Three constructions build on each other; in none has an agent more than `k` neighbors in a round.

- The *hyper-hypercube* of n agents, n a product of factors of at most k + 1: the agents are the
  numbers of a mixed base, and in each round those that differ in one digit average.
- The *simple base-(k+1) graph*, for any n, whose digits to the base k + 1 divide the agents into
  groups: each group averages by itself; then each group in turn, the largest first, meets all
  that are smaller, with a weight after which they have the mean of all; then its pieces average.
- The *base-(k+1) graph*, for n = p q with p the part that has factors of at most k + 1: p simple
  graphs of q agents at once, and then q hyper-hypercubes of p. It is taken where it is shorter.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from typing import TypeAlias

__all__ = ["Weighted", "base_rounds"]

Weighted: TypeAlias = tuple[int, int, Fraction]  # an edge between two vertices, and its weight
_Rounds: TypeAlias = list[list[Weighted]]


def base_rounds(n_agents: int, most: int) -> _Rounds:
    """Edges and weights of each round of the base-(most + 1) graph of so many agents.

    most: how many neighbors an agent has in a round, at least 1. The product of the rounds'
    mixing matrices is 1 / n everywhere, exactly.
    """
    vertices, k = range(n_agents), min(most, n_agents - 1)
    q = _without_small_factors(n_agents, k)
    p = n_agents // q
    if q == 1:
        return _hypercube(vertices, k)
    simple = _simple(vertices, k)
    if p == 1:
        return simple
    blocks = [_simple(vertices[i * q : (i + 1) * q], k) for i in range(p)]
    both = _side_by_side(blocks) + _side_by_side([_hypercube(vertices[i::q], k) for i in range(q)])
    return both if len(both) < len(simple) else simple


def _hypercube(vertices: Sequence[int], k: int) -> _Rounds:
    """The hyper-hypercube; the number of vertices has factors of at most k + 1."""
    rounds, stride = [], 1
    for factor in _factors(len(vertices), k + 1) or ():
        weight = Fraction(1, factor)
        edges = [
            (vertices[i], vertices[i + other * stride], weight)
            for i in range(len(vertices))
            for other in range(1, factor - i // stride % factor)
        ]
        rounds.append(edges)
        stride *= factor
    return rounds


def _simple(vertices: Sequence[int], k: int) -> _Rounds:
    """The simple base-(k+1) graph."""
    groups = _groups(vertices, k)
    if len(groups) == 1:
        return _hypercube(vertices, k)
    rounds = _side_by_side([_hypercube(_joined(pieces), k) for pieces in groups])
    # After its own round, each group's pieces average again: `later` has what comes then.
    later = [
        _side_by_side([_hypercube(piece, k) for piece in pieces]) for pieces in groups[:-1]
    ] + [_hypercube(_joined(groups[-1]), k)]
    length = max(len(groups) - 1, *(at + 1 + len(own) for at, own in enumerate(later[:-1])))
    for t in range(length):
        edges = _meeting(groups, t) if t < len(groups) - 1 else []
        for at, own in enumerate(later[: t + 1]):
            since = t - min(at + 1, len(groups) - 1)
            if own and since >= 0:
                edges += own[since % len(own)]
        rounds.append(edges)
    return rounds


def _meeting(groups: Sequence[Sequence[Sequence[int]]], at: int) -> list[Weighted]:
    """A group meets all smaller ones: each of their agents has a neighbor in each of its pieces."""
    pieces, rest = groups[at], [v for group in groups[at + 1 :] for v in _joined(group)]
    size = sum(len(piece) for piece in pieces)
    weight = Fraction(size, len(pieces) * (size + len(rest)))
    return [(piece[i], v, weight) for i, v in enumerate(rest) for piece in pieces]


def _groups(vertices: Sequence[int], k: int) -> list[list[Sequence[int]]]:
    """Pieces of the same size for each digit of the number of vertices, to the base k + 1."""
    size = 1
    while size * (k + 1) <= len(vertices):
        size *= k + 1
    groups, first = [], 0
    while size:
        count = (len(vertices) - first) // size
        if count:
            groups.append([vertices[first + i * size :][:size] for i in range(count)])
        first += count * size
        size //= k + 1
    return groups


def _side_by_side(parts: Sequence[_Rounds]) -> _Rounds:
    """Parts of the agents at once; one with fewer rounds begins again, which changes no mean."""
    length = max(len(rounds) for rounds in parts)
    return [
        [edge for rounds in parts if rounds for edge in rounds[m % len(rounds)]]
        for m in range(length)
    ]


def _joined(pieces: Sequence[Sequence[int]]) -> list[int]:
    return [vertex for piece in pieces for vertex in piece]


def _without_small_factors(number: int, most: int) -> int:
    """What is left of a number without its prime factors of at most `most` + 1."""
    for factor in range(2, most + 2):
        while number % factor == 0:
            number //= factor
    return number


@lru_cache(maxsize=4096)
def _factors(number: int, most: int) -> tuple[int, ...] | None:
    """The fewest factors of at most `most` whose product is a number; None if there are none."""
    if number == 1:
        return ()
    best = None
    for factor in range(min(number, most), 1, -1):
        if number % factor == 0:
            rest = _factors(number // factor, factor)
            if rest is not None and (best is None or len(rest) + 1 < len(best)):
                best = (factor, *rest)
    return best
