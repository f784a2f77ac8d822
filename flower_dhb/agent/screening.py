"""What an agent believes of its neighbors: payloads absurdly far away, and how far one may pull.

*Screening* treats a payload as missing that no honest neighbor can have sent, as far as this
agent can know: one that lies further away than `bound`. *Clipping* shortens the pull of every
payload to a radius. Both are functions of distances between whole payloads, taken here; the
arithmetic of a round does not change, only who has a part in it and with which weight.

Sources: the bound is this project's own (`docs/decisions/0017`); self-centered clipping is He,
Karimireddy & Jaggi, "Byzantine-robust decentralized learning via ClippedGossip", 2022 (arXiv
2202.01545).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flower_dhb.types import Payload

__all__ = [
    "Lengths",
    "Own",
    "Screen",
    "Strike",
    "believable",
    "bound",
    "clip_factors",
    "clipped",
    "distance",
    "lower_median",
    "norm",
    "struck",
]

_BLOCK = 2**16  # elements of a block: the difference stays in the cache

# How the bound is derived, and what breaks with other values: docs/decisions/0017.
STEPS = 15.0  # of the agent's own last steps: what is nearer is never absurd
FLOOR = 0.25  # of the length of the own payload: what is nearer is never absurd
STATISTICS = 1e4  # running statistics follow the data, which may differ as they like

LONG = 30.0  # times the typical length: no model to begin again from

STRIKES = 3  # absurd payloads in a row, after which a neighbor is not listened to for a while
FIRST_TERM, LONGEST_TERM = 8, 512  # rounds; each term is twice the one before


def distance(a: Iterable[NDArray[Any]], b: Iterable[NDArray[Any]]) -> float:
    """Euclidean distance of two payloads, each a row of flat vectors; infinite if beyond float."""
    return _length(
        np.subtract(left[part], right[part])
        for left, right in zip(a, b, strict=True)
        for part in _parts(left)
    )


def norm(vectors: Iterable[NDArray[Any]]) -> float:
    """Euclidean length of a row of flat vectors; infinite if beyond float."""
    return _length(vector[part] for vector in vectors for part in _parts(vector))


def _parts(vector: NDArray[Any]) -> Iterator[slice]:
    for start in range(0, vector.shape[0], _BLOCK):
        yield slice(start, start + _BLOCK)


def _length(blocks: Iterator[NDArray[Any]]) -> float:
    """Euclidean length of all blocks together; each is used while it is in the cache."""
    total = 0.0
    with np.errstate(over="ignore", invalid="ignore"):
        for block in blocks:
            total += float(np.dot(block, block))
    return math.sqrt(total) if total < math.inf else math.inf


def bound(
    factor: float,
    *,
    round: int,
    rounds: int,
    path: Any,
    step: Any,
    length: Any,
    start: Any,
    spread: Any,
) -> Any:
    """The distance beyond which a payload is absurd, for one agent or for all of them.

    `factor max(max(1, k / n) max(min(path, length + start), 15 step), spread, 0.25 length)`

    Parameters
    ----------
    factor
        How generous; 4 unless the rule says otherwise.
    round, rounds
        `k`, the round, and `n`, how many of them the agent has taken part in, this one
        included.
    path
        Length of the way that its parameters have gone, up to its own payload of the round.
    step
        Length of its own last step, of this round or the one before.
    length, start
        Norms of its payload, and of the parameters that it began with.
    spread
        The largest distance of a payload that it has used so far.

    Returns a float or float64 `(n,)`; infinite where nothing is known yet, since neither the
    agent nor what it has used of others has moved it, or where its numbers are beyond float.
    """
    length = np.asarray(length, np.float64)
    gone = np.maximum(np.minimum(path, length + start), STEPS * np.asarray(step))
    seen = np.maximum(max(1.0, round / rounds) * gone, spread)
    limit = factor * np.maximum(seen, FLOOR * length)
    found = np.where((seen > 0.0) & np.isfinite(limit), limit, np.inf)
    return float(found) if found.ndim == 0 else found


def lower_median(distances: Iterable[float]) -> float:
    """The middle one, of two the smaller; 0 of none: one in two may lie without being seen."""
    ordered = sorted(distances)
    return ordered[(len(ordered) - 1) // 2] if ordered else 0.0


def believable(payloads: Mapping[int, Payload], names: tuple[str, ...]) -> dict[int, Payload]:
    """Those of several payloads that an agent without a state of its own may begin from.

    It has nothing to measure them by but each other: one that is more than 30 times as long as
    the typical one (`lower_median`) is left out. names: of the rule's vectors.
    """
    lengths = {j: norm(p[name] for name in names) for j, p in payloads.items()}
    most = LONG * lower_median(lengths.values())
    return {j: p for j, p in payloads.items() if lengths[j] <= most or most == 0.0}


@dataclass(frozen=True)
class Strike:
    """What an agent remembers of a neighbor whose payloads were absurd.

    count: of them in a row. term: rounds of its last quarantine, 0 if it had none. until: the
    last round of it.
    """

    count: int = 0
    term: int = 0
    until: int = 0


def struck(strike: Strike, round: int) -> Strike:
    """After one more absurd payload: the third in a row begins a quarantine.

    So does the first after a quarantine, which is twice as long, up to 512 rounds.
    """
    count = strike.count + 1
    if count < STRIKES and not strike.term:
        return replace(strike, count=count)
    term = min(2 * strike.term, LONGEST_TERM) if strike.term else FIRST_TERM
    return Strike(count, term, round + term)


@dataclass(frozen=True)
class Lengths:
    """Of an agent's own payload of a round, taken over all its vectors.

    path: `|payload - x|`, the way from the agent's parameters to it. step: that, or `|z - x|`,
    the local step, if it is longer. length: `|payload|`.
    """

    path: float
    step: float
    length: float

    @classmethod
    def of(
        cls,
        names: tuple[str, ...],
        payload: Payload,
        parameters: NDArray[Any],
        trained: NDArray[Any] | None = None,
    ) -> Lengths:
        """Measure a payload.

        names: of the rule's vectors in it. parameters: the agent's before the round; trained:
        `z`; `(d,)`.
        """
        path = distance([payload[names[0]]], [parameters])
        step = path
        if trained is not None and trained is not payload[names[0]]:
            step = max(path, distance([trained], [parameters]))
        return cls(path, step, norm(payload[name] for name in names))


@dataclass(frozen=True)
class Own:
    """An agent's own payload of a round, against which its neighbors' are held.

    names: of the rule's vectors; whatever else a payload holds are running statistics.
    """

    names: tuple[str, ...]
    payload: Payload
    lengths: Lengths

    def distance(self, theirs: Payload) -> float:
        """Distance of a neighbor's payload, all its vectors together."""
        mine = (self.payload[name] for name in self.names)
        return distance(mine, (theirs[name] for name in self.names))

    def strange_statistics(self, theirs: Payload) -> bool:
        """Whether running statistics are beyond what data can differ by."""
        names = [name for name in self.payload if name not in self.names]
        mine = [self.payload[name] for name in names]
        length = norm(mine)
        away = distance(mine, [theirs[name] for name in names]) if names else 0.0
        return 0.0 < length < math.inf and away > STATISTICS * length


