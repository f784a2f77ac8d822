"""Messages out, replies in: a round's deadline, late replies, and who is still busy.

Flower's own `send_and_receive` polls every three seconds in deployment and forgets the
replies that come after its time-out. Here polling follows the pace of the round, and a
late reply is handed over in a later round.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from logging import WARNING

from flwr.app import Array, ArrayRecord, Message
from flwr.common import log
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid

from flower_dhb.errors import ConfigError, PayloadError, RoundError
from flower_dhb.flower.profile import Profile
from flower_dhb.flower.records import Answer, records_of

__all__ = ["NOBODY", "Relay", "Sent", "is_deployed", "is_unavailable", "read_answer"]

NOBODY = -1  # the vertex of a message that belongs to none

# A message counts as lost after so many rounds, and so many times as long as a round may take
# or a minute, whichever is less: rounds without the slow one may pass in milliseconds.
_PATIENCE_ROUNDS, _PATIENCE_LIMITS, _PATIENCE_MOST_S = 3, 3.0, 60.0
_ENDURED_S = 60.0  # how long a grid may fail
_RETRY_MIN_S, _RETRY_MAX_S = 0.1, 5.0
_UNAVAILABLE = (
    ErrorCode.MESSAGE_UNAVAILABLE,
    ErrorCode.REPLY_MESSAGE_UNAVAILABLE,
    ErrorCode.NODE_UNAVAILABLE,
)
# Flower copies all that is pushed at once before it sends the first byte of it.
_PUSH_BYTES = 2**24
_POLL_SHARE = 0.05  # of the time waited so far: a round is prolonged by 5% at most
_POLL_MIN_S, _POLL_MAX_S = 0.005, 0.25


@dataclass(frozen=True)
class Sent:
    """A message on its way: to which node, for which vertex, what it asks, in which round.

    turn: the same without the rounds for which there was no message of their own.
    """

    node_id: int
    vertex: int
    ask: str
    round: int
    turn: int = 0


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


def is_unavailable(message: Message) -> bool:
    """Whether Flower itself replies that a node, a message or its reply is not there."""
    return message.has_error() and message.error.code in _UNAVAILABLE


def is_deployed(grid: Grid) -> bool:
    """Whether a grid is that of Flower's deployment, in which each message starts a process."""
    kind = type(grid)
    return kind.__module__.startswith("flwr.") and kind.__name__ != "InMemoryGrid"


def _grouped(messages: Sequence[Message]) -> Iterator[list[Message]]:
    """Messages to be pushed together: as few groups as hold `_PUSH_BYTES` each at most.

    An array that several messages of a group share counts once, as Flower copies it once.
    """
    group: list[Message] = []
    sizes: dict[int, int] = {}
    for message in messages:
        own = {id(array): len(array.data) for array in _arrays_in(message)}
        if group and sum((sizes | own).values()) > _PUSH_BYTES:
            yield group
            group, sizes = [], {}
        group.append(message)
        sizes |= own
    if group:
        yield group


def _arrays_in(message: Message) -> Iterator[Array]:
    for record in records_of(message.content, ArrayRecord).values():
        yield from record.values()


def _nodes_of(grid: Grid) -> dict[int, bytes]:
    """The public keys of the nodes that are connected; empty where the grid does not tell them."""
    if not hasattr(grid, "get_nodes"):  # before Flower 1.42
        return dict.fromkeys(grid.get_node_ids(), b"")
    return {node.node_id: bytes(node.public_key) for node in grid.get_nodes()}


