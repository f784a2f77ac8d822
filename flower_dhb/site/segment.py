"""A segment at one node: rounds that it holds with its neighbors, in one message of Flower's.

The agent is the peers' own, over their protocol and their mutual TLS. What it is given here comes
from a `peer.toml` there: the app, the state that it has, its neighbors, and when to end.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from flwr.app import Context, Message

from flower_dhb.agent.node import Snapshot
from flower_dhb.errors import ConfigError, FlowerDhbError, NotNowError, StateError
from flower_dhb.flower.mod import vertex_of
from flower_dhb.flower.records import Answer, Instruction, failure_text
from flower_dhb.flower.segment import AWAY_ROUNDS, RoundLine, Segment
from flower_dhb.flower.store import open_store
from flower_dhb.peer.device.app import Agent, Turn
from flower_dhb.peer.device.daemon import Peer, digest_of_layout
from flower_dhb.peer.device.home import Home
from flower_dhb.peer.device.part import Part
from flower_dhb.peer.device.settings import PeerSettings
from flower_dhb.peer.mesh.devices import Host
from flower_dhb.peer.monitor import LOGGER, Folding, Lines, Monitor
from flower_dhb.peer.protocol.settings import Timing
from flower_dhb.peer.sentences import sentence
from flower_dhb.peer.wire.tls import TlsFiles
from flower_dhb.peer.wire.transport import Limits
from flower_dhb.site.ending import Ending
from flower_dhb.site.protection import MESH, check_segment, node_keys

__all__ = ["hold_segment"]

_LEAST_S = 30.0  # a neighbor that is alive is waited for at least so long, if a round may take it
_LINGER_S = 10.0
_LOCKED_S, _LOOK_S = 600.0, 0.5  # for another process of this vertex to end
_PORT_S = 20.0  # for the port to be free
_GRACE_S = 10.0  # to end with a round, once the time is up
_MOST_EVENTS = 32  # of a segment
_NOT_OF_A_RUN = frozenset({"certificate-ends"})  # they concern whoever runs the node


def hold_segment(
    instruction: Instruction, message: Message, context: Context, turn: Turn, ending: Ending
) -> Answer:
    """Hold a segment's rounds, and tell what came of them.

    turn: takes one turn of the agent in the app. Whatever goes wrong ends up in the answer.
    """
    segment = instruction.segment
    if segment is None:
        raise ConfigError("a segment is asked for, and the message does not say which")
    try:
        check_segment(instruction, context)
        vertex = vertex_of(context)
        if vertex != instruction.vertex:
            told = f"message is for vertex {instruction.vertex}, this node is {vertex}"
            return Answer(ask="vertex", vertex=vertex, failure=told)
        with _home_of(context) as (home, tls):
            return _Hold(instruction, segment, context, turn, ending).hold(message, home, tls)
    except FlowerDhbError as error:
        return Answer(
            ask="segment",
            vertex=instruction.vertex,
            round=segment.last,
            state_round=-1,
            failure=str(error),
        )


@contextmanager
def _home_of(context: Context) -> Iterator[tuple[Home, TlsFiles]]:
    """The vertex, locked, and its identity. Raises ConfigError or NotNowError.

    Flower starts a task a second time whose first word comes late: the second one waits here for
    the first to end, and finds its rounds held.
    """
    keys = node_keys(context)
    if keys is None:
        raise ConfigError(
            "direct rounds need to know who this node is: name its directory of the mesh in the "
            "node config, mesh='…', as 'flower-dhb mesh' writes it"
        )
    folder = Path(str(context.node_config[MESH]))
    home, end = Home(folder / "segments"), time.monotonic() + _LOCKED_S
    while True:
        try:
            home.take()
            break
        except NotNowError:
            if time.monotonic() >= end:
                raise
            time.sleep(_LOOK_S)
    try:
        yield home, keys.tls
    finally:
        home.release()


class _Witness(Monitor):
    """Writes down what befalls a peer, for the run's history; each thing once in a segment."""

    def __init__(self, vertex: int) -> None:
        super().__init__(vertex)
        self._seen: set[tuple[str, str, str]] = set()
        self._texts: list[tuple[str, str]] = []  # each with the neighbor that it is about

    def event(self, name: str, level: int = logging.INFO, **fields: Any) -> None:
        super().event(name, level, **fields)
        neighbor = str(fields.get("neighbor", ""))
        if name == "connected":  # that it was not there yet is no news
            self._texts = [told for told in self._texts if told[0] != neighbor]
        key = (name, neighbor, str(fields.get("reason", "")))
        known = key in self._seen or len(self._seen) >= _MOST_EVENTS
        if level < logging.WARNING or known or name in _NOT_OF_A_RUN:
            return
        self._seen.add(key)
        self._texts.append((neighbor, sentence(name, fields, {}) or name))

    def texts(self) -> tuple[str, ...]:
        """What is new."""
        found, self._texts = tuple(text for _, text in self._texts), []
        return found


