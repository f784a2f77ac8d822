"""Compressed payloads of all agents: what each sends, and what its neighbors make of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flower_dhb.agent.compression import Compression, Compressor
from flower_dhb.algorithms.base import Algorithm
from flower_dhb.engine.problem import Agents, Problem
from flower_dhb.errors import ConfigError
from flower_dhb.types import Layout, NDArrays

__all__ = ["Publics", "check_compressible", "layout_of"]


def check_compressible(algorithm: Algorithm, compression: Compression) -> None:
    """Raise ConfigError if the payloads of a rule cannot be compressed."""
    if compression.on and not algorithm.relayed:
        why = "push weights go with its payloads" if algorithm.scalars else "it has a server"
        raise ConfigError(
            f"compression '{compression}' is of payloads for graph neighbors, and those of "
            f"'{algorithm.name}' are not: {why}"
        )


def layout_of(problem: Problem, agents: Agents) -> Layout:
    """The arrays of a problem's model; one flat array where the problem does not say."""
    layout = getattr(problem, "layout", None)
    if isinstance(layout, Layout):
        return layout
    return Layout.of({"parameters": agents.parameters[0].cpu().numpy()})


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

    def publish(self, round: int, payload: Mapping[str, NDArray[Any]]) -> NDArrays:
        """Make the public payloads of a round, and return what of them is mixed, `(n, d)` each."""
        names = self.compressor.names
        public, mixed, sent = ({n: np.empty_like(payload[n]) for n in names} for _ in range(3))
        for v in range(len(payload[names[0]])):
            own = {name: payload[name][v] for name in names}
            memory = {name: rows[v] for name, rows in self.sent.items()}
            codes = self.compressor.encode(own, memory, round, v)
            found = own if codes is None else self.compressor.decode(codes, memory, round)
            for target, row in (
                (public, found),
                (mixed, self.compressor.mixed(found, round)),
                (sent, self.compressor.remember(own, found, memory)),
            ):
                for name in names:
                    target[name][v] = row[name]
        self.public, self.sent = public, sent
        return mixed
