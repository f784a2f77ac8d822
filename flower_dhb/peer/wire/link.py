"""One live connection to a neighbor: a line of frames out, and checks on what comes in.

What passes the checks becomes an event of the protocol; what the protocol wants said is put
in line. The connection itself decides nothing about a round.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from cryptography.x509 import Certificate

from flower_dhb.peer.monitor import Monitor
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
from flower_dhb.peer.protocol.messages import Goodbye, Hello, Message, Offer
from flower_dhb.peer.wire import relay_pb2 as pb
from flower_dhb.peer.wire.bulletin import NO_BOARD, Board, Notice
from flower_dhb.peer.wire.flow import Flow, Receipts
from flower_dhb.peer.wire.frames import Assembler, Bytes, Outgoing, Reason, RefusedError, parse
from flower_dhb.peer.wire.gossip import Arrivals, InLine
from flower_dhb.peer.wire.words import frame_of, goodbye_of, hello_of, offer_of

__all__ = ["Allowance", "StreamLink"]

_CONTROL_LIMIT = 512  # short frames in line; a neighbor that reads none of them is cut off
_LISTED = 256  # rounds in a list of a Hello; the protocol remembers fewer
_HEARD_S = 0.1  # chunks say that often that the neighbor is alive
_BULLETINS = (64.0, 0.5)  # in a row, and per second, from one connection


class Allowance:
    """So many events in a row, and so many per second in the long run."""

    def __init__(
        self, burst: float, per_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._burst, self._per_s, self._clock = burst, per_s, clock
        self._left, self._at = burst, clock()

    def change(self, burst: float, per_s: float) -> None:
        """Allow so many from now on."""
        self._burst, self._per_s = burst, per_s

    def take(self, n: float = 1.0) -> bool:
        """Use so many; False if fewer are left."""
        now = self._clock()
        self._left = min(self._burst, self._left + (now - self._at) * self._per_s)
        self._at = now
        if self._left < n:
            return False
        self._left -= n
        return True


class StreamLink:
    """The frames of one stream, in both directions.

    `pieces` is what gRPC sends; `receive` takes what it delivers. deliver takes the
    protocol's events, and has done what they ask for when it returns. greeting: our Hello,
    with what the two ends must have in common. greet checks the neighbor's and raises
    RefusedError if the two do not belong together. board: of bulletins.
    """

    def __init__(
        self,
        neighbor: int,
        *,
        deliver: Callable[[LinkEvent], None],
        assembler: Assembler,
        monitor: Monitor,
        greeting: Callable[[pb.Hello], None],
        greet: Callable[[pb.Hello], None],
        heartbeat_s: float,
        strikes: Allowance,
        short_frames: Allowance,
        board: Board = NO_BOARD,
    ) -> None:
        self.neighbor = neighbor
        self.greeted = False
        self.given_up = ""  # why this end ended it before anything was said
        self.chain: tuple[Certificate, ...] = ()  # of the other end; empty without TLS
        self.cancel: Callable[[], object] = lambda: None
        self._deliver = deliver
        self._assembler = assembler
        self._monitor = monitor
        self._greeting = greeting
        self._greet = greet
        self._heartbeat_s = heartbeat_s
        self._strikes = strikes
        self._short_frames = short_frames
        self._ready = threading.Condition()
        self._control: deque[bytes] = deque()
        self._payload: Iterator[bytes] | None = None
        self._payload_round = 0
        self._sending: tuple[Offer, Outgoing] | None = None
        self._tried = 0  # how often it was begun
        self._known_there: int | None = None  # digest of our public payload that it holds, if told
        self._begun_payload = self._payload_is_next = False
        self._flow, self._receipts = Flow(), Receipts()
        self._board = board
        self._bulletins = InLine(lambda: self._flow.chunk_bytes)
        self._arrivals = Arrivals(neighbor, board, Allowance(*_BULLETINS).take)
        self._closing = False
        self._done = False
        self._heard_at = self._spoke_at = 0.0
        self._begun = False
        self._arriving: Offer | None = None
        self._bytes_in = self._bytes_out = 0
        self.ended = threading.Event()

    def opened(self) -> None:
        """The connection is there: both ends may speak."""
        self._deliver(Connected(self.neighbor, self))

    def parted(self) -> None:
        """The connection has ended."""
        self._deliver(Disconnected(self.neighbor, self))

    # --- out --------------------------------------------------------------------------

    def send(self, message: Message) -> None:
        """Put a short message in line, ahead of what is left of a payload."""
        frame = frame_of(message)
        if isinstance(message, Hello):
            self._greeting(frame.hello)
        self._done = self._done or (isinstance(message, Hello | Goodbye) and message.done)
        self._put(frame)

    def send_payload(self, offer: Offer, payload: Payload) -> None:
        """Send a payload; one that is still under way is abandoned."""
        outgoing = payload.handle
        if not isinstance(outgoing, Outgoing):
            raise TypeError(f"expected an own payload, got {outgoing!r}")
        with self._ready:
            self._tried = 0
            self._begin(offer, outgoing)

    def _begin(self, offer: Offer, outgoing: Outgoing) -> None:
        """Put a payload in line, in the shortest form that the neighbor can make it of."""
        changes = () if offer.final else outgoing.shortest(self._known_there)
        self._payload = outgoing.pieces(offer, lambda: self._flow.chunk_bytes, changes)
        self._payload_round, self._sending = offer.round, (offer, outgoing)
        outgoing.sent[self.neighbor] = sum(len(c.data) for c in changes) or len(outgoing.frame)
        self._begun_payload = False
        self._tried += 1
        self._ready.notify()

    def send_bulletin(self, notice: Notice) -> None:
        """Send a bulletin, behind short messages and ahead of what is left of a payload."""
        with self._ready:
            self._bulletins.put(notice)
            self._ready.notify()

    def close(self, text: str) -> None:
        """Say goodbye and end the connection."""
        with self._ready:
            if not self._closing:
                goodbye = frame_of(Goodbye(done=self._done, text=text))
                self._control.append(goodbye.SerializeToString())
                self._closing = True
                self._ready.notify()

    def abort(self) -> None:
        """End the connection at once."""
        with self._ready:
            self._closing = True
            self._control.clear()
            self._payload = None
            self._ready.notify()
        self.cancel()

    def pieces(self) -> Iterator[bytes]:
        """Serialized frames in the order in which they go out; heartbeats in the pauses."""
        while True:
            with self._ready:
                while not (self._begun or self._control or self._payload or self._closing):
                    self._ready.wait()  # nothing goes out before the Hello
                self._begun = True
                while (piece := self._next()) is None:
                    if (self._closing and self._payload is None) or self.ended.is_set():
                        return
                    self._tell_sent()
                    self._ready.wait(self._pause_s())
                self._spoke_at = time.monotonic()
            self._bytes_out += len(piece)
            if self._payload is None:
                self._tell_sent()
            yield piece

    def _tell_sent(self) -> None:
        # Not for every chunk: counting takes a lock.
        if self._bytes_out:
            self._monitor.count("bytes-sent", self.neighbor, self._bytes_out)
            self._bytes_out = 0

    def _put(self, frame: pb.Frame) -> None:
        with self._ready:
            stuck = len(self._control) >= _CONTROL_LIMIT
            if not stuck:
                self._control.append(frame.SerializeToString())
                self._ready.notify()
        if stuck:
            self._monitor.count("cut-off.slow-reader", self.neighbor)
            self.abort()

    def _next(self) -> bytes | None:
        """What goes out now, if anything does: a payload's chunks wait for room on the link."""
        if self._control:
            return self._control.popleft()
        now = time.monotonic()
        if self._receipts.due_s(now) == 0.0:
            return self._receipt(now)
        if self._flow.ready and (piece := self._piece()) is not None:
            self._flow.sent(len(piece), now)
            return piece
        beats = not self._closing and now - self._spoke_at >= self._heartbeat_s
        return _HEARTBEAT if beats else None

    def _piece(self) -> bytes | None:
        """The next piece of a bulletin or a payload.

        Bulletins go before a payload, and take turns with one that has begun: that must not pause.
        """
        if not (self._begun_payload and self._payload is not None and self._payload_is_next):
            piece = None if self._closing else self._bulletins.next()
            if piece is not None:
                self._payload_is_next = True
                return piece
        if self._payload is not None:
            piece = next(self._payload, None)
            if piece is not None:
                self._begun_payload, self._payload_is_next = True, False
                return piece
            self._payload = None
            if self._sending is not None and not self._sending[0].final:
                self._known_there = self._sending[1].public or None  # unless it is refused
        return None if self._closing else self._bulletins.next()

    def _receipt(self, now: float) -> bytes:
        self._receipts.tell(now)
        clock_us = int(1e6 * self._receipts.clock_s)
        receipt = pb.Receipt(bytes=self._receipts.n_bytes, clock_us=clock_us)
        return pb.Frame(receipt=receipt).SerializeToString()

    def _pause_s(self) -> float:
        """Until there is something to say, if nothing happens."""
        now = time.monotonic()
        pause_s = max(self._spoke_at + self._heartbeat_s - now, 0.0)
        due_s = self._receipts.due_s(now)
        return pause_s if due_s is None else min(pause_s, due_s)

    def _abandon(self, round: int) -> None:
        """The neighbor does not want the payload of a round: the rest of it stays here."""
        with self._ready:
            if self._payload_round == round:
                self._payload = self._sending = None

    def _send_otherwise(self, round: int, known: int) -> None:
        """The neighbor lacks what a payload was sent as a change of, and says what it holds.

        What it says is believed once; after that the payload is sent whole.
        """
        with self._ready:
            sending = self._sending
            if sending is None or self._payload_round != round or self._tried > 2:
                return
            self._known_there = known if self._tried == 1 else 0
            self._begin(*sending)
        self._monitor.count("sent-otherwise", self.neighbor)

    # --- in ---------------------------------------------------------------------------

    def receive(self, raw: bytes) -> None:
        """Take one frame. What is refused is counted, named, and answered.

        A neighbor whose frames are refused again and again is cut off.
        """
        self._bytes_in += len(raw)
        try:
            frame = parse(raw)
            if isinstance(frame, memoryview):
                self._took(len(raw))
                self._chunk(frame)
                return
            if frame.WhichOneof("kind") in ("header", "bulletin"):
                self._took(len(raw))
            # Not for every chunk: counting takes a lock.
            self._monitor.count("bytes-received", self.neighbor, self._bytes_in)
            self._bytes_in = 0
            if not self._short_frames.take():
                self._monitor.count("cut-off.flood", self.neighbor)
                self._monitor.warning("cut-off", neighbor=self.neighbor, why="flood of frames")
                self.abort()
            elif not raw:
                raise RefusedError(Reason.MALFORMED, f"neighbor {self.neighbor}: an empty frame")
            elif frame.WhichOneof("kind") is None:  # what a later version says
                self._monitor.count("ignored", self.neighbor)
            else:
                self._dispatch(frame)
        except RefusedError as error:
            self.refuse(error)

    def _took(self, n_bytes: int) -> None:
        if not self.greeted:
            return
        with self._ready:
            if self._receipts.took(n_bytes, time.monotonic()):
                self._ready.notify()

    def reserve(self, offer: Offer) -> None:
        """Take the payload whose header has just come."""
        self._arriving = offer

    def refuse(self, error: RefusedError) -> None:
        """Count a refusal, log it, and tell the neighbor."""
        self._monitor.count(f"refused.{error.kind}", self.neighbor)
        if not error.told:
            self._monitor.event(
                "refused",
                logging.INFO if error.reason in _HARMLESS else logging.WARNING,
                neighbor=self.neighbor,
                reason=error.kind,
                round=error.round,
                why=str(error),
            )
        refusal = pb.Refusal(
            round=error.round, reason=error.reason, text=str(error)[:500], known=error.known
        )
        self._put(pb.Frame(refusal=refusal))
        if not self.greeted:
            self.close("refused")
        elif error.reason not in _HONEST and not self._strikes.take():
            self._monitor.count("cut-off.refusals", self.neighbor)
            self._monitor.warning("cut-off", neighbor=self.neighbor, why="too many refusals")
            self.close("too many refused frames")

    def _dispatch(self, frame: pb.Frame) -> None:
        kind = frame.WhichOneof("kind")
        if kind == "hello":
            self._hello(frame.hello)
        elif kind == "refusal":
            self._refused_there(frame.refusal)
        elif kind == "goodbye":
            self._goodbye(frame.goodbye)
        elif kind == "heartbeat":
            self._heard()
        elif kind == "receipt":
            self._receipted(frame.receipt)
        else:
            self._require_greeting()
            if kind == "header":
                self._header(frame.header)
            elif kind == "ack":
                self._deliver(Acknowledged(self.neighbor, self, frame.ack.round, frame.ack.digest))
            elif kind == "release":
                self._abandon(frame.release.round)
                self._deliver(Released(self.neighbor, self, frame.release.round))
            elif kind == "seek":
                self._deliver(Sought(self.neighbor, self))
            elif kind == "bulletin":
                self._bulletin(frame.bulletin)

    def _require_greeting(self) -> None:
        if not self.greeted:
            raise RefusedError(
                Reason.MALFORMED, f"neighbor {self.neighbor}: spoke before its Hello was accepted"
            )

    def _heard(self) -> None:
        self._heard_at = time.monotonic()
        n_bytes, total = self._assembler.progress
        if total:
            self._deliver(Arriving(self.neighbor, self, n_bytes, total))
        else:
            self._deliver(Heard(self.neighbor, self))

    def _receipted(self, receipt: pb.Receipt) -> None:
        now = time.monotonic()
        with self._ready:
            self._flow.received(receipt.bytes, receipt.clock_us / 1e6, now)
            self._ready.notify()
        if now - self._heard_at >= _HEARD_S:
            self._heard()

    def _hello(self, hello: pb.Hello) -> None:
        if self.greeted:
            raise RefusedError(Reason.MALFORMED, f"neighbor {self.neighbor}: a second Hello")
        self._greet(hello)
        if max(len(hello.doubts), len(hello.one_sided)) > _LISTED:
            raise RefusedError(
                Reason.SIZE, f"neighbor {self.neighbor}: a Hello with more than {_LISTED} rounds"
            )
        self.greeted = True
        for notice in self._board.newer_than(hello.bulletins):
            self.send_bulletin(notice)  # before any payload, which the next line may cause
        self._deliver(Greeted(self.neighbor, self, hello_of(hello)))

    def _bulletin(self, piece: pb.Bulletin) -> None:
        if time.monotonic() - self._heard_at >= _HEARD_S:
            self._heard()
        self._arrivals.piece(piece)

    def _goodbye(self, found: pb.Goodbye) -> None:
        goodbye = goodbye_of(found)
        if self.greeted:
            self._deliver(Left(self.neighbor, self, goodbye.done, goodbye.counted, goodbye.closed))
        self._monitor.event("goodbye", neighbor=self.neighbor, done=goodbye.done, why=goodbye.text)

    def _header(self, message: pb.Header) -> None:
        self._arriving = None
        expect = self._assembler.check(message)
        self._deliver(Offered(self.neighbor, self, offer_of(message)))
        if self._arriving is not None:  # `reserve` was called meanwhile
            with self._unless_broken():
                self._assembler.require_base(message, expect)
                whole = self._assembler.begin(message, expect)
            if whole is not None:
                self._complete(whole)

    def _chunk(self, data: memoryview) -> None:
        self._require_greeting()
        with self._unless_broken():
            whole = self._assembler.chunk(data)
        if whole is not None:
            self._complete(whole)
        elif time.monotonic() - self._heard_at >= _HEARD_S:
            self._heard()

    @contextmanager
    def _unless_broken(self) -> Iterator[None]:
        """A payload that is refused on its way will not come; a change may come in another form."""
        try:
            yield
        except RefusedError as error:
            if self._arriving is not None:
                self._arriving = None
                if error.reason != Reason.ESTIMATE:
                    self._deliver(Broken(self.neighbor, self))
            raise

    def _complete(self, frame: Bytes) -> None:
        offer, self._arriving = self._arriving, None
        if offer is None:
            raise RefusedError(
                Reason.MALFORMED, f"neighbor {self.neighbor}: a payload that nobody reserved"
            )
        if not offer.final:
            self._assembler.hold(frame)
        self._monitor.count("payloads-received", self.neighbor)
        payload = Payload(offer.digest, frame)
        self._deliver(Completed(self.neighbor, self, offer, payload))

    def _refused_there(self, refusal: pb.Refusal) -> None:
        known = refusal.reason in pb.Refusal.Reason.values()
        reason = pb.Refusal.Reason.Name(refusal.reason).lower() if known else "other"
        if refusal.reason == Reason.ESTIMATE:
            self._send_otherwise(refusal.round, refusal.known)
        else:
            if refusal.reason != Reason.REPEATED:
                self._known_there = None
            self._abandon(refusal.round)
        self._monitor.count(f"refused-there.{reason}", self.neighbor)
        self._monitor.event(
            "refused-there",
            logging.INFO if refusal.reason in _HARMLESS else logging.WARNING,
            neighbor=self.neighbor,
            reason=reason,
            round=refusal.round,
            why=refusal.text[:500],
        )


# Two payloads that crossed each other on their way, as after a restart: nobody has to do anything.
_HARMLESS = (Reason.REPEATED, Reason.STALE, Reason.ESTIMATE)
# What an honest neighbor's frames are refused for, however often.
_HONEST = (Reason.REPEATED, Reason.ESTIMATE)
_HEARTBEAT = pb.Frame(heartbeat=pb.Heartbeat()).SerializeToString()
