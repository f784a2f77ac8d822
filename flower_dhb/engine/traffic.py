"""What a round costs on a given link, and which schedule and compression would cost less."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from flower_dhb.agent.compression import Compression, Compressor
from flower_dhb.errors import ConfigError, GraphError
from flower_dhb.topology.directed import DirectedTopology
from flower_dhb.topology.graph import Topology
from flower_dhb.topology.planning import halving_rounds
from flower_dhb.topology.turns import AnyGraph, Turns, has_same_edges, share_every
from flower_dhb.types import Layout

__all__ = ["Cost", "advice", "costs", "exchange_s"]

# Those with which 'dmsgd' needs as many rounds; the default rule needs more with the last two
# (docs/benchmarks.md).
_COMPRESSIONS = ("bf16", "int8", "int4", "topk:0.5+int4")
_OF_NUMBERS = ("bf16", "int8")
_EVERY = (2, 4)


@dataclass(frozen=True)
class Cost:
    """Of rounds on one graph, with one compression.

    schedule: `as it is`, or what would take the graph's place. n_bytes: that the busiest agent
    sends in a round, on average over a period. seconds: that its link takes for them. rounds:
    until disagreement has halved, without steps.
    """

    schedule: str
    compression: str
    n_bytes: float
    seconds: float
    rounds: float

    @property
    def seconds_to_halve(self) -> float:
        """Seconds until disagreement has halved."""
        return self.seconds * self.rounds


def costs(topology: AnyGraph, parameters: int, mbit_per_s: float) -> list[Cost]:
    """The graph as it is first, then what may be had in its place, alone and together.

    parameters: numbers of float32 in a payload. mbit_per_s: of the link over which an agent sends
    to all its neighbors, in megabits a second. Raises ConfigError for one that is not above 0.
    """
    if not 0.0 < mbit_per_s < float("inf"):
        raise ConfigError(f"the rate of a link must be above 0 Mbit/s, got {mbit_per_s}")
    if parameters < 1:
        raise ConfigError(f"a payload has at least 1 parameter, got {parameters}")
    found = []
    for schedule, graph in [("as it is", topology), *_schedules(topology)]:
        # Neighbors in turn are sent numbers, not changes: the coarse ones tell them too little.
        known = ("none", *(_COMPRESSIONS if has_same_edges(graph) else _OF_NUMBERS))
        found += [_cost(schedule, graph, each, parameters, mbit_per_s) for each in known]
    return found


def advice(found: list[Cost]) -> list[Cost]:
    """The graph as it is, what at least halves its seconds by one change, and the best of all.

    By the seconds until disagreement has halved: a schedule makes rounds cheaper, and takes more
    of them.
    """
    now = found[0]
    single = [c for c in found if now.schedule == c.schedule or c.compression == "none"]
    halves = [c for c in single[1:] if c.seconds_to_halve <= now.seconds_to_halve / 2.0]
    best = min(found, key=lambda c: c.seconds_to_halve)
    return [now, *halves, *([] if best in (now, *halves) else [best])]


def _cost(
    schedule: str, graph: AnyGraph, compression: str, parameters: int, mbit_per_s: float
) -> Cost:
    payload = _payload_bytes(compression, parameters)
    n_bytes = payload * _most_edges(graph.graphs) / len(graph.graphs)
    second = graph.second_eigenvalue
    # Where a period leaves no disagreement, nothing is known of the rounds in between.
    rounds = max(1.0, halving_rounds(second)) if second > 0.0 else float(len(graph.graphs))
    seconds = 8e-6 * n_bytes / mbit_per_s
    return Cost(schedule, compression, n_bytes, seconds, rounds)


def _most_edges(graphs: Iterable[Topology | DirectedTopology]) -> int:
    """Edges of the agent that has most of them, in some rounds together."""
    ends = Counter(end for each in graphs for edge in each.edges for end in edge)
    return max(ends.values(), default=0)


def _payload_bytes(compression: str, parameters: int) -> int:
    if compression == "none":
        return 4 * parameters
    layout = Layout.of({"parameters": np.broadcast_to(np.float32(0.0), parameters)})
    meant = Compression.parse(compression)  # as many bytes for numbers as for their changes
    return Compressor.of(meant, ("parameters",), layout).n_bytes


def exchange_s(topology: AnyGraph, compression: str, parameters: int, mbit_per_s: float) -> float:
    """Seconds for which the busiest agent's link sends in a round in which it has most neighbors.

    Arguments as those of `costs`; compression: `none` or the words of one.
    """
    most = max(_most_edges([each]) for each in topology.graphs)
    return 8e-6 * most * _payload_bytes(compression, parameters) / mbit_per_s


def _schedules(topology: AnyGraph) -> list[tuple[str, Turns]]:
    """Sequences over the same links, and those that need other ones, as far as there are any."""
    if not isinstance(topology, Topology):
        return []
    n = topology.n_agents
    found = [("matchings of it", Turns.matchings(topology))]
    for s in _EVERY:
        each = share_every(topology, s)
        if isinstance(each, Turns):
            found.append((f"share-every {s}", each))
    for name, make in ((f"one-peer:{n}", Turns.one_peer), (f"base:{n}:1", _base)):
        try:
            found.append((name, make(n)))
        except GraphError:
            continue  # not for so many agents
    return found


def _base(n: int) -> Turns:
    return Turns.base(n, 1)
