"""The app's own ClientApp as one agent: messages in, payloads out, state kept in the process.

The messages have the form of the relay's, so the mod and the app cannot tell the
difference. All numerical work is theirs; this only words the questions.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import xxhash
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from numpy.typing import NDArray

from flower_dhb.agent import codec
from flower_dhb.agent.codec import VectorSpec
from flower_dhb.agent.compression import NONE, Compression
from flower_dhb.agent.compression import frame as compressed
from flower_dhb.agent.compression.frame import Frame
from flower_dhb.agent.node import STATISTICS_VECTOR, Node, Snapshot, compressor_of
from flower_dhb.agent.policy import Policy
from flower_dhb.algorithms import Algorithm
from flower_dhb.algorithms.measurement import measured
from flower_dhb.errors import StateError
from flower_dhb.flower.arrays import array_record, start_frame
from flower_dhb.flower.legacy import in_new_form
from flower_dhb.flower.mod import take_turn
from flower_dhb.flower.records import Answer, Ask, Instruction
from flower_dhb.flower.store import Store, open_store
from flower_dhb.peer.device.code import digest_of_folder
from flower_dhb.peer.device.flwr_adapter import (
    frame_view,
    load_client_app,
    make_context,
    make_message,
    take_identity,
)
from flower_dhb.peer.device.settings import PeerSettings
from flower_dhb.peer.wire.changes import Change
from flower_dhb.peer.wire.frames import Bytes
from flower_dhb.types import Layout, NDArrays, Payload

__all__ = ["Agent", "Outcome", "agent_of", "load_app"]

_PROTOCOL_RECORDS = "flower_dhb."


@dataclass(frozen=True)
class Outcome:
    """What came of a question.

    frame: the payload to share, if there is one. change: what may be sent in its place. failure:
    why there is none, empty if all went well. refused: payloads that the agent did not accept.
    metrics: the app's own. sketch: projection of the parameters, if it was asked for.
    epoch: of the agent's memory and of the payload; an agent that has broken what its rule
    conserves, by a loss or a refusal, has opened a new one.
    """

    frame: bytes | None = None
    change: Change | None = None
    failure: str = ""
    rejoined: bool = False
    refused: tuple[str, ...] = ()
    metrics: Mapping[str, Any] = field(default_factory=dict)
    epoch: int = 0
    sketch: tuple[float, ...] = ()


class Turn(Protocol):
    """How an agent's app is called: `flower.mod.take_turn`, bound to what the agent has."""

    def __call__(self, request: Instruction, message: Message) -> Answer: ...


