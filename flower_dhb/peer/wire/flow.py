"""How much of a payload is on its way at once: what the link carries, and little more.

Everything between two neighbors holds bytes back: gRPC, two kernels, the routers between. What
waits there cannot be taken back, and short frames wait behind it. So the receiver says what has
come and when (`Receipt`), and the sender keeps no more on its way than the link carries in one
turn and `_AHEAD_S` more. From the receipts it knows the rate, and cuts chunks that take
`_CHUNK_S` each. On a fast link the bound is wider than what gRPC takes, and does nothing.

How long a byte waits in a queue is seen from its time on the way: by the receiver's clock when
it came, less the sender's when it went. The two clocks differ by an unknown constant, which the
least of these differences since the line was empty takes away with the way itself. What the
opposite direction does to receipts has no part in it.
Source of that measurement: Shalunov, Hazel, Iyengar & Kuehlewind, RFC 6817 (LEDBAT), 2012.
"""

from __future__ import annotations

import math
from collections import deque

from flower_dhb.peer.wire.frames import CHUNK_BYTES

__all__ = ["Flow", "Receipts"]

_FIRST_BYTES = 8 * 1024  # a chunk of an unknown link: 0.7 s at 100 kbit/s
_LEAST_BYTES = 1024
_CHUNK_S = 0.25
_AHEAD_S = 0.75
_WINDOW_BYTES = 64 * 1024 * 1024
_RATE_S = 1.0  # what the rate looks back
_TURN_S = 5.0  # a receipt that takes longer says nothing about the way
_RECEIPT_S = 0.02
_RECEIPT_BYTES = 16 * 1024 * 1024  # a quarter of the widest window


class Flow:
    """The sender's side of one connection. Times are seconds of clocks that never go back.

    rate: bytes a second that arrive, 0 if unknown.
    """

    def __init__(self) -> None:
        self.rate = 0.0
        self._sent = self._come = 0
        self._window = 2.0 * _FIRST_BYTES
        self._line: deque[tuple[int, float]] = deque()  # bytes so far, and when they went
        self._arrivals: deque[tuple[float, int]] = deque()  # since the line was empty
        self._least_s = math.inf

    @property
    def chunk_bytes(self) -> int:
        """Size of the next chunk."""
        if self.rate == 0.0:
            return _FIRST_BYTES
        return int(min(max(_CHUNK_S * self.rate, _LEAST_BYTES), CHUNK_BYTES))

    @property
    def ready(self) -> bool:
        """Whether one more chunk may go."""
        under_way = self._sent - self._come
        return under_way <= 0 or under_way + self.chunk_bytes <= self._window

    def sent(self, n_bytes: int, now: float) -> None:
        """A header or chunk goes out."""
        if self._sent == self._come:  # the way may be another than before
            self._least_s = math.inf
            self._arrivals.clear()
        self._sent += n_bytes
        self._line.append((self._sent, now))

    def received(self, n_bytes: int, clock_s: float, now: float) -> None:
        """A receipt came. n_bytes: all that has come there. clock_s: when, by its clock."""
        news = min(n_bytes, self._sent) - self._come
        if news <= 0:
            return
        self._come += news
        left_at = now
        while self._line and self._line[0][0] <= self._come:
            _, left_at = self._line.popleft()
        self._count(clock_s)
        on_its_way = clock_s - left_at
        self._least_s = min(self._least_s, on_its_way)
        waited_s = on_its_way - self._least_s
        turn_s = min(now - left_at, _TURN_S)
        if waited_s < _AHEAD_S / 2 or self.rate == 0.0:
            self._window += news  # nothing waits: twice as much in the next turn
        else:
            fits = self.rate * (turn_s - waited_s + _AHEAD_S)
            self._window = min(self._window + news, fits)
        self._window = min(max(self._window, 2.0 * _LEAST_BYTES), _WINDOW_BYTES)

    def _count(self, clock_s: float) -> None:
        arrivals = self._arrivals
        arrivals.append((clock_s, self._come))
        while len(arrivals) > 2 and arrivals[1][0] < clock_s - _RATE_S:
            arrivals.popleft()
        (begin_s, begin), (end_s, end) = arrivals[0], arrivals[-1]
        if end_s > begin_s:
            self.rate = (end - begin) / (end_s - begin_s)


class Receipts:
    """The receiver's side: what has come, and when to say so.

    At once for the first bytes, and whenever a quarter more has come; otherwise after
    `_RECEIPT_S`, so that a fast link is not kept busy with receipts.
    """

    def __init__(self) -> None:
        self.n_bytes = 0
        self.clock_s = 0.0
        self._told = 0
        self._step = float(_FIRST_BYTES)
        self._next_s = -math.inf

    def took(self, n_bytes: int, now: float) -> bool:
        """A header or chunk has come. Returns whether a receipt waits for its time since now."""
        waits = self.n_bytes > self._told
        self.n_bytes += n_bytes
        self.clock_s = now
        return not waits or self.due_s(now) == 0.0

    def due_s(self, now: float) -> float | None:
        """Seconds until a receipt is due, None if there is nothing to say."""
        news = self.n_bytes - self._told
        if news == 0:
            return None
        return 0.0 if news >= self._step else max(self._next_s - now, 0.0)

    def tell(self, now: float) -> None:
        """A receipt goes out."""
        if self.n_bytes - self._told >= self._step:
            self._step = min(1.25 * self._step, _RECEIPT_BYTES)
        self._told = self.n_bytes
        self._next_s = now + _RECEIPT_S
