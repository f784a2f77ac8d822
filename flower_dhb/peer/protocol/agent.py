"""One agent: the phases of its life, and the order of its rounds.

    effects = agent.handle(event, now)

No threads, sockets, files, clocks or logs: a shell turns what happens into events, and does
what the effects say, one after the other. `now` is in seconds of any clock that never goes
back. The same object serves the daemon of a device and a simulator in virtual time.

Order of a round: train; journal (own payload, and with it the right to vote); share; agree
with each neighbor whether the edge counts; combine; save, while the next round trains.
Nothing leaves before what it promises is on the disk.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from enum import Enum
from typing import Any

from flower_dhb.peer.protocol.edge import Connection, Edge
from flower_dhb.peer.protocol.edition import Edition
from flower_dhb.peer.protocol.effects import (
    Close,
    Combine,
    Count,
    Effect,
    End,
    Fail,
    Finish,
    Journal,
    Note,
    Rejoin,
    Save,
    Send,
    Train,
)
from flower_dhb.peer.protocol.events import (
    Acknowledged,
    Announced,
    Arriving,
    Broken,
    Combined,
    Completed,
    Connected,
    Disconnected,
    Event,
    Finished,
    Greeted,
    Heard,
    Journaled,
    Left,
    LinkEvent,
    Offered,
    Payload,
    Rejoined,
    Released,
    Saved,
    Screened,
    Sought,
    Started,
    Stopped,
    Tick,
    Trained,
    TrainingFailed,
)
from flower_dhb.peer.protocol.messages import Goodbye, Seek
from flower_dhb.peer.protocol.neighborhood import Neighborhood
from flower_dhb.peer.protocol.rounds import EPOCH_BITS, epoch_of, part_of, round_of, where_to_join
from flower_dhb.peer.protocol.settings import Config

__all__ = ["Agent", "Phase"]

_FAILURES_LIMIT = 10  # rounds in a row
_UNKNOWN_PACE_S = 1.0
_FEW = 3  # rounds without a neighbor that are nothing to speak of


class Phase(Enum):
    """Of an agent's life."""

    LOADING = "loading"
    CONNECTING = "connecting"
    JOINING = "joining"
    TRAINING = "training"
    JOURNALING = "journaling"
    WAITING = "waiting"
    COMBINING = "combining"
    REJOINING = "rejoining"
    FINISHING = "finishing"
    LINGERING = "lingering"
    STOPPING = "stopping"
    STOPPED = "stopped"


_TIMED = frozenset({Phase.CONNECTING, Phase.REJOINING, Phase.LINGERING, Phase.STOPPING})


