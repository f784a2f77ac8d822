"""One peer: the protocol's agent, and the threads that do what it says.

One lock around the agent: whoever brings an event takes it, and has done what follows from it
before it lets go. What takes long is put in line: calls of the app for the thread that called
`run`, writes for the disk's thread. A thread of the clock wakes when time alone changes
something. Connections have their own threads (`wire/`).
"""

from __future__ import annotations

import json
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import xxhash

from flower_dhb import __version__
from flower_dhb.errors import ConfigError, DamageError, NotNowError, RoundError
from flower_dhb.files import write_durably
from flower_dhb.peer.device.app import Agent as App
from flower_dhb.peer.device.app import agent_of, load_app
from flower_dhb.peer.device.bulletins import Bulletins
from flower_dhb.peer.device.code import digest_of_code
from flower_dhb.peer.device.disk import Disk, Memory, Model, Writer
from flower_dhb.peer.device.editions import Editions
from flower_dhb.peer.device.home import Home
from flower_dhb.peer.device.journal import Found, Journal
from flower_dhb.peer.device.judge import Judge
from flower_dhb.peer.device.model import read_start
from flower_dhb.peer.device.part import Part
from flower_dhb.peer.device.settings import PeerSettings
from flower_dhb.peer.device.shelf import Shelf
from flower_dhb.peer.device.validity import Validity
from flower_dhb.peer.device.work import Task, Work
from flower_dhb.peer.monitor import Monitor
from flower_dhb.peer.protocol.agent import Agent, Phase
from flower_dhb.peer.protocol.edition import Edition
from flower_dhb.peer.protocol.effects import (
    Close,
    Count,
    Effect,
    End,
    Fail,
    Finish,
    Free,
    Neighbors,
    Note,
    Refuse,
    Reserve,
    Save,
    Send,
    SendPayload,
    Train,
)
from flower_dhb.peer.protocol.effects import Journal as ToJournal
from flower_dhb.peer.protocol.events import (
    Announced,
    Broken,
    Completed,
    Event,
    Journaled,
    Payload,
    Screened,
    Started,
    Stopped,
    Tick,
)
from flower_dhb.peer.watch.history import keep_until
from flower_dhb.peer.watch.lately import Lately
from flower_dhb.peer.watch.metrics import serve_metrics
from flower_dhb.peer.watch.recorder import Recorder
from flower_dhb.peer.watch.status import Progress
from flower_dhb.peer.watch.vigil import Vigil, Wait, wait_of
from flower_dhb.peer.wire import relay_pb2 as pb
from flower_dhb.peer.wire.bulletin import AUTHORITY, EDITION, NO_BOARD, REVOCATIONS
from flower_dhb.peer.wire.frames import Outgoing, Reason, RefusedError
from flower_dhb.peer.wire.identity import ValidityError
from flower_dhb.peer.wire.link import StreamLink
from flower_dhb.peer.wire.operations import Operations
from flower_dhb.peer.wire.renewing import Renewing
from flower_dhb.peer.wire.transport import Limits, Transport
from flower_dhb.peer.wire.trust import check_authority, check_revocations
from flower_dhb.peer.wire.words import reason_of
from flower_dhb.types import Layout

__all__ = ["Peer", "Result", "digest_of_layout"]

_LOOK_AGAIN_S = 2.0  # at clock and certificate, while they do not fit together
_SETTLE_S = 5.0  # a disk that takes longer to store what the operator says holds up nothing


@dataclass(frozen=True)
class Result:
    """How a peer's part of a run ended.

    done: its last round is over; if not, it was stopped before. alone_since: the last round in
    which a neighbor had a part, where none had any lately; None otherwise. removed: it is done
    since this device is no member of the mesh any more.
    """

    done: bool
    alone_since: int | None = None
    removed: bool = False


