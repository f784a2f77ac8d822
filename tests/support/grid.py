"""A Flower grid in one process: real ClientApps, real messages, no Ray.

Messages and contexts are copied as Flower's simulation copies them, so an app that
raises leaves its context as it was.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterable
from uuid import uuid4

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

_run_ids = itertools.count(77)


class LocalGrid(Grid):
    """Runs each message's ClientApp when its reply is asked for.

    hold: given a message, says how many pulls its reply is late. intercept: given a
    message, returns an exception to answer with instead of running the app, or None.
    """

    def __init__(
        self,
        app: ClientApp | Callable[[int], ClientApp],
        n: int,
        *,
        node_config: Callable[[int], dict[str, object]] | None = None,
        intercept: Callable[[int, Message], Exception | None] | None = None,
        hold: Callable[[int, Message], int] | None = None,
        run_config: dict[str, object] | None = None,
    ) -> None:
        self.run_id = next(_run_ids)
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, self.run_id, 1
        self.app_of = app if not isinstance(app, ClientApp) else lambda _: app
        self.intercept = intercept or (lambda _vertex, _message: None)
        self.hold = hold or (lambda _vertex, _message: 0)
        self.contexts: dict[int, Context] = {}
        self.vertex_of: dict[int, int] = {}
        self.messages: list[tuple[int, Message]] = []  # (vertex, as sent)
        self.replies: list[tuple[int, Message]] = []
        self._queue: dict[str, tuple[Message, int]] = {}
        self._run_config = run_config or {}
        self._config = node_config or (lambda i: {"partition-id": i, "num-partitions": n})
        for i in range(n):
            self.add_node(i, node_id=1000 + 7 * ((i * 5 + 3) % n) if n % 5 else 1000 + i)

    def add_node(self, vertex: int, node_id: int) -> None:
        self.vertex_of[node_id] = vertex
        self.contexts[node_id] = Context(
            self.run_id,
            node_id,
            self._config(vertex),
            RecordDict(),
            dict(self._run_config),  # type: ignore[arg-type]
        )

    def remove_node(self, node_id: int) -> None:
        del self.vertex_of[node_id], self.contexts[node_id]

    def node_of(self, vertex: int) -> int:
        return next(node for node, v in self.vertex_of.items() if v == vertex)

    def lose_state(self, vertex: int) -> None:
        self.contexts[self.node_of(vertex)].state = RecordDict()

    @property
    def run(self) -> Run:
        return Run.create_empty(self.run_id)

    def set_run(self, run: Run) -> None: ...

    def create_message(self, *args: object, **kwargs: object) -> Message:
        raise NotImplementedError("deprecated in Flower")

    def get_node_ids(self) -> Iterable[int]:
        return list(self.vertex_of)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        ids = []
        for message in messages:
            message.metadata.__dict__["_message_id"] = str(uuid4())
            ids.append(message.metadata.message_id)
            vertex = self.vertex_of.get(message.metadata.dst_node_id, -1)
            self.messages.append((vertex, message))
            self._queue[message.metadata.message_id] = (message, self.hold(vertex, message))
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        replies = []
        for message_id in list(message_ids):
            message, pulls = self._queue[message_id]
            if pulls > 0:
                self._queue[message_id] = (message, pulls - 1)
                continue
            del self._queue[message_id]
            replies.append(self._execute(message))
        return replies

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        return self.pull_messages(self.push_messages(messages))

    def _execute(self, message: Message) -> Message:
        node = message.metadata.dst_node_id
        vertex = self.vertex_of.get(node, -1)
        error = ConnectionError("node is gone") if vertex < 0 else self.intercept(vertex, message)
        if error is None:
            context = copy.deepcopy(self.contexts[node])
            received = copy.deepcopy(message)
            try:
                reply = self.app_of(vertex)(received, context)
            except Exception as raised:  # as Flower's simulation does
                error = raised
            else:
                self.contexts[node] = context
        if error is not None:
            reply = Message(Error(code=0, reason=str(error)), reply_to=message)
        reply.metadata.__dict__["_message_id"] = str(uuid4())
        self.replies.append((vertex, reply))
        return reply
