"""gRPC: one long-lived stream per edge, let in by certificate, dialed again when it breaks."""

from __future__ import annotations

import logging
import secrets
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from concurrent import futures
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import grpc
import numpy as np

from flower_dhb.agent.codec import VectorSpec
from flower_dhb.agent.compression import Compressor
from flower_dhb.errors import ConfigError, NotNowError
from flower_dhb.peer.monitor import Monitor
from flower_dhb.peer.protocol.events import LinkEvent
from flower_dhb.peer.wire import relay_pb2 as pb
from flower_dhb.peer.wire.agreement import Agreement
from flower_dhb.peer.wire.bulletin import NO_BOARD, Board, Notice
from flower_dhb.peer.wire.causes import cause_of
from flower_dhb.peer.wire.changes import Known
from flower_dhb.peer.wire.descriptors import CONNECTIONS, OPERATORS, raise_limit, room_for
from flower_dhb.peer.wire.doubles import Doubles
from flower_dhb.peer.wire.frames import (
    CHUNK_BYTES,
    MESSAGE_LIMIT_BYTES,
    Assembler,
    RefusedError,
)
from flower_dhb.peer.wire.gate import Gate
from flower_dhb.peer.wire.gossip import Arrivals, pieces_of
from flower_dhb.peer.wire.identity import OPERATOR, Identity, host_name
from flower_dhb.peer.wire.link import Allowance, StreamLink
from flower_dhb.peer.wire.measuring import answer, new_allowance
from flower_dhb.peer.wire.operations import NEWS, SERVICE, Operations
from flower_dhb.peer.wire.proof import CHALLENGE, NotBelievedError, believe, new_challenge, prove
from flower_dhb.peer.wire.tls import TlsFiles, peer_chain, peer_identity
from flower_dhb.types import Payload

__all__ = ["EXCHANGE", "Limits", "Transport"]

EXCHANGE = f"/{SERVICE}/Exchange"

_NEWS = 16.0, 1.0  # times in a row, and a second, that devices may ask for bulletins
_TO_COME = 64  # neighbors that later editions of the mesh may add

