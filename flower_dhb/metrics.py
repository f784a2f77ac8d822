"""What is measured: consensus distance, means over agents, worst and best agent, history."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from math import inf, isnan
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from flower_dhb.errors import PayloadError

__all__ = [
    "LOWER_IS_BETTER",
    "SKETCH",
    "Events",
    "Metrics",
    "RoundRecord",
    "Summary",
    "agents_text",
    "consensus_distance",
    "distance_from",
    "finite",
    "grouped",
    "is_better_when_lower",
    "size_text",
    "sketch",
    "summarize",
    "weights_of",
]

Scalar: TypeAlias = int | float
Metrics: TypeAlias = Mapping[str, Scalar | Sequence[Scalar]]
Events: TypeAlias = list[tuple[int, str]]

# Name patterns of metrics of which less is better; of all others, more is better.
LOWER_IS_BETTER = ("*loss*", "*error*", "*perplexity*", "*mse*", "*mae*", "*rmse*", "*distance*")

_BLOCK = 2**16  # elements; the stack of a block stays in the cache

SKETCH = 1024  # numbers of a projection: distances within a few percent


def consensus_distance(parameters: Sequence[NDArray[Any]]) -> float:
    """Root mean square over agents of the distance to their mean: `sqrt(mean ||x_i - mean x||^2)`.

    parameters: n vectors `(d,)`, or an array `(n, d)`. Computed in float64 and in blocks:
    no average model is formed. Raises PayloadError unless all have the same length.
    """
    if len(parameters) == 0:
        return float("nan")
    shapes = [np.shape(x) for x in parameters]
    for agent, shape in enumerate(shapes):
        if len(shape) != 1 or shape != shapes[0]:
            raise PayloadError(
                f"consensus distance: agent {agent} has shape {shape}, agent 0 {shapes[0]}; all "
                "agents must have one vector (d,), of the same length"
            )
    total = 0.0
    for start in range(0, len(parameters[0]), _BLOCK):
        block = np.stack([np.asarray(x[start : start + _BLOCK], np.float64) for x in parameters])
        block -= block.mean(axis=0)
        total += float(np.vdot(block, block))
    return float(np.sqrt(total / len(parameters)))


def distance_from(parameters: Sequence[NDArray[Any]], origin: NDArray[Any]) -> float:
    """Root mean square over agents of the distance to one point: `sqrt(mean ||x_i - origin||^2)`.

    Its square is that of the consensus distance plus `||mean x - origin||^2`.
    """
    total = 0.0
    for start in range(0, len(origin), _BLOCK):
        center = np.asarray(origin[start : start + _BLOCK], np.float64)
        for x in parameters:
            away = np.asarray(x[start : start + _BLOCK], np.float64) - center
            total += float(np.vdot(away, away))
    return float(np.sqrt(total / len(parameters))) if len(parameters) else float("nan")


def sketch(
    parameters: NDArray[Any], buckets: int = SKETCH, seed: str = "flower_dhb"
) -> NDArray[np.float64]:
    """Random projection of `(d,)` to `(min(d, buckets),)` that keeps distances.

    Each element is added to one bucket with a random sign, both drawn from `seed`; the
    squared distance of two sketches has the mean of the true one and a relative standard
    deviation of `sqrt(2 / buckets)`. A vector that is no longer than that is its own sketch.
    Source: Charikar, Chen & Farach-Colton, ICALP 2002 (count sketch).
    """
    if len(parameters) <= buckets:
        return np.array(parameters, np.float64)
    rng = np.random.default_rng(list(seed.encode()))
    sums = np.zeros(2 * buckets)
    for start in range(0, len(parameters), _BLOCK):
        part = parameters[start : start + _BLOCK]
        # One draw tells bucket and sign: the second half of the buckets counts negatively.
        drawn = rng.integers(0, 2 * buckets, len(part), dtype=np.uint16)
        sums += np.bincount(drawn, weights=part, minlength=2 * buckets)
    return sums[:buckets] - sums[buckets:]


@dataclass(frozen=True)
class Summary:
    """One metric over agents: weighted mean, worst and best agent.

    Of a list there is only the mean, element by element.
    """

    mean: float | list[float]
    worst: float | None = None
    best: float | None = None


def weights_of(per_agent: Mapping[int, Metrics], key: str) -> tuple[dict[int, float], Events]:
    """Each agent's weight in means, from its metric `key`, and what is wrong with the others'.

    A weight is a finite number that is not negative.
    """
    weights: dict[int, float] = {}
    events: Events = []
    for vertex, metrics in sorted(per_agent.items()):
        value = metrics.get(key)
        if value is None:
            events.append((vertex, f"metrics lack '{key}', left out of the mean"))
        elif not isinstance(value, int | float) or not 0.0 <= value < inf:
            events.append(
                (vertex, f"metric '{key}' must be a number >= 0, got {value}; left out of the mean")
            )
        else:
            weights[vertex] = float(value)
    return weights, events


def summarize(
    per_agent: Mapping[int, Metrics],
    weights: Mapping[int, float],
    lower_is_better: Sequence[str] = LOWER_IS_BETTER,
) -> dict[str, Summary]:
    """Weighted mean of each metric, with its worst and best agent beside it.

    per_agent: metrics by vertex. weights: by vertex, such as numbers of examples. The mean
    is over those agents that have the metric and a weight; all that have the metric count
    alike where none has a weight above 0. Worst and best are of single numbers and of all
    agents, NaN being the worst. Lists of different lengths are left out.
    """
    names = list(dict.fromkeys(name for m in per_agent.values() for name in m))
    summary: dict[str, Summary] = {}
    for name in names:
        values = {v: m[name] for v, m in sorted(per_agent.items()) if name in m}
        shares = _shares(values, weights)
        if any(isinstance(value, Sequence) for value in values.values()):
            rows = [np.asarray(values[j], np.float64) * share for j, share in shares.items()]
            if len({row.shape for row in rows}) == 1:
                summary[name] = Summary([float(v) for v in np.sum(rows, axis=0)])
            continue
        numbers = {v: float(value) for v, value in values.items()}  # type: ignore[arg-type]
        mean = sum(numbers[v] * share for v, share in shares.items())
        less = is_better_when_lower(name, lower_is_better)
        ranked = sorted(numbers.values(), key=lambda x: (isnan(x), x if less else -x))
        summary[name] = Summary(mean, worst=ranked[-1], best=ranked[0])
    return summary


def is_better_when_lower(name: str, lower_is_better: Sequence[str] = LOWER_IS_BETTER) -> bool:
    """Whether of a metric less is better, by its name's pattern."""
    return any(fnmatchcase(name.lower(), pattern) for pattern in lower_is_better)


