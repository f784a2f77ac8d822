"""One turn of an agent in the relay: consensus and momentum around an app's own train.

The app inside sees what it would see under FedAvg: one ArrayRecord to train from and
one ConfigRecord. It knows neither the graph nor the rule.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from functools import cache, partial
from logging import ERROR, WARNING
from typing import Protocol

from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Context,
    Message,
    MetricRecord,
    RecordDict,
)
from flwr.clientapp.typing import ClientAppCallable
from flwr.common import log

from flower_dhb.agent import codec
from flower_dhb.agent.codec import Header, VectorSpec
from flower_dhb.agent.compression import frame as compressed
from flower_dhb.agent.node import (
    STATISTICS_VECTOR,
    Node,
    Snapshot,
    compressor_of,
    parameter_vectors,
)
from flower_dhb.agent.policy import Policy
from flower_dhb.errors import (
    ConfigError,
    EstimateError,
    FlowerDhbError,
    PayloadError,
    RoundError,
    StateError,
)
from flower_dhb.flower.arrays import START_VERTEX, array_record, frame_array, frame_of, named_arrays
from flower_dhb.flower.calls import evaluate_with
from flower_dhb.flower.legacy import remedy
from flower_dhb.flower.local_rounds import LocalLine
from flower_dhb.flower.noise import gaussian
from flower_dhb.flower.profile import Spent, started_at
from flower_dhb.flower.records import (
    PROTOCOL,
    Answer,
    Farewell,
    Instruction,
    digest_of,
    failure_text,
    records_of,
)
from flower_dhb.flower.store import STATE_DIR, Store, keep_model, open_store
from flower_dhb.metrics import sketch
from flower_dhb.types import NDArrays, Payload

__all__ = ["Protect", "Sealing", "pass_on", "take_turn", "unprotected", "vertex_of", "who"]

_PASSED = f"{PROTOCOL}.passed"
_PARTITION = ("partition-id", "num-partitions")  # by which apps find their part of the data


class Sealing(Protocol):
    """Seals an agent's payloads for its neighbors, and opens theirs."""

    def announcement(self) -> str:
        """What the neighbors need for it."""

    def seal(self, frame: bytes, round: int, refuse: Callable[[str], None]) -> bytes:
        """A frame for all neighbors that are believed; `refuse` is told of the others."""

    def open(self, data: bytes, sender: int, round: int) -> bytearray:
        """A neighbor's frame. Raises PayloadError if it is not exactly that."""


# What an instruction and the node's own config make of payloads; None where they stay as they are.
# Raises ConfigError where the two do not go together.
Protect = Callable[[Instruction, Store], Sealing | None]


def unprotected(instruction: Instruction, store: Store) -> None:  # noqa: ARG001
    """Payloads as they are. Raises ConfigError if they were to be sealed."""
    if instruction.encryption != "none":
        raise ConfigError(
            "this run's payloads are sealed for the neighbors, and this agent has no keys"
        )


def take_turn(
    request: Farewell | Instruction,
    message: Message,
    context: Context,
    call_next: ClientAppCallable,
    policy: Policy,
    protect: Protect = unprotected,
) -> Answer:
    """Do what the relay asks of an agent, with the app's own train or evaluate.

    message: what the request came in; the user's config lies beside it. policy: of whoever runs
    the node. protect: says whether and how payloads are sealed. Whatever goes wrong ends up in the
    answer.
    """
    if isinstance(request, Farewell):
        return _let_go(request, context)
    started, began = _start_of_process(), time.time()
    turn = _Turn(request, context, policy, protect)
    answer = turn.take(message, call_next)
    return replace(answer, spent=Spent(started, began, time.time(), turn.app_s))


@cache
def _process() -> list[float]:
    """When the process began, until the first message is answered."""
    return [started_at()]


def _start_of_process() -> float:
    """When it began, 0 if it has answered before: simulated nodes share processes."""
    return _process().pop() if _process() else 0.0


