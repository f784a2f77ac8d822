"""What is measured: consensus distance, means over agents, worst and best agent, history."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from math import isnan
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "LOWER_IS_BETTER",
    "Metrics",
    "RoundRecord",
    "consensus_distance",
    "summarize",
]

Scalar: TypeAlias = int | float
Metrics: TypeAlias = Mapping[str, Scalar | Sequence[Scalar]]

# Name patterns of metrics of which less is better; of all others, more is better.
LOWER_IS_BETTER = ("*loss*", "*error*", "*perplexity*", "*mse*", "*mae*", "*rmse*", "*distance*")

_BLOCK = 2**16  # elements; the stack of a block stays in the cache


def consensus_distance(parameters: Sequence[NDArray[Any]]) -> float:
    """Root mean square over agents of the distance to their mean: `sqrt(mean ||x_i - mean x||^2)`.

    parameters: n vectors `(d,)`, or an array `(n, d)`. Computed in float64 and in blocks:
    no average model is formed.
    """
    if len(parameters) == 0:
        return float("nan")
    total = 0.0
    for start in range(0, len(parameters[0]), _BLOCK):
        block = np.stack([np.asarray(x[start : start + _BLOCK], np.float64) for x in parameters])
        block -= block.mean(axis=0)
        total += float(np.vdot(block, block))
    return float(np.sqrt(total / len(parameters)))


def summarize(
    per_agent: Mapping[int, Metrics],
    weights: Mapping[int, float],
    lower_is_better: Sequence[str] = LOWER_IS_BETTER,
) -> dict[str, Scalar | list[Scalar]]:
    """Weighted mean of each metric under its own name, with its worst and best agent beside it.

    per_agent: metrics by vertex. weights: by vertex, such as numbers of examples. A
    metric that some agents lack is averaged over those that have it. A list is averaged
    element by element; worst and best are for single numbers, NaN being the worst.
    """
    names = list(dict.fromkeys(name for m in per_agent.values() for name in m))
    summary: dict[str, Scalar | list[Scalar]] = {}
    for name in names:
        values = {v: m[name] for v, m in sorted(per_agent.items()) if name in m}
        total = sum(weights[v] for v in values)
        shares = {v: weights[v] / total if total else 1.0 / len(values) for v in values}
        if any(isinstance(value, Sequence) for value in values.values()):
            rows = [np.asarray(v, np.float64) * shares[j] for j, v in values.items()]
            if len({row.shape for row in rows}) == 1:
                summary[name] = [float(v) for v in np.sum(rows, axis=0)]
            continue
        numbers = {v: float(value) for v, value in values.items()}  # type: ignore[arg-type]
        summary[name] = sum(numbers[v] * shares[v] for v in numbers)
        less = any(fnmatchcase(name.lower(), pattern) for pattern in lower_is_better)
        ranked = sorted(numbers.values(), key=lambda x: (isnan(x), x if less else -x))
        summary[f"{name}-worst"], summary[f"{name}-best"] = ranked[-1], ranked[0]
    return summary


@dataclass
class RoundRecord:
    """What happened in one round.

    train, evaluate: the apps' own metrics by vertex. missing: vertices whose payload
    did not reach their neighbors. events: what went wrong, one text each, by vertex.
    bytes_sent: payload bytes over all edges, both ways; bytes_by_agent: by sender.
    seconds: wall-clock time of training and evaluation together.
    """

    round: int
    train: dict[int, Metrics] = field(default_factory=dict)
    evaluate: dict[int, Metrics] = field(default_factory=dict)
    evaluate_average_model: Metrics | None = None
    consensus_distance: float | None = None
    bytes_sent: int = 0
    bytes_by_agent: dict[int, int] = field(default_factory=dict)
    missing: list[int] = field(default_factory=list)
    rejoined: list[int] = field(default_factory=list)
    events: list[tuple[int, str]] = field(default_factory=list)
    seconds: float = 0.0

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
