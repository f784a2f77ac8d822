"""Edge colouring: the edges of a graph as few matchings, in each of which agents talk in pairs."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

__all__ = ["matchings_of"]

Edge = tuple[int, int]


def matchings_of(edges: Sequence[Edge], n_agents: int) -> list[list[Edge]]:
    """Matchings that together hold each edge once, every one in ascending order.

    With D the largest degree they are D where the plain method finds so many (it does on
    every bipartite graph), else at most D + 1, which some graphs need. Sources: Kőnig,
    Math. Ann. 77 (1916), for bipartite graphs; Misra & Gries, Information Processing
    Letters 41 (1992), for all others.
    """
    degree = [0] * n_agents
    for edge in edges:
        for end in edge:
            degree[end] += 1
    most = max(degree, default=0)
    try:
        colouring = _Colouring(n_agents, most)
        for a, b in edges:
            colouring.add_plainly(a, b)
    except _NoColourError:
        colouring = _Colouring(n_agents, most + 1)
        for a, b in edges:
            colouring.add(a, b)
    return colouring.matchings()


class _NoColourError(Exception):
    """The plain method needs a colour that is not there."""


class _Colouring:
    """Colours of edges: `at[v][c]` is the neighbor of v along its edge of colour c."""

    def __init__(self, n_agents: int, colours: int) -> None:
        self.colours = range(colours)
        self.at: list[dict[int, int]] = [{} for _ in range(n_agents)]

    def add_plainly(self, a: int, b: int) -> None:
        """Colour an edge; where its ends have no free colour in common, swap along a path."""
        mine, its = self._free(a), self._free(b)
        if its in self.at[a]:
            self._swap(a, its, mine)
        if its in self.at[b] or its in self.at[a]:
            raise _NoColourError
        self._set(a, b, its)

    def add(self, a: int, b: int) -> None:
        """Colour an edge with the fan of Misra & Gries: one colour beyond the degree is enough."""
        fan = self._fan(a, b)
        mine, last = self._free(a), self._free(fan[-1])
        if last in self.at[a]:
            self._swap(a, last, mine)
        # The swap may have recoloured an edge of the fan: its longest part that still is one,
        # and at whose end the colour is free.
        length = next(
            k
            for k in range(1, len(fan) + 1)
            if last not in self.at[fan[k - 1]] and self._is_fan(a, fan[:k])
        )
        for vertex, following in pairwise(fan[:length]):
            colour = self._colour(a, following)
            self._unset(a, following, colour)
            self._set(a, vertex, colour)
        self._set(a, fan[length - 1], last)

    def matchings(self) -> list[list[Edge]]:
        """The edges of each colour that is used."""
        found = [
            sorted((v, ends[c]) for v, ends in enumerate(self.at) if v < ends.get(c, -1))
            for c in self.colours
        ]
        return [edges for edges in found if edges]

    def _fan(self, a: int, b: int) -> list[int]:
        """Neighbors of a, from b on; the colour of each one's edge is free at the one before."""
        fan, rest = [b], sorted(set(self.at[a].values()))
        while True:
            following = next((v for v in rest if self._is_free(fan[-1], self._colour(a, v))), None)
            if following is None:
                return fan
            fan.append(following)
            rest.remove(following)

    def _is_fan(self, a: int, fan: Sequence[int]) -> bool:
        return all(self._is_free(v, self._colour(a, following)) for v, following in pairwise(fan))

    def _swap(self, start: int, first: int, second: int) -> None:
        """Exchange two colours along the path from `start` that begins with the first."""
        path, colour = [start], first
        while colour in self.at[path[-1]]:
            path.append(self.at[path[-1]][colour])
            colour = second if colour == first else first
        edges = list(pairwise(path))
        colours = [first if k % 2 == 0 else second for k in range(len(edges))]
        for (a, b), colour in zip(edges, colours, strict=True):
            self._unset(a, b, colour)
        for (a, b), colour in zip(edges, colours, strict=True):
            self._set(a, b, second if colour == first else first)

    def _free(self, vertex: int) -> int:
        """The smallest colour that no edge of a vertex has."""
        return next(c for c in self.colours if c not in self.at[vertex])

    def _is_free(self, vertex: int, colour: int) -> bool:
        return colour not in self.at[vertex]

    def _colour(self, a: int, b: int) -> int:
        return next(c for c, v in self.at[a].items() if v == b)

    def _set(self, a: int, b: int, colour: int) -> None:
        self.at[a][colour], self.at[b][colour] = b, a

    def _unset(self, a: int, b: int, colour: int) -> None:
        del self.at[a][colour], self.at[b][colour]
