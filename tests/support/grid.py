"""A Flower grid in one process: real ClientApps, real messages, no Ray.

Messages and contexts are copied as Flower's simulation copies them, so an app that
raises leaves its context as it was.
"""

from __future__ import annotations

import ast
import functools
import itertools
import pickle
import threading
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

    Everything that a network does can be done to it, by functions of vertex and message:

    intercept: an exception to answer with instead of running the app, or None. refuse:
    whether the grid does not take the message. hold: how many pulls the message is late;
    `LATE` until `release`. hold_reply: the same for the reply, the app having run. lose:
    whether the reply never arrives, the app having run. duplicate: whether the reply
    arrives twice, and once more with the next pull.

    failing: how often calls of `nodes`, `push` and `pull` fail from now on.
    """

    LATE = 10**9

    def __init__(
        self,
        app: ClientApp | Callable[[int], ClientApp],
        n: int,
        *,
        node_config: Callable[[int], dict[str, object]] | None = None,
        intercept: Callable[[int, Message], Exception | None] | None = None,
        refuse: Callable[[int, Message], bool] | None = None,
        hold: Callable[[int, Message], int] | None = None,
        run_config: dict[str, object] | None = None,
        hold_reply: Callable[[int, Message], int] | None = None,
        lose: Callable[[int, Message], bool] | None = None,
        duplicate: Callable[[int, Message], bool] | None = None,
    ) -> None:
        self.run_id = next(_run_ids)
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, self.run_id, 1
        self.app_of = app if not isinstance(app, ClientApp) else lambda _: app
        self.intercept = intercept or (lambda _vertex, _message: None)
        self.hold = hold or (lambda _vertex, _message: 0)
        self.hold_reply = hold_reply or (lambda _vertex, _message: 0)
        self.refuse = refuse or (lambda _vertex, _message: False)
        self.lose = lose or (lambda _vertex, _message: False)
        self.duplicate = duplicate or (lambda _vertex, _message: False)
        self.failing = {"nodes": 0, "push": 0, "pull": 0}
        self._again: list[Message] = []  # duplicates that come with the next pull
        self.dead: set[int] = set()  # listed by the grid, but nothing answers
        self.contexts: dict[int, Context] = {}
        self.vertex_of: dict[int, int] = {}
        self.messages: list[tuple[int, Message]] = []  # (vertex, as sent)
        self.replies: list[tuple[int, Message]] = []
        self._queue: dict[str, tuple[Message, int]] = {}
        self._run_config = run_config or {}
        self._held: dict[str, tuple[int, Message, int]] = {}  # vertex, reply, pulls
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

    def kill(self, vertex: int) -> int:
        """A node dies, with whatever it was asked; the grid lists it until it is removed."""
        node = self.node_of(vertex)
        self.dead.add(node)
        self.vertex_of[node] = -2  # so that `node_of` finds who comes after it
        return node

    def swap(self, one: int, other: int) -> None:
        """Two nodes exchange their ids, and nothing else."""
        a, b = self.node_of(one), self.node_of(other)
        for table in (self.vertex_of, self.contexts):
            table[a], table[b] = table[b], table[a]  # type: ignore[index]

    def release(self, vertex: int | None = None) -> None:
        """Let what is held go on its way, of one vertex or of all."""
        for i, (message, _) in self._queue.items():
            if vertex in (None, self.vertex_of.get(message.metadata.dst_node_id)):
                self._queue[i] = (message, 0)
        for i, (v, reply, _) in self._held.items():
            if vertex in (None, v):
                self._held[i] = (v, reply, 0)

    @property
    def run(self) -> Run:
        return Run.create_empty(self.run_id)

    def set_run(self, run: Run) -> None: ...

    def create_message(self, *args: object, **kwargs: object) -> Message:
        raise NotImplementedError("deprecated in Flower")

    def get_node_ids(self) -> Iterable[int]:
        self._fail("nodes")
        return list(self.vertex_of)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        self._fail("push")
        ids = []
        for message in messages:
            message.metadata.__dict__["_message_id"] = str(uuid4())
            vertex = self.vertex_of.get(message.metadata.dst_node_id, -1)
            if self.refuse(vertex, message):
                ids.append(None)
                continue
            ids.append(message.metadata.message_id)
            self.messages.append((vertex, message))
            self._queue[message.metadata.message_id] = (message, self.hold(vertex, message))
        return ids  # type: ignore[return-value]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        self._fail("pull")
        replies, again = [], []
        for message_id in list(message_ids):
            if message_id in self._queue:
                self._work(message_id)
            if message_id not in self._held:
                continue
            vertex, reply, pulls = self._held[message_id]
            if pulls > 0:
                self._held[message_id] = (vertex, reply, pulls - 1)
                continue
            del self._held[message_id]
            replies.append(reply)
            self.replies.append((vertex, reply))
            if self.duplicate(vertex, reply):
                again.append(reply)
        replies += self._again
        self._again = again
        return replies + again

    def _work(self, message_id: str) -> None:
        """Run the app of a message that has arrived at its node."""
        message, pulls = self._queue[message_id]
        if message.metadata.dst_node_id in self.dead:
            return
        if pulls > 0:
            self._queue[message_id] = (message, pulls - 1)
            return
        del self._queue[message_id]
        vertex = self.vertex_of.get(message.metadata.dst_node_id, -1)
        reply = self._execute(message)
        if not self.lose(vertex, message):
            self._held[message_id] = (vertex, reply, self.hold_reply(vertex, message))

    def _fail(self, call: str) -> None:
        if self.failing[call] > 0:
            self.failing[call] -= 1
            raise ConnectionError(f"the grid cannot be reached: {call}")

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        return self.pull_messages(self.push_messages(messages))

    def _execute(self, message: Message) -> Message:
        node = message.metadata.dst_node_id
        vertex = self.vertex_of.get(node, -1)
        gone = node not in self.vertex_of
        error = ConnectionError("node is gone") if gone else self.intercept(vertex, message)
        if error is None:
            # As Ray does: what the app gets shares nothing with what was sent.
            context, received = pickle.loads(pickle.dumps((self.contexts[node], message)))  # noqa: S301
            try:
                reply = self.app_of(vertex)(received, context)
            except Exception as raised:  # as Flower's simulation does
                error = raised
            else:
                self.contexts[node] = context
        if error is not None:
            reply = Message(
                Error(code=getattr(error, "code", 0), reason=str(error)), reply_to=message
            )
        reply.metadata.__dict__["_message_id"] = str(uuid4())
        return reply


_parsing = threading.RLock()


def _one_at_a_time(parse: Callable[..., ast.AST]) -> Callable[..., ast.AST]:
    @functools.wraps(parse)
    def locked(*arguments: object, **options: object) -> ast.AST:
        with _parsing:
            return parse(*arguments, **options)

    return parse if hasattr(parse, "__wrapped__") else locked


class TogetherGrid(LocalGrid):
    """Runs the ClientApps of all messages that wait at the same time, as nodes of their own do."""

    def __init__(self, *arguments: object, **options: object) -> None:
        # NumPy reads the header of an array with `ast.literal_eval`. Before Python 3.11.8 and
        # 3.12.2 two threads that parse at once may end with a SystemError; nodes are processes.
        ast.parse = _one_at_a_time(ast.parse)
        super().__init__(*arguments, **options)  # type: ignore[arg-type]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        threads = [
            threading.Thread(target=self._work, args=(message_id,))
            for message_id in list(self._queue)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return super().pull_messages(message_ids)
