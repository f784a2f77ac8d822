"""What a peer tells about itself: counters, and log lines that hold neither keys nor data.

Neighbors and strangers cause lines, and words of theirs are in them. So a line that comes again
is counted instead of written (`Folding`), and what is not plain text is escaped (`plain`).
"""

from __future__ import annotations

import datetime
import json
import logging
import math
import re
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TextIO

__all__ = ["LOGGER", "Folding", "Monitor", "plain", "set_up_logging"]

LOGGER = logging.getLogger("flower_dhb.peer")

_LIMIT = 500  # characters of a text in a line
_EVERY = frozenset({"round"})  # events whose every line is written
_WINDOW_S, _WINDOW_MAX_S = 10.0, 600.0  # from a line to the count of those that followed
_VARIANTS, _KEYS = 8, 512  # texts that are told apart, of one kind and in all
# Of lines that can be folded: at most 256 KiB at once and 350 KiB an hour.
_BURST_BYTES, _BYTES_PER_S = 2.0**18, 100.0
_NUMBERS = re.compile(r"[0-9]+")


class Monitor:
    """Counts by name and neighbor, and writes events. Safe to use from any thread."""

    def __init__(self, vertex: int) -> None:
        self.vertex = vertex
        self._counts: Counter[tuple[str, int | None]] = Counter()
        self._counted_at: dict[tuple[str, int | None], float] = {}
        self._lock = threading.Lock()

    def count(self, name: str, neighbor: int | None = None, by: int = 1) -> None:
        """Add to a counter."""
        with self._lock:
            self._counts[name, neighbor] += by
            self._counted_at[name, neighbor] = time.monotonic()

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
        return {_name(key): n for key, n in sorted(self.counts().items(), key=str)}

    def ago_s(self) -> dict[str, float]:
        """Seconds since each of them was counted last, under the same names."""
        now = time.monotonic()
        with self._lock:
            return {_name(key): now - at for key, at in self._counted_at.items()}

    def event(self, name: str, level: int = logging.INFO, **fields: Any) -> None:
        """Write one line: what happened, with plain values."""
        LOGGER.log(level, name, extra={"fields": {"vertex": self.vertex, **fields}})

    def warning(self, name: str, **fields: Any) -> None:
        """Write one line that asks for attention."""
        self.event(name, logging.WARNING, **fields)


def _name(key: tuple[str, int | None]) -> str:
    name, neighbor = key
    return name if neighbor is None else f"{name}.{neighbor}"


def plain(text: str, limit: int = _LIMIT) -> str:
    """A text of unknown origin, fit for a line: escaped where it is not printable, and cut.

    Nothing in it can begin a line, move a cursor or turn the direction of writing.
    """
    shown = text[:limit]
    if not shown.isprintable():
        shown = "".join(
            c if c.isprintable() else c.encode("unicode_escape").decode() for c in shown
        )
    if len(text) <= limit and len(shown) <= limit:
        return shown
    return shown[: limit - 1] + "…"


def _plain_value(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | list | tuple | dict):
        return value
    return plain(str(value))


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    return {k: _plain_value(v) for k, v in getattr(record, "fields", {}).items()}


def _as_text(value: Any) -> str:
    if isinstance(value, str) and re.search(r'[\s"=]', value):
        return json.dumps(value, ensure_ascii=False)
    return str(value)


class _Lines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields = _fields(record)
        who = f"vertex {fields.pop('vertex')}: " if "vertex" in fields else ""
        more, within_s = fields.pop("more", 0), fields.pop("within_s", 0)
        extra = " ".join(f"{k}={_as_text(v)}" for k, v in fields.items())
        if more:
            extra += f" … {more:,} more in {within_s:g} s"
        what = plain(record.getMessage())
        return f"{_stamp(record)} {record.levelname.lower():7} {who}{what} {extra}"


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        document = {
            "time": _stamp(record),
            "level": record.levelname.lower(),
            "event": plain(record.getMessage()),
            **_fields(record),
        }
        if record.exc_info:
            document["exception"] = self.formatException(record.exc_info)
        return json.dumps(document, default=str)


def _stamp(record: logging.LogRecord) -> str:
    moment = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
    return moment.isoformat(timespec="milliseconds")


@dataclass
class _Fold:
    """Lines of one kind since one of them was written."""

    since: float
    window_s: float
    last: logging.LogRecord
    more: int = 0


