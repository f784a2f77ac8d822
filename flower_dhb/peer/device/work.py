"""What a peer's own thread does for the protocol: it calls the app, and hands on what to write."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from flower_dhb.errors import StateError
from flower_dhb.peer.device import disk
from flower_dhb.peer.device.app import Agent as App
from flower_dhb.peer.device.app import Outcome
from flower_dhb.peer.device.disk import Writer
from flower_dhb.peer.device.editions import Editions
from flower_dhb.peer.device.journal import Contents, Found
from flower_dhb.peer.device.judge import Judge
from flower_dhb.peer.device.model import Model
from flower_dhb.peer.device.part import Part
from flower_dhb.peer.device.settings import PeerSettings
from flower_dhb.peer.monitor import Monitor
from flower_dhb.peer.protocol.effects import Combine, Finish, Free, Journal, Rejoin, Save, Train
from flower_dhb.peer.protocol.events import (
    Combined,
    Event,
    Finished,
    Journaled,
    Payload,
    Rejoined,
    Saved,
    Trained,
    TrainingFailed,
)
from flower_dhb.peer.watch.history import History
from flower_dhb.peer.watch.recorder import Recorder
from flower_dhb.peer.watch.status import Progress
from flower_dhb.peer.wire.changes import Change, follow
from flower_dhb.peer.wire.frames import Bytes, Outgoing, relabel

__all__ = ["Task", "Work"]

Task = Train | Journal | Combine | Rejoin | Save | Free | Finish


@dataclass(frozen=True)
class _Round:
    """A round under way.

    frame: own payload, under its label. change: what may be sent in its place. outgoing: both,
    once they are on the disk.
    """

    begun: float = field(default_factory=time.monotonic)
    train_s: float = 0.0
    metrics: Mapping[str, Any] = field(default_factory=dict)
    frame: bytes | None = None
    change: Change | None = None
    outgoing: Outgoing | None = None


class Work:
    """Does the protocol's tasks one after the other, and says when each is done.

    editions: what holds in which edition of the mesh. deliver takes the events. part: what is not
    on the disk, if it is one in a run that is led from elsewhere. All numerical work is the app's
    and the rule's.
    """

    def __init__(
        self,
        settings: PeerSettings,
        editions: Editions,
        app: App,
        writer: Writer,
        progress: Progress,
        monitor: Monitor,
        recorder: Recorder,
        judge: Judge,
        deliver: Callable[[Event], None],
        part: Part | None = None,
    ) -> None:
        self._settings, self._editions = settings, editions
        self._app, self._disk = app, writer
        self._progress, self._monitor = progress, monitor
        self._recorder, self._judge = recorder, judge
        self._part = part
        self._history = part or History(settings.state_dir / "history.jsonl")
        self._deliver = deliver
        self._round = _Round()
        self._changes: tuple[Change, ...] = ()  # that lead to the last own payload
        self._line: dict[str, Any] = {}
        self._tell: list[Callable[[], None]] = []  # for the record

    def resume(self, found: Found, outgoing: Outgoing | None) -> None:
        """Go on from what the disk holds, and the app has loaded. outgoing: the open round's."""
        document = found.contents.document
        self._round = _Round(
            train_s=document["train-seconds"],
            metrics=document["train"],
            frame=found.payload,
            outgoing=outgoing,
        )
        self._changes = outgoing.changes if outgoing is not None else ()
        if found.payload is not None:
            label = Outgoing.of(found.payload).header.round
            self._judge.shares(label, found.payload, self._app.snapshot())

    def do(self, task: Task) -> None:
        """Do one task, in the order in which the protocol named them."""
        match task:
            case Train():
                self._train(task)
            case Journal():
                self._journal(task)
            case Combine():
                self._combine(task)
            case Rejoin():
                self._rejoin(task)
            case Save():
                self._save(task)
            case Free():
                self._disk.put(disk.Free(task.round))
            case Finish():
                self._finish(task)

    def close(self) -> None:
        """Close the files."""
        self._history.close()
        self._recorder.close()

    # --- tasks ----------------------------------------------------------------------------

    def _train(self, task: Train) -> None:
        begun = time.monotonic()
        early = self._round if self._app.knows_early else _Round()
        outcome = self._app.train(task.round, task.epoch, sends=task.due)
        if outcome.frame is None:
            self._deliver(TrainingFailed(outcome.failure))
            return
        self._round = _Round(
            begun,
            time.monotonic() - begun,
            dict(outcome.metrics),
            early.frame or outcome.frame,
            outcome.change,
            early.outgoing,
        )
        self._deliver(Trained())

    def _journal(self, task: Journal) -> None:
        frame, change = self._shared(task)
        if frame is None:
            raise StateError(f"round {task.round}: there is no payload to write down")
        if change is not None:
            self._changes = follow(self._changes, change, len(frame))
        elif self._editions.settings(task.edition).due(task.round):
            self._changes = ()  # this one goes whole, and changes of it come after it
        outgoing = Outgoing.of(frame, () if change is None else self._changes)
        self._round = replace(self._round, frame=frame, change=change, outgoing=outgoing)
        self._judge.shares(task.round, frame, self._app.snapshot())
        done = partial(self._deliver, Journaled(Payload(outgoing.checksum, outgoing)))
        if task.lasting:
            self._disk.put(disk.Payload(task.round, frame, self._contents(), task.record, done))
        else:
            done()

    def _shared(self, task: Journal) -> tuple[bytes | None, Change | None]:
        """The payload to share under its label, and what may be sent in its place."""
        if task.early:
            self._round = _Round()
            due = self._editions.settings(task.edition).due(task.round)
            early = self._app.early(task.round, task.epoch, sends=bool(due))
            return early.frame, early.change
        frame, change = self._round.frame, self._round.change
        if frame is None or task.round == task.trained_as:
            return frame, change
        if not self._app.compression.on:
            return relabel(frame, task.round), None
        again = self._app.relabel(task.round)
        return again.frame, again.change

    def _combine(self, task: Combine) -> None:
        label, k, done = task.round, task.trained_as, self._round
        if self._app.compression.on:
            k = label  # so that all agents of a round mix the same part of their payloads
        waited_s = time.monotonic() - done.begun - done.train_s
        received: dict[int, Bytes] = {j: _bytes(p) for j, p in task.payloads.items()}
        before = self._app.snapshot() if self._recorder.on else None
        payloads = {j: f if label == k else relabel(f, k) for j, f in received.items()}
        now = self._editions.settings(task.edition)
        evaluate = self._evaluates(label, now)
        measure = self._part is not None and label in self._part.measured
        combined = self._app.combine(
            k, payloads, evaluate=evaluate, weights=now.row(label), measure=measure
        )
        for text in combined.refused:
            self._monitor.count("refused.agent")
            self._monitor.warning("refused-by-app", why=text)
        after = self._app.snapshot()
        if before is not None and done.frame is not None:
            write = self._recorder.ended
            self._tell = [
                partial(write, label, k, done.frame, received, before, after, task.edition)
            ]
        missing = [j for j in now.due(label) if j not in received]
        metrics = {"train": dict(done.metrics), "evaluate": dict(combined.metrics)}
        flat = {**metrics["train"], **metrics["evaluate"]}
        self._progress.metrics |= {
            name: float(v) for name, v in flat.items() if isinstance(v, int | float)
        }
        seconds = time.monotonic() - done.begun
        self._progress.evaluated |= combined.metrics.keys()
        self._progress.evaluation_error = combined.failure
        self._progress.finished_round(
            label, seconds, after.state.parameters, train_s=done.train_s, wait_s=waited_s
        )
        for j in missing:
            self._monitor.count("missing", j)
        self._monitor.event(
            "round",
            round=label,
            seconds=round(seconds, 4),
            train_s=round(done.train_s, 4),
            wait_s=round(waited_s, 4),
            missing=missing,
            metrics={n: round(v, 5) for n, v in flat.items() if isinstance(v, float)},
        )
        self._line = {
            "seconds": seconds,
            "train_seconds": done.train_s,
            "wait_seconds": waited_s,
            "missing": missing,
            "bytes": self._sent(done, received),
            **metrics,
        }
        if self._settings.policy.on:
            self._line["policy"] = str(self._settings.policy)
        if measure:
            self._line["sketch"] = combined.sketch
        self._deliver(Combined(refused=bool(combined.refused)))

    def _rejoin(self, task: Rejoin) -> None:
        newest: dict[int, tuple[int, Bytes]] = {}
        for j, (k, payload) in task.payloads.items():
            frame = _bytes(payload)
            # The model of one that has finished is no round's; here it is the last one's.
            newest[j] = (k, frame) if k <= task.round else (task.round, relabel(frame, task.round))
        now = self._editions.settings(task.edition)
        newest, weights = _sources(now, newest)
        try:
            # Where the rule conserves something, the agent opens the epoch after the one named.
            outcome: Outcome = self._app.rejoin(
                newest,
                evaluate=self._evaluates(task.round, now),
                epoch=max(task.epoch - 1, 0),
                weights=weights,
            )
        except StateError as error:
            self._deliver(Rejoined(str(error)))
            return
        snapshot = self._app.snapshot()
        self._progress.round, self._progress.parameters = task.round, snapshot.state.parameters
        if self._recorder.on:
            self._tell = [partial(self._recorder.rejoined, task.round, snapshot)]
        self._line = {
            "rejoined": True,
            "neighbors": sorted(newest),
            "evaluate": dict(outcome.metrics),
        }
        self._deliver(Rejoined())

    def _save(self, task: Save) -> None:
        line: dict[str, Any] = {"failure": task.failure} if task.failure else self._line
        if task.failure:
            self._progress.round = task.round
        elif self._progress.alone_since is not None:
            line["alone_since"] = self._progress.alone_since
        due = task.round % self._settings.checkpoint_every == 0 or task.last
        tell: list[Callable[[], None]] = []
        if not task.again:  # else its story is told
            told = {"round": task.round, **line}
            tell = [*self._tell, partial(self._history.append, told, durable=due)]
        self._line, self._tell = {}, []
        done = partial(self._deliver, Saved(task.round))
        contents = self._contents(trained=False)
        self._disk.put(disk.State(task.round, contents, task.record, tell, due, done))

    def _finish(self, task: Finish) -> None:
        outgoing = Outgoing.of(self._app.final(task.round))
        if self._part is not None:
            self._deliver(Finished(Payload(outgoing.checksum, outgoing)))
            return
        snapshot = self._app.snapshot()
        model = Model(
            layout=self._app.layout,
            parameters=snapshot.state.parameters,
            statistics=snapshot.statistics,
            local=snapshot.local,
            run=self._settings.run,
            mesh=self._settings.mesh,
            vertex=self._settings.vertex,
            round=task.round - 1,
        )
        path = self._settings.state_dir / "model.safetensors"

        def done() -> None:
            fields: dict[str, Any] = {"round": task.round - 1}
            if task.removed:
                fields["removed"] = f"from round {task.round} on"
            if task.alone_since >= 0:
                self._monitor.warning("finished", **fields, alone_since=task.alone_since)
            else:
                self._monitor.event("finished", **fields)
            self._deliver(Finished(Payload(outgoing.checksum, outgoing)))

        self._disk.put(disk.Model(path, b"".join(model.pieces()), done))

    # --- parts ------------------------------------------------------------------------------

    def _contents(self, *, trained: bool = True) -> Contents:
        arrays, records = self._app.save()
        done = self._round if trained else _Round()
        document = {
            "agent-round": self._app.round,
            "records": records,
            "train": dict(done.metrics),
            "train-seconds": done.train_s,
        }
        return Contents(arrays, document)

    def _sent(self, done: _Round, received: Iterable[int]) -> int:
        """Bytes of the own payload, as they were sent to those whose payloads counted."""
        sent = done.outgoing.sent if done.outgoing is not None else {}
        return sum(sent.get(j, len(done.frame or b"")) for j in received)

    def _evaluates(self, label: int, now: PeerSettings) -> bool:
        if self._part is not None:
            return label in self._part.evaluated
        every = now.evaluate_every
        return bool(every) and (label % every == 0 or label == self._progress.rounds)


def _sources(
    now: PeerSettings, newest: dict[int, tuple[int, Bytes]]
) -> tuple[dict[int, tuple[int, Bytes]], Mapping[int, float]]:
    """Whose payloads an agent begins again from, and the weights by which it does.

    They are those of its edition, of a period the mean. Where only neighbors of another edition are
    there, all of them weigh the same.
    """
    near = {j: found for j, found in newest.items() if j in now.weights}
    if near:
        return near, now.weights
    share = 1.0 / (len(newest) + 1)
    return newest, dict.fromkeys([now.vertex, *newest], share)


def _bytes(payload: Payload) -> Bytes:
    """What a neighbor sent, as the wire handed it over."""
    handle = payload.handle
    if not isinstance(handle, bytes | bytearray | memoryview):
        raise TypeError(f"expected the bytes of a payload, got {type(handle).__name__}")
    return handle