def pass_on(
    message: Message, context: Context, call_next: ClientAppCallable, policy: Policy
) -> Message:
    """Let the app answer a message that is none of ours, and say once that it was.

    Raises ConfigError if the node has a policy, which nothing would hold the app to.
    """
    if policy.on and not _inside.get():
        raise ConfigError(
            f"this node's policy ({policy}) holds for messages of a ServerlessStrategy, and this "
            "one is of another strategy: the app is not called. Use ServerlessStrategy in the "
            "ServerApp"
        )
    with _hidden(context):
        reply = call_next(message, context)
    _say_that_it_passed(context)
    return reply


def who(context: Context, policy: Policy) -> Answer:
    """Answer the question which vertex this node is, and what its policy is."""
    try:
        return Answer(
            ask="vertex",
            vertex=vertex_of(context),
            keeps_file=STATE_DIR in context.node_config,
            policy=str(policy),
        )
    except FlowerDhbError as error:
        return Answer(ask="vertex", vertex=-1, failure=str(error))


def _let_go(farewell: Farewell, context: Context) -> Answer:
    """Remove the state of a run that is over: nothing can go on from it any more."""
    failure = ""
    try:
        open_store(context, farewell.run, vertex_of(context)).discard()
    except (FlowerDhbError, OSError) as error:
        failure = f"the state of a finished run is left behind: {error}"
        log(WARNING, "agent %s: %s", farewell.vertex, failure)
    return Answer(ask="finish", vertex=farewell.vertex, failure=failure)


def vertex_of(context: Context) -> int:
    """The vertex that the node config names. Raises ConfigError if it names none."""
    value = context.node_config.get("vertex", context.node_config.get("partition-id"))
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ConfigError(
            f"node {context.node_id}: node config must name its vertex as an integer >= 0, "
            f"'vertex' or 'partition-id'; got {value!r}. For a SuperNode: --node-config vertex=3"
        )
    return value