class Relay:
    """Sends instructions over a Flower grid and collects what comes back.

    A grid that fails for a moment ends no run: it is tried again, for a minute at most.
    """

    def __init__(self, grid: Grid) -> None:
        self.grid = grid
        # By id() of the message, until it is sent, or answered if somebody else sends it.
        self._addressed: dict[int, tuple[Message, Sent]] = {}
        self._waiting: dict[str, Sent] = {}  # by message id, until answered, in order of sending
        self._origins: dict[str, Sent] = {}  # by message id, what was answered last
        self._patience: dict[int, int] = {}  # by vertex, in rounds
        self._sent_at: dict[int, float] = {}  # by vertex, of its newest message
        self._limit_s = math.inf  # of the round that was collected last
        self._nodes: set[int] = set()
        self._keys: dict[int, bytes] = {}  # by node
        self._failing_since: float | None = None
        self.profile = Profile()  # of the current round

    @property
    def busy(self) -> set[int]:
        """Vertices whose node has not answered its last message yet."""
        return {sent.vertex for sent in self._waiting.values()}

    def nodes(self) -> set[int]:
        """Ids of the nodes that are connected; those known last while the grid fails."""
        try:
            found = _nodes_of(self.grid)
            self._nodes = set(found)
            self._keys.update(found)
        except Exception as error:  # which errors a grid raises is its own affair
            self._endure("list its nodes", error)
        else:
            self._failing_since = None
        return set(self._nodes)

    def key_of(self, node_id: int) -> bytes:
        """The public key with which a node has logged in to Flower; empty if it has none."""
        return self._keys.get(node_id, b"")

    def address(self, message: Message, sent: Sent) -> None:
        """Note for whom a message is that will be sent next."""
        self._addressed[id(message)] = (message, sent)

    def forget(self, node_id: int) -> None:
        """Wait no longer for a node; what it answers later is not heard."""
        self._waiting = {i: sent for i, sent in self._waiting.items() if sent.node_id != node_id}

    def forget_others(self, node_ids: set[int]) -> None:
        """Wait no longer for nodes that are not among these."""
        self._waiting = {i: sent for i, sent in self._waiting.items() if sent.node_id in node_ids}

    def give_up(self, vertex: int, turn: int) -> bool:
        """Whether the open message of a vertex is old enough to be taken for lost.

        If so, it is not waited for any more. A message is lost when a node restarts under
        the same id, or a reply does not reach the relay. A slow agent's is not, so each
        time the agent is given twice as many rounds, until it answers.
        """
        sent_in = [sent.turn for sent in self._waiting.values() if sent.vertex == vertex]
        patience = self._patience.get(vertex, _PATIENCE_ROUNDS)
        if not sent_in or turn - max(sent_in) < patience:
            return False
        least_s = min(_PATIENCE_LIMITS * self._limit_s, _PATIENCE_MOST_S)
        if time.monotonic() - self._sent_at[vertex] < least_s:
            return False
        self._patience[vertex] = 2 * patience
        self._waiting = {i: sent for i, sent in self._waiting.items() if sent.vertex != vertex}
        return True

    def origin(self, message: Message) -> Sent | None:
        """What a reply answers. Replies that Flower makes itself do not carry the node's id.

        Messages that somebody's own loop has sent are known by the id that they got there.
        """
        answered = message.metadata.reply_to_message_id
        if answered not in self._origins:
            for key, (sent_elsewhere, about) in self._addressed.items():
                if sent_elsewhere.metadata.message_id == answered:
                    del self._addressed[key]
                    return about
        return self._origins.get(answered)

    def unanswered(self) -> list[Sent]:
        """What somebody's own loop was to send and brought no reply to; told once."""
        silent = [about for _, about in self._addressed.values()]
        self._addressed = {}
        return silent

    def send(self, messages: Sequence[Message]) -> tuple[list[Sent], list[Sent]]:
        """Push messages. Returns those that Flower did not take, and those now on their way."""
        if not messages:
            return [], []
        if any(id(message) not in self._addressed for message in messages):
            raise ConfigError(
                "configure_train or configure_evaluate returned a message that this strategy did "
                "not make; return messages of super().configure_train(...), whose content may be "
                "changed"
            )
        sent = [self._addressed.pop(id(message))[1] for message in messages]
        self._addressed.clear()
        begin = time.time()
        accepted = self._push(messages)
        self.profile.pushed(begin, time.time())
        refused, waiting = [], []
        for message, about in zip(messages, sent, strict=True):
            if message.metadata.message_id in accepted:
                self._waiting[message.metadata.message_id] = about
                self._sent_at[about.vertex] = time.monotonic()
                waiting.append(about)
            else:
                refused.append(about)
        return refused, waiting

    def collect(
        self, wait_for: set[int], timeout_s: float | None, behind_s: float = math.inf
    ) -> list[Message]:
        """Replies, until every vertex in `wait_for` has answered or the time is up.

        behind_s: the time is also up so long after the first of them has answered.
        Replies to earlier messages come along. Ordered by vertex, and by when they were asked.
        """
        begin = time.monotonic()
        if timeout_s is not None:
            self._limit_s = timeout_s
        replies: list[tuple[int, int, Message]] = []
        self._origins = {}
        while self._waiting:
            order = {i: at for at, i in enumerate(self._waiting)}
            pulling, known = time.time(), len(replies)
            for message in self._pull():
                about = self._waiting.pop(message.metadata.reply_to_message_id, None)
                if about is not None:
                    self._patience.pop(about.vertex, None)
                    self._origins[message.metadata.reply_to_message_id] = about
                    at = order[message.metadata.reply_to_message_id]
                    replies.append((about.vertex, at, message))
            self.profile.pulled((v for v, *_ in replies[known:]), pulling, time.time())
            waited = time.monotonic() - begin
            if timeout_s is not None and any(vertex in wait_for for vertex, *_ in replies):
                timeout_s, behind_s = min(timeout_s, waited + behind_s), math.inf
            if not (wait_for & self.busy) or (timeout_s is not None and waited >= timeout_s):
                break
            pause = min(max(waited * _POLL_SHARE, _POLL_MIN_S), _POLL_MAX_S)
            time.sleep(pause if timeout_s is None else min(pause, max(timeout_s - waited, 0.0)))
        self.profile.collected(time.time())
        replies.sort(key=lambda reply: reply[:2])
        return [message for *_, message in replies]

    # --- a grid that fails for a moment ---------------------------------------------

    def _push(self, messages: Sequence[Message]) -> set[str]:
        return {i for group in _grouped(messages) for i in self._push_group(group)}

    def _push_group(self, messages: Sequence[Message]) -> set[str]:
        pause = _RETRY_MIN_S
        while True:
            try:
                accepted = set(self.grid.push_messages(messages))
            except Exception as error:  # as above
                self._endure("take messages", error)
            else:
                self._failing_since = None
                return accepted
            time.sleep(pause)
            pause = min(2 * pause, _RETRY_MAX_S)

    def _pull(self) -> list[Message]:
        try:
            replies = list(self.grid.pull_messages(list(self._waiting)))
        except Exception as error:  # as above; one agent's reply may be the cause
            self._endure("hand over replies", error)
            return []
        self._failing_since = None
        return replies

    def _endure(self, what: str, error: Exception) -> None:
        """Note that the grid failed. Raises RoundError if it has done nothing else for long."""
        now = time.monotonic()
        if self._failing_since is None:
            self._failing_since = now
            log(WARNING, "Flower could not %s, trying again: %s", what, error)
        if now - self._failing_since >= _ENDURED_S:
            raise RoundError(
                f"Flower could not {what} for {now - self._failing_since:.0f} s: {error}"
            ) from error
