"""Connections: two pipes of frames, in order, that end at any piece, and not at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flower_dhb.peer.protocol.events import (
    Acknowledged,
    Arriving,
    Broken,
    Completed,
    Connected,
    Disconnected,
    Greeted,
    Heard,
    Left,
    LinkEvent,
    Offered,
    Payload,
    Released,
    Sought,
)
from flower_dhb.peer.protocol.messages import Ack, Goodbye, Hello, Message, Offer, Release

from .plan import Path

if TYPE_CHECKING:
    from .process import Process
    from .world import World

__all__ = ["End", "connect"]

NEVER = float("inf")
_PIECE_BYTES = 10**9  # no rate is below what is cut off


class End:
    """One end of a connection, and the pipe from it to the other end.

    id: what the core knows as `link`. last: when the last frame in the pipe arrives. cut_at:
    what would arrive later never does. opened: when this end learns of the connection. left_at:
    when it closed or lost it. taking: the offer that this end has reserved room for. turn: payloads
    so far, the newest of which may be under way. answer_at: when an answer to the last whole
    payload is here at the latest.
    """

    __slots__ = (
        "answer_at",
        "cut_at",
        "id",
        "last",
        "latency_s",
        "left_at",
        "neighbor",
        "open",
        "opened",
        "other",
        "path",
        "process",
        "sent_at",
        "taking",
        "turn",
        "under_way",
        "world",
    )

    other: End

    def __init__(self, world: World, process: Process, neighbor: int, opened: float) -> None:
        self.world, self.process, self.neighbor = world, process, neighbor
        self.path: Path = world.plan.paths[process.vertex, neighbor]
        self.latency_s = self.path.latency_s
        self.id = world.next_id()
        self.opened = opened
        self.open = False
        self.last = self.sent_at = self.answer_at = 0.0
        self.cut_at = self.left_at = NEVER
        self.turn = 0
        self.under_way = False
        self.taking: Offer | None = None

    # --- sending --------------------------------------------------------------------------

    def _put(self, event: LinkEvent) -> None:
        world = self.world
        path = self.path
        at = world.now + path.latency_s
        if path.jitter:
            at += path.latency_s * path.jitter * world.random()
        if at < self.last:
            at = self.last
        self.last = at
        self.sent_at = world.now
        world.push(at, self.other.arrive, event, world.now)

    def send(self, message: Message) -> None:
        """Put a message in the pipe."""
        vertex, link = self.process.vertex, self.other.id
        kind = type(message)
        if kind is Ack:
            self._put(Acknowledged(vertex, link, message.round, message.digest))
        elif kind is Release:
            self._put(Released(vertex, link, message.round))
        elif kind is Hello:
            self._put(Greeted(vertex, link, message))
        elif kind is Goodbye:
            self._put(Left(vertex, link, message.done, message.counted, message.closed))
        else:
            self._put(Sought(vertex, link))

    def send_payload(self, offer: Offer, payload: Payload) -> None:
        """Put a header and a payload in the pipe; one that is still under way is abandoned."""
        self.turn += 1
        self.under_way = True
        self._offer((offer, payload))
        world = self.world
        if world.plan.odds.lacks and world.random() < world.plan.odds.lacks:
            # A change of a payload that the other end does not hold: it says so behind the header.
            world.count("payload is sent whole after all")
            there_and_back = self.last + self.other.latency_s
            world.push(there_and_back, self._whole, self.turn, (offer, payload))
            return
        self.world.push(
            world.now + self.path.piece_s, self._piece, (self.turn, 1), (offer, payload)
        )

    def _offer(self, content: tuple[Offer, Payload]) -> None:
        self._put(Offered(self.process.vertex, self.other.id, content[0]))

    def _whole(self, turn: int, content: tuple[Offer, Payload]) -> None:
        """The other end lacks what a payload was sent as a change of: send it whole."""
        if turn != self.turn or not self.open or not self.process.alive:
            return
        if self.process.paused:
            self.process.inbox.append((self._whole, turn, content))
            return
        self._offer(content)
        self.world.push(self.world.now + self.path.piece_s, self._piece, (turn, 1), content)

    def _piece(self, place: tuple[int, int], content: tuple[Offer, Payload]) -> None:
        turn, piece = place
        if turn != self.turn or not self.open or not self.process.alive:
            return
        if self.process.paused:
            self.process.inbox.append((self._piece, place, content))
            return
        if piece < self.path.pieces:
            come = piece * _PIECE_BYTES, self.path.pieces * _PIECE_BYTES
            self._put(Arriving(self.process.vertex, self.other.id, *come))
            self.world.push(
                self.world.now + self.path.piece_s, self._piece, (turn, piece + 1), content
            )
            return
        self.under_way = False
        world, vertex = self.world, self.process.vertex
        if world.random() < world.plan.odds.broken and world.now < world.plan.stop_at:
            world.count("payload breaks off")
            self._put(Broken(vertex, self.other.id))
        else:
            self._put(Completed(vertex, self.other.id, *content))
        back = self.other.path
        self.answer_at = self.last + back.latency_s * (1 + back.jitter)

    def tell(self, number: int) -> None:
        """Put an edition of the mesh in the pipe."""
        world = self.world
        self.last = max(self.last, world.now + self.path.latency_s)
        world.push(self.last, self.other.hears, number, None)

    def hears(self, number: int, _b: object) -> None:
        """An edition of the mesh has come through the other end's pipe."""
        if self.other.cut_at > self.world.now and self.open:
            self.process.learn(number)

    def beat(self) -> None:
        """Put a heartbeat in the pipe."""
        self._put(Heard(self.process.vertex, self.other.id))

    @property
    def whole(self) -> bool:
        """Whether all that either end sends will arrive."""
        far = self.other
        return self.open and far.open and self.cut_at == far.cut_at == NEVER

    def answered(self) -> bool:
        """Whether the other end has had its payload, and time to answer it."""
        return not self.under_way and self.world.now > self.answer_at

    def quiet_since(self) -> float:
        """Since when nothing has been under way on a connection that is whole, at either end."""
        far = self.other
        if not self.whole or self.under_way or far.under_way:
            return NEVER
        return max(self.last, far.last, self.opened, far.opened)

    # --- receiving ------------------------------------------------------------------------

    def arrive(self, event: LinkEvent, sent_at: float) -> None:
        """A frame has come through the other end's pipe."""
        process = self.process
        if self.other.cut_at <= self.world.now or not process.alive:
            return
        if process.paused:
            process.inbox.append((self.arrive, event, sent_at))
        elif self.open or self.world.random() < 0.3:  # some shells read on for a moment
            kind = type(event)
            if (kind is Completed and event.offer is not self.taking) or (
                kind is Broken and self.taking is None
            ):
                event = Heard(event.neighbor, event.link)
            process.receive(self, event, sent_at)

    def begin(self, _a: object = None, _b: object = None) -> None:
        """This end learns of the connection."""
        process = self.process
        if not process.alive or self.world.now >= self.other.cut_at:
            return
        if process.paused:
            process.inbox.append((self.begin, None, None))
            return
        self.open = True
        process.ends[self.id] = self
        process.current[self.neighbor] = self
        process.handle(Connected(self.neighbor, self.id))
        if len(self.world.plan.meshes) > 1 and self.open and process.alive:
            self.tell(max(process.host.known))

    # --- endings --------------------------------------------------------------------------

    def close(self, *, at_once: bool) -> None:
        """End the connection from here; the other end learns of it behind the last frame."""
        if not self.open:
            return
        self.open, self.left_at = False, self.world.now
        if at_once:
            self.turn += 1
        world = self.world
        self.last = max(self.last, world.now + self.latency_s)
        if self.cut_at == NEVER:
            world.push(self.last, self.other.lost, None, None)
        self.process.forget(self)
        if world.random() < 0.5:
            world.push(world.now, self._tell, None, None)

    def _tell(self, _a: object, _b: object) -> None:
        if self.process.alive and not self.process.paused:
            self.process.handle(Disconnected(self.neighbor, self.id))

    def lost(self, _a: object, _b: object) -> None:
        """This end learns that the connection is gone."""
        process = self.process
        if not process.alive:
            return
        if process.paused:
            process.inbox.append((self.lost, None, None))
            return
        if not self.open:
            return
        self.open, self.left_at = False, self.world.now
        process.forget(self)
        process.handle(Disconnected(self.neighbor, self.id))

    def die(self) -> None:
        """The process of this end is gone. Its host may say so to the other end, now or late."""
        self.open = False
        self.tell_other(self.world.random())

    def tell_other(self, luck: float) -> None:
        """Let the other end learn that the connection is gone: soon, late or never."""
        world = self.world
        if luck < 0.6:
            self.last = max(self.last, world.now + self.latency_s)
            world.push(self.last, self.other.lost, None, None)
        elif luck < 0.85:
            late = world.plan.round_s * 10 ** world.rng.uniform(-1, 1)
            self.last = max(self.last, world.now + late)
            world.push(self.last, self.other.lost, None, None)


def connect(world: World, dialer: Process, acceptor: Process) -> None:
    """Begin a connection between two processes; its ends learn of it in any order."""
    there = world.now + world.plan.paths[dialer.vertex, acceptor.vertex].latency_s
    back = there + world.plan.paths[acceptor.vertex, dialer.vertex].latency_s
    if world.random() < 0.2:
        there += (back - there) * 3 * world.random()
    near = End(world, dialer, acceptor.vertex, back)
    far = End(world, acceptor, dialer.vertex, there)
    near.other, far.other = far, near
    near.last, far.last = there, back
    dialer.dialing[acceptor.vertex] = near
    world.push(there, far.begin, None, None)
    world.push(back, near.begin, None, None)
