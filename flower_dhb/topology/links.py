"""Links worth adding to a graph: those that raise its spectral gap."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import comb
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from flower_dhb.errors import ConfigError
from flower_dhb.topology.graph import Topology
from flower_dhb.topology.spectrum import extreme_eigenvalues
from flower_dhb.topology.weights import EdgeWeights, Ends, WeightRule, edge_weights, second_largest

__all__ = ["MAX_AGENTS", "Link", "Progress", "suggest_links"]

Edge: TypeAlias = tuple[int, int]
Progress: TypeAlias = Callable[[int, int], None]  # graphs tried so far, graphs to try at most

DENSE_UP_TO = 1_000  # agents; changed a little, a slow graph is decomposed faster than iterated
MAX_AGENTS = 2_000  # a full decomposition of more takes minutes
_WORK = 2e9  # agents^3 x graphs to try: seconds
_LEAST, _MOST = 60, 20_000  # graphs to try
_RULE_COST = 50  # weights by a rule of one's own are assumed to take this many times as long
_SWEEPS = 2
_GAIN = 1e-9  # below, a gap has not risen: rounding


@dataclass(frozen=True)
class Link:
    """A link worth adding, and the spectral gap once it and those before it are there."""

    edge: Edge
    spectral_gap: float


def suggest_links(
    topology: Topology,
    count: int,
    weights: str | WeightRule = "metropolis",
    progress: Progress | None = None,
) -> list[Link]:
    """At most `count` links that together raise the spectral gap most, the most useful first.

    A new link also takes weight from those that are there, so it may lower the gap:
    fewer links are returned where more would not help, and none where none does.

    All choices are tried where they take seconds (20,000 choices on a small graph).
    Otherwise links are added one after the other, and each is then chosen anew given the
    others, since some help only together; those are tried across which the slowest modes
    differ most: to first order, an eigenvalue with eigenvector q falls with (q_i - q_j)^2.
    Raises ConfigError if `count` is below 1, there are fewer absent links, or the graph has
    more than 2,000 agents.
    """
    if isinstance(count, bool) or not isinstance(count, int) or not count >= 1:
        raise ConfigError(f"the number of links to add must be at least 1, got {count}")
    if topology.n_agents > MAX_AGENTS:
        raise ConfigError(
            f"links are suggested for at most {MAX_AGENTS:,} agents; '{topology.name}' has "
            f"{topology.n_agents:,}"
        )
    search = _Search(topology, weights, progress or (lambda _done, _total: None))
    if count > len(search.absent):
        raise ConfigError(
            f"'{topology.name}' lacks {len(search.absent)} links only, cannot add {count}"
        )
    found = search.best(count)
    ordered: list[Edge] = []
    while len(ordered) < len(found):
        rest = [edge for edge in found if edge not in ordered]
        ordered.append(max(rest, key=lambda edge: (search.gap([*ordered, edge]), edge[::-1])))
    return [Link(edge, search.gap(ordered[: at + 1])) for at, edge in enumerate(ordered)]


class _Search:
    """The gaps of a graph with some links more, and the search among them."""

    def __init__(self, topology: Topology, weights: str | WeightRule, progress: Progress) -> None:
        n = topology.n_agents
        self.n, self.weights, self._progress = n, weights, progress
        self.ends: Ends = np.array(topology.edges, dtype=np.int64).reshape(-1, 2)
        absent = np.argwhere(np.triu(~topology.adjacency, k=1))
        self.absent: list[Edge] = [(int(i), int(j)) for i, j in absent]
        cost = _RULE_COST if callable(weights) and not hasattr(weights, "of") else 1
        self.budget = int(np.clip(_WORK / n**3 / cost, _LEAST, _MOST))
        self._gaps: dict[frozenset[Edge], float] = {}
        self._total = 0

    def best(self, count: int) -> list[Edge]:
        """The set of at most `count` links with the largest gap; empty if none raises it."""
        sizes = range(1, count + 1)
        self._total = sum(comb(len(self.absent), size) for size in sizes)
        if self._total <= self.budget:
            sets = [list(s) for size in sizes for s in combinations(self.absent, size)]
        else:
            sets = self._grown(count)
        # The first of the best: fewer links before more, lower vertices before higher.
        found = max(sets, key=self.gap)
        self._progress(self._total, self._total)
        self._progress = lambda _done, _total: None
        return found if self.gap(found) > self.gap([]) + _GAIN else []

    def _grown(self, count: int) -> list[list[Edge]]:
        """Sets of 1, 2, … links, each link chosen anew once the others are there.

        Begun in two ways: with the best next link each time, and with the most promising
        one, untried: a link that lowers the gap alone may raise it with the next.
        """
        tried = max(_LEAST // 2, self.budget // (2 * count * (1 + _SWEEPS)))
        self._total = 2 * tried * sum(1 + size * _SWEEPS for size in range(1, count + 1))
        sets: list[list[Edge]] = []
        for first in (tried, 1):
            chosen: list[Edge] = []
            for _ in range(count):
                chosen = self._improved([*chosen, self._next(chosen, first)], tried)
                sets.append(chosen)
        return sorted(sets, key=len)

    def _improved(self, chosen: list[Edge], tried: int) -> list[Edge]:
        for at in list(range(len(chosen))) * (_SWEEPS if len(chosen) > 1 else 0):
            others = chosen[:at] + chosen[at + 1 :]
            new = [*others, self._next(others, tried)]
            if self.gap(new) > self.gap(chosen):
                chosen = new
        return chosen

    def _next(self, chosen: list[Edge], tried: int) -> Edge:
        return max(self._promising(chosen, tried), key=lambda edge: self.gap([*chosen, edge]))

    def _promising(self, chosen: Sequence[Edge], many: int) -> list[Edge]:
        """The absent links that promise most, to first order, once `chosen` are there."""
        values, vectors = np.linalg.eigh(self._with(chosen).dense())
        sizes = np.abs(values)
        sizes[-1] = 0.0
        slow = sizes >= sizes.max() - 1e-9
        i, j = np.array(self.absent).T
        # A negative eigenvalue grows in size, where a positive one falls.
        change = ((vectors[i][:, slow] - vectors[j][:, slow]) ** 2) @ np.sign(values[slow])
        order = np.argsort(-np.round(change, 12), kind="stable")
        return [self.absent[k] for k in order if self.absent[k] not in chosen][:many]

    def gap(self, edges: Sequence[Edge]) -> float:
        """Spectral gap with some links more, rounded, so that equal ones are found equal."""
        key = frozenset(edges)
        if key not in self._gaps:
            found = self._with(edges)
            if self.n <= DENSE_UP_TO:
                second = second_largest(np.linalg.eigvalsh(found.dense()))
            else:
                second = max(abs(value) for value in extreme_eigenvalues(found.rows()))
            self._gaps[key] = round(1.0 - second, 12)
            self._progress(min(len(self._gaps), self._total), self._total)
        return self._gaps[key]

    def _with(self, edges: Sequence[Edge]) -> EdgeWeights:
        more: NDArray[np.int64] = np.array(sorted(edges), dtype=np.int64).reshape(-1, 2)
        ends = np.vstack([self.ends, more])
        ends = ends[np.lexsort((ends[:, 1], ends[:, 0]))]
        return edge_weights(self.n, ends, self.weights, connected=True)
