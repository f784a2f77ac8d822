"""The thread that writes: in order, together where it can, and again when the disk is full."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from flower_dhb.files import with_remedy, write_durably
from flower_dhb.peer.device.journal import Contents, Journal
from flower_dhb.peer.monitor import Monitor

__all__ = ["Disk", "Free", "Memory", "Model", "Payload", "State", "Writer"]

_PAUSE_S, _PAUSE_MAX_S = 0.1, 5.0  # between two attempts


@dataclass(frozen=True)
class State:
    """The state after a round. due: it is to be written itself.

    What is not due is part of the next `Payload`, or of the next state that is due. tell: what
    is written about the round, each once, before the state is.
    """

    round: int
    contents: Contents
    record: Mapping[str, Any]
    tell: list[Callable[[], None]]
    due: bool
    done: Callable[[], None]


@dataclass(frozen=True)
class Payload:
    """An own payload, and the state that it grew from."""

    round: int
    frame: bytes
    contents: Contents
    record: Mapping[str, Any]
    done: Callable[[], None]


@dataclass(frozen=True)
class Model:
    """A file that replaces another one."""

    path: Path
    data: bytes
    done: Callable[[], None]


@dataclass(frozen=True)
class Free:
    """An own payload that is not needed any more."""

    round: int


_Item = State | Payload | Model | Free


class Writer(Protocol):
    """Takes what must be kept before anybody hears of it."""

    @property
    def trouble(self) -> str:
        """Why nothing is written at the moment, and what to do; empty if all is well."""

    def start(self) -> None:
        """Begin to write."""

    def put(self, item: _Item) -> None:
        """Put something in line."""

    def close(self) -> None:
        """Write what is in line, as far as that is possible, and end."""


class Memory:
    """Has everything done at once: for a life that none follows in the same rounds.

    A process that takes part in a segment of rounds does not come back to it, and the app's own
    store keeps its state.
    """

    trouble = ""

    def start(self) -> None:
        """There is nothing to start."""

    def put(self, item: _Item) -> None:
        """Take something as written. Raises OSError for a file that cannot be."""
        match item:
            case State():
                for tell in item.tell:
                    tell()
            case Model():
                write_durably(item.path, item.data, make_folder=False)
        if not isinstance(item, Free):
            item.done()

    def close(self) -> None:
        """There is nothing in line."""


class Disk:
    """Writes what is put in line, one after the other, in a thread of its own.

    `done` of an item is called when it is on the disk. A state that has not been begun when a
    payload is in line behind it is not written by itself: the payload's file holds all of it.
    Where the app is faster than the disk, a state waits a little for that payload: one write for
    both is sooner done than two. What cannot be written is written again after a pause that
    grows; nothing that comes after it overtakes it. failed: called with an exception that no
    other attempt can mend. check: called before each attempt; it says whether the directory is
    another one than before, and raises OSError where nothing may be written.
    """

    def __init__(
        self,
        journal: Journal,
        monitor: Monitor,
        failed: Callable[[BaseException], None],
        check: Callable[[], bool] = lambda: False,
    ) -> None:
        self._journal, self._monitor = journal, monitor
        self._failed, self._check = failed, check
        self._changed = threading.Condition()
        self._line: deque[_Item] = deque()
        self._closing = False
        self._trouble: str | None = None  # why nothing is written at the moment
        self._remedy = ""
        self._trouble_since = 0.0
        self._state_at: float | None = None  # when the newest state was put in line
        self._gap_s = math.inf  # from a state to the payload that follows it
        self._state_s = 0.0  # what a state takes, from its turn until it is written
        self._thread = threading.Thread(target=self._run, name="disk", daemon=True)

    def start(self) -> None:
        """Begin to write."""
        self._thread.start()

    @property
    def trouble(self) -> str:
        """Why nothing is written at the moment, and what to do; empty if all is well."""
        return self._remedy if self._trouble is not None else ""

    def put(self, item: _Item) -> None:
        """Put something in line."""
        now = time.monotonic()
        with self._changed:
            if isinstance(item, State):
                self._state_at = now
            elif isinstance(item, Payload) and self._state_at is not None:
                self._gap_s, self._state_at = now - self._state_at, None
            self._line.append(item)
            self._changed.notify()

    def close(self) -> None:
        """Write what is in line, as far as the disk takes it, and end."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join()

    # --- the thread -----------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while (item := self._next()) is not None:
                if not self._keep_trying(item):
                    return  # what comes after it must not be there without it
        except BaseException as error:
            self._failed(error)

    def _next(self) -> _Item | None:
        with self._changed:
            while not self._line and not self._closing:
                self._changed.wait()
            return self._line.popleft() if self._line else None

    def _keep_trying(self, item: _Item) -> bool:
        """Write an item. Returns whether it was, which it is unless the end comes before."""
        pause_s, last = _PAUSE_S, False
        while True:
            try:
                if self._check():
                    self._monitor.warning("state-directory-made-anew")
                done = self._write(item)
            except OSError as error:
                self._complain(error)
                if last:
                    return False
                with self._changed:
                    last = self._changed.wait_for(lambda: self._closing, pause_s)
                pause_s = min(2.0 * pause_s, _PAUSE_MAX_S)
            else:
                break
        if self._trouble is not None:
            self._trouble = None
            self._monitor.count("disk-writes-again")
            since_s = round(time.monotonic() - self._trouble_since)
            self._monitor.event("disk-writes-again", after_s=since_s)
        if done is not None:
            done()
        return True

    def _write(self, item: _Item) -> Callable[[], None] | None:
        """Write an item. Returns whom to tell."""
        match item:
            case State():
                begin = time.monotonic()
                while item.tell:
                    item.tell[0]()
                    del item.tell[0]
                told_s = time.monotonic() - begin
                if not item.due or self._is_overtaken():
                    return None
                begin = time.monotonic()
                self._journal.save(item.round, item.contents, item.record)
                self._state_s = told_s + time.monotonic() - begin
            case Payload():
                self._journal.share(item.round, item.frame, item.contents, item.record)
            case Model():
                write_durably(item.path, item.data, make_folder=False)
            case Free():
                self._journal.free(item.round)
                return None
        return item.done

    def _is_overtaken(self) -> bool:
        """Whether a payload is in line, or comes sooner than a state would be written."""

        def overtaken() -> bool:
            return any(isinstance(item, Payload) for item in self._line)

        with self._changed:
            if self._gap_s < self._state_s:
                self._changed.wait_for(lambda: self._closing or overtaken(), 2.0 * self._gap_s)
            return overtaken()

    def _complain(self, error: OSError) -> None:
        """Say once for each reason that the disk takes nothing: until then nothing leaves."""
        self._monitor.count("disk-failed")
        why = error.strerror or str(error)
        if self._trouble is None:
            self._trouble_since = time.monotonic()
            self._monitor.count("disk-trouble")
        if self._trouble != why:
            self._trouble, self._remedy = why, with_remedy(why, error)
            self._monitor.warning(
                "disk-failed",
                why=why,
                file=str(error.filename or ""),
                what_now=with_remedy(
                    "nothing is sent until it is written; it is tried again and again", error
                ),
            )