@dataclass(frozen=True)
class Screen:
    """What screening remembers of the rounds before, a few numbers an agent.

    rounds: that it has taken part in. path, step, start, spread: as in `bound`; start is below
    0 before the first round. strikes: by neighbor.
    """

    rounds: int = 0
    path: float = 0.0
    step: float = 0.0
    start: float = -1.0
    spread: float = 0.0
    strikes: Mapping[int, Strike] = field(default_factory=dict)

    def begun(self, parameters: NDArray[Any]) -> Screen:
        """The same, with the length of the parameters that the agent begins with."""
        return self if self.start >= 0.0 else replace(self, start=norm([parameters]))

    def limit(self, factor: float, round: int, own: Own) -> float:
        """The distance beyond which a payload of a round is absurd."""
        return float(
            bound(
                factor,
                round=round,
                rounds=self.rounds + 1,
                path=self.path + own.lengths.path,
                step=max(self.step, own.lengths.step),
                length=own.lengths.length,
                start=max(self.start, 0.0),
                spread=self.spread,
            )
        )

    def verdict(
        self, factor: float, round: int, own: Own, neighbor: int, theirs: Payload, away: float
    ) -> tuple[bool, str]:
        """Whether a neighbor's payload is absurd, and why it is not to be used, if so.

        away: its distance. A payload that is not looked at is not to be used, and is not
        absurd.
        """
        who = f"round {round}, neighbor {neighbor}"
        if self.ignores(neighbor, round):
            again = self.strikes[neighbor].until + 1
            return False, f"{who}: in quarantine, looked at again in round {again}"
        limit = self.limit(factor, round, own)
        if away > limit:
            return True, (
                f"{who}: its payload is {away:.3g} away from this agent's own, at most {limit:.3g} "
                "is believed"
            )
        if own.strange_statistics(theirs):
            return True, f"{who}: its running statistics are beyond what data can differ by"
        return False, ""

    def ignores(self, neighbor: int, round: int) -> bool:
        """Whether a neighbor is in quarantine."""
        strike = self.strikes.get(neighbor)
        return strike is not None and round <= strike.until

    def quarantined(self, round: int) -> tuple[int, ...]:
        """Neighbors whose payloads of a round will not be looked at."""
        return tuple(j for j in sorted(self.strikes) if self.ignores(j, round))

    def judged(self, round: int, absurd: Iterable[int], fine: Iterable[int]) -> Screen:
        """After a round's payloads were looked at; those that did not come change nothing."""
        strikes = {j: s for j, s in self.strikes.items() if j not in set(fine)}
        for j in absurd:
            strikes[j] = struck(strikes.get(j, Strike()), round)
        return replace(self, strikes=strikes)

    def after(self, own: Own, moved: float, distances: Iterable[float]) -> Screen:
        """After a round. moved: `|x+ - x|`. distances: to the payloads that were taken."""
        path = self.path + moved
        return replace(
            self,
            rounds=self.rounds + 1,
            path=path if path < math.inf else self.path,
            step=own.lengths.step if own.lengths.step < math.inf else self.step,
            spread=max((self.spread, *distances)),
        )

    def to_config(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        strikes = [[j, s.count, s.term, s.until] for j, s in sorted(self.strikes.items())]
        return {
            "rounds": self.rounds,
            "path": self.path,
            "step": self.step,
            "start": self.start,
            "spread": self.spread,
            "strikes": strikes,
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Screen:
        """Inverse of `to_config`. Raises KeyError, TypeError or ValueError for anything else."""
        names = ("path", "step", "start", "spread")
        path, step, start, spread = (float(config[name]) for name in names)
        if not math.isfinite(path + step + start + spread):
            raise ValueError(f"screening remembers {path}, {step}, {start}, {spread}")
        strikes = {int(j): Strike(int(c), int(t), int(u)) for j, c, t, u in config["strikes"]}
        return cls(int(config["rounds"]), path, step, start, spread, strikes)


# --- clipping -------------------------------------------------------------------------


def clip_factors(distances: Mapping[int, float], radius: float | None) -> dict[int, float]:
    """`min(1, radius / distance)` for each neighbor: how much of its pull is left.

    radius: None takes the lower median of the distances, so that the nearer half of the
    neighbors is taken as it is, and the others pull no further than those do.
    """
    radius = lower_median(distances.values()) if radius is None else radius
    return {j: 1.0 if d <= radius else radius / d for j, d in distances.items()}


def clipped(
    weights: Mapping[int, float], vertex: int, factors: Mapping[int, float]
) -> dict[int, float]:
    """Mixing weights that clip: `x_i + sum_j W_ij clip(x_j - x_i)` is a weighted sum, too.

    weights: by vertex, the agent's own included. What a neighbor loses returns to the agent's
    own payload. Weights of neighbors that are not clipped stay what they are, to the bit.
    """
    found = dict(weights)
    for j in sorted(factors):
        if factors[j] < 1.0:
            found[j] = weights[j] * factors[j]
            found[vertex] += weights[j] - found[j]
    return found