@dataclass
class _Hold:
    """One segment's work: catch up, hold the rounds, answer."""

    instruction: Instruction
    segment: Segment
    context: Context
    turn: Turn
    ending: Ending
    lines: list[RoundLine] = field(default_factory=list)
    refused: tuple[str, ...] = ()
    end_early: Callable[[], None] | None = None

    def hold(self, message: Message, home: Home, tls: TlsFiles) -> Answer:
        """Hold the rounds."""
        ask, segment = self.instruction, self.segment
        found = self._found()
        if found >= segment.last:
            return self._answer("")  # another process of this vertex was here
        if found >= 0:
            caught = self._catch_up(message, found)
            if caught.failure:
                return replace(caught, ask="segment", round=segment.last)
            self.refused, found = caught.refused, caught.state_round
        joins = found < segment.oldest
        configs = {
            "train": dict(message.content.get(ask.config_key, {})),
            "evaluate": dict(ask.evaluates or {}),
        }
        weights = _direct_row(ask.mean_weights or ask.weights, ask.vertex, segment.neighbors)
        witness = _Witness(ask.vertex)
        app = Agent(
            self.turn,
            self.context,
            vertex=ask.vertex,
            node=self.context.node_id,
            run=ask.run,
            algorithm=ask.algorithm,
            layout=ask.layout,
            weights=weights,
            start=ask.start,
            local=ask.local,
            configs=configs,
            keys=(ask.arrays_key, ask.config_key),
            round=max(found, 0),
            attempt=ask.attempt,
            compression=ask.compression,
        )
        part = Part(
            app=app,
            agreement={
                "algorithm": json.dumps(ask.algorithm.to_config(), sort_keys=True),
                "layout": digest_of_layout(ask.layout),
                "compression": str(ask.compression),
                "segment": json.dumps(
                    {"number": segment.number, "first": segment.first, "last": segment.last}
                ),
            },
            origin=0 if joins else segment.first - 1,
            epoch=0 if joins else max(ask.epoch, self._epoch()),
            evaluated=frozenset(segment.evaluated),
            measured=frozenset(segment.measured),
            told=lambda entry: self._told(entry, witness),
            differs=self._differs,
        )
        failure = self._run(self._settings(weights, home, tls), witness, home, part)
        return self._answer(failure)

    # --- where the agent is -----------------------------------------------------------

    def _found(self) -> int:
        """The newest round in the agent's state; -1 if it has none and is not to start."""
        ask, snapshot = self.instruction, self._snapshot()
        if snapshot is not None:
            return snapshot.pending.round if snapshot.pending else snapshot.round
        if ask.start is not None and self.segment.first == 1:
            return 0
        return max(ask.state_round, 0) if ask.payloads or ask.rejoin else -1

    def _epoch(self) -> int:
        snapshot = self._snapshot()
        return 0 if snapshot is None else snapshot.epoch

    def _snapshot(self) -> Snapshot | None:
        """The agent's state; None if there is none that can be used."""
        ask = self.instruction
        store = open_store(self.context, ask.run, ask.vertex)
        with suppress(StateError):
            return store.load(ask.algorithm, ask.layout, ask.compression)
        return None

    def _catch_up(self, message: Message, found: int) -> Answer:
        """End what a relayed round has left open, with the payloads that came along."""
        ask = replace(
            self.instruction,
            ask="report",
            segment=None,
            evaluates=None,
            # An agent that is some rounds behind goes on from its own state, as peers do.
            state_round=min(self.instruction.state_round, found),
        )
        if ask.state_round < self.instruction.state_round:
            ask = replace(ask, payloads={}, rejoin={}, start=ask.start if found == 0 else None)
        return self.turn(ask, message)

    # --- the peer ---------------------------------------------------------------------

    def _settings(self, weights: Mapping[int, float], home: Home, tls: TlsFiles) -> PeerSettings:
        ask, segment, config = self.instruction, self.segment, self.context.node_config
        host = Host(ask.vertex, _text(config, "address"), _text(config, "listen"))
        dialed = set(segment.neighbors) - set(segment.dials)
        wait_s = max(segment.wait_s, 0.1)
        return PeerSettings(
            mesh=tls.identity.mesh,
            run=ask.run,
            vertex=ask.vertex,
            begins=segment.first,
            rounds=segment.last,
            weights=weights,
            turns=_turns(segment, ask.vertex),
            algorithm=ask.algorithm,
            compression=ask.compression,
            graph="",
            app=Path(),
            client_app="",
            start=Path(),
            state_dir=home.path,
            bulletins=home.path.parent / "bulletins",
            listen=host.listens_on if dialed else None,
            dial=dict(segment.dials),
            tls=tls,
            timing=Timing(ceiling_s=wait_s, least_s=min(wait_s, _LEAST_S)),
            limits=Limits(retry_max_s=1.0),
            away_rounds=AWAY_ROUNDS,
            start_timeout_s=segment.start_s,
            linger_s=_LINGER_S,
        )

    def _run(self, settings: PeerSettings, witness: Monitor, home: Home, part: Part) -> str:
        """Have the peer hold the rounds. Returns why it could not, empty if it could."""
        end = time.monotonic() + _PORT_S
        while True:
            peer = Peer(settings, witness, home, part)
            try:
                with _warnings_logged(), self._timed(peer):
                    peer.run()
                return ""
            except NotNowError as error:  # a process of the segment before may be about to end
                if time.monotonic() >= end:
                    return str(error)
                time.sleep(_LOOK_S)
            except Exception as error:
                return failure_text(error)

    @contextmanager
    def _timed(self, peer: Peer) -> Iterator[None]:
        """End in time: with a round, or without if that takes long."""
        timers = []

        def end_in(seconds: float) -> None:
            for wait_s, call in ((seconds, peer.end_with_round), (seconds + _GRACE_S, peer.stop)):
                timers.append(threading.Timer(wait_s, call))
                timers[-1].daemon = True
                timers[-1].start()

        def end_early() -> None:
            if not peer.is_connected:
                self.end_early = None
                end_in(0.0)

        end_in(self.segment.limit_s)
        self.end_early = end_early
        try:
            with self.ending.heard_by(lambda: end_in(0.0)):
                yield
        finally:
            self.end_early = None
            for timer in timers:
                timer.cancel()

    def _differs(self, part: str, found: str) -> None:
        """End where the neighbors are in a later segment: nobody comes back into this one.

        One neighbor's word is enough only for an agent that is connected with none.
        """
        end_early = self.end_early
        if part == "segment" and end_early and _number_of(found) > self.segment.number:
            end_early()

    # --- what is told ------------------------------------------------------------------

    def _told(self, entry: Mapping[str, Any], witness: _Witness) -> None:
        line = RoundLine(
            round=entry["round"],
            failure=entry.get("failure", ""),
            rejoined=entry.get("rejoined", False),
            missing=tuple(entry.get("missing", ())),
            n_bytes=entry.get("bytes", 0),
            seconds=entry.get("seconds", 0.0),
            train_seconds=entry.get("train_seconds", 0.0),
            wait_seconds=entry.get("wait_seconds", 0.0),
            events=witness.texts(),
            train=entry.get("train", {}),
            evaluate=entry.get("evaluate", {}),
            sketch=tuple(entry.get("sketch", ())),
        )
        self.lines = [known for known in self.lines if known.round < line.round]
        self.lines.append(line)

    def _answer(self, failure: str) -> Answer:
        ask, snapshot = self.instruction, self._snapshot()
        if snapshot is None and not failure:
            failure = "no neighbor had a state from which this agent could begin again"
        return Answer(
            ask="segment",
            vertex=ask.vertex,
            round=self.segment.last,
            state_round=-1 if snapshot is None else snapshot.round,
            failure=failure,
            epoch=0 if snapshot is None else snapshot.epoch,
            refused=self.refused,
            quarantined=() if snapshot is None else snapshot.screen.quarantined(self.segment.last),
            lines=tuple(self.lines),
        )


