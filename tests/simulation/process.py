"""An agent's shell in virtual time: does what the effects say, and may die between any two."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from flower_dhb.peer.protocol.edition import Editions
from flower_dhb.peer.protocol.effects import (
    Close,
    Combine,
    Count,
    Effect,
    End,
    Fail,
    Finish,
    Free,
    Journal,
    Neighbors,
    Note,
    Refuse,
    Rejoin,
    Reserve,
    Save,
    Send,
    SendPayload,
    Train,
)
from flower_dhb.peer.protocol.events import (
    Announced,
    Combined,
    Event,
    Finished,
    Heard,
    Journaled,
    LinkEvent,
    Offered,
    Payload,
    Rejoined,
    Started,
    Stopped,
    Tick,
    Trained,
    TrainingFailed,
)
from flower_dhb.peer.protocol.messages import Ack, Hello
from flower_dhb.peer.protocol.settings import Config

from .app import State
from .disk import Disk, Write
from .field import digest
from .net import NEVER, connect
from .net import End as LinkEnd
from .watch import TELLING

if TYPE_CHECKING:
    from .world import World

__all__ = ["Host", "Process"]


class Host:
    """What outlives a process: the disk, and the story that the app's state tells.

    state: the app's, now. closed: the last round with a verdict on the way to it. verdicts: by
    round, the digest of the own payload, and for each neighbor that counted its digest and what
    it moved. order: rounds with a verdict. flux: sum of what neighbors moved, on the way to the
    newest verdict. known: numbers of the mesh's editions that are on the disk; editions_used: the
    one that each verdict is of. past_flux: the same on ways that ended with a lost disk. twin: it
    is the second instance of an agent that was started twice.
    """

    def __init__(self, world: World, vertex: int) -> None:
        self.world, self.vertex = world, vertex
        self.pace = world.plan.paces[vertex]
        self.config = world.plan.configs[vertex]
        self.neighbors = world.plan.neighbors[vertex]
        self.known = [world.plan.joined[vertex]]
        self.editions_used: dict[int, int] = {}
        self.start_x = world.start_x
        self.state = self.first_state()
        self.disk = Disk(world, self.pace.disk_s)
        self.closed = self.config.origin
        self.verdicts: dict[int, tuple[int, dict[int, tuple[int, int, int]]]] = {}
        self.order: list[int] = []
        self.flux = self.past_flux = 0
        self.process: Process | None = None
        self.twin = False
        self.lives = 0
        self.outcome = "not started"
        self.due = 0  # restarts that are on their way

    def first_state(self) -> State:
        """The state of an empty disk."""
        return State(self.start_x, mixed=self.config.origin)

    def begin(self, _a: object = None, _b: object = None) -> None:
        """Start a process on what the disk holds."""
        self.due -= 1
        if self.process is not None:
            return
        self.lives += 1
        self.outcome = "running"
        newest = len(self.world.plan.meshes)
        if self.world.now > self.world.faults.spread_at and newest > max(self.known):
            self.known.append(newest)
        self.process = Process(self)
        self.world.watch.began(self)
        self.process.start()

    def weights(self, number: int, round: int) -> dict[int, int]:
        """Mixing weights of a round in an edition of the mesh, by neighbor."""
        mesh = self.world.plan.meshes[number - 1]
        return {j: mesh.weight(self.vertex, j, round) for j in mesh.row(self.vertex).due(round)}

    def editions(self) -> Config:
        """What a process knows when it begins: its disk's editions that are not over."""
        record = self.disk.read()["record"]
        known = Editions(self.world.plan.meshes[n - 1].row(self.vertex) for n in self.known)
        oldest = known.then((record["closed"] if record else self.config.origin) + 1).number
        if record and record["open"]:
            oldest = min(oldest, record["open"]["edition"])
        kept = [e for e in known.known if e.number >= oldest or self.world.random() < 0.3]
        return replace(self.config, editions=tuple(kept))

    @property
    def over(self) -> bool:
        """Whether it takes part in no later round, as far as its disk knows."""
        known = Editions(self.world.plan.meshes[n - 1].row(self.vertex) for n in self.known)
        return known.next(self.closed) is None

    def reload(self) -> None:
        """The state is that of the newest write; verdicts after it were never made."""
        writes = self.disk.writes
        newest = writes[-1] if writes else None
        state = newest.state if newest is not None else self.first_state()
        closed = newest.closed if newest is not None else self.config.origin
        self.world.watch.rolled_back(self, state, closed)
        self.state = state


