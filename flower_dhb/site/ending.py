"""What a node does when its ClientApp is told to end.

Flower ends a ClientApp at SIGTERM without an answer, and its SuperNode then waits for one for
good. While a message is answered, the signal ends the work instead, and the answer says so. Where
somebody is to hear of it who ends the work in order, a call of the app that takes longer is ended
after all.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from logging import WARNING
from types import FrameType

from flwr.app import Context, Message
from flwr.clientapp.typing import ClientAppCallable
from flwr.common import log

from flower_dhb.errors import RoundError

__all__ = ["Ending"]

_PATIENCE_S = 20.0  # for the app to come to the end of a call, where the work ends in order


class _ToldToEnd(BaseException):
    """Raised in the app's own code, which catches errors perhaps, and not this."""


class Ending:
    """Whether this process has been told to end, and who is to hear of it.

    Where nobody hears of it, a second signal is Flower's again; where somebody does, the second one
    ends the app's call, and the third is Flower's. So is every signal outside of `heeded`.
    """

    def __init__(self) -> None:
        self._told = False
        self._in_app = False
        self._hear: Callable[[], None] | None = None
        self._timer: threading.Timer | None = None
        self._handle: Callable[[int, FrameType | None], None] | None = None

    @contextmanager
    def heeded(self) -> Iterator[None]:
        """Take the signal while a message is answered; only a process's main thread can."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.getsignal(signal.SIGTERM)

        def handle(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
            if self._told or self._hear is None:
                signal.signal(signal.SIGTERM, before)
            self._tell()

        self._handle = handle
        signal.signal(signal.SIGTERM, handle)
        try:
            yield
        finally:
            self._handle = None
            if signal.getsignal(signal.SIGTERM) is handle:
                signal.signal(signal.SIGTERM, before)

    @contextmanager
    def heard_by(self, hear: Callable[[], None]) -> Iterator[None]:
        """Have something called in place of an error in the app; it is not to wait for anything.

        If the app's call then takes much longer, it ends with that error after all.
        """
        self._hear = hear
        try:
            if self._told:
                if self._handle is not None:  # whose word was the last one until now
                    signal.signal(signal.SIGTERM, self._handle)
                self._pass_on(hear)
            yield
        finally:
            self._hear = None
            if self._timer is not None:
                self._timer.cancel()

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

    def _tell(self) -> None:
        again, self._told = self._told, True
        if not again:
            log(WARNING, "this ClientApp is told to end (SIGTERM): it ends its work, and answers")
        if self._hear is not None and not again:
            self._pass_on(self._hear)
        elif self._in_app:
            raise _ToldToEnd

    def _pass_on(self, hear: Callable[[], None]) -> None:
        hear()
        self._timer = threading.Timer(_PATIENCE_S, self._press)
        self._timer.daemon = True
        self._timer.start()

    def _press(self) -> None:
        """Send the signal once more: only that reaches a call that waits for something."""
        main = threading.main_thread().ident
        if self._in_app and self._hear is not None and main is not None:
            signal.pthread_kill(main, signal.SIGTERM)