def _shares(vertices: Iterable[int], weights: Mapping[int, float]) -> dict[int, float]:
    """Shares of 1: by weight, or alike where nobody has one above 0."""
    weighted = {v: weights[v] for v in vertices if v in weights}
    total = sum(weighted.values())
    if total > 0.0:
        return {v: weight / total for v, weight in weighted.items()}
    alike = list(vertices)
    return {v: 1.0 / len(alike) for v in alike}


@dataclass
class RoundRecord:
    """What happened in one round.

    train, evaluate: the apps' own metrics by vertex, of which `train_summary` and
    `evaluate_summary` are the means, with the worst and the best agent. missing: vertices
    whose payload did not reach their neighbors. events: what went wrong, one text each, by vertex.
    warnings: what the run as a whole suffers from, each once in a run, with what to change.
    distance_from_start: root mean square over agents of how far their parameters have come.
    bytes_sent: payload bytes over all edges, both ways; bytes_by_agent: by sender.
    seconds: wall-clock time of training and evaluation together. profile: the same, by what it
    went to (`flower_dhb.flower.profile.PARTS`), where that was measured. policies: of whoever
    runs the nodes, in words, by vertex; only of those that have one.
    """

    round: int
    train: dict[int, Metrics] = field(default_factory=dict)
    evaluate: dict[int, Metrics] = field(default_factory=dict)
    evaluate_average_model: Metrics | None = None
    consensus_distance: float | None = None
    distance_from_start: float | None = None
    bytes_sent: int = 0
    bytes_by_agent: dict[int, int] = field(default_factory=dict)
    missing: list[int] = field(default_factory=list)
    rejoined: list[int] = field(default_factory=list)
    events: Events = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    seconds: float = 0.0
    policies: dict[int, str] = field(default_factory=dict)
    profile: dict[str, float] = field(default_factory=dict)
    weighted_by_key: str = "num-examples"
    lower_is_better: tuple[str, ...] = LOWER_IS_BETTER

    @property
    def train_summary(self) -> dict[str, Summary]:
        """The apps' training metrics over agents; `weighted_by_key` itself is left out."""
        return self._summary(self.train)

    @property
    def evaluate_summary(self) -> dict[str, Summary]:
        """The apps' evaluation metrics over agents."""
        return self._summary(self.evaluate)

    @property
    def average_model(self) -> dict[str, float]:
        """Metrics of the average model that are single numbers, without its weight."""
        observed = self.evaluate_average_model or {}
        numbers = {n: float(v) for n, v in observed.items() if isinstance(v, int | float)}
        return {name: value for name, value in numbers.items() if name != self.weighted_by_key}

    @property
    def grouped_events(self) -> list[tuple[list[int], str]]:
        """The events, each text once, with the vertices that it befell."""
        return grouped(self.events)

    def values(self, name: str, vertices: Iterable[int]) -> list[float | None]:
        """One evaluation metric for each vertex, None where it was not reported."""
        found: list[float | None] = []
        for vertex in vertices:
            value = self.evaluate.get(vertex, {}).get(name)
            found.append(float(value) if isinstance(value, int | float) else None)
        return found

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RoundRecord:
        """Inverse of `to_dict`, also after a way through JSON, which knows texts as keys only.

        Raises TypeError, ValueError or KeyError for what it cannot be.
        """
        by_vertex = {
            name: {int(vertex): value for vertex, value in values[name].items()}
            for name in ("train", "evaluate", "bytes_by_agent", "policies")
        }
        events = [(int(vertex), str(text)) for vertex, text in values["events"]]
        lower = tuple(values["lower_is_better"])
        return cls(**{**values, **by_vertex, "events": events, "lower_is_better": lower})

    def _summary(self, per_agent: Mapping[int, Metrics]) -> dict[str, Summary]:
        weights, _ = weights_of(per_agent, self.weighted_by_key)
        key = self.weighted_by_key
        named = {v: {n: x for n, x in m.items() if n != key} for v, m in per_agent.items()}
        return summarize(named, weights, self.lower_is_better)