@dataclass
class _Turn:
    """One message's work: restore, combine, call the app, answer."""

    instruction: Instruction
    context: Context
    policy: Policy
    protect: Protect
    sealing: Sealing | None = None
    remarks: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    rejoined: bool = False
    app_s: float = 0.0
    keeps_before: bool = False  # the state that was found is to be kept beside its successor

    def take(self, message: Message, call_next: ClientAppCallable) -> Answer:
        """Do what the instruction asks; whatever goes wrong ends up in the answer."""
        ask = self.instruction
        try:
            vertex = vertex_of(self.context)
            if vertex != ask.vertex:
                told = f"message is for vertex {ask.vertex}, this node is {vertex}"
                return Answer(ask="vertex", vertex=vertex, failure=told)
            self.store = open_store(self.context, ask.run, vertex, ask.attempt)
            self.sealing = self.protect(ask, self.store)
            if self.sealing is not None and (ask.report or ask.measure):
                raise ConfigError("parameters are asked for, and they leave this node only sealed")
            node = self._restore()
            size = sum(vector.n_bytes for vector in node.vectors)
            self.policy.check_payload(size, f"round {ask.round}: a payload of this model and rule")
            if node.pending_round is not None:
                self._combine(node)
            if ask.ask == "train":
                node.join_epoch(ask.epoch)
        except FlowerDhbError as error:
            log(ERROR, "agent %s, round %s: %s", ask.vertex, ask.round, error)
            return Answer(
                ask=ask.ask,
                vertex=ask.vertex,
                round=ask.round,
                state_round=-1,
                failure=str(error),
                refused=tuple(self.refused),
                policy=str(self.policy),
                announcement=self._announcement(),
            )
        return self._act(node, message, call_next)

    # --- state ----------------------------------------------------------------------

    def _restore(self) -> Node:
        """The agent as it was, at its start, or begun again from its neighbors."""
        snapshot = self._load()
        if snapshot is not None:
            return self._node(snapshot)
        ask = self.instruction
        if ask.start is None:
            return self._rejoin()
        node = self._start(ask.start)
        if ask.state_round > 0:  # no neighbor has sent anything by now
            node.open_epoch(ask.epoch)
            self.rejoined = True
        return node

    def _load(self) -> Snapshot | None:
        """The stored state, None if it is lost or older than what the relay knows of."""
        ask = self.instruction
        try:
            attempt = self.store.attempt()
            snapshot = self.store.load(ask.algorithm, ask.layout, ask.compression)
        except StateError as error:
            if ask.start is None:
                self._note(f"state is lost: {error}")
            return None
        if snapshot is None:
            if ask.state_round > 0 and not ask.rejoin:  # else whoever asks knows so
                self._note(
                    f"has no state of round {ask.state_round}: this node is new or has lost it, so "
                    "the agent begins again from its neighbors"
                )
            return None
        if attempt > ask.attempt:
            raise RoundError(
                f"a message of attempt {ask.attempt} at the run came when attempt {attempt} was "
                "under way; ignored"
            )
        self.keeps_before = ask.locally is not None
        if attempt < ask.attempt:
            before = self.store.load_before(ask.algorithm, ask.layout, ask.compression)
            snapshot = self._taken_up_again(snapshot, before)
            if snapshot is None:
                return None
        newest = snapshot.pending.round if snapshot.pending else snapshot.round
        if ask.locally is not None and newest >= ask.locally.first:
            self.keeps_before = False  # another process of this agent has come so far, and kept it
        trained = ask.ask == "train" and snapshot.pending is not None
        if ask.round < newest or (trained and ask.round == newest):
            # Held up on its way, or delivered twice. To combine for it would spoil the round
            # that the agent is in.
            raise RoundError(
                f"a message of round {ask.round} came when the agent was in round {newest} "
                "already; ignored"
            )
        if newest < ask.state_round:
            self._note(f"state is of round {newest}, expected {ask.state_round}")
            return None
        return snapshot

    def _taken_up_again(self, snapshot: Snapshot, before: Snapshot | None) -> Snapshot | None:
        """The state from which the agent goes on with a run whose ServerApp has died.

        Rounds that it trained, and of which nobody has got anything, are trained again, so the run
        is what it would have been. An agent that is further than that cannot go back, but to a
        state that it has kept. before: that one.
        """
        ask = self.instruction
        first = ask.round if ask.locally is None else ask.locally.first
        last = ask.round if ask.ask == "evaluate" else max(first - 1, ask.state_round)
        for found in (snapshot, before):
            if found is None or found.round > last:
                continue
            if found is before:
                self.keeps_before = False
            if found.pending is not None and found.pending.round > last:
                self._note(f"trains round {found.pending.round} again, since the run goes on there")
                return replace(found, pending=None)
            return found
        self._note(f"state is of round {snapshot.round}, but the run goes on from {last}")
        return None

    def _node(self, snapshot: Snapshot) -> Node:
        """The agent; alone if it has trained a local round, now or in a process that has ended."""
        ask, weights, pending = self.instruction, self.instruction.weights, snapshot.pending
        if ask.locally is not None and pending is not None and pending.round >= ask.locally.first:
            weights = {ask.vertex: 1.0}
        return Node(ask.vertex, ask.algorithm, weights, ask.layout, snapshot, ask.compression)

    def _start(self, start: Array) -> Node:
        ask = self.instruction
        specs = parameter_vectors(ask.layout)
        vectors = codec.decode(frame_of(start), Header(ask.run, 0, START_VERTEX, specs))
        return self._node(
            Snapshot.first(
                ask.algorithm,
                ask.compression,
                vectors["parameters"],
                vectors.get(STATISTICS_VECTOR, ask.layout.empty_statistics()),
                self._local(),
            )
        )

    def _rejoin(self) -> Node:
        ask = self.instruction
        newest: dict[int, tuple[int, Payload]] = {}
        specs = Node.vectors_of(ask.algorithm, ask.layout)
        frames = {j: (ask.state_round, frame) for j, frame in ask.payloads.items()} | dict(
            ask.rejoin
        )
        for j, (number, frame) in sorted(frames.items()):
            with self._refusing(), suppress(EstimateError):  # a change of what is lost says nothing
                newest[j] = number, self._decode(j, number, frame, specs, None)
        number = max((number for number, _ in newest.values()), default=ask.state_round)
        node = Node.rejoin(
            ask.vertex,
            ask.algorithm,
            ask.mean_weights or ask.weights,
            ask.layout,
            self._local(),
            number,
            {j: payload for j, (_, payload) in newest.items()},
            ask.compression,
        )
        node.open_epoch(ask.epoch)
        self.rejoined = True
        return node

    def _local(self) -> NDArrays:
        local = named_arrays(self.instruction.local)
        for entry in self.instruction.layout.entries:
            if entry.kind != "local":
                continue
            array = local.get(entry.name)
            if array is None or (array.shape, array.dtype) != (entry.shape, entry.dtype):
                raise PayloadError(
                    f"initial values of '{entry.name}', which stays with the agent, are missing "
                    "or of another shape or dtype"
                )
        return local

    # --- combine --------------------------------------------------------------------

    def _combine(self, node: Node) -> None:
        """End the pending round with the payloads that came, or alone if none belong to it.

        A pending round that is newer than what the relay knows of was trained but
        never delivered: its neighbors went on without it, and so must it.
        """
        pending = node.pending_round
        if pending == self.instruction.state_round:
            for j, frame in sorted(self.instruction.payloads.items()):
                with self._refusing():
                    node.offer(
                        j, pending, self._decode(j, pending, frame, node.vectors, node.known(j))
                    )
        node.combine(screen=self.instruction.screen)
        for text in node.screened.values():
            self._refuse(text)
        if self.refused:  # at the other end these edges counted
            node.open_epoch(self.instruction.epoch)

    def _decode(
        self,
        sender: int,
        number: int,
        frame: Array,
        specs: tuple[VectorSpec, ...],
        known: Payload | None,
    ) -> Payload:
        """A neighbor's payload. known: its last public one.

        Raises PayloadError if it is not one, EstimateError if it is a change of another one.
        """
        ask = self.instruction
        if sender not in {**ask.mean_weights, **ask.weights}:
            raise PayloadError(f"round {number}: {sender} is not a neighbor")
        data: bytes | bytearray = frame_of(frame)
        if self.sealing is not None:
            data = self.sealing.open(frame_of(frame), sender, number)
        compressor = compressor_of(ask.compression, ask.algorithm, ask.layout)
        return compressed.decode(data, Header(ask.run, number, sender, specs), compressor, known)

    @contextmanager
    def _refusing(self) -> Iterator[None]:
        """A payload that cannot be used is refused, and the others go on."""
        try:
            yield
        except PayloadError as error:
            self._refuse(str(error))

    def _refuse(self, text: str) -> None:
        self.refused.append(text)
        log(WARNING, "agent %s refused a payload: %s", self.instruction.vertex, text)

    def _note(self, text: str) -> None:
        log(
            WARNING, "agent %s, round %s: %s", self.instruction.vertex, self.instruction.round, text
        )

    # --- the app --------------------------------------------------------------------

    def _act(self, node: Node, message: Message, call_next: ClientAppCallable) -> Answer:
        ask = self.instruction
        failure, detail, metrics, payload = "", "", RecordDict(), None
        base = -1
        # Taken before training, since training may take the node a round further.
        parameters = self._parameters(node) if ask.report else None
        projection = tuple(sketch(node.parameters).tolist()) if ask.measure else ()
        evaluated, evaluation_failure = self._evaluate_first(node, message, call_next)
        config = message.content.get(ask.config_key)
        node, lines = self._train_locally(node, message, call_next)

        if ask.ask in ("train", "evaluate"):
            try:
                content = self._call_app(node, _asked(call_next, message, self.context), config)
                metrics = self._let_out(content)
                if ask.ask == "train":
                    self._adapt(node, ask.round, content, sends=ask.sends)
                    if ask.sends:
                        payload, base = self._payload(node), node.base
            except Exception as error:  # the app's own code: anything may come out of it
                failure, detail = self._why(error, ask.round)
        state_round = node.round
        if ask.ask in ("evaluate", "report") or ask.evaluates is not None:
            self._keep_model(node)
        try:
            self.store.save(node.snapshot, node.algorithm, beside=self.keeps_before)
        except (OSError, RoundError) as error:  # a full disk: what is not kept must not be sent
            failure, payload, state_round = f"state cannot be kept: {error}", None, -1
            log(ERROR, "agent %s, round %s: %s", ask.vertex, ask.round, failure)
        return Answer(
            ask=ask.ask,
            vertex=ask.vertex,
            round=ask.round,
            state_round=state_round,
            failure=failure,
            detail=detail,
            rejoined=self.rejoined,
            refused=tuple(self.refused),
            quarantined=node.snapshot.screen.quarantined(ask.round),
            payload=payload,
            parameters=parameters,
            sketch=projection,
            metrics=metrics,
            evaluated=evaluated,
            evaluation_failure=evaluation_failure,
            epoch=node.epoch,
            policy=str(self.policy),
            locally=lines,
            remarks=tuple(self.remarks),
            announcement=self._announcement(),
            base=base,
        )

    def _adapt(self, node: Node, round: int, content: RecordDict, *, sends: bool) -> None:
        """Take what the app has trained, as far as the policy lets it."""
        arrays = named_arrays(_only_arrays(content))
        bound = partial(self.policy.bounded, draw=gaussian)
        whole = sends and self.instruction.whole
        node.adapt(round, arrays, bound, sends=sends, whole=whole)

    def _train_locally(
        self, node: Node, message: Message, call_next: ClientAppCallable
    ) -> tuple[Node, tuple[LocalLine, ...]]:
        """Train the rounds without an exchange that come before the one that is asked for.

        Each is as if it had been asked for by itself: trained, kept, and combined alone. Those that
        the agent's state holds already, since a process before this one has died among them, are
        not trained again.
        """
        ask = self.instruction
        if ask.locally is None:
            return node, ()
        found = message.content.get(ask.config_key)
        config = dict(found.items()) if isinstance(found, ConfigRecord) else {}
        lines = []
        for k in range(ask.locally.first, ask.round):
            begin, app_s, line = time.monotonic(), self.app_s, LocalLine(round=k)
            if k > node.round:
                of_round = ConfigRecord({**config, "server-round": k})
                try:
                    call = _asked(call_next, message, self.context)
                    content = self._call_app(node, call, of_round)
                    line = replace(line, metrics=self._let_out(content))
                    self._adapt(node, k, content, sends=False)
                    self._keep_on_the_way(node)
                except Exception as error:  # as above
                    failure, detail = self._why(error, k)
                    line = replace(line, failure=failure, detail=detail)
            if node.pending_round is not None:
                node = self._node(node.snapshot)
                node.combine(screen=ask.screen)
            line = self._look_locally(node, line, message, call_next)
            spent = time.monotonic() - begin
            lines.append(replace(line, seconds=spent, app_s=self.app_s - app_s))
        return node, tuple(lines)

    def _keep_on_the_way(self, node: Node) -> None:
        """Keep a local round where that outlives this process."""
        if not self.store.lasts:
            return
        with suppress(OSError, RoundError):  # which the last round's state tells
            self.store.save(node.snapshot, node.algorithm, beside=self.keeps_before)
            self.keeps_before = False

    def _look_locally(
        self, node: Node, line: LocalLine, message: Message, call_next: ClientAppCallable
    ) -> LocalLine:
        """Evaluate and measure a local round, if that is wanted of it."""
        locally = self.instruction.locally
        if locally is None:
            return line
        k = line.round
        if k in locally.measured:
            line = replace(line, sketch=tuple(sketch(node.parameters).tolist()))
        if k in locally.evaluated:
            config = ConfigRecord({**locally.evaluates, "server-round": k})
            evaluated, failure = self._evaluate(node, message, call_next, config)
            line = replace(line, evaluated=evaluated, evaluation_failure=failure)
        if k in (*locally.measured, *locally.evaluated):
            self._keep_model(node)
        return line

    def _keep_model(self, node: Node) -> None:
        try:
            keep_model(self.context, self.instruction.run, node)
        except OSError as error:
            self.remarks.append(f"its model cannot be kept: {error}")

    def _why(self, error: Exception, round: int) -> tuple[str, str]:
        """What is said of an error of the app's: a line, and its traceback."""
        known = remedy(error) or _lacks_partition(error, self.context.node_config)
        failure, detail = known or failure_text(error), ""
        log(ERROR, "agent %s, round %s: %s", self.instruction.vertex, round, failure)
        if not isinstance(error, FlowerDhbError):
            detail = traceback.format_exc()
            log(ERROR, "%s", detail)
        if self.policy.metrics is not None:
            return _without_words(error), ""
        return failure, detail

    def _let_out(self, content: RecordDict) -> RecordDict:
        """The app's metrics, those that may leave the node."""
        found = records_of(content, MetricRecord)
        if self.policy.metrics is None:
            return RecordDict(dict(found))
        kept = {
            key: MetricRecord({n: v for n, v in record.items() if self.policy.lets_out(n)})
            for key, record in found.items()
        }
        return RecordDict({key: record for key, record in kept.items() if record})

    def _evaluate_first(
        self, node: Node, message: Message, call_next: ClientAppCallable
    ) -> tuple[RecordDict, str]:
        """The app's metrics of the combined model, which is about to be trained, or why not."""
        config = self.instruction.evaluates
        if config is None:
            return RecordDict(), ""
        return self._evaluate(node, message, call_next, config)

    def _evaluate(
        self, node: Node, message: Message, call_next: ClientAppCallable, config: ConfigRecord
    ) -> tuple[RecordDict, str]:
        """The app's metrics of the model as it is, or why there are none."""
        try:
            content = self._call_app(
                node,
                lambda content: evaluate_with(call_next, message, self.context, content),
                config,
            )
            return self._let_out(content), ""
        except Exception as error:  # the app's own code: anything may come out of it
            known = _lacks_partition(error, self.context.node_config)
            failure = known or failure_text(error)
            self._note(f"evaluation: {failure}")
            if not isinstance(error, FlowerDhbError):
                log(ERROR, "%s", traceback.format_exc())
            return RecordDict(), failure if self.policy.metrics is None else _without_words(error)

    def _call_app(
        self, node: Node, call: Callable[[RecordDict], Message], config: object
    ) -> RecordDict:
        """What the app answers to the message that FedAvg would have sent."""
        ask = self.instruction
        content = RecordDict(
            {
                ask.arrays_key: array_record(node.arrays()),
                ask.config_key: config if isinstance(config, ConfigRecord) else ConfigRecord(),
            }
        )
        inside, begin = _inside.set(True), time.monotonic()
        try:
            with _hidden(self.context):
                reply = call(content)
        finally:
            self.app_s += time.monotonic() - begin
            _inside.reset(inside)
        if reply.has_error():
            raise RoundError(f"the app answered with an error: {reply.error.reason}")
        return reply.content

    def _payload(self, node: Node) -> Array:
        """What the neighbors get."""
        ask, short = self.instruction, node.frame()
        if short is None or node.compressor is None:
            frame = codec.encode(node.payload(), run=ask.run, round=ask.round, vertex=ask.vertex)
        else:
            frame = compressed.encode(
                short, node.compressor, run=ask.run, round=ask.round, vertex=ask.vertex
            )
        if self.sealing is not None:
            frame = self.sealing.seal(frame, ask.round, self.remarks.append)
        return frame_array(frame)

    def _announcement(self) -> str:
        """The agent's own, unless the relay has it."""
        if self.sealing is None:
            return ""
        own = self.sealing.announcement()
        return "" if digest_of(own) == self.instruction.announced else own

    def _parameters(self, node: Node) -> Array:
        ask, vectors = self.instruction, {"parameters": node.parameters}
        if node.layout.statistics_size:
            vectors[STATISTICS_VECTOR] = node.snapshot.statistics
        frame = codec.encode(vectors, run=ask.run, round=node.round, vertex=ask.vertex)
        return frame_array(frame)


