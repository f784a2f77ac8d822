"""What a peer tells about itself: counters, and log lines that hold neither keys nor data."""

from __future__ import annotations

import datetime
import json
import logging
import sys
import threading
from collections import Counter
from typing import Any, TextIO

__all__ = ["LOGGER", "Monitor", "set_up_logging"]

LOGGER = logging.getLogger("flower_dhb.peer")


class Monitor:
    """Counts by name and neighbor, and writes events. Safe to use from any thread."""

    def __init__(self, vertex: int) -> None:
        self.vertex = vertex
        self._counts: Counter[tuple[str, int | None]] = Counter()
        self._lock = threading.Lock()

    def count(self, name: str, neighbor: int | None = None, by: int = 1) -> None:
        """Add to a counter."""
        with self._lock:
            self._counts[name, neighbor] += by

    def total(self, name: str) -> int:
        """A counter over all neighbors."""
        with self._lock:
            return sum(n for (key, _), n in self._counts.items() if key == name)

    def counts(self) -> dict[tuple[str, int | None], int]:
        """All counters, by name and neighbor."""
        with self._lock:
            return dict(self._counts)

    def named(self) -> dict[str, int]:
        """All counters in one flat mapping: `refused.stale.3` for neighbor 3."""
        return {
            name if neighbor is None else f"{name}.{neighbor}": n
            for (name, neighbor), n in sorted(self.counts().items(), key=str)
        }

    def event(self, name: str, level: int = logging.INFO, **fields: Any) -> None:
        """Write one line: what happened, with plain values."""
        LOGGER.log(level, name, extra={"fields": {"vertex": self.vertex, **fields}})

    def warning(self, name: str, **fields: Any) -> None:
        """Write one line that asks for attention."""
        self.event(name, logging.WARNING, **fields)


class _Lines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields = getattr(record, "fields", {})
        extra = " ".join(f"{k}={v}" for k, v in fields.items() if k != "vertex")
        who = f"vertex {fields['vertex']}: " if "vertex" in fields else ""
        return f"{_stamp(record)} {record.levelname.lower():7} {who}{record.getMessage()} {extra}"


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        document = {
            "time": _stamp(record),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            document["exception"] = self.formatException(record.exc_info)
        return json.dumps(document, default=str)


def _stamp(record: logging.LogRecord) -> str:
    moment = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
    return moment.isoformat(timespec="milliseconds")


def set_up_logging(form: str, stream: TextIO | None = None) -> None:
    """Write this package's events as `text` or `json` lines, one each."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(_JsonLines() if form == "json" else _Lines())
    for logger in (LOGGER, logging.getLogger("flwr")):
        logger.handlers[:] = [handler]
        logger.setLevel(logging.INFO)
        logger.propagate = False