class Agent:
    """One agent of a run.

    record: that of the newest write which the disk holds whole, None if there is none. payload:
    the own payload in it, if it was a journal's. kept: own payloads of earlier rounds that
    `record["kept"]` names and the disk still holds.
    """

    def __init__(
        self,
        config: Config,
        now: float,
        *,
        record: Mapping[str, Any] | None = None,
        payload: Payload | None = None,
        kept: Mapping[int, Payload] | None = None,
    ) -> None:
        self.config = config
        self.phase = Phase.LOADING
        self._out: list[Effect] = []
        self.near = Neighborhood(config, self._out, now)
        origin = config.origin
        self.mixed = origin  # the last round in which a neighbor had a part
        self._alone = False
        self._planned = 0
        self._label = 0
        self._early_shared = False
        self._early, self._lasting = False, True  # of the newest payload
        self._until = now  # of whatever the phase waits for
        self._rests = False
        self._failures = 0
        self._epoch_began = 0
        self._pending: deque[tuple[type, int, Mapping[str, Any]]] = deque()
        self._resumes: Mapping[str, Any] | None = None
        self._edition = self.near.present.number  # of the newest round
        self._last_saved = -1  # the round that was saved as the last one
        self._ends = False  # the model was asked for
        if record is not None:
            self._restore(record, payload, kept or {}, now)
        elif origin:
            self.near.closed = self.near.round = origin
        if record is None:
            self.near.begin(config.epoch)
        self.near.meet(now, announced=False)

    # --- to be seen ---------------------------------------------------------------------

    @property
    def edges(self) -> dict[int, Edge]:
        """Edges by neighbor."""
        return self.near.edges

    @property
    def round(self) -> int:
        """The label of the payload that is shared now, or was last."""
        return self.near.round

    @property
    def closed(self) -> int:
        """The last round that has ended."""
        return self.near.closed

    @property
    def rounds(self) -> int:
        """The last round of the run, as far as this agent knows."""
        return self.near.rounds

    @property
    def stopped(self) -> bool:
        """Whether nothing that happens changes anything any more."""
        return self.phase is Phase.STOPPED

    @property
    def alone_since(self) -> int:
        """The last round in which a neighbor had a part, -1 if that was a few rounds ago."""
        began = self.closed > self.config.origin
        return self.mixed if began and self._alone_at(self.closed) else -1

    def _alone_at(self, round: int) -> bool:
        """Whether no neighbor will have had a part lately, if none has one until that round.

        Only rounds count in which anybody was due.
        """
        shared = self.near.present.shared_rounds(self.mixed, round)
        return shared > (0 if self.mixed == self.config.origin else _FEW)

    # --- one entrance -------------------------------------------------------------------

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Take an event. Returns what is to be done, in this order."""
        if self.stopped:
            return []
        if isinstance(event, LinkEvent):
            self._hear(event, now)
            if isinstance(event, Heard):  # the most frequent; it only moves a limit on
                return []
        else:
            _OWN[type(event)](self, event, now)
        if self.phase is not Phase.STOPPED:
            self._watch(now)
            self._progress(now)
            self.near.tidy(now, parts=not self.stopped)
        effects = self._out[:]
        self._out.clear()
        return effects

    def next_deadline(self) -> float | None:
        """When time alone changes something: a `Tick` is due then. None if it never does."""
        phase, near = self.phase, self.near
        if phase is Phase.STOPPED:
            return None
        limit = near.limit
        times = [limit(edge)[0] for edge in near.edges.values() if edge.link is not None]
        times += [near.parts_at(edge) for edge in near.parting()]
        if phase is Phase.WAITING:
            at = near.begun + self._pace_s() if self._rests else near.decided_at()
            if at is not None:
                times.append(at)
        elif phase in _TIMED:
            times.append(self._until)
        return min(times, default=None)

    def _hear(self, event: LinkEvent, now: float) -> None:
        edge = self.near.edges.get(event.neighbor)
        if edge is None:
            if isinstance(event, Connected):
                self._out.append(Close(event.link, "no neighbor"))
            return
        if isinstance(event, Connected):
            self.near.connected(edge, event, now)
            return
        if edge.link is None or event.link != edge.link:
            return
        edge.heard_at = now
        kind = type(event)
        if kind is Heard:
            return
        if kind is Disconnected or kind is Greeted or edge.connection is Connection.UP:
            _OF_LINK[kind](self.near, edge, event, now)

    def _watch(self, now: float) -> None:
        near = self.near
        limit = near.limit
        for edge in near.edges.values():
            if edge.link is not None:
                at, why = limit(edge)
                if now >= at:
                    near.cut(edge, why, now)

    # --- events of one's own ------------------------------------------------------------

    def _started(self, event: Started, now: float) -> None:
        near, timing = self.near, self.config.timing
        if self._resumes is not None:
            found, self._resumes = self._resumes, None
            self._label, self._planned = found["round"], found["trained_as"]
            near.begun = now
            near.share(self._label, now, resumed=True)
            if found["early"]:
                self._train(now, shared=True)
            else:
                self.phase = Phase.WAITING
        else:
            self.phase, self._until = Phase.CONNECTING, now + timing.start_s

    def _announced(self, event: Announced, now: float) -> None:
        near, edition = self.near, event.edition
        if event.timing is not None and event.timing != self.config.timing:
            self.config = replace(self.config, timing=event.timing)
            near.retime(self.config)
        last = near.last
        if not near.editions.learn(edition):
            return
        for edge in near.up():
            if last < edge.shares not in edge.held and edge.receiving_since is None:
                # Its payload was refused as beyond the run, and is to come again.
                near.greet_anew(edge, "the run goes on", now)
        fields = {"edition": edition.number, "begins": edition.begins, "rounds": edition.rounds}
        self._out.append(Note("edition", fields, warning=False))
        near.meet(now)

    def _trained(self, event: Trained, now: float) -> None:
        if self.phase is not Phase.TRAINING:
            return
        if self._early_shared:
            self._failures = 0
            self.phase = Phase.WAITING
            return
        target = self.near.target(now)
        if self._absent(target):
            self._seek(now)
            return
        label = max(target, self._planned)
        if self.near.editions.next(label - 1) != label:  # the mesh has changed meanwhile
            self._next(now)
            return
        self._journal(label, early=False)
        if self._label != self._planned:
            fields = {"round": self._label, "trained_as": self._planned}
            self._out.append(Note("caught-up", fields, warning=False))

    def _failed(self, event: TrainingFailed, now: float) -> None:
        if self.phase is not Phase.TRAINING:
            return
        label = max(self._planned, self._label) if self._early_shared else self._planned
        self._failures += 1
        self._out.append(Count("app-failed"))
        self._out.append(Note("app-failed", {"round": label, "why": event.why}))
        self.near.skip(label)
        self._save(event.why)
        if self._failures >= _FAILURES_LIMIT:
            self._stop()
            self._out.append(
                Fail(
                    f"the app failed in {self._failures} rounds in a row, last in round {label}: "
                    f"{event.why}"
                )
            )
            return
        self.phase = Phase.WAITING

    def _journaled(self, event: Journaled, now: float) -> None:
        label, near = self._label, self.near
        if self._lasting:
            record = self._on_disk(Journal, label)
            number = record["open"]["edition"]
            about = record["closed"], record["epoch"], number, record["edges"]
            near.journaled(label, event.payload, *about)
        else:
            near.keep(label, event.payload, near.epoch, self._edition, lasting=False)
        if self.phase is not Phase.JOURNALING:
            return
        near.share(label, now)
        if self._early:
            self._train(now, shared=True)
        else:
            self._failures = 0
            self.phase = Phase.WAITING

    def _saved(self, event: Saved, now: float) -> None:
        if not any(kind is Save and k == event.round for kind, k, _ in self._pending):
            return  # a later record said so before
        record = self._on_disk(Save, event.round)
        self.near.durable(record["closed"], record["epoch"], record["edges"])
        rests = self.phase is Phase.FINISHING or (
            self.phase is Phase.WAITING and self.near.current is None
        )
        if rests and self._is_over() and event.round == self.closed:
            self._finish()

    def _on_disk(self, wanted: type, round: int) -> Mapping[str, Any]:
        """A record that was in line is on the disk, and with it all before: take them out."""
        while True:
            kind, k, record = self._pending.popleft()
            if kind is wanted and k == round:
                return record

    def _screened(self, event: Screened, now: float) -> None:
        self.near.screened(self.edges[event.neighbor], event.round)

    def _combined(self, event: Combined, now: float) -> None:
        if self.phase is Phase.COMBINING:
            self.near.broken = self.near.broken or event.refused
            self._save()
            self._next(now)

    def _rejoined(self, event: Rejoined, now: float) -> None:
        if self.phase is not Phase.COMBINING:
            return
        if event.failure:
            self._stop()
            self._out.append(Fail(f"could not begin again from the neighbors: {event.failure}"))
            return
        self.near.skip(self._label)
        self.mixed = self._label
        self._out.append(Count("rejoined"))
        self._save()
        self._next(now)

    def _finished(self, event: Finished, now: float) -> None:
        near = self.near
        near.final = event.final
        for edge in near.up():
            done = self.closed > self.config.origin  # who was in no round has ended none
            goodbye = Goodbye(done, "finished", near.told_counted(edge), self.closed)
            self._out.append(Send(edge.link, goodbye))
        self.phase, self._until = Phase.LINGERING, now + self.config.timing.linger_s

    def _is_over(self) -> bool:
        """Whether there is no later round in which this agent is a member of the mesh."""
        return self.near.editions.next(self.closed) is None

    def _goes_on(self, now: float) -> None:
        """There are rounds again, after the end: say so to all, by Hellos on new connections."""
        self.near.final, self._ends = None, False
        for edge in self.edges.values():
            if edge.link is not None:
                self.near.greet_anew(edge, "the run goes on", now)
        self._out.append(Note("goes-on", {"rounds": self.rounds}, warning=False))
        self.phase, self._until = Phase.CONNECTING, now + self.config.timing.start_s

    def _stopped(self, event: Stopped, now: float) -> None:
        """Go, but not between two votes: for the second one there is a little time."""
        again = self.phase is Phase.STOPPING
        self.phase = Phase.STOPPING
        self._until = now if again else now + self.config.timing.reconnect_s

    def _tick(self, event: Tick, now: float) -> None:
        pass

    def _stop(self) -> None:
        self.phase = Phase.STOPPED
        for edge in self.edges.values():
            if edge.link is not None:
                self._out.append(Close(edge.link, "stopping"))

    # --- what follows from where everybody is -------------------------------------------

    def _progress(self, now: float) -> None:
        if self.phase is Phase.CONNECTING:
            # Whoever comes back finds a run under way: one neighbor is enough to go on. Whoever
            # begins late may find one too: the other neighbors get a moment to connect.
            due = self.near.due()
            missing = [edge.neighbor for edge in due if not edge.up]
            origin = self.config.origin
            least = min(1, len(due)) if self.closed > origin else len(due)
            if any(e.closed > origin or e.wants > origin + 1 for e in self.near.up()):
                self._until = min(self._until, now + self.config.timing.reconnect_s)
            if self._is_over() or self._joins or len(due) - len(missing) >= least:
                self._next(now)
            elif now >= self._until:
                self._out.append(Note("starting-without", {"neighbors": missing}))
                self._next(now)
        elif self.phase is Phase.WAITING:
            self._wait(now)
        elif self.phase is Phase.JOINING:
            self._try_join(now)
        elif self.phase is Phase.REJOINING:
            self._try_rejoin(now)
        elif self.phase is Phase.FINISHING:
            if not (self._ends or self._is_over()):
                self._next(now)
        elif self.phase is Phase.STOPPING:
            if now >= self._until or not self.near.half_agreed():
                self.near.withdraw()
                self._stop()
                self._out.append(End(self.near.final is not None))
        elif self.phase is Phase.LINGERING:
            if not self._is_over():
                self._goes_on(now)
            elif now >= self._until or all(edge.done for edge in self.edges.values()):
                self._stop()
                self._out.append(End(True))

    def _wait(self, now: float) -> None:
        """End the round, or the rest after one without a payload, when its time has come."""
        near = self.near
        open_here = near.round > near.closed
        if open_here and any(near.wait_s(edge, now) > 0.0 for edge in near.edges.values()):
            self._rests = False
            return
        alone = not (open_here and any(edge.agreed for edge in near.edges.values()))
        if open_here and near.present.neighbors and not near.present.due(near.round):
            alone = False  # by schedule: nobody is to set the pace
        self._rests = alone and now < self.near.begun + self._pace_s() and not self._falls_back(now)
        if self._rests:
            return
        if open_here:
            self._close(now)
        else:
            self._next(now)

    def _falls_back(self, now: float) -> bool:
        """Whether neighbors are well ahead, so that to rest would be to fall behind further."""
        here = max(self.round, self.closed + 1)
        ahead = self.near.editions.shared_rounds(here, self.near.target(now))
        return ahead > max(1, self.config.away_rounds // 2)

    def _pace_s(self) -> float:
        """The usual time of a round, kept where no neighbor sets it.

        An agent that is cut off, or whose app fails at once, would else run ahead through
        all rounds, and take its neighbors with it when it is back.
        """
        of_others = (edge.patience.usual_s for edge in self.near.up())
        return self.near.own_pace.usual_s or max(of_others, default=0.0) or _UNKNOWN_PACE_S

    def _next(self, now: float) -> None:
        """Take part in the next round, or begin again from the neighbors after an absence."""
        if self._is_over():
            self._end_run()
            return
        self.near.begun = now
        target = self.near.target(now)
        if self.near.editions.next(target - 1) != target and target > self.closed + 1:
            self.near.skip(target - 1)  # the others are where this agent is no member
            self._save()
        if self._is_over():
            self._end_run()
            return
        if self._joins:
            self.phase = Phase.JOINING
            return
        if self._absent(target):
            self._seek(now)
            return
        self._begin(target, now)

    def _begin(self, target: int, now: float) -> None:
        """Take part in a round."""
        self._planned = target
        self._renew(target, target)
        if self.config.early:
            self._journal(target, early=True)
        else:
            self._train(now, shared=False)

    def _end_run(self) -> None:
        """Finish once the last round is on the disk."""
        self.phase = Phase.FINISHING
        if self.near.is_durable:
            self._finish()
        elif self._last_saved != self.closed:  # it was not known to be the last
            self._save(again=True)

    def _train(self, now: float, *, shared: bool) -> None:
        self.phase, self._early_shared = Phase.TRAINING, shared
        due = self.near.editions.then(self._planned).due(self._planned)
        self._out.append(Train(self._planned, self.near.epoch, bool(due)))

    def _journal(self, label: int, *, early: bool) -> None:
        self.phase, self._label = Phase.JOURNALING, label
        edition = self.near.current = self.near.editions.then(label)
        number = self._edition = edition.number
        record = self._record()
        about = {"round": label, "trained_as": self._planned, "early": early, "edition": number}
        record["open"] = about
        self._early, self._lasting = early, self._must_last(edition, label)
        if self._lasting:
            self._pending.append((Journal, label, record))
        fields = (label, self._planned, self.near.epoch, early, record, number, self._lasting)
        self._out.append(Journal(*fields))

    def _must_last(self, edition: Edition, label: int) -> bool:
        """Whether a payload must be on the disk: not if nobody is due, and none can count it.

        It is given to those who begin again, so what it says of the rounds before must be there:
        the end of the last one that was shared.
        """
        before = self.near.editions.shared_rounds(self.near.told_closed, label - 1)
        return bool(edition.due(label)) or before > 0

    def _close(self, now: float) -> None:
        used = self.near.close(self._label, now)
        if used:
            self.mixed, self._alone = self._label, False
        elif not self._alone and self.alone_since >= 0:
            self._alone = True
            self._out.append(Note("alone", {"since": self.alone_since}))
        self.phase = Phase.COMBINING
        self._out.append(Combine(self._label, self._planned, used, self._edition))

    def _save(self, failure: str = "", *, again: bool = False) -> None:
        record, last = self._record(), self._is_over()
        self._pending.append((Save, self.closed, record))
        if last:
            self._last_saved = self.closed
        self._out.append(Save(self.closed, record, failure, self._edition, last, again))

    def _finish(self) -> None:
        if self._ends:
            return
        self.phase, self._ends = Phase.FINISHING, True
        removed = not self.near.editions.newest.member
        self._out.append(Finish(self.alone_since, self.closed + 1, removed))

    # --- absence ------------------------------------------------------------------------

    def _absent(self, target: int) -> bool:
        """Whether this agent was away for so long that its state is of no use to the others.

        Only rounds count in which anybody was due: in the others it could have missed nothing.
        """
        missed = self.near.editions.shared_rounds(self.closed, target - 1)
        if missed > self.config.away_rounds:
            return True
        up = self.near.up()  # with whom could it share the rounds that are left?
        over = bool(up) and all(edge.done and edge.wants >= self.rounds for edge in up)
        return over and self._alone_at(self.rounds)

    @property
    def _joins(self) -> bool:
        """Whether there are rounds without this agent before its next: it begins from the others'.

        It was no member, or is new, or has lost all that it had.
        """
        return self.near.editions.next(self.closed) != self.closed + 1

    def _try_join(self, now: float) -> None:
        """Begin from neighbors that are about to begin the first round that this agent is in.

        Without any it waits: what it could begin with would lead the others astray.
        """
        near = self.near
        first = near.editions.next(self.closed)
        if first is None:
            self._end_run()
        elif any(self._comes_from(edge) >= first - 1 for edge in near.up()):
            self._seek(now)

    def _seek(self, now: float) -> None:
        """Ask for the payloads of those that are ahead."""
        self.phase, self._until = Phase.REJOINING, now + self.config.timing.ceiling_s
        self.near.seeking = True
        self.near.begun = now
        for edge in self.near.up():
            self._out.append(Send(edge.link, Seek()))
            edge.sought = True

    def _comes_from(self, edge: Edge) -> int:
        """The round of which a neighbor has a payload to begin from, as far as it has said."""
        if self._joins and not edge.done:
            return max(edge.wants, edge.closed)
        return edge.wants

    def _try_rejoin(self, now: float) -> None:
        near, rounds = self.near, self.rounds
        target = near.target(now)
        gone = self._is_over() or not (self._joins or self._absent(target))
        if gone:  # whoever was ahead, or the rounds that were
            self._end_search()
            self._next(now)
            return
        sources, waiting = {}, []
        for j, edge in sorted(self.edges.items()):
            newest = edge.newest()
            if newest and self._is_recent(newest[0] - edge.held[newest[0]][0].final, target):
                sources[j] = newest
            elif edge.up and self._is_recent(self._comes_from(edge), target) and not edge.seeking:
                if not edge.sought:
                    self._out.append(Send(edge.link, Seek()))
                    edge.sought = True
                waiting.append(edge)
        if sources:
            self._until = min(self._until, now + self.config.timing.reconnect_s)
        if waiting and now < self._until:
            return
        # Who has finished gives its model, as of the round after its last.
        ended = {j: k - self.edges[j].held[k][0].final for j, (k, _) in sources.items()}
        self._end_search()
        if not sources:
            for edge in waiting:
                near.cut(edge, "no-payload", now)
            self._next(now)
            return
        self._label = min(where_to_join(ended.values()), rounds)
        if self._joins:  # their payloads are of before, where no exchange has been due since
            self._label = max(self._label, (near.editions.next(self.closed) or 1) - 1)
        self._edition = near.editions.then(self._label).number
        if self.config.conserves:
            self._lose_memory(self._label)
        self._out.append(
            Note(
                "rejoined",
                {
                    "round": self._label,
                    "missed": self._label - self.closed - 1,
                    "neighbors": sorted(sources),
                },
            )
        )
        self.phase = Phase.COMBINING
        self._out.append(Rejoin(self._label, near.epoch, sources, self._edition))

    def _is_recent(self, round: int, target: int) -> bool:
        """Whether a payload of a round is one to begin again from, where others are in `target`."""
        since = self.near.editions.shared_rounds(round, target)
        return round > self.closed and since <= self.config.away_rounds

    def _end_search(self) -> None:
        self.near.seeking = False
        for edge in self.edges.values():
            edge.sought = False
            for k in [k for k, (offer, _) in edge.held.items() if offer.final]:
                del edge.held[k]

    # --- memory that the law conserves ----------------------------------------------------

    def _lose_memory(self, label: int) -> None:
        """Begin again without memory after a round: who may have had a part has broken the mean."""
        editions = self.near.editions
        before, after = editions.at(label), editions.then(label + 1)
        is_new = after.members_since == after.number
        if before is not None:
            is_new = before.members_since != after.members_since
        self._renew(label, label + 1, lost=not is_new)

    def _renew(self, target: int, label: int, *, lost: bool = False) -> None:
        """Take the newest epoch; begin one if a mean that the rule conserves was broken.

        In an epoch all memory grows from zero, so its mean is right again once all are in it.
        Where the set of members has changed, all members know the epoch that begins.
        """
        near = self.near
        if not self.config.conserves:
            return
        first = epoch_of(near.editions.then(label))
        if part_of(first) > part_of(near.epoch):
            near.broken = False
        near.broken = near.broken or lost
        newest = max(first, near.epochs_seen.get(part_of(first), 0))
        if newest > near.epoch:
            near.epoch = newest
            self._epoch_began = target
        if near.broken and (
            not self._epoch_began or target >= self._epoch_began + self.config.away_rounds
        ):
            begins = max(target, round_of(near.epoch) + 1)
            near.epoch = first + (begins << EPOCH_BITS) + 2 * self.config.vertex
            near.epochs_seen[part_of(first)] = near.epoch
            near.broken, self._epoch_began = False, target
            self._out.append(Note("epoch", {"round": target}))

    # --- on the disk --------------------------------------------------------------------

    def _record(self) -> dict[str, Any]:
        near = self.near
        kept = sorted(k for k in near.kept if k != near.unwritten)
        return {
            "open": None,
            "closed": near.closed,
            "label": near.round,
            "mixed": self.mixed,
            "pace": near.own_pace.usual_s,
            "epoch": near.epoch,
            "epoch_began": self._epoch_began,
            "broken": near.broken,
            "kept": kept,
            "epochs": [near.epochs[k] for k in kept],
            "editions": [near.numbers[k] for k in kept],
            "edges": near.record(),
        }

    def _restore(
        self,
        record: Mapping[str, Any],
        payload: Payload | None,
        kept: Mapping[int, Payload],
        now: float,
    ) -> None:
        near = self.near
        near.closed, near.round, self.mixed = record["closed"], record["label"], record["mixed"]
        near.own_pace.usual_s = record["pace"]
        near.epoch = record["epoch"]
        near.epochs_seen[part_of(near.epoch)] = near.epoch
        near.broken, self._epoch_began = record["broken"], record["epoch_began"]
        edges = {int(j): edge for j, edge in record["edges"].items()}  # JSON's keys are texts
        numbers = record.get("editions") or [1] * len(record["kept"])  # of a version without
        for k, epoch, number in zip(record["kept"], record["epochs"], numbers, strict=True):
            if k in kept:
                near.keep(k, kept[k], epoch, number)
        found = record["open"]
        if found is not None:
            self._edition = number = found.get("edition", 1)
            near.current = near.editions.get(number)
            if near.current is None:
                raise ValueError(
                    f"the record's open round is of edition {number} of the mesh, which is missing"
                )
        near.remember(edges, now)
        if found is None:
            near.durable(near.closed, near.epoch, edges)
        else:
            if payload is None:
                raise ValueError("the record is of an open round: its payload is needed")
            about = near.closed, near.epoch, self._edition, edges
            near.journaled(found["round"], payload, *about)
            self._resumes = found


_OF_LINK: dict[type, Callable[..., None]] = {
    Disconnected: Neighborhood.disconnected,
    Greeted: Neighborhood.greeted,
    Offered: Neighborhood.offered,
    Completed: Neighborhood.completed,
    Broken: Neighborhood.broken_off,
    Arriving: Neighborhood.arriving,
    Acknowledged: Neighborhood.acknowledged,
    Released: Neighborhood.released,
    Sought: Neighborhood.sought,
    Left: Neighborhood.left,
}
_OWN: dict[type, Callable[..., None]] = {
    Started: Agent._started,
    Announced: Agent._announced,
    Trained: Agent._trained,
    TrainingFailed: Agent._failed,
    Journaled: Agent._journaled,
    Saved: Agent._saved,
    Screened: Agent._screened,
    Combined: Agent._combined,
    Rejoined: Agent._rejoined,
    Finished: Agent._finished,
    Tick: Agent._tick,
    Stopped: Agent._stopped,
}
