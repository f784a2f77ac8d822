"""What a node does when its ClientApp is told to end.

Flower ends a ClientApp at SIGTERM without an answer, and its SuperNode then waits for one for
good. While a message is answered, the signal ends the work instead, and the answer says so.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from logging import WARNING
from types import FrameType
from typing import Any

from flwr.app import Context, Message
from flwr.clientapp.typing import ClientAppCallable
from flwr.common import log

from flower_dhb.errors import RoundError

__all__ = ["Ending"]


class _ToldToEnd(BaseException):
    """Raised in the app's own code, which catches errors perhaps, and not this."""


class Ending:
    """Whether this process has been told to end, and who is to hear of it.

    A second signal is Flower's again, and so is every signal outside of `heeded`.
    """

    def __init__(self) -> None:
        self._told = False
        self._in_app = False
        self._hear: Callable[[], None] | None = None

    @contextmanager
    def heeded(self) -> Iterator[None]:
        """Take the signal while a message is answered; only a process's main thread can."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.getsignal(signal.SIGTERM)

        def handle(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
            signal.signal(signal.SIGTERM, before)
            self._tell()

        signal.signal(signal.SIGTERM, handle)
        try:
            yield
        finally:
            if signal.getsignal(signal.SIGTERM) is handle:
                signal.signal(signal.SIGTERM, before)

    @contextmanager
    def heard_by(self, hear: Callable[[], None]) -> Iterator[None]:
        """Have something called in place of an error in the app; it is not to wait for anything."""
        self._hear = hear
        try:
            if self._told:
                hear()
            yield
        finally:
            self._hear = None

    def ends(self, app: ClientAppCallable) -> ClientAppCallable:
        """The app, whose call ends with a RoundError if the process is told to end."""

        def call(message: Message, context: Context) -> Message:
            try:
                self._in_app = True
                if self._told and self._hear is None:
                    raise _ToldToEnd
                return app(message, context)
            except _ToldToEnd:
                raise RoundError("the ClientApp was told to end (SIGTERM)") from None
            finally:
                self._in_app = False

        return call

    def _tell(self) -> Any:
        self._told = True
        log(WARNING, "this ClientApp is told to end (SIGTERM): it ends its work, and answers")
        if self._hear is not None:
            self._hear()
        elif self._in_app:
            raise _ToldToEnd
