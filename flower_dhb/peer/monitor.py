"""What a peer tells about itself: counters, and log lines that hold neither keys nor data.

A line says one sentence, the same as text and as JSON (`sentences`). Neighbors and strangers
cause lines, and words of theirs are in them. So a line that comes again is counted instead of
written (`Folding`), and what is not plain text is escaped (`plain`).
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
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TextIO

from flower_dhb.peer.sentences import SAID_BY_WHY, SENTENCES, fields_of, in_words, sentence

__all__ = ["LOGGER", "Folding", "Lines", "Monitor", "Trouble", "plain", "set_up_logging"]

LOGGER = logging.getLogger("flower_dhb.peer")

_LIMIT = 500  # characters of a text in a line
# Events whose every line is written: no stranger can bring them about, and each is news.
_EVERY = frozenset({"round", "waits", "begins", "ends", "rejoined", "bulletin", "edition"})
_WINDOW_S, _WINDOW_MAX_S = 10.0, 86400.0  # from a line to the count of those that followed
_QUIET_S = 600.0  # after so long without it, what comes again is news
_NEWS, _NEWS_S = 4.0, 600.0  # lines of a kind that are news again at once, and one more in each
_VARIANTS, _KEYS = 8, 512  # texts that are told apart, of one kind and in all
# What may be the reason why a neighbor is not there, or the disk takes nothing, and what ends it.
_TROUBLES = frozenset(
    ("cut-off", "disconnected", "goodbye", "parted", "refused", "refused-there", "unreachable")
) | {"disk-failed"}
_OVER = frozenset(("connected", "disk-writes-again"))
# Refusals that keep two ends from talking; each try brings them again, within this time.
_REASONS = frozenset(("agreement", "identity"))
_REASON_S = 30.0
# Of lines that can be folded: at most 256 KiB at once and 350 KiB an hour.
_BURST_BYTES, _BYTES_PER_S = 2.0**18, 100.0
_NUMBERS = re.compile(r"[0-9]+")


@dataclass(frozen=True)
class Trouble:
    """The last bad news of a neighbor, or of the disk.

    since: when the first of that kind came, by the monotonic clock.
    """

    event: str
    text: str
    since: float


class Monitor:
    """Counts by name and neighbor, and writes events. Safe to use from any thread.

    names: of vertices, where the graph has given them any.
    """

    def __init__(self, vertex: int, names: Mapping[int, str] | None = None) -> None:
        self.vertex, self.names = vertex, dict(names or {})
        self._counts: Counter[tuple[str, int | None]] = Counter()
        self._counted_at: dict[tuple[str, int | None], float] = {}
        self._troubles: dict[int | None, tuple[str, Mapping[str, Any], float, float]] = {}
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
        self._remember(name, fields)
        fields = {"vertex": self.vertex, **fields}
        LOGGER.log(level, name, extra={"fields": fields, "names": self.names})

    def warning(self, name: str, **fields: Any) -> None:
        """Write one line that asks for attention."""
        self.event(name, logging.WARNING, **fields)

    def trouble(self, neighbor: int | None) -> Trouble | None:
        """Why a neighbor is not there, as far as known; None since it was connected last.

        For `None` as the neighbor, why the disk takes nothing.
        """
        with self._lock:
            found = self._troubles.get(neighbor)
        if found is None:
            return None
        event, fields, since, _ = found
        shown = {k: _plain_value(v) for k, v in fields.items()}
        return Trouble(event, sentence(event, shown, self.names) or event, since)

    def _remember(self, name: str, fields: Mapping[str, Any]) -> None:
        neighbor = fields.get("neighbor")
        with self._lock:
            if name in _OVER:
                self._troubles.pop(neighbor, None)
            elif name in _TROUBLES:
                before, now = self._troubles.get(neighbor), time.monotonic()
                reason = before is not None and now - before[3] < _REASON_S
                if before and reason and _is_reason(*before[:2]) > _is_reason(name, fields):
                    return  # that the connection then ended is no news
                since = before[2] if before is not None and before[0] == name else now
                self._troubles[neighbor] = (name, fields, since, now)


def _is_reason(event: str, fields: Mapping[str, Any]) -> bool:
    """Whether bad news says why two ends do not talk, and not only that they do not."""
    return event in ("refused", "refused-there") and fields.get("reason") in _REASONS


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


def _said(record: logging.LogRecord) -> tuple[str, dict[str, Any]]:
    """What a line says, and what of its fields that leaves out."""
    fields = _fields(record)
    name = plain(record.getMessage())
    text = sentence(name, fields, getattr(record, "names", None))
    left = {"vertex", "more", "within_s"}
    if text is None:
        return name, {k: v for k, v in fields.items() if k not in left}
    left |= fields_of(SENTENCES[name]) | (SAID_BY_WHY if "why" in fields else set())
    return plain(text, 2 * _LIMIT), {k: v for k, v in fields.items() if k not in left}


class Lines(logging.Formatter):
    """Each event as a sentence."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        fields, names = getattr(record, "fields", {}), getattr(record, "names", {})
        text, others = _said(record)
        line = [_stamp(record), f"{record.levelname.lower():7}"]
        if "vertex" in fields:
            vertex = fields["vertex"]
            name = f" ({plain(names[vertex], 40)})" if vertex in names else ""
            line.append(f"vertex {vertex}{name}:")
        line += [text, *(f"{k}={_as_text(v)}" for k, v in others.items())]
        if record.exc_info and record.exc_info[1] is not None:
            error = record.exc_info[1]
            line.append(plain(f"({type(error).__name__}: {error})"))
        if fields.get("more"):
            line.append(f"… {fields['more']:,} more in {in_words(fields['within_s'])}")
        return " ".join(line)


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields, names = _fields(record), getattr(record, "names", {})
        document = {
            "time": _stamp(record),
            "level": record.levelname.lower(),
            "event": plain(record.getMessage()),
            **fields,
        }
        if fields.get("vertex") in names:
            document["name"] = plain(names[fields["vertex"]], 40)
        document["message"] = _said(record)[0]
        if record.exc_info:
            document["exception"] = self.formatException(record.exc_info)
        return json.dumps(document, default=str)