class Agent:
    """One vertex's ClientApp with its Context, which stays in the process.

    turn: takes each of its turns in the app. node: the id that messages to it bear. start: the
    vectors that all agents began with, as a frame; None where the context holds a later state.
    local: initial values of the arrays that stay with the agent. configs: what the app finds in
    the `config` of its messages, by their kind. keys: under which it finds arrays and config.
    round: that its parameters are of. attempt: how often the run was taken up again. compression:
    of payloads on their way; here all of them are whole. Calls are made from one thread. Raises
    ConfigError if the model cannot be compressed so.
    """

    def __init__(
        self,
        turn: Turn,
        context: Context,
        *,
        vertex: int,
        node: int,
        run: str,
        algorithm: Algorithm,
        layout: Layout,
        weights: Mapping[int, float],
        start: Array | None,
        local: Mapping[str, Array],
        configs: Mapping[str, Mapping[str, Any]],
        keys: tuple[str, str] = ("arrays", "config"),
        round: int = 0,
        attempt: int = 0,
        compression: Compression = NONE,
    ) -> None:
        self.vertex, self.run, self.algorithm, self.layout = vertex, run, algorithm, layout
        self.compression = compression
        self.compressor = compressor_of(compression, algorithm, layout)
        self.vectors: tuple[VectorSpec, ...] = Node.vectors_of(algorithm, layout)
        self._turn, self._context, self._node = turn, context, node
        self._weights = dict(weights)
        self._start, self._local = start, dict(local)
        self._configs, self._keys = configs, keys
        self.round, self._attempt = round, attempt

    @classmethod
    def of_device(
        cls,
        app: ClientApp,
        *,
        vertex: int,
        run: str,
        algorithm: Algorithm,
        weights: Mapping[int, float],
        arrays: NDArrays,
        node_config: Mapping[str, Any],
        run_config: Mapping[str, Any],
        train_config: Mapping[str, Any] | None = None,
        evaluate_config: Mapping[str, Any] | None = None,
        policy: Policy | None = None,
        compression: Compression = NONE,
    ) -> Agent:
        """The agent of a device that no Flower runs on, with a context of its own.

        arrays: the initial arrays that all agents share. train_config, evaluate_config: what the
        app finds in its messages' `config`. policy: of whoever runs the device.
        """
        layout = Layout.of(arrays)
        node = vertex + 2  # as ids of Flower nodes: none is 0, 1 is the relay
        run_number = xxhash.xxh3_64_intdigest(run.encode()) >> 1
        take_identity(run_number, node)
        known = {"partition-id": vertex, **node_config, "vertex": vertex}
        context = make_context(run_number, node, known, run_config)

        called = in_new_form(app)

        def turn(request: Instruction, message: Message) -> Answer:
            # Where the app has the mod itself, that one only passes on.
            return take_turn(request, message, context, called, policy or Policy())

        return cls(
            turn,
            context,
            vertex=vertex,
            node=node,
            run=run,
            algorithm=algorithm,
            layout=layout,
            weights=weights,
            start=start_frame(layout, arrays, run),
            local=dict(array_record(layout.local(arrays)).items()),
            configs={"train": train_config or {}, "evaluate": evaluate_config or {}},
            compression=compression,
        )

    # --- questions --------------------------------------------------------------------

    def train(self, round: int, epoch: int = 0, *, sends: bool = True) -> Outcome:
        """Train from the combined parameters; the payload to share is in the outcome.

        epoch: the newest that is known of; the agent joins it before it trains. sends: whether any
        neighbor is due in the round; if none is, nothing is compressed.
        """
        sends = sends or self.compressor is None
        answer = self._ask("train", round, state_round=self.round, epoch=epoch, sends=sends)
        outcome = _outcome(answer)
        if outcome.failure:
            return outcome
        if not sends:
            return replace(outcome, frame=self._whole(self._node_at()))
        if outcome.frame is None:
            raise StateError(f"round {round}, agent {self.vertex}: the app answered no payload")
        if not compressed.is_compressed(outcome.frame):
            return outcome
        change = Change.of_frame(outcome.frame, round)
        return replace(outcome, frame=self._whole(self._node_at()), change=change)

    def relabel(self, round: int) -> Outcome:
        """Give the trained round another number before its payload was sent.

        What a compression sends of a payload depends on the round, and which part of it is mixed
        may do so, too. The payload under its new number is in the outcome.
        """
        s = self.snapshot()
        if s.pending is None:
            raise StateError(f"agent {self.vertex}: there is no trained round to relabel")
        arrays = self.layout.unflatten(s.pending.trained, s.pending.statistics, s.local)
        node = self._node_at(replace(s, pending=None))
        node.adapt(round, arrays)
        self._store().save(node.snapshot, self.algorithm)
        return Outcome(*self._shared(node))

    def change(self) -> Change | None:
        """What may be sent in place of the trained round's payload, None if there is nothing."""
        snapshot = self.snapshot()
        if self.compressor is None or snapshot.pending is None:
            return None
        return self._shared(self._node_at(snapshot))[1]

    def known(self, neighbors: Iterable[int]) -> dict[int, Payload]:
        """The last public payloads of neighbors, of those of which they are here."""
        if self.compressor is None or not self.compressor.estimates:
            return {}
        try:
            node = self._node_at()
        except StateError:  # it will begin again from its neighbors
            return {}
        found = {j: node.known(j) for j in neighbors}
        return {j: payload for j, payload in found.items() if payload is not None}

    def _node_at(self, snapshot: Snapshot | None = None) -> Node:
        return Node(
            self.vertex,
            self.algorithm,
            self._weights,
            self.layout,
            snapshot or self.snapshot(),
            self.compression,
        )

    def _shared(self, node: Node) -> tuple[bytes, Change | None]:
        """The payload of a trained round, and what may be sent in its place."""
        return self._whole(node), self._change_of(node.frame(), node.pending_round or 0)

    def _whole(self, node: Node) -> bytes:
        """The payload of a trained round, as all devices have it."""
        k = node.pending_round or 0
        return codec.encode(node.payload(), run=self.run, round=k, vertex=self.vertex)

    def _change_of(self, short: Frame | None, round: int) -> Change | None:
        if short is None or self.compressor is None:
            return None
        return Change.of(short, self.compressor, run=self.run, round=round, vertex=self.vertex)

    def combine(
        self,
        round: int,
        payloads: Mapping[int, Bytes],
        *,
        evaluate: bool,
        weights: Mapping[int, float] | None = None,
        measure: bool = False,
    ) -> Outcome:
        """End a round with the payloads that count; evaluate the app's model if asked to.

        measure: whether the outcome is to hold the projection of the parameters.

        weights: this vertex's in this round and those to come, if they are others than before.
        """
        self._weights = dict(weights or self._weights)
        ask: Ask = "evaluate" if evaluate else "report"
        answer = self._ask(ask, round, state_round=round, payloads=payloads, measure=measure)
        if answer.state_round != round:
            raise StateError(
                f"round {round}, agent {self.vertex}: could not combine: {answer.failure}"
            )
        self.round = round
        return _outcome(answer)

    def rejoin(
        self,
        newest: Mapping[int, tuple[int, Bytes]],
        *,
        evaluate: bool,
        epoch: int = 0,
        weights: Mapping[int, float] | None = None,
    ) -> Outcome:
        """Begin again from the neighbors' average, with zero momentum.

        weights: as for `combine`. epoch: the newest that is known of. Where the rule conserves
        something, the agent opens the one after it, which the outcome names.
        """
        self._weights = dict(weights or self._weights)
        for key in [k for k in self._context.state if k.startswith(_PROTOCOL_RECORDS)]:
            del self._context.state[key]
        newest_round = max(k for k, _ in newest.values())
        ask: Ask = "evaluate" if evaluate else "report"
        answer = self._ask(ask, newest_round, state_round=newest_round, newest=newest, epoch=epoch)
        if not answer.rejoined:
            raise StateError(f"agent {self.vertex}: could not rejoin: {answer.failure}")
        self.round = answer.state_round
        return _outcome(answer)

    def early(self, round: int, epoch: int = 0, *, sends: bool = True) -> Outcome:
        """The payload of a round before training, where the rule knows it by then.

        epoch, sends: as for `train`.
        """
        if not self.knows_early:
            return Outcome()
        snapshot = self.snapshot()
        state = snapshot.state
        if epoch > snapshot.epoch:
            state = self.algorithm.restart(state)
        state = measured(self.algorithm, replace(state, round=round - 1), state.parameters)
        outgoing = self.algorithm.outgoing(state, state.parameters)
        payload: Payload = {name: outgoing[name] for name in self.algorithm.vectors}
        short = None
        if self.compressor is not None and sends:
            codes, payload = self.compressor.publish(payload, snapshot.sent, round, self.vertex)
            short = None if codes is None else Frame(codes, payload, snapshot.sent)
        frame = codec.encode(payload, run=self.run, round=round, vertex=self.vertex)
        return Outcome(frame, self._change_of(short, round))

    @property
    def knows_early(self) -> bool:
        """Whether a round's payload is known before training."""
        return self.algorithm.shares_before_training and not self.layout.statistics_size

    def final(self, round: int) -> bytes:
        """The model as a payload, for a neighbor that returns after the end.

        It is what an agent would share that stands still: parameters, and no momentum.
        """
        s = self.snapshot()
        start = Snapshot(0, self.algorithm.start(s.state.parameters), s.statistics, s.local)
        node = Node(self.vertex, self.algorithm, self._weights, self.layout, start)
        payload = node.adapt(round, node.arrays())
        return codec.encode(payload, run=self.run, round=round, vertex=self.vertex)

    # --- state ------------------------------------------------------------------------

    def snapshot(self) -> Snapshot:
        """The agent's state as the mod stored it; the start before the first round."""
        found = self._store().load(self.algorithm, self.layout, self.compression)
        if found is not None:
            return found
        if self._start is None:
            raise StateError(f"agent {self.vertex}: its state of round {self.round} is lost")
        vectors = codec.decode(self._start.data, codec.read_header(self._start.data))
        statistics = vectors.get(STATISTICS_VECTOR, self.layout.empty_statistics())
        parameters = vectors["parameters"]
        return Snapshot.first(self.algorithm, self.compression, parameters, statistics, {})

    def _store(self) -> Store:
        return open_store(self._context, self.run, self.vertex, self._attempt)

    def save(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Everything in the context's state, the app's own records included."""
        return _to_plain(self._context.state)

    def load(
        self, round: int, arrays: Mapping[str, NDArray[Any]], document: Mapping[str, Any]
    ) -> None:
        """Inverse of `save`."""
        self._context.state = _from_plain(arrays, document)
        self.round = round

    # --- wording ----------------------------------------------------------------------

    def _ask(
        self,
        ask: Ask,
        round: int,
        *,
        state_round: int,
        payloads: Mapping[int, Bytes] | None = None,
        newest: Mapping[int, tuple[int, Bytes]] | None = None,
        epoch: int = 0,
        measure: bool = False,
        sends: bool = True,
    ) -> Answer:
        instruction = Instruction(
            ask=ask,
            run=self.run,
            round=round,
            vertex=self.vertex,
            state_round=state_round,
            weights=self._weights,
            algorithm=self.algorithm,
            layout=self.layout,
            payloads={j: frame_view(f) for j, f in (payloads or {}).items()},
            rejoin={j: (k, frame_view(f)) for j, (k, f) in (newest or {}).items()},
            start=self._start if state_round == 0 else None,
            local=self._local,
            screen=False,  # the device has done so before the edge could count
            epoch=epoch,
            sends=sends,
            attempt=self._attempt,
            measure=measure,
            compression=self.compression,
            arrays_key=self._keys[0],
            config_key=self._keys[1],
        )
        kind = "evaluate" if ask == "evaluate" else "train"
        config = ConfigRecord({**self._configs[kind], "server-round": round})
        content = RecordDict({instruction.config_key: config})
        message = make_message(content, kind, round, self._node)
        return self._turn(instruction, message)


def load_app(settings: PeerSettings) -> ClientApp:
    """The ClientApp that a device's settings name.

    Raises ConfigError if there is none, and, before any of its code runs, if the device's policy
    does not allow it.
    """
    if settings.policy.apps is not None:
        settings.policy.check_app(digest_of_folder(settings.app))
    return load_client_app(settings.app, settings.client_app)


def agent_of(settings: PeerSettings, app: ClientApp, arrays: NDArrays) -> Agent:
    """A device's agent, as its settings say. arrays: the initial ones that all agents share."""
    return Agent.of_device(
        app,
        vertex=settings.vertex,
        run=settings.run,
        algorithm=settings.algorithm,
        weights=settings.weights,
        arrays=arrays,
        node_config=settings.node_config,
        run_config=settings.run_config,
        train_config=settings.train_config,
        evaluate_config=settings.evaluate_config,
        policy=settings.policy,
        compression=settings.compression,
    )


def _outcome(answer: Answer) -> Outcome:
    return Outcome(
        answer.payload.data if answer.payload is not None else None,
        None,
        answer.failure,
        answer.rejoined,
        answer.refused,
        answer.app_metrics,
        answer.epoch,
        answer.sketch,
    )


def _to_plain(records: RecordDict) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    arrays: dict[str, NDArray[Any]] = {}
    document: dict[str, Any] = {}
    for key, record in records.items():
        if isinstance(record, ArrayRecord):
            about = []
            for name, array in record.items():
                arrays[f"{key}/{name}"] = np.frombuffer(array.data, np.uint8)
                about.append([name, array.dtype, list(array.shape), array.stype])
            document[key] = {"arrays": about}
        elif isinstance(record, MetricRecord):
            document[key] = {"metrics": dict(record.items())}
        else:
            document[key] = {"config": {k: _to_json(v) for k, v in record.items()}}
    return arrays, document


def _from_plain(arrays: Mapping[str, NDArray[Any]], document: Mapping[str, Any]) -> RecordDict:
    records = RecordDict()
    for key, about in document.items():
        if "arrays" in about:
            record = ArrayRecord()
            for name, dtype, shape, stype in about["arrays"]:
                record[name] = Array(dtype, tuple(shape), stype, arrays[f"{key}/{name}"].tobytes())
            records[key] = record
        elif "metrics" in about:
            records[key] = MetricRecord(about["metrics"])
        else:
            records[key] = ConfigRecord({k: _from_json(v) for k, v in about["config"].items()})
    return records


def _to_json(value: Any) -> Any:
    if isinstance(value, bytes):
        return {"bytes": base64.b64encode(value).decode()}
    if isinstance(value, list):
        return [_to_json(v) for v in value]
    return value


def _from_json(value: Any) -> Any:
    if isinstance(value, dict):
        return base64.b64decode(value["bytes"])
    if isinstance(value, list):
        return [_from_json(v) for v in value]
    return value
