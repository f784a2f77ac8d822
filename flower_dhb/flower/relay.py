"""Messages out, replies in: a round's deadline, late replies, and who is still busy.

Flower's own `send_and_receive` polls every three seconds in deployment and forgets the
replies that come after its time-out. Here polling follows the pace of the round, and a
late reply is handed over in a later round.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from flwr.app import Message
from flwr.serverapp import Grid

from flower_dhb.errors import PayloadError, RoundError
from flower_dhb.flower.records import Answer

__all__ = ["Relay", "Sent", "read_answer"]

_POLL_SHARE = 0.05  # of the time waited so far: a round is prolonged by 5% at most
_POLL_MIN_S, _POLL_MAX_S = 0.005, 0.5


@dataclass(frozen=True)
class Sent:
    """A message on its way: to which node, for which vertex, what it asks, in which round."""

    node_id: int
    vertex: int
    ask: str
    round: int


def read_answer(sent: Sent, message: Message) -> Answer:
    """What an agent answers to a message. Raises FlowerDhbError if it is not its answer to it."""
    if message.has_error():
        raise RoundError(f"error: {' '.join(str(message.error.reason).split())[:500]}")
    answer = Answer.from_records(message.content)
    if answer is None:
        raise PayloadError(
            "its node did not answer as an agent; consensus_mod must be the first of "
            "ClientApp(mods=[...])"
        )
    if answer.ask == "vertex" and answer.failure:  # it could not read what it was asked
        raise PayloadError(answer.failure)
    asked = (sent.ask, sent.round, sent.vertex)
    found = (answer.ask, answer.round, answer.vertex)
    if found != asked:
        raise PayloadError(
            "its node did not answer as this agent: it answers '{}' of round {} as vertex {}, "
            "asked was '{}' of round {}, vertex {}".format(*found, *asked)
        )
    most = answer.round - 1 if answer.payload is not None else answer.round
    if answer.state_round > most:
        raise PayloadError(
            f"its node did not answer as this agent: asked about round {answer.round}, its state "
            f"is of round {answer.state_round}, expected {most} at most"
        )
    return answer


class Relay:
    """Sends instructions over a Flower grid and collects what comes back."""

    def __init__(self, grid: Grid) -> None:
        self.grid = grid
        self._addressed: dict[int, Sent] = {}  # by id() of the message, until it is sent
        self._waiting: dict[str, Sent] = {}  # by message id, until it is answered
        self._origins: dict[str, Sent] = {}  # by message id, what was answered last

    @property
    def busy(self) -> set[int]:
        """Vertices whose node has not answered its last message yet."""
        return {sent.vertex for sent in self._waiting.values()}

    def address(self, message: Message, sent: Sent) -> None:
        """Note for whom a message is that will be sent next."""
        self._addressed[id(message)] = sent

    def forget(self, vertex: int) -> None:
        """Wait no longer for a vertex whose node has gone."""
        self._waiting = {i: sent for i, sent in self._waiting.items() if sent.vertex != vertex}

    def origin(self, message: Message) -> Sent | None:
        """What a reply answers. Replies that Flower makes itself do not carry the node's id."""
        return self._origins.get(message.metadata.reply_to_message_id)

    def send(self, messages: Sequence[Message]) -> tuple[list[Sent], list[Sent]]:
        """Push messages. Returns those that Flower did not take, and those now on their way."""
        if not messages:
            return [], []
        sent = [self._addressed.pop(id(message)) for message in messages]
        self._addressed.clear()
        accepted = set(self.grid.push_messages(messages))
        refused, waiting = [], []
        for message, about in zip(messages, sent, strict=True):
            if message.metadata.message_id in accepted:
                self._waiting[message.metadata.message_id] = about
                waiting.append(about)
            else:
                refused.append(about)
        return refused, waiting

    def collect(self, wait_for: set[int], timeout_s: float | None) -> list[Message]:
        """Replies, until every vertex in `wait_for` has answered or the time is up.

        Replies to earlier messages come along. Ordered by vertex.
        """
        begin = time.monotonic()
        replies: list[tuple[Sent, Message]] = []
        self._origins = {}
        while self._waiting:
            for message in self.grid.pull_messages(list(self._waiting)):
                about = self._waiting.pop(message.metadata.reply_to_message_id, None)
                if about is not None:
                    self._origins[message.metadata.reply_to_message_id] = about
                    replies.append((about, message))
            waited = time.monotonic() - begin
            if not (wait_for & self.busy) or (timeout_s is not None and waited >= timeout_s):
                break
            pause = min(max(waited * _POLL_SHARE, _POLL_MIN_S), _POLL_MAX_S)
            time.sleep(pause if timeout_s is None else min(pause, max(timeout_s - waited, 0.0)))
        replies.sort(key=lambda reply: (reply[0].vertex, reply[0].round))
        return [message for _, message in replies]