def _asked(
    call_next: ClientAppCallable, message: Message, context: Context
) -> Callable[[RecordDict], Message]:
    """What puts a content to the app, in a message's place."""

    def asked(content: RecordDict) -> Message:
        message.content = content
        return call_next(message, context)

    return asked


def _only_arrays(content: RecordDict) -> ArrayRecord:
    records = records_of(content, ArrayRecord)
    if len(records) != 1:
        raise PayloadError(
            f"the app's train must return exactly one ArrayRecord, got {sorted(records)}"
        )
    return next(iter(records.values()))


@contextmanager
def _hidden(context: Context) -> Iterator[None]:
    """Keep the agent's own records out of the app's sight while it runs.

    They are there again afterwards, whatever the app has made of its state: changed it,
    cleared it, or put another in its place. So is the node config, which is the operator's:
    Flower keeps what a context holds for the messages to come. Raises StateError if the state is
    no RecordDict; the state before it then stays.
    """
    before, node_config = context.state, dict(context.node_config)
    ours = {key: before.pop(key) for key in list(before) if key.startswith(f"{PROTOCOL}.")}
    try:
        yield
    finally:
        left: object = context.state
        if not isinstance(left, RecordDict):
            context.state = before
        for key, record in ours.items():
            context.state[key] = record
        context.node_config = node_config
    if not isinstance(left, RecordDict):
        raise StateError(f"the app set context.state to {left!r:.100}, expected a RecordDict")


