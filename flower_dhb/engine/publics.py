"""Compressed payloads of all agents: what each sends, and what its neighbors make of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from flower_dhb.agent.compression import Compression, Compressor
from flower_dhb.algorithms.base import Algorithm
from flower_dhb.algorithms.measurement import measured
from flower_dhb.errors import ConfigError
from flower_dhb.topology.graph import Topology
from flower_dhb.topology.turns import AnyGraph, has_same_edges
from flower_dhb.types import Layout, NDArrays, Payload, Vector

__all__ = ["Publics", "check_compression"]

_ROUNDS, _FEW_ROUNDS, _MANY = 100, 40, 32  # of the trial; where there are more than so many agents
_SIDES = (8, 16)  # of the matrix that is agreed on in the trial
_DIVERGED = 1.0


def check_compression(
    compression: Compression, algorithm: Algorithm, topology: AnyGraph
) -> Compression:
    """Refuse a compression with which a rule cannot run on a graph; return what is meant there.

    Neighbors that take turns do not hear every payload, so numbers take the place of changes.
    Elsewhere agents that only agree, without steps, are tried: momentum overshoots an agreement
    that it hears of late. Raises ConfigError that says why, and what does go.
    """
    if not compression.on:
        return compression
    if not algorithm.relayed:
        why = "push weights go with its payloads" if algorithm.scalars else "it has a server"
        raise ConfigError(
            f"compression '{compression}' is of payloads for graph neighbors, and those of "
            f"'{algorithm.name}' are not: {why}"
        )
    if not compression.estimates:
        return compression
    if not has_same_edges(topology):
        if compression.select == "all":
            return compression.without_changes
        raise ConfigError(
            f"compression '{compression}' sends changes of the payload before, which neighbors "
            f"that take turns ('{topology.name}') have not heard; take 'bf16' or 'int8' there"
        )
    if _grows(compression, algorithm, topology):
        slower = [replace(compression, rate=compression.rate / 2**k) for k in range(1, 5)]
        good = next((c for c in slower if not _grows(c, algorithm, topology)), None)
        also = f"'{good}' (neighbors are followed less), " if good else ""
        raise ConfigError(
            f"'{algorithm.name}' diverges on '{topology.name}' with compression '{compression}': "
            f"its momentum overshoots what it hears late. Remedies: {also}a larger share, 'int8' "
            "or 'int4', or a rule whose momentum does not act on what mixing moves, such as "
            "'safeguarded' or 'dsgd'"
        )
    return compression


@lru_cache(maxsize=64)
def _grows(compression: Compression, algorithm: Algorithm, topology: AnyGraph) -> bool:
    """Whether agents that take no steps end further apart than they began."""
    layout = Layout.of({"weight": np.zeros(_SIDES)})
    try:
        compressor = Compressor.of(compression, algorithm.vectors, layout)
    except ConfigError:
        return False  # the rank is more than so small a matrix has; a large one says nothing of it
    n = topology.n_agents
    x = np.random.default_rng(0).normal(size=(n, layout.size))
    state = algorithm.start(x)
    first = algorithm.outgoing(measured(algorithm, state, x), x)
    publics = Publics(compressor, {name: np.zeros_like(rows) for name, rows in first.items()})
    begin = _spread(x)
    for k in range(1, 1 + (_ROUNDS if n <= _MANY else _FEW_ROUNDS)):
        z = state.parameters
        state = measured(algorithm, replace(state, round=k - 1), z)
        payload = algorithm.outgoing(state, z)
        graph = cast(Topology, topology.at(k))  # of rules that are relayed, edges go both ways
        known = publics.publish(k, payload, graph)
        mixed = publics.mix(payload, known, graph.mixing_matrix.__matmul__)
        state = algorithm.combine(state, z, mixed)
        if not _spread(state.parameters) <= 1e6 * begin:
            return True
    return not _spread(state.parameters) <= _DIVERGED * begin


def _spread(x: NDArray[Any]) -> float:
    return float(np.linalg.norm(x - x.mean(0)))


class Publics:
    """Does for all agents, one after the other, what `agent.node.Node` does for one.

    first: what each would send at the start, `(n, d)` by vector. sent: the memory of the
    compression by vector, `(n, d)`; empty where there is none yet. public: the public payloads
    of the last round, `(n, d)` each.
    """

    def __init__(self, compressor: Compressor, first: Mapping[str, NDArray[Any]]) -> None:
        self.compressor = compressor
        self.sent: NDArrays = {}
        if compressor.estimates:
            self.sent = {name: np.array(first[name]) for name in compressor.names}
        self.public: NDArrays = {}

    def publish(self, round: int, payload: Mapping[str, NDArray[Any]], graph: Topology) -> NDArrays:
        """Make the public payloads of a round, and return what of them is mixed, `(n, d)` each.

        graph: of the round; who has no neighbor in it sends nothing.
        """
        names, silent = self.compressor.names, graph.degrees == 0
        public, mixed, sent = ({n: np.empty_like(payload[n]) for n in names} for _ in range(3))
        for v in range(len(payload[names[0]])):
            own = {name: payload[name][v] for name in names}
            memory = {name: rows[v] for name, rows in self.sent.items()}
            found: Payload = own
            if not silent[v]:
                _, found = self.compressor.publish(own, memory, round, v)
            for target, row in (
                (public, found),
                (mixed, self.compressor.mixed(found, round)),
                (sent, self._kept(own, found, memory, bool(silent[v]))),
            ):
                for name in names:
                    target[name][v] = row[name]
        self.public, self.sent = public, sent
        return mixed

    def mix(
        self,
        payload: Mapping[str, Vector],
        known: Mapping[str, Vector],
        product: Callable[[Vector], Vector],
    ) -> dict[str, Vector]:
        """What rules combine: `p_i + c sum_j W[i, j] (h_j - h_i)`, of some columns or of all.

        known: what `publish` returned. product: with the mixing matrix of the round.
        """
        rate = self.compressor.rate
        return {name: payload[name] + rate * (product(rows) - rows) for name, rows in known.items()}

    def _kept(self, own: Payload, found: Payload, memory: Payload, silent: bool) -> Payload:
        """The memory of one agent after a round; zeros are the error of one that has made none."""
        if not silent:
            return self.compressor.remember(own, found, memory)
        return memory or {name: np.zeros_like(own[name]) for name in self.compressor.names}
