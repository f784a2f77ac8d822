"""One live connection to a neighbor: a line of frames out, and checks on what comes in."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator

from flower_dhb.peer.monitor import Monitor
from flower_dhb.peer.protocol.exchange import Exchange
from flower_dhb.peer.wire import relay_pb2 as pb
from flower_dhb.peer.wire.frames import Assembler, Outgoing, Reason, RefusedError, parse

__all__ = ["Allowance", "StreamLink"]

_CONTROL_LIMIT = 512  # short frames in line; a neighbor that reads none of them is cut off


class Allowance:
    """So many events in a row, and so many per second in the long run."""

    def __init__(
        self, burst: float, per_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._burst, self._per_s, self._clock = burst, per_s, clock
        self._left, self._at = burst, clock()

    def take(self) -> bool:
        """Use one; False if none is left."""
        now = self._clock()
        self._left = min(self._burst, self._left + (now - self._at) * self._per_s)
        self._at = now
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True


class StreamLink:
    """The frames of one stream, in both directions.

    `pieces` is what gRPC sends; `receive` takes what it delivers. greet checks the
    neighbor's Hello and raises RefusedError if the two do not belong together.
    """

    def __init__(
        self,
        neighbor: int,
        *,
        exchange: Exchange,
        assembler: Assembler,
        monitor: Monitor,
        greet: Callable[[pb.Hello], None],
        heartbeat_s: float,
        strikes: Allowance,
        short_frames: Allowance,
    ) -> None:
        self.neighbor = neighbor
        self.greeted = False
        self.opened_at = self.heard_at = time.monotonic()
        self.transfer_since: float | None = None
        self.cancel: Callable[[], object] = lambda: None
        self._exchange = exchange
        self._assembler = assembler
        self._monitor = monitor
        self._greet = greet
        self._heartbeat_s = heartbeat_s
        self._strikes = strikes
        self._short_frames = short_frames
        self._ready = threading.Condition()
        self._control: deque[bytes] = deque()
        self._payload: Iterator[bytes] | None = None
        self._closing = False
        self._arriving = 0
        self._bytes_in = self._bytes_out = 0
        self.ended = threading.Event()

    # --- out --------------------------------------------------------------------------

    def send(self, frame: pb.Frame) -> None:
        """Put a short frame in line, ahead of what is left of a payload."""
        with self._ready:
            stuck = len(self._control) >= _CONTROL_LIMIT
            if not stuck:
                self._control.append(frame.SerializeToString())
                self._ready.notify()
        if stuck:
            self._monitor.count("cut-off.slow-reader", self.neighbor)
            self.abort()

    def send_payload(self, payload: Outgoing, ack: int = 0) -> None:
        """Send a payload; one that is still under way is abandoned."""
        with self._ready:
            self._payload = payload.pieces(ack)
            self._ready.notify()

    def close(self, text: str) -> None:
        """Say goodbye and end the connection."""
        with self._ready:
            if not self._closing:
                self._control.append(
                    pb.Frame(
                        goodbye=pb.Goodbye(done=self._exchange.finished, text=text)
                    ).SerializeToString()
                )
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
                if not self._control and self._payload is None and not self._closing:
                    self._ready.wait(self._heartbeat_s)
                piece = self._next()
                if piece is None:
                    if self._closing:
                        return
                    beat = pb.Heartbeat(round=self._exchange.round)
                    piece = pb.Frame(heartbeat=beat).SerializeToString()
            self._bytes_out += len(piece)
            if self._payload is None:
                self._monitor.count("bytes-sent", self.neighbor, self._bytes_out)
                self._bytes_out = 0
            yield piece

    def _next(self) -> bytes | None:
        if self._control:
            return self._control.popleft()
        if self._payload is not None:
            piece = next(self._payload, None)
            if piece is None:
                self._payload = None
            return piece if piece is not None else self._next()
        return None

    # --- in ---------------------------------------------------------------------------

    def receive(self, raw: bytes) -> None:
        """Take one frame. What is refused is counted, named, and answered.

        A neighbor whose frames are refused again and again is cut off.
        """
        self.heard_at = time.monotonic()
        self._bytes_in += len(raw)
        try:
            frame = parse(raw)
            if not isinstance(frame, memoryview):  # not for every chunk: counting takes a lock
                self._monitor.count("bytes-received", self.neighbor, self._bytes_in)
                self._bytes_in = 0
            self._dispatch(frame)
        except RefusedError as error:
            self.refuse(error)

    def refuse(self, error: RefusedError) -> None:
        """Count a refusal, log it, and tell the neighbor."""
        self._monitor.count(f"refused.{error.kind}", self.neighbor)
        self._monitor.warning(
            "refused", neighbor=self.neighbor, reason=error.kind, round=error.round, why=str(error)
        )
        refusal = pb.Refusal(round=error.round, reason=error.reason, text=str(error)[:500])
        self.send(pb.Frame(refusal=refusal))
        if not self.greeted:
            self.close("refused")
        elif error.reason != Reason.REPEATED and not self._strikes.take():
            self._monitor.count("cut-off.refusals", self.neighbor)
            self._monitor.warning("cut-off", neighbor=self.neighbor, why="too many refusals")
            self.close("too many refused frames")

    def _dispatch(self, frame: pb.Frame | memoryview) -> None:
        if isinstance(frame, memoryview):
            self._require_greeting()
            whole = self._assembler.chunk(frame)
            if whole is not None:
                self._complete(self._arriving, whole)
            return
        if not self._short_frames.take():
            self._monitor.count("cut-off.flood", self.neighbor)
            self._monitor.warning("cut-off", neighbor=self.neighbor, why="flood of frames")
            self.abort()
            return
        kind = frame.WhichOneof("kind")
        if kind == "hello":
            self._hello(frame.hello)
        elif kind == "refusal":
            self._refused_there(frame.refusal)
        elif kind == "goodbye":
            if self.greeted:
                self._exchange.left(self.neighbor, frame.goodbye.done)
            self._monitor.event(
                "goodbye",
                neighbor=self.neighbor,
                done=frame.goodbye.done,
                why=frame.goodbye.text[:200],
            )
        elif kind == "header":
            self._require_greeting()
            self._header(frame.header)
        elif kind == "ack":
            self._require_greeting()
            self._exchange.acknowledged(self.neighbor, frame.ack.round)
        elif kind == "release":
            self._require_greeting()
            self._exchange.freed(self.neighbor, frame.release.round)
        elif kind is None:
            raise RefusedError(Reason.MALFORMED, f"neighbor {self.neighbor}: an empty frame")

    def _require_greeting(self) -> None:
        if not self.greeted:
            raise RefusedError(
                Reason.MALFORMED, f"neighbor {self.neighbor}: spoke before its Hello was accepted"
            )

    def _hello(self, hello: pb.Hello) -> None:
        if self.greeted:
            raise RefusedError(Reason.MALFORMED, f"neighbor {self.neighbor}: a second Hello")
        self._greet(hello)
        self.greeted = True
        self._exchange.joined(self.neighbor, self, hello)
        self._monitor.event("connected", neighbor=self.neighbor, round=hello.round)

    def _header(self, message: pb.Header) -> None:
        self.transfer_since = None
        expect = self._assembler.check(message)
        if message.ack:
            self._exchange.acknowledged(self.neighbor, message.ack)
        self._exchange.admit(self.neighbor, expect)
        self._arriving = message.round
        whole = self._assembler.begin(message, expect)
        if whole is not None:
            self._complete(message.round, whole)
        else:
            self.transfer_since = time.monotonic()

    def _complete(self, round: int, frame: bytes | bytearray | memoryview) -> None:
        self.transfer_since = None
        self._monitor.count("payloads-received", self.neighbor)
        self._exchange.accept(self.neighbor, round, frame)

    def _refused_there(self, refusal: pb.Refusal) -> None:
        known = refusal.reason in pb.Refusal.Reason.values()
        reason = pb.Refusal.Reason.Name(refusal.reason).lower() if known else "other"
        self._monitor.count(f"refused-there.{reason}", self.neighbor)
        self._monitor.warning(
            "refused-there",
            neighbor=self.neighbor,
            reason=reason,
            round=refusal.round,
            why=refusal.text[:500],
        )