def _number_of(segment: str) -> int:
    """The number of the segment that a neighbor says it is in; 0 if it is nothing of the kind."""
    try:
        number = json.loads(segment)["number"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return 0
    return number if type(number) is int else 0


def _text(config: Mapping[str, Any], key: str) -> str | None:
    found = config.get(key)
    return found if isinstance(found, str) else None


def _turns(segment: Segment, vertex: int) -> tuple[Mapping[int, float], ...]:
    """The weights of the segment's rounds, each at the place of its round in such a period."""
    rows = [_direct_row(row, vertex, segment.neighbors) for row in segment.rows]
    first = (segment.first - 1) % max(len(rows), 1)
    return tuple(rows[len(rows) - first :] + rows[: len(rows) - first])


def _direct_row(
    weights: Mapping[int, float], vertex: int, neighbors: tuple[int, ...]
) -> dict[int, float]:
    """The row of the mixing matrix over the edges that can count; what is left is the agent's."""
    row = {j: weight for j, weight in sorted(weights.items()) if j in neighbors}
    left = sum(w for j, w in sorted(weights.items()) if j not in neighbors and j != vertex)
    return dict(sorted({**row, vertex: weights[vertex] + left}.items()))


@contextmanager
def _warnings_logged() -> Iterator[None]:
    """Write what asks for attention where the ClientApp's own log goes."""
    if LOGGER.handlers:
        yield
        return
    handler, level = Folding(sys.stderr), LOGGER.level
    handler.setFormatter(Lines())
    LOGGER.addHandler(handler)
    LOGGER.setLevel(logging.WARNING)
    LOGGER.propagate = False
    try:
        yield
    finally:
        LOGGER.removeHandler(handler)
        LOGGER.setLevel(level)
        LOGGER.propagate = True
        handler.close()
