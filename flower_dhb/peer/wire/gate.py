"""The door in front of gRPC: strangers are bounded here, before they cost anything.

gRPC accepts whoever connects and gives each a descriptor, memory and seconds of time. So
a peer accepts by itself, and lets a connection through to gRPC when it has begun to speak, as many
at a time as the device can bear, and in an order that no crowd can spoil. What passes
is carried to gRPC and back as bytes; TLS stays between gRPC and the other end. What a known
neighbor sends is moved inside the kernel, where that is Linux.

A connection is *waiting* until it is let through, a *handshake* until gRPC has told whose
certificate it shows, and then *known*. Where there are too many of the first two, those
go of which there are most from one address.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import secrets
import selectors
import socket
import struct
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable
from typing import Any, cast

from flower_dhb.peer.monitor import Monitor
from flower_dhb.peer.wire.descriptors import Room
from flower_dhb.peer.wire.link import Allowance
from flower_dhb.peer.wire.pipes import Pipe, Pipes

__all__ = ["Gate"]

_PIECE_BYTES = 128 * 1024  # carried at a time; measured best of 16 KiB to 1 MiB
# What may wait in the kernel for gRPC to read it: a chunk. The system may allow less.
_INNER_BYTES = 1024 * 1024
_FIRST_BYTES = 4096  # read of a connection that waits
_HANDSHAKE = 0x16  # the first byte of whoever speaks TLS
_ACCEPTS = (1000.0, 500.0)  # in a row, and per second, that are given time to speak
# Handshakes begun, in a row and per second: of those who ask for this peer by its name, and of
# others. Each costs a millisecond or two of computing.
_NAMED, _UNNAMED = (64.0, 32.0), (16.0, 8.0)
_LEAST_S = 2.0  # a handshake is not broken off before: 600 ms there and back, and a packet lost
_FLUSH_S = 5.0  # to deliver what is left when one end has closed
_STRIKES = 8  # refused calls on one connection
_BATCH = 16  # accepted before anything else is looked at
# Where more come: so many after each pause. What they say has then had time to arrive.
_CROWD, _CROWD_PAUSE_S = 100, 0.02
_PAUSE_S = 0.1
_LINGER_NONE = struct.pack("ii", 1, 0)  # close and forget, nothing stays in the kernel


class _Way:
    """One connection: its outer end, and its inner one towards gRPC once it is let through."""

    inner: socket.socket  # once it is let through

    def __init__(self, outer: socket.socket, caller: str, origin: str, now: float) -> None:
        self.outer, self.caller, self.origin = outer, caller, origin
        self.through = False
        self.key = ""  # what gRPC calls it
        self.since = now
        self.first = b""
        self.over = False  # it has gone before it was let through
        self.named = False
        self.who: int | None = None
        self.strikes = 0
        self.to_outer = self.to_inner = b""  # read and not yet passed on
        self.pipe: Pipe | None = None  # holds what is to go to the inner end, instead
        self.wide = False
        self.closes_at: float | None = None  # one end is gone; until then the rest is passed on


class Gate:
    """Accepts on an address and carries what is let through to gRPC at `backend`.

    address: `host:port`. name: what a dialing end that knows us asks TLS for; None for
    plaintext. limit_s: for a connection to show whose it is. allowed: how many connections
    an identity may have.

    Raises OSError if the address cannot be had.
    """

    def __init__(
        self, address: str, *, name: str | None, room: Room, limit_s: float, monitor: Monitor
    ) -> None:
        self._listeners = _listen(address)
        self.port: int = self._listeners[0].getsockname()[1]
        self._name = None if name is None else name.encode()
        self._room, self._limit_s, self._monitor = room, limit_s, monitor
        self._inside = f"flower-dhb-{secrets.token_hex(8)}"
        self._backend_port = 0
        self._lock = threading.Lock()
        self._ways: dict[str, _Way] = {}  # that are let through, by what gRPC calls them
        self._waiting: dict[_Way, None] = {}  # in the order in which they came
        self._handshakes: dict[_Way, None] = {}
        self._crowd: Counter[str] = Counter()  # waiting, by origin
        self._accepts = Allowance(*_ACCEPTS)
        self._begins = {True: Allowance(*_NAMED), False: Allowance(*_UNNAMED)}
        self._number = 0
        self._accepts_again_at: float | None = None
        self._looks_at = 0.0
        self._turned_away: Counter[tuple[str, str]] = Counter()
        self._buffer = memoryview(bytearray(_PIECE_BYTES))
        self._pipes = Pipes()
        self._selector = selectors.DefaultSelector()
        self._stopping = False
        self._nudge, self._nudged = socket.socketpair()
        self._nudge.setblocking(False)
        self._nudged.setblocking(False)
        self._thread = threading.Thread(target=self._run, name="gate", daemon=True)

    @property
    def backend(self) -> str:
        """Where gRPC is to listen. On Linux that is a name, which needs neither file nor port."""
        return f"unix-abstract:{self._inside}" if _ABSTRACT else "127.0.0.1:0"

    def start(self, port: int) -> None:
        """Begin to accept. port: where gRPC listens, if not by name."""
        self._backend_port = port
        self._selector.register(self._nudged, selectors.EVENT_READ)
        self._listen_again()
        self._thread.start()

    def resize(self, room: Room) -> None:
        """Leave strangers so much room from now on."""
        self._room = room

    def stop(self) -> None:
        """Close everything."""
        self._stopping = True
        if self._thread.is_alive():
            self._wake()
            self._thread.join()
        for listener in self._listeners:
            listener.close()
        for way in [*self._waiting, *self._ways.values()]:
            self._close(way)
        self._pipes.close()
        self._selector.close()
        self._nudge.close()
        self._nudged.close()

    # --- what the transport says and asks, from its own threads -------------------------

    def caller(self, peer: str) -> str:
        """Whose connection it is that gRPC names `peer`: `ipv4:192.0.2.1:4711`."""
        way = self._ways.get(peer)
        return peer if way is None else way.caller

    def admit(self, peer: str, who: int, allowed: int) -> bool:
        """A connection has shown whose it is. Of those the newest `allowed` ones stay.

        Returns False for a connection that has not come through here.
        """
        with self._lock:
            way = self._ways.get(peer)
            if way is None:
                return False
            if way.who is None:
                way.who = who
                same = sorted(
                    (w for w in self._ways.values() if w.who == who), key=lambda w: w.since
                )
                for old in same[:-allowed]:
                    self._shut(old)
        return True

    def strike(self, peer: str) -> None:
        """A call on a connection was refused. Too many of them end it."""
        way = self._ways.get(peer)
        if way is not None:
            way.strikes += 1
            if way.strikes >= _STRIKES:
                self._shut(way)

    def _shut(self, way: _Way) -> None:
        """Have the gate's own thread close a connection."""
        way.closes_at = time.monotonic()
        self._wake()

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._nudge.send(b"!")

    # --- the thread ---------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stopping:
            for key, mask in self._selector.select(self._patience()):
                if key.data is None:
                    if key.fileobj is self._nudged:
                        self._nudged.recv(64)
                        self._looks_at = 0.0
                    else:
                        self._accept(cast(socket.socket, key.fileobj))
                    continue
                way, outer = key.data
                try:
                    if not way.through:
                        self._hear(way)
                        if way.first or way.over:
                            self._speak(way)
                    elif not self._carry(way, outer, mask):
                        self._close(way)
                except OSError:
                    self._close(way)
            now = time.monotonic()
            self._begin_handshakes(now)
            if self._accepts_again_at is not None and now >= self._accepts_again_at:
                self._listen_again()
            if now >= self._looks_at:
                self._looks_at = now + _PAUSE_S
                self._look_after(now)
            if self._turned_away:
                self._tell()

    def _patience(self) -> float | None:
        """Seconds until something is to be done though nothing happens."""
        if self._accepts_again_at is not None:
            return max(0.0, self._accepts_again_at - time.monotonic())
        if (
            self._waiting
            or self._handshakes
            or any(way.closes_at is not None for way in list(self._ways.values()))
        ):
            return _PAUSE_S
        return None

    def _look_after(self, now: float) -> None:
        """End what has taken too long."""
        for way in [w for w in self._handshakes if w.who is not None]:
            del self._handshakes[way]
        for way, why in [
            *((w, "slow" if w.first else "silent") for w in self._waiting),
            *((w, "slow") for w in self._handshakes),
        ]:
            if now >= way.since + self._limit_s:
                self._turn_away(way, why)
        for way in list(self._ways.values()):
            if way.closes_at is not None and now >= way.closes_at:
                self._close(way)

    # --- accepting ------------------------------------------------------------------------

    def _listen_again(self) -> None:
        self._accepts_again_at = None
        for listener in self._listeners:
            self._selector.register(listener, selectors.EVENT_READ)

    def _rest(self, seconds: float) -> None:
        """Leave those who come to the kernel for a moment."""
        if self._accepts_again_at is None:
            self._accepts_again_at = time.monotonic() + seconds
            for listener in self._listeners:
                self._selector.unregister(listener)

    def _accept(self, listener: socket.socket) -> None:
        crowded, batch = False, _BATCH
        while batch:
            batch -= 1
            try:
                outer, address = listener.accept()
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    self._monitor.count("turned-away.no-descriptor")
                    self._make_room(0)
                    self._rest(_PAUSE_S)
                    return
                continue  # it has gone again
            if not crowded and not self._accepts.take():
                crowded, batch = True, _CROWD
            self._receive(outer, address, crowded)
        if crowded:
            self._rest(_CROWD_PAUSE_S)

    def _receive(self, outer: socket.socket, address: tuple[Any, ...], crowded: bool) -> None:
        """Somebody has come. In a crowd, who says nothing goes at once if it is the crowd's."""
        outer.setblocking(False)
        caller, origin = _names(address)
        way = _Way(outer, caller, origin, time.monotonic())
        self._hear(way)
        if crowded and not way.first and 2 * self._crowd[origin] > len(self._waiting):
            self._turn_away(way, "crowd")
            return
        self._make_room(self._room.waiting - 1)
        self._waiting[way] = None
        self._crowd[origin] += 1
        self._selector.register(outer, selectors.EVENT_READ, (way, True))
        if way.first or way.over:
            self._speak(way)

    def _make_room(self, most: int) -> None:
        """Turn waiting connections away until no more than `most` are left.

        First goes who says nothing, then who does not ask for us by name; of the origin that
        has most of them, and there the oldest.
        """
        while len(self._waiting) > most:
            self._turn_away(
                max(
                    self._waiting,
                    key=lambda w: (self._crowd[w.origin], not w.first, not w.named, -w.since),
                ),
                "crowd",
            )

    def _hear(self, way: _Way) -> None:
        """What has come from a connection that waits, if anything has."""
        try:
            way.first = way.outer.recv(_FIRST_BYTES)
            way.over = not way.first
        except BlockingIOError:
            pass
        except OSError:
            way.over = True

    def _speak(self, way: _Way) -> None:
        """A connection that waits has said something, or has gone."""
        if way.over:
            self._close(way)
        elif self._name is not None and way.first[0] != _HANDSHAKE:
            self._turn_away(way, "handshake")
        else:
            way.named = self._name is None or self._name in way.first
            self._selector.unregister(way.outer)

    def _turn_away(self, way: _Way, why: str) -> None:
        self._turned_away[why, way.caller] += 1
        with contextlib.suppress(OSError):
            way.outer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NONE)
        self._close(way)

    def _tell(self) -> None:
        told = self._turned_away
        self._turned_away = Counter()
        for why, text in _WHY.items():
            callers = [(caller, n) for (kind, caller), n in told.items() if kind == why]
            if callers:
                self._monitor.count(f"turned-away.{why}", by=sum(n for _, n in callers))
                self._monitor.warning(
                    "turned-away", reason=why, why=f"{text} (last from {callers[-1][0]})"
                )

    # --- letting through ------------------------------------------------------------------

    def _begin_handshakes(self, now: float) -> None:
        while self._waiting:
            ready = [w for w in self._waiting if w.first]
            if not ready:
                return
            busy = Counter(w.origin for w in self._handshakes if w.who is None)
            if sum(busy.values()) >= self._room.handshakes:
                oldest = max(
                    (w for w in self._handshakes if w.who is None),
                    key=lambda w: (busy[w.origin], now - w.since),
                )
                if now < oldest.since + _LEAST_S:
                    return
                self._turn_away(oldest, "slow")
                continue
            way = min(ready, key=lambda w: (not w.named, busy[w.origin], w.since))
            if not self._begins[way.named].take() or not self._let_through(way, now):
                return

    def _let_through(self, way: _Way, now: float) -> bool:
        """Connect a way to gRPC. Returns False if it takes nobody for the moment."""
        try:
            inner = self._connect()
        except OSError:
            self._monitor.count("turned-away.no-descriptor")
            return False
        self._leave_the_line(way)
        way.inner, way.through, way.since = inner, True, now
        way.outer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        way.key = _key(inner)
        with self._lock:
            self._ways[way.key] = way
        self._handshakes[way] = None
        way.to_inner, way.first = way.first, b""
        try:
            alive = self._carry(way, True, selectors.EVENT_WRITE)
        except OSError:
            alive = False
        if not alive:
            self._close(way)
        return True

    def _connect(self) -> socket.socket:
        self._number += 1
        inner = socket.socket(socket.AF_UNIX if _ABSTRACT else socket.AF_INET)
        try:
            inner.setblocking(False)
            if _ABSTRACT:
                inner.bind(f"\0{self._inside}-{self._number}")
                inner.connect(f"\0{self._inside}")
            else:
                inner.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                with contextlib.suppress(BlockingIOError):
                    inner.connect(("127.0.0.1", self._backend_port))
        except OSError:
            inner.close()
            raise
        return inner

    def _leave_the_line(self, way: _Way) -> None:
        if way in self._waiting:
            del self._waiting[way]
            self._crowd[way.origin] -= 1
            if not self._crowd[way.origin]:
                del self._crowd[way.origin]

    def _close(self, way: _Way) -> None:
        self._leave_the_line(way)
        self._handshakes.pop(way, None)
        with self._lock:
            self._ways.pop(way.key, None)
        if way.pipe is not None:
            self._pipes.back(way.pipe)
            way.pipe = None
        for end in (way.outer, way.inner) if way.through else (way.outer,):
            with contextlib.suppress(KeyError, ValueError):
                self._selector.unregister(end)
            end.close()

    # --- carrying -------------------------------------------------------------------------

    def _carry(self, way: _Way, outer: bool, mask: int) -> bool:
        """One end can be read or written. Returns False when the connection is over."""
        if mask & selectors.EVENT_READ:
            self._take(way, outer)
        if mask & selectors.EVENT_WRITE or way.to_inner or way.to_outer:
            self._give(way)
        to_inner, to_outer = bool(way.to_inner or way.pipe), bool(way.to_outer)
        if way.closes_at is not None and not to_inner and not to_outer:
            return False
        self._watch(way, to_inner, to_outer)
        return True

    def _take(self, way: _Way, outer: bool) -> None:
        if outer and way.who is not None and self._move(way):
            return
        source, sink = (way.outer, way.inner) if outer else (way.inner, way.outer)
        try:
            n = source.recv_into(self._buffer)
        except BlockingIOError:
            return
        if n == 0:
            way.closes_at = time.monotonic() + _FLUSH_S
            return
        try:
            sent = sink.send(self._buffer[:n])
        except BlockingIOError:
            sent = 0
        if sent < n:
            rest = bytes(self._buffer[sent:n])
            if outer:
                way.to_inner = rest
            else:
                way.to_outer = rest

    def _move(self, way: _Way) -> bool:
        """Have the kernel pass on what has come for gRPC. Returns False if it cannot now."""
        pipe = self._pipes.lend()
        if pipe is None:
            return False
        if not way.wide:
            way.wide = True
            way.inner.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _INNER_BYTES)
        way.pipe = pipe
        with contextlib.suppress(BlockingIOError):
            if pipe.take(way.outer) == 0:
                way.closes_at = time.monotonic() + _FLUSH_S
        self._empty(way)
        return True

    def _empty(self, way: _Way) -> None:
        """Pass on what a pipe holds, and give it back when that is all."""
        if way.pipe is not None:
            if way.pipe.held:
                way.pipe.give(way.inner)
            if not way.pipe.held:
                self._pipes.back(way.pipe)
                way.pipe = None

    def _give(self, way: _Way) -> None:
        self._empty(way)
        with contextlib.suppress(BlockingIOError):
            if way.to_outer:
                way.to_outer = way.to_outer[way.outer.send(way.to_outer) :]
        with contextlib.suppress(BlockingIOError):
            if way.to_inner:
                way.to_inner = way.to_inner[way.inner.send(way.to_inner) :]

    def _watch(self, way: _Way, to_inner: bool, to_outer: bool) -> None:
        """Read from an end while the other one takes it; what is read and not taken is little."""
        reads = way.closes_at is None
        for end, is_outer, to_it, from_it in (
            (way.outer, True, to_outer, to_inner),
            (way.inner, False, to_inner, to_outer),
        ):
            mask = selectors.EVENT_READ if reads and not from_it else 0
            mask |= selectors.EVENT_WRITE if to_it else 0
            known = self._selector.get_map().get(end)
            if known is None:
                if mask:
                    self._selector.register(end, mask, (way, is_outer))
            elif not mask:
                self._selector.unregister(end)
            elif known.events != mask:
                self._selector.modify(end, mask, known.data)


