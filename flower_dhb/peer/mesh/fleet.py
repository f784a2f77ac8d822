"""The operator's view: ask all peers how they are, over the same mutual TLS."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import grpc

from flower_dhb.errors import ConfigError
from flower_dhb.metrics import SKETCH
from flower_dhb.peer.mesh.overview import read_overview
from flower_dhb.peer.mesh.sights import read_sights, seen, write_sights
from flower_dhb.peer.mesh.status import FleetStatus
from flower_dhb.peer.wire import relay_pb2 as pb
from flower_dhb.peer.wire.address import parse_address
from flower_dhb.peer.wire.causes import cause_of
from flower_dhb.peer.wire.identity import OPERATOR, Identity, utc_now
from flower_dhb.peer.wire.operations import PUBLISH, STATUS
from flower_dhb.peer.wire.tls import TlsFiles

__all__ = ["Fleet", "call"]

T = TypeVar("T")
Reply = TypeVar("Reply", pb.StatusReply, pb.StopReply, pb.RenewReply)

_PIECE_BYTES = 256 * 1024
_WRITES_S = 5.0  # between two writes of last sights, while somebody watches
_PROBE_S = 1.0
_NO_ANSWER = r"Endpoint closing|[Tt]imed? ?out|[Dd]eadline [Ee]xceeded"


def call(
    channel: grpc.Channel, method: str, request: Any, reply: type[Reply], timeout_s: float
) -> Reply:
    """Ask one peer one thing. Raises grpc.RpcError if it does not answer."""
    ask = channel.unary_unary(
        method,
        request_serializer=type(request).SerializeToString,
        response_deserializer=reply.FromString,
    )
    answer: Reply = ask(request, timeout=timeout_s)
    return answer


class Fleet:
    """All peers of the mesh in a directory that `mesh create` wrote. Raises ConfigError.

    hosts: address by vertex, if not those that the mesh has now.
    """

    def __init__(self, directory: Path, hosts: Mapping[int, str | None] | None = None) -> None:
        document = read_overview(directory)
        self.document: dict[str, Any] = document
        self.edges = tuple((e["between"][0], e["between"][1]) for e in document["edges"])
        now: dict[int, str | None] = {h["vertex"]: h.get("address") for h in document["hosts"]}
        self.hosts = now if hosts is None else dict(hosts)
        self.directory = directory
        self.names: dict[int, str] = {
            h["vertex"]: h["name"] for h in document["hosts"] if "name" in h
        }
        self._sights = read_sights(directory)
        self._written_at = 0.0
        self._tls: TlsFiles | None = None
        if not document["plaintext"]:
            who = Identity(document["mesh"], OPERATOR)
            self._tls = TlsFiles.in_folder(who, directory / "operator")
        self._channels: dict[int, grpc.Channel] = {}

    def status(self, timeout_s: float = 5.0, sketch: int = SKETCH) -> FleetStatus:
        """Ask every peer at the same time."""
        request = pb.StatusRequest(sketch=sketch)
        replies, failures = self.ask_all(
            lambda channel: call(channel, STATUS, request, pb.StatusReply, timeout_s)
        )
        now = utc_now().timestamp()
        before, self._sights = self._sights, seen(self._sights, replies, now)
        if now - self._written_at > _WRITES_S and self._sights != before:
            write_sights(self.directory, self._sights)
            self._written_at = now
        return FleetStatus(
            replies,
            failures,
            self.edges,
            addresses=self.hosts,
            names=self.names,
            sights=before,
            now_s=now,
        )

    def publish(
        self, raw: bytes, timeout_s: float = 10.0
    ) -> tuple[dict[int, pb.PublishReply], dict[int, str]]:
        """Hand a signed bulletin to every peer at the same time. Returns answers and failures."""
        pieces = [
            pb.PublishRequest(data=raw[at : at + _PIECE_BYTES])
            for at in range(0, len(raw), _PIECE_BYTES)
        ]

        def ask(channel: grpc.Channel) -> pb.PublishReply:
            call = channel.stream_unary(
                PUBLISH,
                request_serializer=pb.PublishRequest.SerializeToString,
                response_deserializer=pb.PublishReply.FromString,
            )
            reply: pb.PublishReply = call(iter(pieces), timeout=timeout_s)
            return reply

        return self.ask_all(ask)

    def ask_all(
        self, ask: Callable[[grpc.Channel], T], vertices: Collection[int] | None = None
    ) -> tuple[dict[int, T], dict[int, str]]:
        """Ask peers at the same time, over the operator's connection to each.

        vertices: whom, if not all. Returns answers, and why the others gave none, by vertex.
        """
        asked = {v: a for v, a in self.hosts.items() if vertices is None or v in vertices}
        failures = {
            v: "it has no address that could be asked" for v, a in asked.items() if a is None
        }
        replies: dict[int, T] = {}
        reachable = [v for v, address in asked.items() if address is not None]
        with ThreadPoolExecutor(max(1, min(32, len(reachable)))) as pool:
            answers = {v: pool.submit(self._ask, v, ask) for v in reachable}
            for vertex, answer in answers.items():
                reply, why = answer.result()
                if reply is None:
                    failures[vertex] = why
                else:
                    replies[vertex] = reply
        return replies, failures

    @property
    def tls(self) -> TlsFiles:
        """The operator's key and certificate. Raises ConfigError for a mesh in plaintext."""
        if self._tls is None:
            raise ConfigError("a mesh in plaintext has no certificates; create a mesh with TLS")
        return self._tls

    def close(self) -> None:
        """Close the connections."""
        for channel in self._channels.values():
            channel.close()

    def _ask(self, vertex: int, ask: Callable[[grpc.Channel], T]) -> tuple[T | None, str]:
        """What a peer answers, or why it does not."""
        if vertex not in self._channels:
            self._channels[vertex] = self._open(vertex)
        try:
            return ask(self._channels[vertex]), ""
        except grpc.RpcError as error:
            return None, _reason(error, str(self.hosts[vertex]))

    def _open(self, vertex: int) -> grpc.Channel:
        address = self.hosts[vertex]
        options: list[tuple[str, Any]] = [("grpc.use_local_subchannel_pool", 1)]
        options += [
            ("grpc.initial_reconnect_backoff_ms", 200),
            ("grpc.max_reconnect_backoff_ms", 2000),
            # A device that is gone in the middle of a file is noticed.
            ("grpc.keepalive_time_ms", 10_000),
            ("grpc.keepalive_timeout_ms", 20_000),
        ]
        if self._tls is None:
            return grpc.insecure_channel(address, options)
        options.append(("grpc.ssl_target_name_override", self._tls.server_name(vertex)))
        return grpc.secure_channel(address, self._tls.channel_credentials(), options)


def _reason(error: grpc.RpcError, address: str) -> str:
    """Why a peer did not answer, in words."""
    details = str(error.details())
    if "onnection refused" in details:
        return f"nothing listens at {address}"
    if re.search(_NO_ANSWER, details) and _takes_connections(address):
        return f"{address} takes connections and does not answer"
    return f"{address}: {cause_of(details)}"[:200]


def _takes_connections(address: str) -> bool:
    """Whether anything is at an address, if only a kernel with a process that does nothing."""
    host, port = parse_address(address)
    try:
        with socket.create_connection((host.strip("[]"), port), timeout=_PROBE_S):
            return True
    except OSError:
        return False
