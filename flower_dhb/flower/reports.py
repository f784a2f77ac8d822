"""What agents report of their parameters: models, their average, and how far apart they are."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from flwr.app import ArrayRecord
from numpy.typing import NDArray

from flower_dhb.agent.mixing import weighted_sum
from flower_dhb.agent.node import STATISTICS_VECTOR
from flower_dhb.flower.arrays import array_record
from flower_dhb.metrics import consensus_distance, distance_from, sketch
from flower_dhb.types import Layout, NDArrays

__all__ = ["Reports"]


class Reports:
    """The newest reports, all of one round.

    local: arrays that never leave an agent, as they were at the start. start: the parameters
    from which all agents began, `(d,)`.
    """

    def __init__(self, layout: Layout, local: NDArrays, start: NDArray[Any]) -> None:
        self._layout, self._local = layout, local
        self._start = sketch(start)
        self._vectors: dict[int, dict[str, NDArray[Any]]] = {}
        self._sketches: dict[int, NDArray[np.float64]] = {}
        self._round = 0

    @property
    def vertices(self) -> Collection[int]:
        """Whose model is there."""
        return self._vectors.keys()

    def of(self, round: int) -> Collection[int]:
        """Who has reported its parameters of a round."""
        return self._vectors.keys() if self._round == round else ()

    def begin(self, round: int) -> None:
        """A round begins: reports of another one go, before new payloads come."""
        if self._round != round:
            self._vectors, self._sketches, self._round = {}, {}, round

    def take(
        self,
        round: int,
        models: Mapping[int, dict[str, NDArray[Any]]],
        sketches: Mapping[int, NDArray[np.float64]],
    ) -> None:
        """Keep reports beside those of the same round; those of another round go."""
        self.begin(round)
        self._vectors.update(models)
        self._sketches.update(sketches)

    def average(self) -> ArrayRecord:
        """The network average, as the model's arrays."""
        shares = dict.fromkeys(self._vectors, 1.0 / len(self._vectors))

        def mean(name: str) -> NDArray[Any]:
            return weighted_sum(shares, {v: found[name] for v, found in self._vectors.items()})

        statistics = self._layout.empty_statistics()
        if self._layout.statistics_size:
            statistics = mean(STATISTICS_VECTOR)
        return array_record(self._layout.unflatten(mean("parameters"), statistics, self._local))

    def model(self, vertex: int) -> ArrayRecord:
        """One agent's model; arrays that stay with the agent have their initial values."""
        vectors = self._vectors[vertex]
        statistics = vectors.get(STATISTICS_VECTOR, self._layout.empty_statistics())
        arrays = self._layout.unflatten(vectors["parameters"], statistics, self._local)
        return array_record(arrays)

    def distances(self) -> tuple[float, float] | None:
        """How far the agents are apart, and how far they have come: root mean squares.

        Of `||x_i - mean x||` and of `||x_i - x(0)||`, over the agents that have reported;
        estimated from the projections of their parameters, within a few percent, or exact
        where a model has no more parameters than a projection has numbers. None without any.
        """
        if not self._sketches:
            return None
        sketches = list(self._sketches.values())
        return consensus_distance(sketches), distance_from(sketches, self._start)