_ABSTRACT = sys.platform == "linux"
_WHY = {
    "crowd": "too many connections that have not shown a certificate",
    "silent": "a connection on which nothing was said",
    "slow": "a connection that did not show a certificate in time",
    "handshake": "it does not speak TLS",
}


def _listen(address: str) -> list[socket.socket]:
    """Sockets that listen on all addresses of a host, on one port."""
    host, _, port = address.rpartition(":")
    found = socket.getaddrinfo(
        host.strip("[]"), int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    taken = int(port)
    listeners: list[socket.socket] = []
    try:
        for family, _, _, _, where in dict.fromkeys(found):
            listener = socket.socket(family, socket.SOCK_STREAM)
            listeners.append(listener)
            listener.setblocking(False)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                only = where[0] != "::"
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, only)
            listener.bind((where[0], taken, *where[2:]))
            listener.listen(4096)  # or as many as the system allows
            taken = listener.getsockname()[1]
    except BaseException:
        for listener in listeners:
            listener.close()
        raise
    return listeners


def _names(address: Iterable[object]) -> tuple[str, str]:
    """A caller as gRPC would name it, and where it belongs: address, or network of a site."""
    host, port, *_ = address
    found = ipaddress.ip_address(str(host).partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address):
        if found.ipv4_mapped is None:
            site = ipaddress.ip_network((found, 64), strict=False)
            return f"ipv6:[{host}]:{port}", str(site)
        found = found.ipv4_mapped
    return f"ipv4:{found}:{port}", str(found)


def _key(inner: socket.socket) -> str:
    """What gRPC calls the other end of a connection that comes from here."""
    name = inner.getsockname()
    return f"unix-abstract:{name[1:].decode()}" if _ABSTRACT else f"ipv4:{name[0]}:{name[1]}"
