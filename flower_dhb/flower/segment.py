"""A segment: rounds that agents hold among themselves, and what they tell of them afterwards.

The relay opens it with one message to each agent. Both documents are read as a stranger's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from flower_dhb.errors import PayloadError
from flower_dhb.flower.fields import Fields
from flower_dhb.metrics import Metrics

__all__ = [
    "AWAY_ROUNDS",
    "MOST_ROUNDS",
    "MOST_SECONDS",
    "RoundLine",
    "Segment",
    "plain_metrics",
    "read_metrics",
]

MOST_ROUNDS = 4096  # of one message
AWAY_ROUNDS = 10  # exchanges that an agent may miss, and go on from its own state
MOST_SECONDS = 1e6  # that an agent tells of
_MOST_TEXTS = 64  # events of a round


@dataclass(frozen=True, kw_only=True)
class Segment:
    """The rounds that an agent is to hold with its neighbors, beside what its instruction says.

    number: of the run's segments, from 1. first, last: its rounds. oldest: an agent whose state is
    of a round before it has missed too many exchanges, and begins again from its neighbors.
    limit_s: seconds after which an agent ends with the round that it is in. start_s: seconds to
    wait for the neighbors. wait_s: seconds that a round waits for a neighbor that is alive.
    neighbors: those that take part, and that can be reached; dials: addresses of those that this
    agent dials. rows: of graphs that take turns, mixing weights in each round, by vertex; none
    where those of the instruction hold in all rounds. evaluated: rounds in which its app evaluates.
    measured: rounds in which it tells the projection of its parameters.
    """

    number: int
    first: int
    last: int
    oldest: int
    limit_s: float
    start_s: float
    wait_s: float
    neighbors: tuple[int, ...]
    dials: Mapping[int, str] = field(default_factory=dict)
    rows: tuple[Mapping[int, float], ...] = ()
    evaluated: tuple[int, ...] = ()
    measured: tuple[int, ...] = ()

    def to_document(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return {
            "number": self.number,
            "first": self.first,
            "last": self.last,
            "oldest": self.oldest,
            "limit_s": self.limit_s,
            "start_s": self.start_s,
            "wait_s": self.wait_s,
            "neighbors": list(self.neighbors),
            "dials": sorted(self.dials.items()),
            "rows": [{"weights": sorted(row.items())} for row in self.rows],
            "evaluated": list(self.evaluated),
            "measured": list(self.measured),
        }

    @classmethod
    def of(cls, fields: Fields) -> Segment:
        """Inverse of `to_document`. Raises PayloadError for what it cannot be."""
        first = fields.integer("first", 1)
        last = fields.integer("last", first, first + MOST_ROUNDS - 1)
        neighbors = fields.vertices("neighbors")
        dials = fields.texts_by_vertex("dials")
        if not set(dials) <= set(neighbors):
            raise PayloadError(
                f"unreadable message: addresses of vertices {sorted(dials)} to dial, neighbors are "
                f"{sorted(neighbors)}"
            )
        rows = tuple(Fields.of(row).weights("weights") for row in fields.documents("rows"))
        if rows and len(rows) != last - first + 1:
            raise PayloadError(
                f"unreadable message: weights of {len(rows)} rounds, the segment has "
                f"{last - first + 1}"
            )
        return cls(
            number=fields.integer("number", 1),
            rows=rows,
            first=first,
            last=last,
            oldest=fields.integer("oldest", 0, first - 1),
            limit_s=fields.number("limit_s", 0.0, MOST_SECONDS),
            start_s=fields.number("start_s", 0.0, MOST_SECONDS),
            wait_s=fields.number("wait_s", 0.0, MOST_SECONDS),
            neighbors=tuple(sorted(set(neighbors))),
            dials=dials,
            evaluated=fields.integers("evaluated", first, last, MOST_ROUNDS),
            measured=fields.integers("measured", first, last, MOST_ROUNDS),
        )


@dataclass(frozen=True, kw_only=True)
class RoundLine:
    """What an agent tells of one round of a segment.

    failure: why it had no part, empty if it had. rejoined: it had lost its state, and has begun
    again from its neighbors'. missing: neighbors whose payload did not count. n_bytes: of its own
    payload, over the edges that counted. events: what befell it, in words. train, evaluate: the
    app's metrics. seconds: of the round; train_seconds, wait_seconds: parts of them. sketch: the
    projection of its parameters after the round, if it was measured; it travels beside the line.
    """

    round: int
    failure: str = ""
    rejoined: bool = False
    missing: tuple[int, ...] = ()
    n_bytes: int = 0
    seconds: float = 0.0
    train_seconds: float = 0.0
    wait_seconds: float = 0.0
    events: tuple[str, ...] = ()
    train: Metrics = field(default_factory=dict)
    evaluate: Metrics = field(default_factory=dict)
    sketch: tuple[float, ...] = ()

    @property
    def counts(self) -> bool:
        """Whether the agent has trained in the round."""
        return not self.failure and not self.rejoined

    def to_document(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return {
            "round": self.round,
            "failure": self.failure,
            "rejoined": self.rejoined,
            "missing": list(self.missing),
            "bytes": self.n_bytes,
            "seconds": self.seconds,
            "train_seconds": self.train_seconds,
            "wait_seconds": self.wait_seconds,
            "events": list(self.events[:_MOST_TEXTS]),
            "train": plain_metrics(self.train),
            "evaluate": plain_metrics(self.evaluate),
            "sketch": len(self.sketch),
        }

    @classmethod
    def of(cls, document: object) -> RoundLine:
        """Inverse of `to_document`. Raises PayloadError for what it cannot be."""
        fields = Fields.of(document)
        return cls(
            round=fields.integer("round", 1),
            failure=fields.text("failure"),
            rejoined=fields.flag("rejoined"),
            missing=fields.vertices("missing"),
            n_bytes=fields.integer("bytes", 0),
            seconds=fields.number("seconds", 0.0, MOST_SECONDS),
            train_seconds=fields.number("train_seconds", 0.0, MOST_SECONDS),
            wait_seconds=fields.number("wait_seconds", 0.0, MOST_SECONDS),
            events=fields.texts("events"),
            train=read_metrics("train", fields.get("train")),
            evaluate=read_metrics("evaluate", fields.get("evaluate")),
        )


def plain_metrics(metrics: Metrics) -> dict[str, Any]:
    """Metrics for JSON, which has no numbers that are not finite: those are texts."""

    def plain(value: float) -> float | str:
        return value if isinstance(value, int) or math.isfinite(value) else str(value)

    return {
        name: plain(found) if isinstance(found, int | float) else [plain(v) for v in found]
        for name, found in metrics.items()
    }


def read_metrics(what: str, document: object) -> Metrics:
    """Inverse of `plain_metrics`. Raises PayloadError for what it cannot be."""
    if type(document) is not dict:
        raise PayloadError(f"unreadable message: '{what}' holds no metrics")
    return {name: _metric(name, value) for name, value in document.items()}


def _metric(name: str, value: object) -> int | float | list[int | float]:
    if type(value) is list:
        return [_number(name, v) for v in value]
    return _number(name, value)


def _number(name: str, value: object) -> int | float:
    if type(value) is float or (type(value) is int and abs(value) < 2**64):
        return value
    if value in ("nan", "inf", "-inf"):
        return float(str(value))
    raise PayloadError(f"unreadable message: metric '{name[:50]}' is no number of 64 bits")
