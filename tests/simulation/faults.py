"""What goes wrong, when the plan says so: drawn from the schedule's own generator as it happens."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from flower_dhb.peer.protocol import effects
from flower_dhb.peer.protocol.events import Payload
from flower_dhb.peer.protocol.messages import (
    Ack,
    Counted,
    Goodbye,
    Hello,
    Message,
    Offer,
    Release,
    Seek,
)

from .net import NEVER, End
from .plan import Fault
from .process import Host

if TYPE_CHECKING:
    from .world import World

__all__ = ["Faults"]

_FUSES = (
    effects.Journal,
    effects.Save,
    effects.Send,
    effects.SendPayload,
    effects.Combine,
    effects.Train,
    effects.Reserve,
    effects.Free,
    effects.Close,
    effects.Rejoin,
    effects.Finish,
)


class Faults:
    """Brings the faults of a schedule about, and what follows from them (restarts).

    exempt_until: by vertex, rounds whose story is lost with a disk, or told by two instances
    or by a liar: no promise covers them. calm_at: when the last disturbance is over.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self.rng = world.rng
        self.exempt_until = [0.0] * world.plan.size
        self.calm_at = world.plan.stop_at
        self.spread_at = NEVER
        self._at_once: set[int] = set()
        self._revive: set[int] = set()
        if world.plan.liar is not None:
            self.exempt_until[world.plan.liar] = NEVER
            world.count("liar")

    def begin(self) -> None:
        """Put all faults of the plan in line."""
        world = self.world
        for vertex, at in enumerate(world.plan.starts):
            world.hosts[vertex].due += 1
            self._calm(at)
            world.push(at, world.hosts[vertex].begin, None, None)
            if at > world.plan.round_s:
                world.count("late start")
        for fault in world.plan.faults:
            world.push(fault.at, self._happen, fault, None)
        world.push(world.plan.stop_at, self._settle, None, None)
        for at, number, told in world.plan.news:
            self._calm(at)
            world.push(at, self._announce, number, told)
        if world.plan.news:
            self.spread_at = max(world.plan.stop_at, world.plan.news[-1][0])
            world.push(self.spread_at, self._spread, None, None)

    def _announce(self, number: int, told: list[int]) -> None:
        """The operator says what changes: those hear it who can be reached, or who are next."""
        self.world.count("edition announced")
        for kind in self.world.plan.meshes[number - 1].kinds:
            self.world.count("mesh: " + kind)
        for vertex in told:
            self._publish(self.world.hosts[vertex], number)

    def _spread(self, _a: object, _b: object) -> None:
        """In the end everybody hears of the newest edition."""
        for host in self.world.hosts:
            self._publish(host, len(self.world.plan.meshes))

    def _publish(self, host: Host, number: int) -> None:
        if host.process is not None:
            host.process.learn(number)
        elif host.outcome != "gone" and number > max(host.known):
            host.known.append(number)
        if host.outcome == "done" and not host.due and not host.over:
            self.world.count("goes on after its end")
            self._again(host, self.world.plan.round_s * 10 ** self.rng.uniform(-2, 0.5))

    def _calm(self, at: float) -> None:
        self.calm_at = max(self.calm_at, at)

    def _happen(self, fault: Fault, _b: object) -> None:
        getattr(self, "_" + fault.kind)(*fault.place)

    def _settle(self, _a: object, _b: object) -> None:
        for process in [p for there in self.world.live for p in there]:
            process.fuse, process.fuse_kind = -1, None
        for twin in self.world.twins:
            if twin.process is not None:
                twin.process.crash()

    # --- processes ------------------------------------------------------------------------

    def _crash(self, vertex: int) -> None:
        process = self.world.hosts[vertex].process
        if process is None:
            return
        luck = self.rng.random()
        if luck < 0.35:
            process.crash()
        elif luck < 0.7:
            process.fuse = self.rng.randint(0, 6)
        else:
            process.fuse_kind = self.rng.choice(_FUSES)

    def _third(self, vertex: int) -> None:
        process = self.world.hosts[vertex].process
        if process is not None:
            self.world.count("a third at once")
            self._at_once.add(vertex)
            process.crash()
            self._at_once.discard(vertex)

    def _halt(self, vertex: int) -> None:
        process = self.world.hosts[vertex].process
        if process is not None:
            self.world.count("stop")
            process.stop()

    def _pause(self, vertex: int) -> None:
        world, process = self.world, self.world.hosts[vertex].process
        if process is not None and not process.paused:
            world.count("pause")
            process.paused = True
            until = world.now + world.plan.round_s * 10 ** self.rng.uniform(-1, 1.3)
            self._calm(until)
            world.push(until, process.resume, None, None)

    def _twin(self, vertex: int) -> None:
        world = self.world
        host = world.hosts[vertex]
        if host.process is None:
            return
        world.count("double start")
        self.exempt(vertex, NEVER)
        twin = Host(world, vertex)
        twin.disk, twin.twin = host.disk.copy(), True
        if twin.disk.writes:
            twin.state, twin.closed = twin.disk.writes[-1].state, twin.disk.writes[-1].closed
        twin.known = list(host.known)
        twin.order = host.order[: twin.state.count]
        twin.verdicts = {r: host.verdicts[r] for r in twin.order}
        twin.due = 1
        world.twins.append(twin)
        world.push(world.now, twin.begin, None, None)

    def _revival(self, vertex: int) -> None:
        self._revive.add(vertex)

    def crashed(self, host: Host) -> None:
        """A process was killed: the disk may suffer, and the supervisor starts it again."""
        world, rng, odds = self.world, self.rng, self.world.plan.odds
        if host.twin:
            world.check_over()
            return
        before_end = world.now <= world.plan.stop_at
        if before_end and rng.random() < odds.never:
            world.count("never returns")
            host.outcome = "gone"
            world.check_over()
            return
        luck = rng.random()
        if luck < odds.no_disk:
            self._lose(host, len(host.disk.writes), "disk lost")
        elif luck < odds.no_disk + odds.old_disk and len(host.disk.writes) > 1:
            self._lose(host, rng.randint(1, len(host.disk.writes) - 1), "old disk")
        if host.vertex in self._at_once:
            wait = world.plan.round_s * 0.1 * rng.random()
        elif rng.random() < odds.late_return:
            world.count("late return")
            wait = world.plan.length_s * rng.uniform(0.5, 3)
        else:
            wait = world.plan.round_s * 10 ** rng.uniform(-3, 1)
        self._again(host, wait)

    def _again(self, host: Host, wait: float) -> None:
        host.due += 1
        self._calm(self.world.now + wait)
        self.world.push(self.world.now + wait, host.begin, None, None)

    def _lose(self, host: Host, writes: int, kind: str) -> None:
        self.world.count(kind)
        host.disk.turn_back(writes)
        if not host.disk.writes:  # a new device gets what holds, or what the old one began with
            host.known = [self.rng.choice((max(host.known), self.world.plan.joined[host.vertex]))]
        self.world.watch.vanished(host)
        highest = max([host.closed, *host.disk.promised])
        self.exempt(host.vertex, highest)
        host.reload()

    def exempt(self, vertex: int, until: float) -> None:
        """No promise covers the edges of an agent up to a round."""
        self.exempt_until[vertex] = max(self.exempt_until[vertex], until)

    def exited(self, host: Host) -> None:
        """A process has ended by itself."""
        world = self.world
        if host.outcome == "stopped" and not host.twin:
            self._again(host, world.plan.round_s * 10 ** self.rng.uniform(-2, 1))
        elif host.outcome == "done" and not host.over and not host.twin:
            self._again(host, world.plan.round_s * 10 ** self.rng.uniform(-2, 0.5))
        elif host.outcome == "done" and host.vertex in self._revive and not host.twin:
            self._revive.discard(host.vertex)
            world.count("finished agent started again")
            self._again(host, world.plan.round_s * 10 ** self.rng.uniform(-2, 1))
        world.check_over()

    # --- links ----------------------------------------------------------------------------

    def _cut(self, i: int, j: int) -> None:
        world, rng = self.world, self.rng
        process = world.hosts[i].process
        end = process.current.get(j) if process is not None else None
        kind = rng.choice(("both", "both", "one way", "late", "crossing", "crossing", "blocked"))
        world.count("link: " + kind)
        if kind == "blocked":
            until = world.now + world.plan.round_s * 10 ** rng.uniform(-1.5, 0.8)
            world.blocked[i, j] = until
            self._calm(until)
        if end is None:
            return
        if world.plan.dialers[i, j] != i if kind == "crossing" else rng.random() < 0.5:
            end = end.other
        if kind == "crossing":
            # What is sent from now on comes late; this end notices, dials again, and is faster.
            path = end.path
            lag = replace(path, latency_s=path.latency_s * 5 + world.plan.round_s * rng.random())
            end.path = lag
            end.other.path = replace(lag, latency_s=path.latency_s)
            world.push(world.now + world.plan.round_s * rng.random(), end.lost, None, None)
            return
        end.cut_at = world.now
        if kind == "one way":
            if rng.random() < 0.3:
                end.tell_other(rng.random())
            return
        end.other.cut_at = world.now
        end.tell_other(rng.random() if kind == "late" else 0.0)
        end.other.tell_other(rng.random() if kind != "late" else 0.0)

    # --- a liar ---------------------------------------------------------------------------

    def lie(self, end: End, message: Message) -> None:
        """A certified neighbor says what it likes."""
        rng = self.rng
        luck = rng.random()
        if luck < 0.1 and not isinstance(message, Hello):
            return
        end.send(message if luck < 0.65 else self._twisted(message))
        if luck > 0.9:
            end.send(self._invented())

    def lie_payload(self, end: End, offer: Offer, payload: Payload) -> None:
        """A certified neighbor announces what it likes."""
        rng = self.rng
        if rng.random() < 0.6:
            end.send_payload(offer, payload)
            return
        end.send_payload(
            Offer(
                self._round(offer.round),
                payload.digest,
                self._round(offer.closed),
                self._counted(offer.counted),
                rng.choice((offer.ack, 0, self._digest())),
                self._epoch(offer.epoch),
                rng.random() < 0.1,
                offer.edition,
            ),
            payload,
        )

    def _round(self, round: int) -> int:
        rng, rounds = self.rng, self.world.plan.rounds
        return rng.choice(
            (round, round, round + 1, max(round - 1, 0), rng.randint(0, rounds), rounds + 1, 10**9)
        )

    def _digest(self) -> int:
        seen = self.world.seen
        return self.rng.choice(seen) if seen and self.rng.random() < 0.7 else 12345

    def _counted(self, counted: Counted) -> Counted:
        rng = self.rng
        return rng.choice(
            (
                counted,
                Counted(),
                Counted(self._round(counted.round), self._digest(), self._digest()),
            )
        )

    def _epoch(self, epoch: int) -> int:
        rng = self.rng
        return rng.choice((epoch, epoch, 0, epoch + 1, (rng.randint(0, 60) << 20) + 3, 2**63))

    def _rounds(self) -> tuple[int, ...]:
        rng = self.rng
        return tuple(
            rng.randint(0, self.world.plan.rounds + 1) for _ in range(rng.choice((0, 1, 5)))
        )

    def _twisted(self, message: Message) -> Message:
        rng = self.rng
        if isinstance(message, Ack):
            return Ack(self._round(message.round), rng.choice((message.digest, self._digest())))
        if isinstance(message, Release):
            return Release(self._round(message.round))
        if isinstance(message, Hello):
            return Hello(
                self._round(message.round),
                rng.choice((message.digest, self._digest(), 0)),
                self._round(message.closed),
                self._counted(message.counted),
                rng.choice((message.holds, self._digest(), 0)),
                self._rounds(),
                self._rounds(),
                rng.random() < 0.2,
                self._epoch(message.epoch),
            )
        return self._invented()

    def _invented(self) -> Message:
        rng, rounds = self.rng, self.world.plan.rounds
        return rng.choice(
            (
                Ack(rng.randint(0, rounds + 1), self._digest()),
                Release(rng.randint(0, rounds + 1)),
                Seek(),
                Goodbye(True, "", self._counted(Counted())),
                self._twisted(Hello()),
            )
        )
