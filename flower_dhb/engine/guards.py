"""Screening and clipping of all agents at once: what `agent.screening` does, in arrays."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flower_dhb.agent.screening import Strike, bound, struck
from flower_dhb.engine.mixer import CHUNK
from flower_dhb.topology.weights import Matrix

__all__ = ["Guards", "Measured", "clipped_matrix"]

Edge = tuple[int, int]

_APART = 10  # rounds that agents get to come together if they start apart

# The payloads of some columns of all agents, by vector: `(n, width)` each.
Columns = Callable[[slice], Mapping[str, Tensor]]


@dataclass(frozen=True)
class Measured:
    """Whole payloads of a round, measured in float64.

    path, step, length: of each agent, as `agent.screening.Own` has them, `(n,)`. distances:
    between the ends of each edge, `(len(edges),)`.
    """

    edges: NDArray[np.int64]
    path: NDArray[np.float64]
    step: NDArray[np.float64]
    length: NDArray[np.float64]
    distances: NDArray[np.float64]

    @classmethod
    def of(
        cls,
        edges: NDArray[np.int64],
        x: Tensor,
        trained: Tensor,
        columns: Columns,
        lead: str,
        *,
        lengths: bool = True,
    ) -> Measured:
        """Measure payloads column by column.

        edges: `(e, 2)` vertices. x: parameters before the round, trained: after the local
        steps, `(n, d)`. lead: the vector that stands for the parameters. lengths: whether
        path, step and length are wanted.
        """
        n, d = x.shape
        ends = torch.from_numpy(edges).to(x.device)
        left, right = ends[:, 0], ends[:, 1]
        totals = [torch.zeros(size, dtype=torch.float64, device=x.device) for size in (n, n, n)]
        apart = torch.zeros(len(edges), dtype=torch.float64, device=x.device)
        width = max(1, CHUNK // max(n, len(edges)))
        for first in range(0, d, width):
            part = slice(first, first + width)
            payload = columns(part)
            for name, vector in payload.items():
                apart += _squares(vector[left] - vector[right])
                if lengths:
                    totals[2] += _squares(vector)
                    if name == lead:
                        totals[0] += _squares(vector - x[:, part])
                        if vector.data_ptr() != trained[:, part].data_ptr():
                            totals[1] += _squares(trained[:, part] - x[:, part])
        path, step, length, distances = (_root(total) for total in (*totals, apart))
        return cls(edges, path, np.maximum(path, step), length, distances)


def _squares(rows: Tensor) -> Tensor:
    return (rows * rows).sum(-1).double()


def _root(total: Tensor) -> NDArray[np.float64]:
    """Square roots; what is beyond float, an infinity minus another among it, is infinite."""
    found = total.cpu().numpy()
    return np.where(np.isfinite(found), np.sqrt(np.maximum(found, 0.0)), np.inf)


@dataclass
class Guards:
    """What screening remembers of all agents.

    common: whether all agents started from the same parameters. Where they did not, nobody
    knows what to expect, and the payloads of the first rounds are taken as they are. counts:
    payloads that were screened, by (agent, neighbor).
    """

    factor: float
    start: NDArray[np.float64]
    common: bool
    rounds: int = 0
    path: NDArray[np.float64] = field(init=False)
    step: NDArray[np.float64] = field(init=False)
    spread: NDArray[np.float64] = field(init=False)
    strikes: dict[Edge, Strike] = field(default_factory=dict)
    counts: dict[Edge, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Nobody has moved yet."""
        self.path, self.step, self.spread = (np.zeros_like(self.start) for _ in range(3))

    def limits(self, round: int, found: Measured) -> NDArray[np.float64]:
        """The distance beyond which each agent finds a payload absurd, `(n,)`."""
        if not self.common and self.rounds < _APART:
            return np.full_like(self.start, np.inf)
        limits: NDArray[np.float64] = bound(
            self.factor,
            round=round,
            rounds=self.rounds + 1,
            path=self.path + found.path,
            step=np.maximum(self.step, found.step),
            length=found.length,
            start=self.start,
            spread=self.spread,
        )
        return limits

    def screen(self, round: int, found: Measured) -> set[Edge]:
        """Edges of a round that count at neither end, since one of them does not believe."""
        limit = self.limits(round, found)
        a, b = found.edges[:, 0], found.edges[:, 1]
        far = (found.distances > limit[a]) | (found.distances > limit[b])
        if not far.any() and not self.strikes:
            return set()
        refused: set[Edge] = set()
        for i, j, away in zip(a.tolist(), b.tolist(), found.distances.tolist(), strict=True):
            # Both ends look, whatever the other one finds.
            both = (
                self._refuses(i, j, away, limit[i], round),
                self._refuses(j, i, away, limit[j], round),
            )
            if any(both):
                refused.add((i, j))
        return refused

    def _refuses(self, i: int, j: int, away: float, limit: float, round: int) -> bool:
        strike = self.strikes.get((i, j))
        if strike is not None and round <= strike.until:
            return True
        if away > limit:
            self.strikes[i, j] = struck(strike or Strike(), round)
            self.counts[i, j] = self.counts.get((i, j), 0) + 1
            return True
        self.strikes.pop((i, j), None)
        return False

    def after(self, moved: NDArray[np.float64], found: Measured, refused: Iterable[Edge]) -> None:
        """After a round. moved: `|x+ - x|` of each agent."""
        self.rounds += 1
        self.path = np.where(np.isfinite(moved), self.path + moved, self.path)
        self.step = np.where(np.isfinite(found.step), found.step, self.step)
        edges, apart = _used(found, refused)
        for ends in edges.T:
            np.maximum.at(self.spread, ends, apart)


def typical_distances(n: int, found: Measured, refused: Iterable[Edge] = ()) -> NDArray[np.float64]:
    """Lower median of each agent's distances to the neighbors that count, `(n,)`; 0 of none."""
    edges, apart = _used(found, refused)
    agent, away = edges.T.ravel(), np.concatenate([apart, apart])
    order = np.lexsort((away, agent))
    degree = np.bincount(agent, minlength=n)
    first = np.cumsum(degree) - degree
    typical = np.zeros(n)
    some = degree > 0
    typical[some] = away[order][(first + (degree - 1) // 2)[some]]
    return typical


def _used(
    found: Measured, refused: Iterable[Edge]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Edges that count, and the distances over them."""
    gone = set(refused)
    if not gone:
        return found.edges, found.distances
    count = np.array([(int(a), int(b)) not in gone for a, b in found.edges], bool)
    return found.edges[count], found.distances[count]


def clipped_matrix(
    matrix: Matrix, found: Measured, refused: Iterable[Edge], radius: float | None
) -> Matrix:
    """Mixing matrix that clips each payload to the receiver's radius (`agent.screening`).

    radius: None takes the lower median of each agent's distances to its neighbors.
    """
    n = len(matrix)
    radii = typical_distances(n, found, refused) if radius is None else np.full(n, radius)
    new = np.array(matrix)
    a, b = found.edges[:, 0], found.edges[:, 1]
    for i, j in ((a, b), (b, a)):
        with np.errstate(divide="ignore", invalid="ignore"):
            factor = np.where(found.distances <= radii[i], 1.0, radii[i] / found.distances)
        new[i, j] = matrix[i, j] * factor
        np.add.at(new, (i, i), matrix[i, j] - new[i, j])
    return new