class Folding(logging.StreamHandler[TextIO]):
    """Writes the first line of a kind at once, and then how many followed, ever more seldom.

    A kind is an event, with its neighbor and reason, and with what it says apart from numbers.
    The count comes in a line like the last of those that it stands for, with `more` and
    `within_s`: after 10 s, then after twice that, up to 10 minutes. A kind that has kept still
    for so long begins anew. Lines of all kinds together are bounded in bytes, too: what is
    beyond that is counted. Lines of the events in `_EVERY` are always written.

    clock: monotonic time, in seconds.
    """

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(stream)
        self._clock = clock
        self._folds: dict[tuple[str, ...], _Fold] = {}
        self._variants: Counter[tuple[str, ...]] = Counter()  # of a kind, told apart
        self._left, self._left_at = _BURST_BYTES, clock()
        self._next = math.inf  # when the first window ends
        self._changed = threading.Event()
        self._closed = False
        self._thread: threading.Thread | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line, or count it."""
        if record.name == LOGGER.name and record.getMessage() in _EVERY:
            self._write(self.format(record))
            return
        now = self._clock()
        if now >= self._next:
            self.write_counts(now)
        key = self._key(record)
        fold = self._folds.get(key)
        if fold is None:
            fold = self._folds[key] = _Fold(now, _WINDOW_S, record)
            self._variants[key[:-1]] += 1
            self._next = min(self._next, now + _WINDOW_S)
            if self._afford(line := self.format(record), now):
                self._write(line)
                return
        fold.more += 1
        fold.last = record
        if fold.more == 1:
            self._wake()

    def write_counts(self, now: float, *, all_of_them: bool = False) -> float | None:
        """Write the counts that are due. Returns when the next one is."""
        with self._own_lock():
            for key, fold in list(self._folds.items()):
                if not all_of_them and now < fold.since + fold.window_s:
                    continue
                if fold.more == 0:
                    del self._folds[key]
                    self._variants[key[:-1]] -= 1
                    continue
                line = self.format(_summed_up(fold, now))
                if self._afford(line, now) or all_of_them:
                    self._write(line)
                    fold.since, fold.more = now, 0
                    fold.window_s = min(2.0 * fold.window_s, _WINDOW_MAX_S)
                else:
                    fold.window_s += _WINDOW_MAX_S
            ends = [(f.since + f.window_s, f.more) for f in self._folds.values()]
            self._next = min((end for end, _ in ends), default=math.inf)
            return min((end for end, more in ends if more), default=None)

    def close(self) -> None:
        """Write what has been counted, and end."""
        with self._own_lock():
            self.write_counts(self._clock(), all_of_them=True)
            self._folds.clear()
            self._variants.clear()
            self._closed = True
        self._changed.set()
        super().close()

    @contextmanager
    def _own_lock(self) -> Iterator[None]:
        self.acquire()
        try:
            yield
        finally:
            self.release()

    def _key(self, record: logging.LogRecord) -> tuple[str, ...]:
        """The kind of a line. Whatever is said, there are only so many kinds."""
        fields = getattr(record, "fields", {})
        kind: tuple[str, ...]
        if record.name == LOGGER.name:
            said = str(fields.get("why", fields.get("text", "")))[:_LIMIT]
            kind = (record.getMessage(), str(fields.get("neighbor")), str(fields.get("reason")))
        else:  # another package's; what its lines have in common is their form
            said = str(record.msg)[:_LIMIT]
            kind = (record.name,)
        key = (*kind, _NUMBERS.sub("", said))
        if key in self._folds:
            return key
        if len(self._folds) >= _KEYS:
            return (kind[0], "")
        return key if self._variants[kind] < _VARIANTS else (*kind, "")

    def _afford(self, line: str, now: float) -> bool:
        cost = len(line.encode(errors="replace")) + 1
        passed = (now - self._left_at) * _BYTES_PER_S
        self._left, self._left_at = min(_BURST_BYTES, self._left + passed), now
        if cost > self._left:
            return False
        self._left -= cost
        return True

    def _write(self, line: str) -> None:
        try:
            self.stream.write(line + self.terminator)
            self.flush()
        except Exception:
            self.handleError(logging.makeLogRecord({"msg": line}))

    def _wake(self) -> None:
        """A count is to be written in time, even if no other line comes."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._keep_time, name="log", daemon=True)
            self._thread.start()
        self._changed.set()

    def _keep_time(self) -> None:
        while not self._closed:
            now = self._clock()
            due = self.write_counts(now)
            self._changed.wait(None if due is None else max(0.05, due - now))
            self._changed.clear()


def _summed_up(fold: _Fold, now: float) -> logging.LogRecord:
    """The last line that was counted, with the count of them all."""
    record = logging.makeLogRecord(fold.last.__dict__)
    within_s = max(1, math.ceil(now - fold.since))
    record.__dict__["fields"] = {
        **getattr(record, "fields", {}),
        "more": fold.more,
        "within_s": within_s,
    }
    return record


def set_up_logging(form: str, stream: TextIO | None = None) -> None:
    """Write this package's events as `text` or `json` lines, one each, and what repeats folded.

    So are the lines of Flower and gRPC.
    """
    handler = Folding(stream or sys.stderr)
    handler.setFormatter(_JsonLines() if form == "json" else _Lines())
    for logger in (LOGGER, logging.getLogger("flwr"), logging.getLogger("grpc")):
        logger.handlers[:] = [handler]
        logger.setLevel(logging.INFO)
        logger.propagate = False