class Peer:
    """A device's part of a run. `run` returns when the last round is over, or on `stop`.

    home: its state directory, which the caller holds; if none is given, `run` holds it. part: what
    is not on its disk, if others lead the run.
    Raises ConfigError if the settings, the app, or the files of the device do not fit,
    DamageError if its state cannot be used, and NotNowError if it cannot be used now.
    """

    def __init__(
        self,
        settings: PeerSettings,
        monitor: Monitor | None = None,
        home: Home | None = None,
        part: Part | None = None,
    ) -> None:
        if settings.tls is not None:
            renewed = settings.state_dir / "identity.pem"
            settings = replace(settings, tls=replace(settings.tls, renewed=renewed))
        self.settings = settings
        self.monitor = monitor or Monitor(settings.vertex, settings.names)
        self._home, self._home_is_held = home or Home(settings.state_dir), home is not None
        self._part = part
        journal: Journal | None = None
        if part is not None:
            self.app, agreement = part.app, part.agreement
            self._found = None
        else:
            self.app, agreement = _app_of(settings)
            journal = self._journal()
            self._found = self._load(journal)
        self.editions = Editions(settings, self.monitor, self._store, self._announced)
        self._resumed: Outgoing | None = None
        self.agent = self._agent(self._found)
        self.bulletins = self._board()
        self._lately = Lately(self.agent, time.monotonic())
        self.progress = Progress(settings.run, self.agent, self.monitor, self._lately)
        if settings.tls is not None:
            self.progress.standing = settings.tls.standing
        if self.bulletins is not None:
            self.progress.bulletins = self.bulletins.known
        self.transport = Transport(
            vertex=settings.vertex,
            run=settings.run,
            vectors=self.app.vectors,
            agreement=agreement,
            neighbors=tuple(self.agent.edges),
            deliver=self.deliver,
            monitor=self.monitor,
            listen=settings.listen,
            dial=self._dialed(),
            tls=settings.tls,
            operations=self._operations(),
            limits=self.editions.newest.limits,
            may_differ=frozenset() if settings.strict_app else frozenset({"app"}),
            board=self.bulletins or NO_BOARD,
            editions=self.editions.agreement,
            differs=part.differs if part is not None else None,
            compressor=self.app.compressor,
            held=self.app.known(self.agent.edges),
        )
        self._validity: Validity | None = None
        if settings.tls is not None and self.bulletins is not None:
            self._validity = Validity(settings.tls, self.monitor, self.transport.judge)
            for kind in (AUTHORITY, REVOCATIONS):
                self.bulletins.subscribe(kind, lambda _: self.transport.judge())
        self._lock = self.progress.guard = threading.RLock()
        self._events: deque[Event] = deque()
        self._handling = False
        self._tasks: queue.SimpleQueue[Task | None] = queue.SimpleQueue()
        self._alarms: queue.SimpleQueue[_Alarm] = queue.SimpleQueue()
        self._wakes_at: float | None = None
        self._ended = self._parting = False
        self._alone_since: int | None = None
        self._done = self._removed = False
        self._error: BaseException | None = None
        self._disk: Writer = Memory()
        if journal is not None:
            self._disk = Disk(journal, self.monitor, self._failed, self._is_another_home)
        self.progress.dials = self._dialed().keys()
        self.progress.disk = lambda: self._disk.trouble
        self._recorder = Recorder(settings.state_dir / "record", settings.record)
        self._judge = Judge(settings.algorithm, self._quarantined)
        self._work = Work(
            settings,
            self.editions,
            self.app,
            self._disk,
            self.progress,
            self.monitor,
            self._recorder,
            self._judge,
            self.deliver,
            part,
        )

    def _journal(self) -> Journal:
        settings = self.settings
        return Journal(
            settings.state_dir,
            settings.run,
            lambda why: self.monitor.warning("damaged", why=why),
            partial(write_durably, make_folder=False),
            {
                "mesh": settings.mesh,
                "vertex": settings.vertex,
                "layout": self.app.layout.to_config(),
            },
        )

    def _operations(self) -> Operations:
        settings = self.settings
        answers = Operations(
            status=self.progress.reply,
            stop=self._asked_to_stop,
            fetch=Shelf(settings.state_dir, settings.log_file, self.monitor).fetch,
        )
        if settings.tls is None:
            return answers
        return replace(answers, renew=Renewing(settings.tls, self.monitor).answer)

    def _board(self) -> Bulletins | None:
        """What the operator says. Without TLS there is nobody who could sign it."""
        settings = self.settings
        if settings.tls is None:
            return None
        board = Bulletins(
            settings.mesh,
            roots=settings.tls.roots,
            state_dir=settings.state_dir,
            folder=settings.bulletins or settings.state_dir / "bulletins",
            monitor=self.monitor,
            store=self._store,
            tell=lambda notice: self.transport.tell(notice),
        )
        trust = settings.tls.trust
        board.subscribe(AUTHORITY, trust.take_authority, check_authority)
        board.subscribe(REVOCATIONS, trust.take_revocations, check_revocations)
        return board

    def _store(self, path: Path, data: bytes, done: Callable[[], None]) -> None:
        self._disk.put(Model(path, data, done))

    def _is_another_home(self) -> bool:
        another = self._home.check()
        if another:
            self.editions.store_again()
        if another and self.bulletins is not None:
            self.bulletins.store_again()
        return another

    # --- editions of the mesh ------------------------------------------------------------

    def _announced(self, edition: Edition) -> None:
        """An edition of the mesh is new here, and on the disk."""
        newest = self.editions.newest
        self.monitor.names |= newest.names
        self.deliver(Announced(edition, newest.all_timing))
        with self._lock:
            self._meet(newest.limits)

    def _meet(self, limits: Limits | None = None) -> None:
        """Be connected with those whom the agent has an edge to, where they are reached now."""
        dialed = self._dialed()
        self.progress.dials = dialed.keys()
        self.transport.meet({j: dialed.get(j) for j in self.agent.edges}, limits)

    def _dialed(self) -> dict[int, str]:
        """Addresses of the neighbors that this device dials."""
        found = {j: self.editions.dial(j) for j in self.agent.edges}
        return {j: address for j, address in found.items() if address is not None}

    def _load(self, journal: Journal) -> Found | None:
        try:
            return journal.load()
        except DamageError as error:
            if self.settings.on_damage != "rejoin":
                raise
            try:
                aside = journal.set_aside()
            except OSError as trouble:
                raise NotNowError(
                    f"{self.settings.state_dir}: the damaged state cannot be moved aside: "
                    f"{trouble.strerror or trouble}"
                ) from None
            self.monitor.warning("state-set-aside", why=str(error), kept_in=str(aside))
            return None

    def _agent(self, found: Found | None) -> Agent:
        newest = self.editions.newest
        config = newest.protocol(self.editions.protocol(), early=self.app.knows_early)
        if self._part is not None:
            config = replace(config, origin=self._part.origin, epoch=self._part.epoch)
        if found is None:
            return Agent(config, time.monotonic())
        document = found.contents.document
        self.app.load(document["agent-round"], found.contents.arrays, document["records"])
        if found.payload is not None:
            change = self.app.change()
            self._resumed = Outgoing.of(found.payload, () if change is None else (change,))
        try:
            return Agent(
                config,
                time.monotonic(),
                record=found.record,
                payload=_payload(self._resumed) if self._resumed is not None else None,
                kept={k: _payload(Outgoing.of(frame)) for k, frame in found.kept.items()},
            )
        except ValueError as error:  # of an edition that the disk holds no more
            raise DamageError(f"{self.settings.state_dir}: {error}") from None

    # --- life -------------------------------------------------------------------------

    def run(self) -> Result:
        """Take part until the run is over, or until `stop`.

        Raises RoundError if it cannot, and NotNowError if it cannot begin now.
        """
        if not self._home_is_held:
            self._home.take()
        stop_metrics: Callable[[], None] = lambda: None  # noqa: E731
        clock = threading.Thread(target=self._keep_time, name="clock", daemon=True)
        vigil = Vigil(self._waits_for, self.monitor)
        self._say_what_begins()
        try:
            self._disk.start()
            if self.bulletins is not None:
                if self._part is None:  # else the graph is what those say who lead the run
                    self.bulletins.subscribe(EDITION, self.editions.take, self.editions.check)
                self.bulletins.start()
            if not self._certificate_comes_to_be_valid():
                return Result(False)
            if self.settings.metrics_port:
                stop_metrics = serve_metrics(self.settings.metrics_port, self.progress.reply)
            if self._found is not None:
                self._resume(self._found)
            if self.bulletins is not None:
                # What is new is valid from the first word on.
                self.bulletins.settle(_SETTLE_S)
                self.editions.settle(_SETTLE_S)
            self.transport.start()
            if self._validity is not None:
                self._validity.start()
            self.deliver(Started())
            clock.start()
            vigil.start()
            while (task := self._tasks.get()) is not None:
                if self._parting and _begins_a_round(task):
                    self.deliver(Stopped())
                elif self._is_still_of_use(task):
                    self._work.do(task)
        finally:
            self._ended = True
            if self.bulletins is not None:
                self.bulletins.stop()
            vigil.stop()
            if self._validity is not None:
                self._validity.stop()
            self.transport.stop()
            self._disk.close()
            self._work.close()
            self._alarms.put(_Alarm.END)
            if clock.is_alive():
                clock.join()
            stop_metrics()
            if not self._home_is_held:
                self._home.release()
        if self._error is not None:
            raise self._error
        return Result(self._done, self._alone_since, self._removed)

    def _is_still_of_use(self, task: Task) -> bool:
        """Whether a task is to be done, where an end may have been asked for since."""
        if isinstance(task, Save | Free):
            return True
        stops = self.agent.phase is Phase.STOPPING and isinstance(task, Train)
        return not (self._ended or stops)

    def _say_what_begins(self) -> None:
        """The first line: who this is, where, and from which round on."""
        settings, found = self.settings, self._found
        where: dict[str, Any] = {"begins_how": "begins anew, with no state of its own"}
        if found is not None:
            where = {"resumes_after": self.agent.closed}
        self.monitor.event(
            "begins",
            mesh=settings.mesh,
            run=settings.run,
            version=__version__,
            app=str(settings.app),
            listen=settings.listen,
            dials=sorted(self._dialed()),
            rounds=self.agent.rounds,
            compression=str(settings.compression) if settings.compression.on else None,
            policy=str(settings.policy) or None,
            **where,
        )

    def _waits_for(self) -> Wait | None:
        with self._lock:
            if self._ended:
                return None
            return wait_of(self.agent, time.monotonic(), self.monitor)

    def _certificate_comes_to_be_valid(self) -> bool:
        """Wait for the clock, or for renewed files. Returns False if `stop` came before.

        Nothing is lost by waiting: nobody would talk to this device, and what it trained alone
        would lead it away from the others.
        """
        if self.settings.tls is None:
            return True
        told, before, why = "", "", ""
        begun = time.monotonic()
        what = "waits to begin, for a certificate that is valid,"
        vigil = Vigil(lambda: Wait(what, ("certificate",), why=why), self.monitor)
        while True:
            vigil.look()
            try:
                self.settings.tls.read()
            except ConfigError as error:
                by_time = isinstance(error, ValidityError)
                if not (told or by_time):
                    raise
                why = getattr(error, "reason", str(error))
                # Renewed files come one after the other; until they fit, that is no trouble.
                if why != told and (by_time or why == before):
                    told = why
                    self.monitor.warning("waits-for-certificate", why=str(error))
                before = why
            else:
                if told:
                    after_s = round(time.monotonic() - begun)
                    self.monitor.event("certificate-valid", after_s=after_s)
                return True
            try:
                if self._alarms.get(timeout=_LOOK_AGAIN_S) is _Alarm.STOP:
                    return False
            except queue.Empty:
                continue

    def _resume(self, found: Found) -> None:
        """Go on from what the disk holds."""
        closed = self.agent.closed
        self._found = None
        self._work.resume(found, self._resumed)
        keep_until(self.settings.state_dir / "history.jsonl", closed)
        self._recorder.begins_after(closed)
        self.progress.round = closed
        self.progress.parameters = self.app.snapshot().state.parameters
        self.monitor.event("resumed", round=closed)

    def stop(self) -> None:
        """End after the current call of the app; what was finished is kept.

        Takes no lock, so a signal's handler may call it.
        """
        self._alarms.put(_Alarm.STOP)

    @property
    def is_connected(self) -> bool:
        """Whether a neighbor is there."""
        return any(edge.up for edge in self.agent.edges.values())

    def end_with_round(self) -> None:
        """End before the next round begins. As `stop`, it takes no lock."""
        self._parting = True

    def _asked_to_stop(self, _: pb.StopRequest) -> pb.StopReply:
        """The operator asks for what a signal asks for."""
        self.monitor.event("asked-to-stop", by="the operator", round=self.progress.round)
        self.stop()
        return pb.StopReply(vertex=self.settings.vertex, round=self.progress.round)

    # --- events in, effects out ---------------------------------------------------------

    def deliver(self, event: Event) -> None:
        """Have the agent take an event, and do what it says. Safe to use from any thread."""
        with self._lock:
            self._events.append(event)
            if self._handling:
                return  # what brought it is being done by this thread: it comes next
            self._handling = True
            try:
                while self._events:
                    now = time.monotonic()
                    for judged in self._judged(self._events.popleft()):
                        effects = self.agent.handle(judged, now)
                        self._lately.saw(judged, effects, now)
                        for effect in effects:
                            self._do(effect)
                self._set_alarm()
            except BaseException as error:
                self._failed(error)
            finally:
                self._handling = False

    def _judged(self, event: Event) -> list[Event]:
        """An event, with what screening makes of it.

        A payload is looked at before the agent can vote for it: when it comes, or, where it is
        here before this agent's own payload of the round, when that one is on the disk.
        """
        if isinstance(event, Completed) and not event.offer.final:
            if self._is_believed(event.neighbor, event.link, event.offer.round, event.payload):
                return [event]
            return [Broken(event.neighbor, event.link)]
        if not isinstance(event, Journaled):
            return [event]
        found: list[Event] = []
        outgoing = event.payload.handle
        r = outgoing.header.round if isinstance(outgoing, Outgoing) else 0
        for j, edge in self.agent.edges.items():
            if r in edge.held and not self._is_believed(j, edge.link, r, edge.held[r][1]):
                found.append(Screened(j, r))
        return [*found, event]

    def _is_believed(self, neighbor: int, link: object, round: int, payload: Payload) -> bool:
        """Screen a payload. What is absurd is refused, what is in quarantine left aside."""
        frame = payload.handle
        if not isinstance(frame, bytes | bytearray | memoryview):
            return True
        absurd, why = self._judge.look(neighbor, round, frame)
        if absurd and link is not None:
            _link(link).refuse(RefusedError(Reason.SCREENED, why, round))
        elif why:
            self.monitor.count("screened", neighbor)
        return not why

    def _quarantined(self, neighbor: int, until: int) -> None:
        self.progress.quarantined[neighbor] = until
        self.monitor.count("quarantined", neighbor)
        self.monitor.warning("quarantined", neighbor=neighbor, until_round=until)

    def _do(self, effect: Effect) -> None:
        match effect:
            case Send():
                _link(effect.link).send(effect.message)
            case SendPayload():
                _link(effect.link).send_payload(effect.offer, effect.payload)
            case Reserve():
                _link(effect.link).reserve(effect.offer)
            case Refuse():
                reason = reason_of(effect.reason)
                _link(effect.link).refuse(RefusedError(reason, effect.text, effect.round))
            case Close():
                if effect.at_once:
                    _link(effect.link).abort()
                else:
                    _link(effect.link).close(effect.text)
            case Neighbors():
                self._meet()
            case Count():
                self.monitor.count(effect.name, effect.neighbor)
            case Note():
                tell = self.monitor.warning if effect.warning else self.monitor.event
                tell(effect.name, **effect.fields)
            case End():
                self._done = effect.done
                self._end()
            case Fail():
                self._error = RoundError(f"vertex {self.settings.vertex}: {effect.why}")
                self._end()
            case _:
                if isinstance(effect, Finish):
                    self._alone_since = effect.alone_since if effect.alone_since >= 0 else None
                    self._removed = effect.removed
                self._tasks.put(effect)

    def _end(self) -> None:
        self._ended = True
        self._tasks.put(None)

    def _failed(self, error: BaseException) -> None:
        """Something went wrong that nobody here can mend: `run` raises it."""
        if self._error is None:
            self._error = error
        self._end()

    # --- time ---------------------------------------------------------------------------

    def _set_alarm(self) -> None:
        """Have the clock wake in time; where it wakes earlier, that does no harm."""
        deadline = self.agent.next_deadline()
        if deadline is not None and (self._wakes_at is None or deadline < self._wakes_at):
            self._wakes_at = deadline
            self._alarms.put(_Alarm.SET)

    def _keep_time(self) -> None:
        while True:
            with self._lock:
                self._wakes_at = wakes_at = self.agent.next_deadline()
            wait_s = None if wakes_at is None else max(0.0, wakes_at - time.monotonic())
            try:
                alarm = self._alarms.get(timeout=wait_s)
            except queue.Empty:
                self.deliver(Tick())
                continue
            if alarm is _Alarm.END:
                return
            if alarm is _Alarm.STOP:
                self.deliver(Stopped())