def _lacks_partition(error: BaseException, node_config: Mapping[str, object]) -> str:
    """What to do if an app looked in vain for its part of the data; empty if that was not it.

    A simulated node has both keys, so it is a SuperNode, whose node config somebody has written.
    """
    key = error.args[0] if isinstance(error, KeyError) and error.args else None
    if key not in _PARTITION or key in node_config:
        return ""
    has = ", ".join(sorted(node_config)) or "nothing"
    return (
        f"the app reads '{key}' in its node config, which has {has}: start the SuperNode with "
        f"{' and '.join(k for k in _PARTITION if k not in node_config)} beside what it has, as in "
        "--node-config 'partition-id=3 num-partitions=8'"
    )


def _without_words(error: Exception) -> str:
    """What is said of an error of an app that may not say anything itself."""
    name = type(error).__name__ if type(error).__module__ == "builtins" else "an error"
    return f"{name} in the app; its text stays in the log of the node, by the node's policy"


# Set while an agent's own app runs: `decentralize` may wrap an app that has the mod, too.
_inside: ContextVar[bool] = ContextVar("inside", default=False)
# Runs of which this process has spoken: simulated nodes share processes.
_told: set[int] = set()


def _say_that_it_passed(context: Context) -> None:
    """Say once in a run that messages pass the mod, which is seldom what was meant.

    A mod does not survive its message, so a record in the context remembers it.
    """
    if _inside.get() or _PASSED in context.state:
        return
    context.state[_PASSED] = ConfigRecord({"run": str(context.run_id)})
    if context.run_id in _told:
        return
    _told.add(context.run_id)
    log(
        WARNING,
        "consensus_mod: this message is not of a ServerlessStrategy, so it goes to the app as it "
        "is, and this run is not decentralized. Use ServerlessStrategy in the ServerApp, or take "
        "consensus_mod out of ClientApp(mods=[...]).",
    )