def grouped(events: Events) -> list[tuple[list[int], str]]:
    """Events, each text once, with the vertices that it befell."""
    found: dict[str, list[int]] = {}
    for vertex, text in events:
        found.setdefault(text, []).append(vertex)
    return [(sorted(set(vertices)), text) for text, vertices in found.items()]


def agents_text(vertices: Iterable[int]) -> str:
    """Vertices in words: `agent 4`, `agents 0 to 7`, `agents 0, 2 to 4 and 9`."""
    runs: list[list[int]] = []
    for vertex in sorted(set(vertices)):
        if runs and vertex == runs[-1][-1] + 1:
            runs[-1].append(vertex)
        else:
            runs.append([vertex])
    if not runs:
        return "no agent"
    parts = [
        part
        for run in runs
        for part in ([f"{run[0]} to {run[-1]}"] if len(run) > 2 else [str(v) for v in run])
    ]
    if len(runs) == 1 and len(runs[0]) == 1:
        return f"agent {parts[0]}"
    return "agents " + (f"{', '.join(parts[:-1])} and {parts[-1]}" if parts[1:] else parts[0])


def size_text(n_bytes: float | None) -> str:
    """Bytes with a unit, `1.5 GB`; a dash if they are not known."""
    value = finite(n_bytes)
    if value is None:
        return "–"
    for unit in ("B", "kB", "MB", "GB"):
        if abs(value) < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.4g} TB"


def finite(value: object) -> float | None:
    """A number that can be written down, or None: what is NaN or infinite was not measured."""
    if isinstance(value, int | float) and math.isfinite(value):
        return float(value)
    return None