_OPTIONS = [
    ("grpc.max_receive_message_length", MESSAGE_LIMIT_BYTES),
    ("grpc.max_send_message_length", MESSAGE_LIMIT_BYTES),
    ("grpc.http2.max_pings_without_data", 0),
    # One chunk is one HTTP/2 frame, and a window wide enough for a long way at once
    # spares the probing: up to twice the throughput of the defaults.
    ("grpc.http2.max_frame_size", CHUNK_BYTES + 1024),
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", 16 * CHUNK_BYTES),
    # A neighbor is never behind a proxy of the web.
    ("grpc.enable_http_proxy", 0),
]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds on what neighbors and strangers can make a peer do.

    `hello_s`, `dead_after_s`, `transfer_s` and `least_bytes_s` are kept by the protocol.
    """

    heartbeat_s: float = 2.0
    """Pause after which an end says that it is alive. Allowed: above 0."""
    dead_after_s: float = 8.0
    """Silence after which a connection is dead.

    After such a pause a payload is no longer waited for beyond its deadline. Allowed: above 0.
    """
    hello_s: float = 5.0
    """Time to let a connection in, and then to say Hello. Allowed: above 0."""
    transfer_s: float = 60.0
    """Longest pause in a payload whose sender is alive. Allowed: above 0."""
    least_bytes_s: float = 1000.0
    """Rate below which a payload is cut off, `transfer-s` after it began.

    Unit: bytes/s. Allowed: above 0.
    """
    retry_s: float = 0.2
    """First pause before dialing again; each later one is twice as long. Allowed: above 0."""
    retry_max_s: float = 5.0
    """Longest pause before dialing again. Allowed: above 0."""
    idle_s: float = 60.0
    """A connection without a stream is closed after so long. Allowed: above 0."""
    streams: tuple[float, float] = (8.0, 0.5)
    """Streams that one neighbor may open: in a row, and per second.

    Unit: streams, streams/s. Allowed: two numbers above 0.
    """
    refusals: tuple[float, float] = (32.0, 1.0)
    """Frames of one neighbor that may be refused: in a row, and per second.

    Unit: frames, frames/s. Allowed: two numbers above 0.
    """
    frames: tuple[float, float] = (2000.0, 500.0)
    """Short messages of one neighbor: in a row, and per second.

    Unit: frames, frames/s. Allowed: two numbers above 0.
    """


@dataclass
class _Rates:
    """Allowances of one neighbor; they outlive its connections."""

    streams: Allowance
    """Streams that one neighbor may open: in a row, and per second.

    Unit: streams, streams/s. Allowed: two numbers above 0.
    """
    refusals: Allowance
    """Frames of one neighbor that may be refused: in a row, and per second.

    Unit: frames, frames/s. Allowed: two numbers above 0.
    """
    frames: Allowance
    """Short messages of one neighbor: in a row, and per second.

    Unit: frames, frames/s. Allowed: two numbers above 0.
    """
    measuring: Allowance = field(default_factory=new_allowance)
    """Bytes that one neighbor may have for measuring the way."""

    def change(self, limits: Limits) -> None:
        """Keep other bounds from now on."""
        self.streams.change(*limits.streams)
        self.refusals.change(*limits.refusals)
        self.frames.change(*limits.frames)


@dataclass(kw_only=True)
class Transport:
    """The connections of one peer to its neighbors.

    deliver takes what happens on them. listen: `host:port` for the neighbors that dial us,
    None if none does. neighbors, dial: with whom it is connected, and the addresses of those that
    we dial; `meet` changes both. tls: None for
    plaintext, on loopback only. agreement: digests of what neighbors must have in common.
    may_differ: parts of it whose difference is a warning, no refusal. editions, differs: see
    `Agreement`.
    vectors: what each payload must hold. compressor: of payloads, None if they travel as they are;
    held: the neighbors' last public payloads, where changes of them are sent. operations: what the
    operator may ask. board: of bulletins.
    """

    vertex: int
    run: str
    vectors: tuple[VectorSpec, ...]
    agreement: Mapping[str, str]
    neighbors: tuple[int, ...]
    deliver: Callable[[LinkEvent], None]
    monitor: Monitor
    listen: str | None
    dial: Mapping[int, str]
    tls: TlsFiles | None
    operations: Operations
    limits: Limits = field(default_factory=Limits)
    may_differ: frozenset[str] = frozenset()
    board: Board = NO_BOARD
    editions: Callable[[], Mapping[str, str]] = dict
    differs: Callable[[str, str], None] | None = None
    compressor: Compressor | None = None
    held: Mapping[int, Payload] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._links: set[StreamLink] = set()
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []
        self._server: grpc.Server | None = None
        self._gate: Gate | None = None
        self._serving: dict[int, list[StreamLink]] = {j: [] for j in self.neighbors}
        self._doubles = Doubles(self.neighbors, self.monitor)
        self._instance = secrets.token_hex(8)  # of this process, for neighbors to tell
        self._agreement = Agreement(
            self.vertex,
            self.run,
            self.agreement,
            self.may_differ,
            self.monitor,
            self.editions,
            self.differs,
        )
        self._rates = {j: self._new_rates() for j in self.neighbors}
        self._known: dict[int, Known] = {}
        self._dialers: dict[int, threading.Event] = {}  # each wakes its thread
        self._started = False
        self._news_allowance = Allowance(*_NEWS)
        self.port: int | None = None

    def start(self) -> None:
        """Listen and dial. Raises ConfigError, and NotNowError if the address is taken."""
        for address in self.dial.values():
            _check_ipv6(address)
        self._descriptors = raise_limit()
        if self.listen is not None:
            self._serve(self.listen)
        if self.tls is not None:
            self.tls.read()
        self._started = True
        self._dial_all()

    def meet(self, addresses: Mapping[int, str | None], limits: Limits | None = None) -> None:
        """Be connected with these neighbors from now on, and with nobody else.

        addresses: of those that we dial, None for those that dial us. A connection that stands
        stays, whatever the address is; the next one goes to the new address. limits: bounds
        that hold from now on, if they are others than before.
        """
        with self._lock:
            moved = [j for j, a in addresses.items() if a and a != self.dial.get(j)]
            self.neighbors = tuple(sorted(addresses))
            self.dial = {j: a for j, a in sorted(addresses.items()) if a}
            for j in self.neighbors:
                self._serving.setdefault(j, [])
                self._rates.setdefault(j, self._new_rates())
            if limits is not None and limits != self.limits:
                self.limits = limits
                for rates in self._rates.values():
                    rates.change(limits)
            links = [link for link in self._links if link.neighbor not in addresses]
            wakes = [wake for j, wake in self._dialers.items() if j in moved or j not in self.dial]
        if self._gate is not None:
            degree = len(self.neighbors)
            self._gate.resize(room_for(self._descriptors, degree, self.monitor))
        for link in links:
            if link.greeted:
                link.close("no neighbor any more")
            else:
                link.abort()
        for wake in wakes:
            wake.set()
        self._dial_all()

    def _dial_all(self) -> None:
        """Have a thread dial each neighbor that is to be dialed."""
        with self._lock:
            if not self._started or self._stopping.is_set():
                return
            new = [j for j in self.dial if j not in self._dialers]
            self._dialers |= {j: threading.Event() for j in new}
            wakes = {j: self._dialers[j] for j in new}
        for neighbor, wake in wakes.items():
            self._thread(self._keep_dialing, f"dial-{neighbor}", neighbor, wake)

    def _new_rates(self) -> _Rates:
        limits = self.limits
        return _Rates(
            Allowance(*limits.streams), Allowance(*limits.refusals), Allowance(*limits.frames)
        )

    def stop(self, grace_s: float = 2.0) -> None:
        """Say goodbye and end all connections."""
        self._stopping.set()
        with self._lock:
            links, wakes = list(self._links), list(self._dialers.values())
        for wake in wakes:
            wake.set()
        for link in links:
            if link.greeted:
                link.close("stopping")
            else:
                link.abort()
        end = time.monotonic() + grace_s
        for link in links:
            if not link.ended.wait(max(0.0, end - time.monotonic())):
                link.abort()
        if self._server is not None:
            self._server.stop(grace_s).wait()
        if self._gate is not None:
            self._gate.stop()
        for thread in self._threads:
            thread.join(grace_s)

    def tell(self, notice: Notice) -> None:
        """Send a bulletin to all neighbors that are connected; the others get it when they come."""
        with self._lock:
            links = [link for link in self._links if link.greeted]
        for link in links:
            link.send_bulletin(notice)

    def judge(self) -> None:
        """End the connections whose other end shows a certificate that is believed no longer."""
        with self._lock:
            links = list(self._links)
        for link in links:
            self._judge(link)

    def _judge(self, link: StreamLink) -> str | None:
        """Why a connection has been ended, if it has."""
        if self.tls is None or not link.chain:
            return None
        why = self.tls.why_not(link.chain)
        if why is not None:
            self.monitor.count("cut-off.certificate", link.neighbor)
            self.monitor.warning("cut-off", neighbor=link.neighbor, why=why)
            link.abort()
        return why

    # --- accepting --------------------------------------------------------------------

    def _serve(self, address: str) -> None:
        degree = len(self.neighbors)
        tls = self.tls
        try:
            self._gate = Gate(
                address,
                name=None if tls is None else host_name(tls.identity),
                room=room_for(self._descriptors, degree, self.monitor),
                limit_s=self.limits.hello_s,
                monitor=self.monitor,
            )
        except ValueError as error:
            raise ConfigError(
                f"vertex {self.vertex}: cannot listen on {address}: {error}"
            ) from None
        except OSError as error:
            raise NotNowError(
                f"vertex {self.vertex}: cannot listen on {address}: {error}. Another process may "
                "still hold the port, or the network is not up yet; if this does not pass, change "
                "'listen' in peer.toml"
            ) from None
        # A thread for each stream that may be there, and some for whoever asks or is turned
        # away: nobody holds those, so the operator is answered whatever neighbors do. A thread is
        # there once it is needed, so room for neighbors that may yet come costs nothing.
        most = (CONNECTIONS + 1) * (degree + _TO_COME) + OPERATORS
        self._server = grpc.server(
            futures.ThreadPoolExecutor(most, thread_name_prefix="serve"),
            options=[
                *_OPTIONS,
                ("grpc.so_reuseport", 0),
                ("grpc.max_concurrent_streams", 4),
                ("grpc.max_connection_idle_ms", int(1000 * self.limits.idle_s)),
                ("grpc.server_handshake_timeout_ms", int(1000 * self.limits.hello_s)),
                ("grpc.http2.min_ping_interval_without_data_ms", 1000),
            ],
        )
        handlers = {
            "Exchange": grpc.stream_stream_rpc_method_handler(self._exchange),
            "News": grpc.unary_stream_rpc_method_handler(
                self._news, pb.NewsRequest.FromString, lambda piece: piece
            ),
            "Measure": grpc.unary_unary_rpc_method_handler(
                self._measure, pb.MeasureRequest.FromString, pb.MeasureReply.SerializeToString
            ),
            **self.operations.handlers(self._require_operator, self.board),
        }
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(SERVICE, handlers),)
        )
        try:
            if tls is None:
                inner = self._server.add_insecure_port(self._gate.backend)
            else:
                credentials = tls.server_credentials(self.monitor)
                inner = self._server.add_secure_port(self._gate.backend, credentials)
            self._server.start()
            self._gate.start(inner)
        except BaseException:
            self._gate.stop()
            raise
        self.port = self._gate.port

    def _exchange(self, requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
        neighbor = self._authorize(context)
        if not self._rates[neighbor].streams.take():
            self._turn_away(
                context,
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                "busy",
                f"neighbor {neighbor} opens connections too often",
                neighbor,
            )
        link = self._link(neighbor)
        if self.tls is not None:
            link.chain = peer_chain(context.auth_context())
        if not self._takes_slot(neighbor, link):
            self._turn_away(
                context,
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                "busy",
                f"neighbor {neighbor} holds all its streams",
                neighbor,
            )
        try:
            yield from self._serve_stream(link, requests, context)
        finally:
            with self._lock:
                self._serving[neighbor].remove(link)

    def _takes_slot(self, neighbor: int, link: StreamLink) -> bool:
        """Take one of a neighbor's places. A new stream ends those that ought to be over.

        The newest of those before is left to say goodbye; one that does not end makes way.
        """
        with self._lock:
            serving = self._serving[neighbor]
            before, free = serving[:-1], len(serving) <= CONNECTIONS
            if free:
                serving.append(link)
            else:
                self._links.discard(link)
        for old in before:
            old.abort()
        return free

    def _serve_stream(
        self, link: StreamLink, requests: Iterator[bytes], context: Any
    ) -> Iterator[bytes]:
        neighbor = link.neighbor
        link.cancel = context.cancel
        if not context.add_callback(lambda: self._ended(link)):
            self._ended(link)
            return
        told = dict(context.invocation_metadata())
        self._see(neighbor, str(told.get("instance", "")), self._caller(context))
        proof = () if self.tls is None else prove(self.tls, str(told.get(CHALLENGE, "")), neighbor)
        # The dialing end waits for it.
        context.send_initial_metadata((("instance", self._instance), *proof))
        self._opened(link)
        reader = threading.Thread(
            target=self._read, args=(link, requests), name=f"read-{neighbor}", daemon=True
        )
        reader.start()
        yield from link.pieces()

    def _see(self, neighbor: int, instance: str, address: str) -> None:
        """Who is at the other end, as far as two devices can be told apart."""
        why = self._doubles.seen(neighbor, instance[:32], address)
        if why is not None:
            with self._lock:
                others = [
                    link for link in self._links if link.neighbor == neighbor and link.greeted
                ]
            for link in others:
                link.close(why)  # so that the other device says so, too

    def _caller(self, context: Any) -> str:
        peer = context.peer()
        return peer if self._gate is None else self._gate.caller(peer)

    def _authorize(self, context: Any) -> int:
        """The neighbor at the other end of a stream. Aborts the call for anyone else."""
        if self.tls is None:
            metadata = dict(context.invocation_metadata())
            claimed = str(metadata.get("vertex", ""))
            vertex = int(claimed) if claimed.isdecimal() else OPERATOR
            identity: Identity | None = Identity("", vertex)
        else:
            identity = peer_identity(context.auth_context(), self.tls.identity.mesh)
        if identity is None:
            self._turn_away(
                context,
                grpc.StatusCode.UNAUTHENTICATED,
                "identity",
                f"the certificate shown from {self._caller(context)} names nobody of this mesh",
            )
        if identity.vertex not in self.neighbors:
            self._turn_away(
                context,
                grpc.StatusCode.PERMISSION_DENIED,
                "identity",
                f"{identity} at {self._caller(context)} is no neighbor of vertex {self.vertex}",
            )
        if identity.vertex in self.dial:
            self._turn_away(
                context,
                grpc.StatusCode.PERMISSION_DENIED,
                "identity",
                f"{identity} at {self._caller(context)} dials, but on this edge vertex "
                f"{self.vertex} does",
                identity.vertex,
            )
        self._require_believed(context, identity.vertex)
        self._admit(context, identity.vertex, CONNECTIONS)
        return identity.vertex

    def _news(self, request: pb.NewsRequest, context: Any) -> Iterator[bytes]:
        """Give a device of the mesh the bulletins that it lacks, neighbor or not."""
        who = None
        if self.tls is not None:
            who = peer_identity(context.auth_context(), self.tls.identity.mesh)
        if who is None or who.vertex == OPERATOR:
            self._turn_away(
                context,
                grpc.StatusCode.UNAUTHENTICATED,
                "identity",
                f"{who or 'somebody'} at {self._caller(context)} asks for news, which is for "
                "devices of this mesh",
            )
        self._require_believed(context, who.vertex)
        if not self._news_allowance.take():
            self._turn_away(
                context, grpc.StatusCode.RESOURCE_EXHAUSTED, "busy", f"{who} asks for news too soon"
            )
        self._admit(context, who.vertex, CONNECTIONS)
        for notice in self.board.newer_than(dict(request.bulletins)):
            yield from pieces_of(notice)

    def _measure(self, request: pb.MeasureRequest, context: Any) -> pb.MeasureReply:
        """Answer a neighbor that measures the way."""
        neighbor = self._authorize(context)
        reply = answer(request, self._rates[neighbor].measuring)
        if reply is None:
            self._turn_away(
                context,
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                "busy",
                f"neighbor {neighbor} measures the way too often",
                neighbor,
            )
        return reply

    def _require_believed(self, context: Any, who: int) -> None:
        """Turn away a certificate that TLS let in and that is revoked, or not trusted any more."""
        if self.tls is None:
            return
        why = self.tls.why_not(peer_chain(context.auth_context()))
        if why is not None:
            self._turn_away(
                context,
                grpc.StatusCode.PERMISSION_DENIED,
                "certificate",
                f"{why} (shown from {self._caller(context)})",
                None if who == OPERATOR else who,
            )

    def _admit(self, context: Any, who: int, allowed: int) -> None:
        """Whose connection it is, is known: it is no stranger's any more."""
        if self._gate is not None and not self._gate.admit(context.peer(), who, allowed):
            context.abort(grpc.StatusCode.UNAVAILABLE, "the connection is being closed")

    def _turn_away(
        self, context: Any, code: grpc.StatusCode, kind: str, why: str, neighbor: int | None = None
    ) -> NoReturn:
        self.monitor.count(f"turned-away.{kind}", neighbor)
        self.monitor.warning("turned-away", reason=kind, why=why)
        if self._gate is not None:
            self._gate.strike(context.peer())
        context.abort(code, why)
        raise AssertionError("abort returns never")

    def _require_operator(self, context: Any, what: str) -> None:
        """Turn away whoever does not show the operator's certificate."""
        if self.tls is not None:
            identity = peer_identity(context.auth_context(), self.tls.identity.mesh)
            if identity is None or identity.vertex != OPERATOR:
                self._turn_away(
                    context,
                    grpc.StatusCode.PERMISSION_DENIED,
                    "identity",
                    f"{identity or 'somebody'} at {self._caller(context)} {what}, which is the "
                    "operator's",
                )
            self._require_believed(context, OPERATOR)
        self._admit(context, OPERATOR, OPERATORS)

    # --- dialing ----------------------------------------------------------------------

    def _keep_dialing(self, neighbor: int, wake: threading.Event) -> None:
        """Dial a neighbor for as long as it is to be dialed. wake: ends a pause."""
        rng = np.random.default_rng([self.vertex, neighbor])
        pause_s = self.limits.retry_s
        while (address := self._address(neighbor)) is not None:
            begin = time.monotonic()
            try:
                _check_ipv6(address)
                why, greeted = self._dial_once(neighbor, address)
            except ConfigError as error:
                why, greeted = str(error), False
            if self._stopping.is_set() or neighbor not in self.dial:
                continue
            if greeted and time.monotonic() - begin > self.limits.retry_max_s:
                pause_s = self.limits.retry_s
            if greeted:
                self.monitor.count("disconnected", neighbor)
                self.monitor.warning("disconnected", neighbor=neighbor, why=why)
            else:
                self.monitor.count("dial-failed", neighbor)
                self.monitor.warning("unreachable", neighbor=neighbor, address=address, why=why)
            waked = wake.wait(pause_s * float(rng.uniform(0.5, 1.5)))
            wake.clear()
            pause_s = min(2.0 * pause_s, self.limits.retry_max_s)
            if greeted or waked:
                pause_s = self.limits.retry_s

    def _address(self, neighbor: int) -> str | None:
        """Where a neighbor is dialed; None if its thread is to end."""
        with self._lock:
            if not self._stopping.is_set() and neighbor in self.dial:
                return self.dial[neighbor]
            self._dialers.pop(neighbor, None)
            return None

    def _dial_once(self, neighbor: int, address: str) -> tuple[str, bool]:
        """One connection, from its beginning to its end. Returns why it ended."""
        options: list[tuple[str, Any]] = [*_OPTIONS, ("grpc.use_local_subchannel_pool", 1)]
        if self.tls is None:
            channel = grpc.insecure_channel(address, options)
        else:
            options.append(("grpc.ssl_target_name_override", self.tls.server_name(neighbor)))
            channel = grpc.secure_channel(address, self.tls.channel_credentials(), options)
        link = self._link(neighbor)
        challenge = new_challenge()
        try:
            call = channel.stream_stream(EXCHANGE)(
                link.pieces(),
                metadata=(
                    ("vertex", str(self.vertex)),
                    ("instance", self._instance),
                    (CHALLENGE, challenge),
                ),
            )
            link.cancel = call.cancel
            patience = threading.Timer(self.limits.hello_s, self._half_open, (link,))
            patience.daemon = True
            patience.start()
            # Until the other end is there, or the attempt has failed.
            told = call.initial_metadata()
            patience.cancel()
            if call.is_active():
                if self.tls is not None:
                    try:
                        link.chain = believe(self.tls, told, challenge, neighbor)
                    except NotBelievedError as error:
                        self.monitor.count("turned-away.certificate", neighbor)
                        link.abort()
                        return str(error), False
                self._see(neighbor, str(dict(told).get("instance", "")), address)
                self._opened(link)
            why = self._read(link, call)
            if not link.greeted and call.code() is grpc.StatusCode.PERMISSION_DENIED:
                self._ask_for_news(neighbor, channel)
        finally:
            self._ended(link)
            channel.close()
        return link.given_up or why, link.greeted

    def _ask_for_news(self, neighbor: int, channel: grpc.Channel) -> None:
        """A neighbor does not let this device in: the mesh may have changed while it was away."""
        news = channel.unary_stream(NEWS, pb.NewsRequest.SerializeToString, pb.Bulletin.FromString)
        arrivals = Arrivals(neighbor, self.board, lambda: True)
        request = pb.NewsRequest(bulletins=self.board.known())
        try:
            for piece in news(request, timeout=self.limits.transfer_s):
                arrivals.piece(piece)
        except (grpc.RpcError, RefusedError):
            self.monitor.count("no-news", neighbor)

    # --- both -------------------------------------------------------------------------

    def _link(self, neighbor: int) -> StreamLink:
        rates = self._rates[neighbor]
        link = StreamLink(
            neighbor,
            deliver=self.deliver,
            assembler=Assembler(self.run, neighbor, self.vectors, self._known_of(neighbor)),
            monitor=self.monitor,
            greeting=lambda hello: self._introduce(neighbor, hello),
            greet=lambda hello: self._agreement.check(neighbor, hello),
            heartbeat_s=self.limits.heartbeat_s,
            strikes=rates.refusals,
            short_frames=rates.frames,
            board=self.board,
        )
        with self._lock:
            self._links.add(link)
        return link

    def _known_of(self, neighbor: int) -> Known | None:
        """What is known of a neighbor's public payloads; it outlives connections."""
        if self.compressor is None:
            return None
        with self._lock:
            if neighbor not in self._known:
                self._known[neighbor] = Known(self.compressor, self.held.get(neighbor))
            return self._known[neighbor]

    def _introduce(self, neighbor: int, hello: pb.Hello) -> None:
        """Say in our Hello what the two ends must have in common, and what this one knows."""
        self._agreement.put(neighbor, hello)
        for kind, number in self.board.known().items():
            hello.bulletins[kind] = number

    def _read(self, link: StreamLink, frames: Any) -> str:
        """Take what a neighbor sends until the stream ends. Returns why it did."""
        why = "closed by the neighbor"
        arriving = iter(frames)
        while True:
            try:
                raw = next(arriving, None)
            except grpc.RpcError as error:
                details = getattr(error, "details", None)
                why = cause_of(str(details() if details is not None else error))
                break
            except Exception as error:  # gRPC raises bare Exceptions when a call is cancelled
                why = f"{type(error).__name__}: {error}"
                break
            if raw is None:
                break
            try:
                link.receive(raw)
            except Exception as error:
                why = self._failed(link, error)
                break
        self._ended(link, why)
        return why

    def _failed(self, link: StreamLink, error: Exception) -> str:
        """A defect of this end showed in what a neighbor sent: name it, and drop the connection.

        The run goes on: a neighbor whose bytes find a defect must not end it.
        """
        place = traceback.extract_tb(error.__traceback__)[-1]
        why = f"{type(error).__name__}: {error}"
        self.monitor.count("reader-failed", link.neighbor)
        self.monitor.event(
            "reader-failed",
            logging.ERROR,
            neighbor=link.neighbor,
            why=why,
            where=f"{Path(place.filename).name}:{place.lineno}, in {place.name}",
        )
        link.abort()
        return why

    def _opened(self, link: StreamLink) -> None:
        if self._judge(link) is not None:  # a list that came after it was let in
            return
        link.opened()
        if link.ended.is_set():  # meanwhile; whichever came first, it is over
            link.parted()

    def _ended(self, link: StreamLink, why: str = "") -> None:
        with self._lock:
            known = link in self._links
            self._links.discard(link)
        if known:
            link.close("the stream has ended")
            link.ended.set()
            link.parted()
            if link.greeted:
                self.monitor.event("parted", neighbor=link.neighbor, why=why or "cancelled")

    def _half_open(self, link: StreamLink) -> None:
        """The end that was dialed says nothing at all."""
        link.given_up = "something takes the connection, and says nothing"
        self.monitor.count("cut-off.half-open", link.neighbor)
        self.monitor.warning("cut-off", neighbor=link.neighbor, why="half-open")
        link.abort()

    def _thread(self, target: Callable[..., None], name: str, *arguments: Any) -> None:
        thread = threading.Thread(target=target, args=arguments, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()


def _check_ipv6(address: str) -> None:
    """Raise ConfigError where gRPC would not dial an IPv6 address, and not say why.

    It holds a machine whose loopback interface has no `::1` for one without IPv6. What listens
    is this package's own gate, which asks the system.
    """
    if not address.startswith("["):
        return
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError as error:
        raise ConfigError(
            f"{address} is an IPv6 address, and IPv6 does not work on the loopback interface of "
            f"this machine (::1: {error.strerror}); bring the interface up ('ip link set lo up') "
            "and allow IPv6 on it ('sysctl net.ipv6.conf.lo.disable_ipv6=0')"
        ) from None
