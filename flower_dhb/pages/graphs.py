"""The communication graph of a run, from what the run says of it, and where to draw it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from flower_dhb.errors import FlowerDhbError
from flower_dhb.figures.positions import places
from flower_dhb.pages.lines import number, text
from flower_dhb.pages.model import Floats, Link
from flower_dhb.topology.graph import Topology
from flower_dhb.topology.turns import Graphs, parse_graphs, share_every

__all__ = ["DRAWN_AGENTS", "DRAWN_LINKS", "WEIGHTS", "Graph", "of_edges", "of_name"]

WEIGHTS = "metropolis"  # where a run config names none

DRAWN_AGENTS, DRAWN_LINKS = 300, 1500  # what a person can still tell apart, generously
_MOST_EDGES = 20_000


@dataclass(frozen=True, kw_only=True)
class Graph:
    """Who talks to whom. weights: by edge `(a, b)`, a < b; None where it is not known.

    turns: the edges of each round of a period, where not all are due in every round.
    """

    name: str
    agents: Sequence[str]
    weights: Mapping[tuple[int, int], float | None]
    turns: Sequence[frozenset[tuple[int, int]]] = ()

    def due(self, rounds: Sequence[int]) -> NDArray[np.bool_]:
        """Which edges are due in which of some rounds, `(rounds, edges)`."""
        if not self.turns:
            return np.ones((len(rounds), len(self.weights)), np.bool_)
        period = [[edge in turn for edge in self.weights] for turn in self.turns]
        places = (np.asarray(rounds, np.int64) - 1) % len(self.turns)
        return np.array(period, np.bool_).reshape(-1, len(self.weights))[places]

    def unused(self) -> list[Link]:
        """Its links, of a run that does not tell what they carried."""
        return [Link(a=a, b=b, weight=weight) for (a, b), weight in self.weights.items()]

    def places(self) -> Floats | None:
        """Where its agents are drawn, `(n, 2)`; None if it is too large to be read."""
        n = len(self.agents)
        if not 0 < n <= DRAWN_AGENTS or len(self.weights) > DRAWN_LINKS:
            return None
        try:
            shape = parse_graphs(self.name).together
            if {*shape.edges} != {*self.weights} or shape.n_agents != n:
                shape = Topology.from_edges(self.weights)
            if shape.n_agents == n:
                return places(shape)
        except (FlowerDhbError, ValueError, OSError):
            pass  # a form of later releases, or no library to lay it out: a circle is drawn
        angles = np.pi / 2 - 2 * np.pi * np.arange(n) / n
        return np.column_stack([np.cos(angles), np.sin(angles)])


def of_name(name: str, weights: str, every: object = 1) -> Graph | None:
    """The graph that a run config names, None if it cannot be made here.

    every: rounds from one exchange to the next.
    """
    try:
        graphs = cast(Graphs, share_every(parse_graphs(name, weights), cast(int, every)))
        topology = graphs.together
    except (FlowerDhbError, ValueError, OSError):
        return None
    in_turn = len(graphs.graphs) > 1
    listed = topology.edges if len(topology.edges) <= _MOST_EDGES else ()
    known = topology.n_agents <= DRAWN_AGENTS
    return Graph(
        name=topology.name,
        agents=[str(label) for label in topology.labels],
        weights={(a, b): float(topology.mixing_matrix[a, b]) if known else None for a, b in listed},
        turns=tuple(frozenset(each.edges) for each in graphs.graphs) if in_turn else (),
    )


def of_edges(document: Any, name: str = "") -> Graph | None:
    """The graph that a run has written down, None if that is damaged.

    document: with `agents`, and `edges` as pairs or with a weight as a third.
    """
    if not isinstance(document, Mapping):
        return None
    n, edges, labels = (document.get(key) for key in ("agents", "edges", "labels"))
    if isinstance(n, bool) or not isinstance(n, int) or not 0 < n <= _MOST_EDGES:
        return None
    weights: dict[tuple[int, int], float | None] = {}
    for edge in edges if isinstance(edges, list) else []:
        ends = edge[:2] if isinstance(edge, list) else []
        if len(ends) < 2 or not all(type(v) is int and 0 <= v < n for v in ends):
            return None
        weight = number(edge[2]) if len(edge) > 2 else float("nan")
        weights[min(ends), max(ends)] = None if np.isnan(weight) else weight
    turns = []
    listed = document.get("turns")
    for turn in listed if isinstance(listed, list) else []:
        ends = [e if isinstance(e, list) else [] for e in turn] if isinstance(turn, list) else [[]]
        if not all([type(v) for v in e] == [int, int] and (e[0], e[1]) in weights for e in ends):
            return None
        turns.append(frozenset((a, b) for a, b in ends))
    whole = isinstance(labels, list) and len(labels) == n
    agents = [text(label) for label in labels] if whole else [str(v) for v in range(n)]  # type: ignore[union-attr]
    called = text(document.get("name", name))
    return Graph(name=called, agents=agents, weights=weights, turns=turns)