class _Alarm(Enum):
    """Why the clock wakes before its time."""

    SET = "set"
    STOP = "stop"
    END = "end"


def _begins_a_round(task: Task) -> bool:
    return isinstance(task, Train) or (isinstance(task, ToJournal) and task.early)


def _app_of(settings: PeerSettings) -> tuple[App, dict[str, str]]:
    """The app that the settings name, and what neighbors must have in common with it."""
    arrays, _ = read_start(settings.start)
    app = agent_of(settings, load_app(settings), arrays)
    size = sum(vector.n_bytes for vector in app.vectors)
    settings.policy.check_payload(size, "a payload of this model and rule")
    start = xxhash.xxh3_64()
    for name, array in arrays.items():
        start.update(name.encode())
        start.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return app, {
        "algorithm": json.dumps(settings.algorithm.to_config(), sort_keys=True),
        "layout": digest_of_layout(app.layout),
        "start": start.hexdigest(),
        "app": digest_of_code(settings.app),
        "compression": str(settings.compression),
    }


def digest_of_layout(layout: Layout) -> str:
    """What neighbors compare of their models: names, shapes and dtypes of the arrays."""
    return xxhash.xxh3_64_hexdigest(json.dumps(layout.to_config()).encode())


def _link(link: object) -> StreamLink:
    """What the protocol calls a connection: the transport has put it into the event."""
    return cast(StreamLink, link)


def _payload(outgoing: Outgoing) -> Payload:
    return Payload(outgoing.checksum, outgoing)