def _stamp(record: logging.LogRecord) -> str:
    moment = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
    return moment.isoformat(timespec="milliseconds")


@dataclass
class _Fold:
    """Lines of one kind since one of them was written.

    seen_at: when the last one came. subject: whom they are about. news: how many more of the
    kind may be written at once, and since when that is known.
    """

    since: float
    window_s: float
    last: logging.LogRecord
    seen_at: float
    subject: str = ""
    more: int = 0
    news: float = _NEWS
    news_at: float = 0.0

    def may_be_news(self, now: float) -> bool:
        """Take one of the lines that may be written at once."""
        self.news = min(_NEWS, self.news + (now - self.news_at) / _NEWS_S)
        self.news_at = now
        if self.news < 1.0:
            return False
        self.news -= 1.0
        return True


class Folding(logging.StreamHandler[TextIO]):
    """Writes the first line of a kind at once, and then how many followed, ever more seldom.

    A kind is an event, with its neighbor and reason, and with what it says apart from numbers.
    The count comes in a line like the last of those that it stands for, with `more` and
    `within_s`: after 10 s, then after twice that, up to a day. What comes again after another
    event of the same neighbor (or of the peer itself) is news: it is written at once, after the
    count of what was before, four times and then once in ten minutes. So is what comes after ten
    minutes of silence. Lines of all kinds together are bounded in bytes, too: what is beyond
    that is counted. Lines of the events in `_EVERY` are always written.

    clock: monotonic time, in seconds.
    """

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(stream)
        self._clock = clock
        self._folds: dict[tuple[str, ...], _Fold] = {}
        self._variants: Counter[tuple[str, ...]] = Counter()  # of a kind, told apart
        self._latest: dict[str, str] = {}  # event by subject: a neighbor, or the peer itself
        self._left, self._left_at = _BURST_BYTES, clock()
        self._next = math.inf  # when the first window ends
        self._changed = threading.Event()
        self._closed = False
        self._thread: threading.Thread | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line, or count it."""
        now = self._clock()
        if now >= self._next:
            self.write_counts(now)
        subject, event = self._about(record)
        is_other = self._latest.get(subject) != event
        self._latest[subject] = event
        if record.name == LOGGER.name and event in _EVERY:
            self._write(self.format(record))
            return
        key = self._key(record)
        fold = self._folds.get(key)
        if fold is None:
            fold = self._folds[key] = _Fold(now, _WINDOW_S, record, now, subject, news_at=now)
            self._variants[key[:-1]] += 1
            is_news = True
        else:
            is_late = now - fold.seen_at >= _QUIET_S
            is_news = is_late or (is_other and fold.may_be_news(now))
            if is_late:
                fold.window_s = _WINDOW_S
        fold.seen_at = now
        if is_news:
            if is_other:
                self._close_counts_of(subject, now)
            if self._afford(line := self.format(record), now):
                fold.since = now
                self._next = min(self._next, now + fold.window_s)
                self._write(line)
                return
        fold.more += 1
        fold.last = record
        self._next = min(self._next, fold.since + fold.window_s)
        if fold.more == 1:
            self._wake()

    def _about(self, record: logging.LogRecord) -> tuple[str, str]:
        """Whom a line is about, and what happened."""
        if record.name != LOGGER.name:
            return record.name, ""
        fields = getattr(record, "fields", {})
        return str(fields.get("neighbor", "")), record.getMessage()

    def _close_counts_of(self, subject: str, now: float) -> None:
        """Something else has happened: what was counted before comes before it in the log."""
        for fold in self._folds.values():
            if fold.subject == subject and fold.more:
                line = self.format(_summed_up(fold, now))
                if not self._afford(line, now):
                    return
                self._write(line)
                fold.since, fold.more = now, 0

    def write_counts(self, now: float, *, all_of_them: bool = False) -> float | None:
        """Write the counts that are due. Returns when the next one is."""
        with self._own_lock():
            for key, fold in list(self._folds.items()):
                if fold.more == 0:
                    if now - fold.seen_at >= _QUIET_S:
                        del self._folds[key]
                        self._variants[key[:-1]] -= 1
                    continue
                if not all_of_them and now < fold.since + fold.window_s:
                    continue
                line = self.format(_summed_up(fold, now))
                if self._afford(line, now) or all_of_them:
                    self._write(line)
                    fold.since, fold.more = now, 0
                    fold.window_s = min(2.0 * fold.window_s, _WINDOW_MAX_S)
                else:
                    fold.window_s += _QUIET_S
            folds = self._folds.values()
            due = min((f.since + f.window_s for f in folds if f.more), default=None)
            quiet = min((f.seen_at + _QUIET_S for f in folds if not f.more), default=math.inf)
            self._next = min(quiet, math.inf if due is None else due)
            return due

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
            said = str(fields.get("why", ""))[:_LIMIT]
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
    record = logging.makeLogRecord({})
    told_at = record.created
    record.__dict__.update(fold.last.__dict__)
    record.created = told_at
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
    handler.setFormatter(_JsonLines() if form == "json" else Lines())
    for logger in (LOGGER, logging.getLogger("flwr"), logging.getLogger("grpc")):
        logger.handlers[:] = [handler]
        logger.setLevel(logging.INFO)
        logger.propagate = False
