"""Rounds without an exchange that one message asks for, together with the one that ends them.

Nobody has an edge in them, so an agent needs nothing from others until they are over. Both
documents are read as a stranger's.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, MetricRecord, RecordDict

from flower_dhb.errors import PayloadError
from flower_dhb.flower.fields import Fields
from flower_dhb.flower.profile import PARTS
from flower_dhb.flower.segment import MOST_ROUNDS, MOST_SECONDS, plain_metrics, read_metrics
from flower_dhb.metrics import SKETCH

__all__ = ["LocalLine", "LocalRounds", "profile_of"]


@dataclass(frozen=True, kw_only=True)
class LocalRounds:
    """The rounds that an agent is to train by itself before the round that it is asked for.

    first: the first of them; the last is the one before the round of the instruction. evaluated:
    those after which its app evaluates, with `evaluates` as config. measured: those after which it
    tells the projection of its parameters.
    """

    first: int
    evaluated: tuple[int, ...] = ()
    measured: tuple[int, ...] = ()
    evaluates: ConfigRecord = field(default_factory=ConfigRecord)

    def to_document(self) -> dict[str, Any]:
        """As plain values, for JSON; the config travels beside them."""
        evaluated, measured = list(self.evaluated), list(self.measured)
        return {"first": self.first, "evaluated": evaluated, "measured": measured}

    @classmethod
    def of(cls, fields: Fields, round: int, evaluates: ConfigRecord | None) -> LocalRounds:
        """Inverse of `to_document`, of an instruction for a round.

        Raises PayloadError for what it cannot be.
        """
        first = fields.integer("first", max(round - MOST_ROUNDS, 1), max(round - 1, 1))
        return cls(
            first=first,
            evaluated=fields.integers("evaluated", first, round - 1, MOST_ROUNDS),
            measured=fields.integers("measured", first, round - 1, MOST_ROUNDS),
            evaluates=ConfigRecord() if evaluates is None else evaluates,
        )


@dataclass(frozen=True, kw_only=True)
class LocalLine:
    """What an agent tells of one such round.

    failure: why it did not train, empty if it did; detail: its traceback, if the app raised.
    metrics, evaluated: the app's own records of training and evaluation; evaluation_failure: why
    there are none of these. seconds: of the round; app_s: of them, in the app. sketch: the
    projection of its parameters after the round, if it was measured.
    """

    round: int
    failure: str = ""
    detail: str = ""
    metrics: RecordDict = field(default_factory=RecordDict)
    evaluated: RecordDict = field(default_factory=RecordDict)
    evaluation_failure: str = ""
    seconds: float = 0.0
    app_s: float = 0.0
    sketch: tuple[float, ...] = ()

    def to_document(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return {
            "round": self.round,
            "failure": self.failure,
            "detail": self.detail,
            "metrics": _document(self.metrics),
            "evaluated": _document(self.evaluated),
            "evaluation_failure": self.evaluation_failure,
            "seconds": min(max(self.seconds, 0.0), MOST_SECONDS),
            "app_s": min(max(self.app_s, 0.0), MOST_SECONDS),
            "sketch": base64.b64encode(np.array(self.sketch, "<f8").tobytes()).decode(),
        }

    @classmethod
    def of(cls, document: object) -> LocalLine:
        """Inverse of `to_document`. Raises PayloadError for what it cannot be."""
        fields = Fields.of(document)
        return cls(
            round=fields.integer("round", 1),
            failure=fields.text("failure"),
            detail=fields.text("detail"),
            metrics=_records("metrics", fields),
            evaluated=_records("evaluated", fields),
            evaluation_failure=fields.text("evaluation_failure"),
            seconds=fields.number("seconds", 0.0, MOST_SECONDS),
            app_s=fields.number("app_s", 0.0, MOST_SECONDS),
            sketch=_sketch(fields.text("sketch")),
        )


def profile_of(lines: Collection[LocalLine]) -> dict[str, float]:
    """Where the time of one such round went: means over agents, by `flower.profile.PARTS`."""
    if not lines:
        return {}
    app = sum(line.app_s for line in lines) / len(lines)
    whole = sum(line.seconds for line in lines) / len(lines)
    slowest = max(line.seconds for line in lines)
    found = {"app": app, "ours": max(whole - app, 0.0), "slowest": max(slowest - whole, 0.0)}
    return {name: found.get(name, 0.0) for name in PARTS}


def _document(records: RecordDict) -> dict[str, Any]:
    return {
        key: plain_metrics(dict(record.items()))
        for key, record in records.items()
        if isinstance(record, MetricRecord)
    }


def _records(name: str, fields: Fields) -> RecordDict:
    document = fields.get(name)
    if type(document) is not dict:
        raise PayloadError(f"unreadable message: '{name}' holds no metrics")
    found: Mapping[str, Any] = {key: read_metrics(name, part) for key, part in document.items()}
    try:
        return RecordDict({key: MetricRecord(metrics) for key, metrics in found.items()})
    except (TypeError, ValueError) as error:
        raise PayloadError(f"unreadable message: '{name}': {str(error)[:200]}") from None


def _sketch(text: str) -> tuple[float, ...]:
    try:
        data = base64.b64decode(text, validate=True)
    except (ValueError, binascii.Error):
        data = b"?"
    if len(data) % 8 or len(data) > 8 * SKETCH:
        raise PayloadError(f"unreadable message: a projection is not of {SKETCH} numbers at most")
    return tuple(np.frombuffer(data, "<f8").tolist())