class Process:
    """One life of an agent.

    ends: open connections by link. current: the newest by neighbor. told: the last round that a
    neighbor said, in this life of both, to have ended. fuse: effects until a crash.
    untried: it has not trained yet. waited:
    neighbors that a deadline was for, with nothing under way on a whole connection to them.
    stopped_at: when it was told to end, by its own clock. failed_in: the last round in which its
    app failed.
    storing: editions of the mesh on their way to the disk. edition: of the newest own payload.
    left_out: by neighbor, rounds on a connection in which it was sent nothing.
    """

    __slots__ = (
        "alive",
        "attempts",
        "base",
        "beats",
        "core",
        "current",
        "dialing",
        "disk",
        "edition",
        "ends",
        "failed_in",
        "fuse",
        "fuse_kind",
        "host",
        "inbox",
        "latest",
        "left_out",
        "lies",
        "life",
        "notes",
        "paused",
        "rang_at",
        "rate",
        "ready",
        "rejoins",
        "resuming",
        "rings",
        "stopped_at",
        "stores_at",
        "storing",
        "tick_at",
        "told",
        "untried",
        "vertex",
        "waited",
        "world",
    )

    def __init__(self, host: Host) -> None:
        world = host.world
        self.host, self.world, self.vertex, self.disk = host, world, host.vertex, host.disk
        self.alive, self.paused, self.resuming = True, False, False
        self.base, self.rate = host.pace.clock_offset, host.pace.clock_rate
        self.latest = 0.0
        self.tick_at = NEVER
        self.rings = self.rejoins = 0
        self.rang_at = -1.0
        self.waited: list[int] = []
        self.inbox: list[tuple[Callable[[Any, Any], None], Any, Any]] = []
        self.ends: dict[int, LinkEnd] = {}
        self.current: dict[int, LinkEnd] = {}
        self.dialing: dict[int, LinkEnd] = {}
        self.attempts: dict[int, int] = {}
        self.told: dict[int, int] = {}
        self.left_out: dict[int, tuple[Any, int]] = {}
        self.fuse = -1
        self.fuse_kind: type | None = None
        self.ready: State | None = None
        self.lies = world.plan.liar == host.vertex
        self.notes = 0
        self.untried = True
        self.stopped_at = NEVER
        self.failed_in = 0
        self.life = host.lives
        config = host.editions() if len(world.plan.meshes) > 1 else host.config
        self.core = world.make(config, self.clock(), **host.disk.read())
        self.storing: set[int] = set()
        self.stores_at = 0.0
        self.edition = self.core.near.present.number

    # --- time -----------------------------------------------------------------------------

    def clock(self) -> float:
        """The agent's own monotonic clock, in seconds."""
        now = self.base + self.rate * self.world.now
        if now < self.latest:
            return self.latest
        self.latest = now
        return now

    def _arm(self) -> None:
        deadline = self.core.next_deadline()
        if deadline is None:
            return
        world = self.world
        at = (deadline - self.base) / self.rate
        if at < world.now:
            at = world.now
        if at < self.tick_at:
            self.tick_at = at
            world.push(at, self._ring, at, None)

    def _ring(self, at: float, _b: object) -> None:
        if not self.alive or at != self.tick_at:
            return
        self.tick_at = NEVER
        if self.paused:
            self.inbox.append((self._late, None, None))
            return
        self._late(None, None)

    def _late(self, _a: object, _b: object) -> None:
        if not self.alive:
            return
        deadline = self.core.next_deadline()
        if deadline is None:
            return
        now = self.clock()
        if now + 1e-9 * (abs(now) + 1.0) >= deadline:
            self.latest = max(now, deadline)
            self.world.watch.rang(self)
            self.handle(_TICK)
        else:
            self._arm()

    # --- events ---------------------------------------------------------------------------

    def start(self) -> None:
        """Begin: the core, the dialer, the heartbeats."""
        world = self.world
        world.live[self.vertex].append(self)
        self.handle(Started())
        for j in self.core.edges:
            if self._dials(j):
                world.push(world.now, self.dial, j, None)
        self._beat(None, None)

    def answer(self, event: Event, _b: object = None) -> None:
        """Something of the agent's own is done."""
        if not self.alive:
            return
        if self.paused:
            self.inbox.append((self.answer, event, None))
            return
        kind = type(event)
        host = self.host
        if kind is Combined or kind is Rejoined:
            if self.ready is not None:
                host.state, self.ready = self.ready, None
                self.world.watch.moved(host)
        elif kind is Trained:
            host.state, self.ready = self.ready, None
        elif kind is TrainingFailed:
            self.ready = None
        self.handle(event)

    def receive(self, end: LinkEnd, event: LinkEvent, sent_at: float) -> None:
        """A frame came; stale ones must change nothing."""
        watch = self.world.watch
        edge = self.core.edges.get(event.neighbor)
        stale = edge is None or edge.link != end.id
        if stale:  # what is due is due now, whatever comes
            self.handle(_TICK)
            if not self.alive:
                return
            before = watch.print_of(self)
        effects = self.handle(event)
        if stale:
            watch.stale_changed_nothing(self, event, before, effects)
        elif self.alive:
            kind = type(event)
            if kind is Offered:
                end.taking = None
                for effect in effects:
                    if type(effect) is Reserve:
                        end.taking = effect.offer
                watch.offer_answered(self, event, effects)
            if kind in TELLING:
                watch.heard(self, event)

    def handle(self, event: Event) -> list[Effect]:
        """Hand an event to the core and do what it asks for, or die on the way."""
        world = self.world
        world.events += 1
        before = self.core.phase
        effects = self.core.handle(event, self.clock())
        if world.trace is not None:
            world.trace(self, event, effects, before)
        if self.fuse < 0 and self.fuse_kind is None:
            if effects and type(effects[-1]) is End:
                world.watch.ends(self)
            for effect in effects:
                _DO[type(effect)](self, effect)
        else:
            self._handle_with_fuse(effects)
        if self.alive:
            if effects:
                world.watch.after(self, event, effects)
            elif type(event) is Heard:
                return effects  # what is due can only be due later now: `_late` will see
            self._arm()
        return effects

    def _handle_with_fuse(self, effects: list[Effect]) -> None:
        for effect in effects:
            if self.fuse == 0:
                self.crash()
                return
            _DO[type(effect)](self, effect)
            if not self.alive:
                return
            self.fuse -= self.fuse > 0
            if type(effect) is self.fuse_kind:
                self.crash()
                return

    # --- connections ----------------------------------------------------------------------

    def _dials(self, j: int) -> bool:
        return self.world.plan.dialers[min(self.vertex, j), max(self.vertex, j)] == self.vertex

    def dial(self, j: int, _b: object = None) -> None:
        """Try to connect to a neighbor that this end dials, unless it is connected."""
        if not self.alive or j in self.current or j not in self.core.edges:
            return
        if self.paused:
            self.inbox.append((self.dial, j, None))
            return
        world = self.world
        there = [p for p in world.live[j] if not p.paused or world.random() < 0.5]
        if (
            not there
            or world.blocked.get((min(self.vertex, j), max(self.vertex, j)), 0) > world.now
        ):
            self.again(j)
            return
        other = there[0] if len(there) == 1 else world.rng.choice(there)
        if self.vertex not in other.core.edges:  # it takes what is signed, and nothing else
            lag = world.plan.paths[self.vertex, j].latency_s
            world.push(world.now + lag, other.learn, max(self.host.known), None)
            world.push(world.now + 2 * lag, self.learn, max(other.host.known), None)
            self.again(j)
            return
        connect(world, self, other)

    def learn(self, number: int, _b: object = None) -> None:
        """An edition of the mesh has come from somebody: first of all it goes to the disk."""
        if not self.alive or number <= max(self.host.known) or number in self.storing:
            return
        if self.paused:
            self.inbox.append((self.learn, number, None))
            return
        self.storing.add(number)
        world = self.world
        self.stores_at = max(self.stores_at, world.now) + self.disk.seconds * world.random()
        world.push(self.stores_at, self._stored, number, None)

    def _stored(self, number: int, _b: object) -> None:
        """It is on the disk: the core hears of it, and then all neighbors."""
        if not self.alive:
            return
        if self.paused:
            self.inbox.append((self._stored, number, None))
            return
        host, world = self.host, self.world
        self.storing.discard(number)
        if number <= max(host.known):
            return
        host.known.append(number)
        world.count("edition learned")
        row = world.plan.meshes[number - 1].row(self.vertex)
        if row.begins <= self.core.round:
            world.count("edition learned late")
        if (self.fuse >= 0 or self.fuse_kind is not None) and world.random() < 0.5:
            self.crash()
            return
        self.handle(Announced(row))
        if self.alive:
            for end in list(self.current.values()):
                end.tell(number)

    def _meet(self, effect: Neighbors) -> None:
        for j in effect.vertices:
            if self._dials(j) and j not in self.current:
                self.world.push(self.world.now, self.dial, j, None)

    def again(self, j: int) -> None:
        """Dial once more, after a while that doubles."""
        if not self.alive or not self._dials(j):
            return
        tries = self.attempts[j] = min(self.attempts.get(j, 0) + 1, 7)
        world = self.world
        wait = world.plan.round_s * 0.03 * 2**tries * (0.5 + world.random())
        world.push(world.now + wait, self.dial, j, None)

    def forget(self, end: LinkEnd) -> None:
        """A connection has ended here."""
        self.ends.pop(end.id, None)
        j = end.neighbor
        if self.current.get(j) is end:
            del self.current[j]
            self.again(j)

    def _beat(self, _a: object, _b: object) -> None:
        if not self.alive:
            return
        world = self.world
        every = self.host.config.timing.dead_after_s / (6 * self.rate)
        if not self.paused:
            for end in self.ends.values():
                if world.now - end.sent_at > every * 0.9:
                    end.beat()
        world.push(world.now + every, self._beat, None, None)

    # --- endings --------------------------------------------------------------------------

    def _leave(self, outcome: str) -> None:
        self.alive = False
        self.world.live[self.vertex].remove(self)
        self.host.process = None
        self.host.outcome = outcome
        self.inbox.clear()

    def crash(self) -> None:
        """The process is killed, or the power fails. The disk keeps a prefix."""
        world = self.world
        self._leave("down")
        world.count("crash")
        if world.trace is not None:
            world.trace.note(self, "CRASH")
        for end in list(self.ends.values()):
            end.die()
        self.disk.crash(world.random())
        self.host.reload()
        world.faults.crashed(self.host)

    def exit(self, outcome: str) -> None:
        """The process ends by itself, in order."""
        self._leave(outcome)
        for end in list(self.ends.values()):
            end.close(at_once=False)
        self.disk.crash(1.0)
        self.host.reload()
        self.world.faults.exited(self.host)

    def resume(self, _a: object = None, _b: object = None) -> None:
        """Go on; everything that came meanwhile is handled in order."""
        if not self.alive or not self.paused:
            return
        self.paused = False
        inbox, self.inbox = self.inbox, []
        self.resuming = True
        for place, (fn, a, b) in enumerate(inbox):
            if not self.alive:
                return
            if self.paused:
                self.inbox = inbox[place:] + self.inbox
                break
            fn(a, b)
        self.resuming = False

    # --- effects --------------------------------------------------------------------------

    def _send(self, effect: Send) -> None:
        end = self.ends.get(effect.link)
        if end is None:
            return
        message = effect.message
        if self.lies:
            self.world.faults.lie(end, message)
            return
        if type(message) is Ack:
            self.world.watch.ack_leaves(self, message.round)
        elif type(message) is Hello:
            self.world.watch.hello_leaves(self, end, message)
        end.send(message)

    def _send_payload(self, effect: SendPayload) -> None:
        end = self.ends.get(effect.link)
        if end is None:
            return
        if self.lies:
            self.world.faults.lie_payload(end, effect.offer, effect.payload)
            return
        self.world.watch.payload_leaves(self, effect.offer)
        end.send_payload(effect.offer, effect.payload)

    def _close(self, effect: Close) -> None:
        end = self.ends.get(effect.link)
        if end is not None:
            end.close(at_once=effect.at_once)

    def _train(self, effect: Train) -> None:
        host, world = self.host, self.world
        hopeless = self.vertex == world.plan.hopeless
        if hopeless or world.random() < world.plan.odds.failures:
            world.count("training fails")
            event: Event = TrainingFailed("out of memory")
        else:
            plan = world.plan
            self.ready = host.state.trained(
                world.rng, effect.epoch, early=plan.early, tracks=plan.conserves
            )
            event = Trained()
        seconds = host.pace.train_s * (0.9 + 0.2 * world.random())
        if self.untried:
            seconds, self.untried = seconds + world.plan.first_s, False
        world.push(world.now + seconds, self.answer, event, None)

    def _journal(self, effect: Journal) -> None:
        host = self.host
        self.world.watch.no_old_state_is_relabeled(self, effect.round)
        if effect.early:
            host.state = host.state.shown()
        payload = host.state.payload()
        seen = self.world.seen
        if len(seen) < 100:
            seen.append(payload.digest)
        self.edition = effect.edition
        if effect.lasting:
            self._write(effect.round, effect.record, payload)
        else:
            world = self.world
            world.count("journal: not written")
            world.push(world.now, self.answer, Journaled(payload), None)

    def _save(self, effect: Save) -> None:
        host = self.host
        if effect.failure:
            self.world.watch.failed(host, effect.round)
        else:
            self.world.watch.saved(host, effect.round)
        plan = self.world.plan
        if effect.round % plan.saves_every == 0 or effect.last:
            self._write(effect.round, effect.record, None)

    def _write(self, round: int, record: Any, payload: Payload | None) -> None:
        host, world = self.host, self.world
        text = json.dumps(record) if world.random() < 0.05 else None
        host.disk.put(self, Write(round, host.closed, record, host.state, payload, text))

    def _combine(self, effect: Combine) -> None:
        host, world = self.host, self.world
        plan = world.plan
        world.watch.rounds_go_up(host, effect.round)
        world.watch.nobody_is_left_out(self, effect)
        weights = host.weights(effect.edition, effect.round)
        self.ready, moved = host.state.combined(
            effect.round, weights, effect.payloads, early=plan.early
        )
        world.watch.combined(self, effect, moved, self.ready)
        seconds = host.pace.combine_s * (0.9 + 0.2 * world.random())
        world.push(world.now + seconds, self.answer, Combined(), None)

    def _rejoin(self, effect: Rejoin) -> None:
        host, world = self.host, self.world
        self.ready = host.state.rejoined(effect.round, effect.payloads, effect.epoch)
        world.count("rejoin")
        world.watch.begins_again(self)
        event = Rejoined()
        if world.random() < world.plan.odds.failures * 0.3:
            world.count("beginning again fails")
            self.ready, event = None, Rejoined("not the model of this app")
        world.push(world.now + host.pace.combine_s, self.answer, event, None)

    def _free(self, effect: Free) -> None:
        self.disk.free(effect.round)

    def _finish(self, effect: Finish) -> None:
        self.world.watch.finishes(self, effect)
        value = (self.host.state.x, self.host.state.y)
        event = Finished(Payload(digest(value), value))
        self.world.push(self.world.now + self.host.pace.disk_s, self.answer, event, None)

    def stop(self) -> None:
        """It is told to end."""
        if not self.paused:
            self.stopped_at = min(self.stopped_at, self.clock())
        self.answer(Stopped())

    def _end(self, effect: End) -> None:
        self.exit("done" if effect.done else "stopped")

    def _fail(self, effect: Fail) -> None:
        self.exit("failed")

    def _count(self, effect: Count) -> None:
        if effect.name == "app-failed":
            self.failed_in = self.core.round
        if effect.name == "in-doubt":
            self.world.watch.doubts(self, effect.neighbor)
        self.world.count("core: " + effect.name)

    def _note(self, effect: Note) -> None:
        self.notes += 1

    def _nothing(self, effect: Reserve | Refuse) -> None:
        pass


_TICK = Tick()

_DO: dict[type, Callable[[Process, Any], None]] = {
    Send: Process._send,
    SendPayload: Process._send_payload,
    Reserve: Process._nothing,
    Refuse: Process._nothing,
    Neighbors: Process._meet,
    Close: Process._close,
    Train: Process._train,
    Journal: Process._journal,
    Combine: Process._combine,
    Rejoin: Process._rejoin,
    Save: Process._save,
    Free: Process._free,
    Finish: Process._finish,
    End: Process._end,
    Fail: Process._fail,
    Count: Process._count,
    Note: Process._note,
}
