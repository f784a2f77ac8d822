"""A ServerApp that a SIGKILL finds in the midst of a call to Flower."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from flwr.app import Message

from support.grid import LocalGrid

__all__ = ["DyingGrid", "Killed"]


class Killed(BaseException):
    """What a SIGKILL is to the code that it hits: nothing after it is done."""


class DyingGrid(LocalGrid):
    """A grid whose ServerApp dies at its n-th call.

    At an odd call it dies before the messages leave, at an even one when the agents have done
    what they were asked, and before it hears of it. In between, nothing else happens.
    """

    def __init__(self, *arguments: Any, dies_at: int | None = None, **named: Any) -> None:
        self.calls, self._dies_at = 0, dies_at
        super().__init__(*arguments, **named)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        messages = list(messages)
        return self._perhaps_the_last(lambda: super(DyingGrid, self).push_messages(messages))

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        ids = list(message_ids)
        return self._perhaps_the_last(lambda: super(DyingGrid, self).pull_messages(ids))

    def _perhaps_the_last(self, call: Callable[[], Any]) -> Any:
        self.calls += 1
        odd = self.calls % 2 == 1
        answer = None if odd and self.calls == self._dies_at else call()
        if self.calls == self._dies_at:
            raise Killed
        return answer
