"""The operator's view: ask all peers how they are, over the same mutual TLS."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import grpc
import numpy as np

from flower_dhb.metrics import consensus_distance
from flower_dhb.peer.mesh.overview import read_overview
from flower_dhb.peer.watch.status import FINISHED
from flower_dhb.peer.wire import relay_pb2 as pb
from flower_dhb.peer.wire.identity import OPERATOR, Identity
from flower_dhb.peer.wire.operations import PUBLISH, STATUS
from flower_dhb.peer.wire.tls import TlsFiles

__all__ = ["Fleet", "FleetStatus"]

T = TypeVar("T")

SKETCH = 1024
_PIECE_BYTES = 256 * 1024


@dataclass(frozen=True)
class FleetStatus:
    """What the peers answered. failures: why a peer did not, by vertex."""

    replies: Mapping[int, pb.StatusReply]
    failures: Mapping[int, str]
    edges: tuple[tuple[int, int], ...]

    @property
    def consensus_distance(self) -> float | None:
        """Estimated from random projections, within a few percent; None below two peers."""
        sketches = [np.array(r.sketch) for r in self.replies.values() if len(r.sketch)]
        return consensus_distance(sketches) if len(sketches) > 1 else None

    @property
    def parts(self) -> list[list[int]]:
        """Vertices that are connected with one another, the largest part first.

        An edge holds if either end says so; a peer that did not answer holds none of its own,
        and one that has finished needs none.
        """
        training = {v: r for v, r in self.replies.items() if r.phase != FINISHED}
        part_of = {v: {v} for v in training}
        for vertex, reply in training.items():
            for neighbor in reply.neighbors:
                if neighbor.up:
                    whole = part_of[vertex] | part_of.get(neighbor.vertex, {neighbor.vertex})
                    part_of |= dict.fromkeys(whole, whole)
        parts = {tuple(sorted(part)) for part in part_of.values()}
        return [list(part) for part in sorted(parts, key=lambda part: (-len(part), part))]

    @property
    def warnings(self) -> list[str]:
        """What asks for attention, in words."""
        found = []
        parts = self.parts
        if len(parts) > 1:
            found.append(
                f"the network is split into {len(parts)} parts that cannot agree: "
                + ", ".join(str(part) for part in parts)
            )
        finished = {v for v, reply in self.replies.items() if reply.phase == FINISHED}
        for a, b in self.edges:
            if finished & {a, b}:
                continue
            down = [
                v
                for v, w in ((a, b), (b, a))
                if v in self.replies
                and any(n.vertex == w and not n.up for n in self.replies[v].neighbors)
            ]
            if down:
                found.append(f"edge {a}-{b} is down")
        found += [f"vertex {v} did not answer: {why}" for v, why in sorted(self.failures.items())]
        for vertex, reply in sorted(self.replies.items()):
            if reply.HasField("alone_since"):
                found.append(f"vertex {vertex} has been alone since round {reply.alone_since}")
            if reply.counts["disk-trouble"] > reply.counts["disk-writes-again"]:
                found.append(
                    f"vertex {vertex}: its disk takes nothing; see 'disk-failed' in its log"
                )
            found += [
                f"two devices show the certificate of vertex {neighbor.vertex}, says vertex "
                f"{vertex}; its log names their addresses"
                for neighbor in reply.neighbors
                if f"two-devices.{neighbor.vertex}" in reply.counts
            ]
            one_sided = sum(neighbor.one_sided for neighbor in reply.neighbors)
            if one_sided:
                found.append(f"vertex {vertex}: {one_sided} of its edges counted at one end only")
        return found


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
        self._tls: TlsFiles | None = None
        if not document["plaintext"]:
            home = directory / "operator"
            self._tls = TlsFiles(
                Identity(document["mesh"], OPERATOR),
                home / "key.pem",
                home / "certificate.pem",
                home / "authority.pem",
            )
        self._channels: dict[int, grpc.Channel] = {}

    def status(self, timeout_s: float = 5.0, sketch: int = SKETCH) -> FleetStatus:
        """Ask every peer at the same time."""

        def ask(channel: grpc.Channel) -> pb.StatusReply:
            call = channel.unary_unary(
                STATUS,
                request_serializer=pb.StatusRequest.SerializeToString,
                response_deserializer=pb.StatusReply.FromString,
            )
            reply: pb.StatusReply = call(pb.StatusRequest(sketch=sketch), timeout=timeout_s)
            return reply

        replies, failures = self.ask_all(ask)
        return FleetStatus(replies, failures, self.edges)

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
                try:
                    replies[vertex] = answer.result()
                except grpc.RpcError as error:
                    failures[vertex] = _reason(error, self.hosts[vertex])
        return replies, failures

    def close(self) -> None:
        """Close the connections."""
        for channel in self._channels.values():
            channel.close()

    def _ask(self, vertex: int, ask: Callable[[grpc.Channel], T]) -> T:
        if vertex not in self._channels:
            self._channels[vertex] = self._open(vertex)
        return ask(self._channels[vertex])

    def _open(self, vertex: int) -> grpc.Channel:
        address = self.hosts[vertex]
        options: list[tuple[str, Any]] = [("grpc.use_local_subchannel_pool", 1)]
        options += [
            ("grpc.initial_reconnect_backoff_ms", 200),
            ("grpc.max_reconnect_backoff_ms", 2000),
        ]
        if self._tls is None:
            return grpc.insecure_channel(address, options)
        options.append(("grpc.ssl_target_name_override", self._tls.server_name(vertex)))
        return grpc.secure_channel(address, self._tls.channel_credentials(), options)


def _reason(error: grpc.RpcError, address: str | None) -> str:
    details = str(error.details())
    if "onnection refused" in details:
        return f"nothing listens at {address}"
    return f"{error.code().name.lower()}: {details}"[:200]
