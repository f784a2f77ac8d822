"""Payload transfer between two processes: this package, a bare gRPC stream, raw TCP.

`python -m benchmarks.peers_transfer --json` prints MiB/s of each, measured in turn, in
one run, best of several. The sender is one process, the receiver another; the time runs
from the first byte sent until the receiver has acknowledged the last one (for this
package: held, checked, and acknowledged).
"""

from __future__ import annotations

import argparse
import json
import multiprocessing as mp
import queue
import socket
import tempfile
import threading
import time
from concurrent import futures
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from flower_dhb.agent import codec
from flower_dhb.agent.codec import VectorSpec
from flower_dhb.peer.mesh.certificates import Authority, write_private
from flower_dhb.peer.monitor import LOGGER, Monitor
from flower_dhb.peer.protocol.events import (
    Acknowledged,
    Completed,
    Connected,
    Greeted,
    LinkEvent,
    Offered,
    Payload,
)
from flower_dhb.peer.protocol.messages import Ack, Hello, Offer
from flower_dhb.peer.wire import relay_pb2 as pb
from flower_dhb.peer.wire.frames import Outgoing
from flower_dhb.peer.wire.identity import Identity
from flower_dhb.peer.wire.operations import Operations
from flower_dhb.peer.wire.tls import TlsFiles
from flower_dhb.peer.wire.transport import Limits, Transport

MIB = 2**20
TOTAL = 256 * MIB
CHUNKS = (64 * 1024, 256 * 1024, MIB, 4 * MIB)
OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


# --- raw TCP --------------------------------------------------------------------------


def serve_tcp(pipe: Connection, repeats: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        pipe.send(listener.getsockname()[1])
        connection, _ = listener.accept()
        buffer = bytearray(MIB)
        with connection:
            for _ in range(repeats):
                left = TOTAL
                while left:
                    left -= connection.recv_into(buffer, min(left, MIB))
                connection.sendall(b"!")


def send_tcp(port: int, data: memoryview, repeats: int) -> list[float]:
    times = []
    with socket.create_connection(("127.0.0.1", port)) as connection:
        for _ in range(repeats):
            begin = time.perf_counter()
            connection.sendall(data)
            connection.recv(1)
            times.append(time.perf_counter() - begin)
    return times


# --- a bare gRPC stream ---------------------------------------------------------------


def serve_grpc(pipe: Connection, repeats: int, keep: bool) -> None:
    """Counts the bytes; `keep` also puts them together, as every receiver must in the end."""
    over = threading.Semaphore(0)
    kept = np.empty(TOTAL if keep else 0, np.uint8).data

    def count(pieces: object, context: object) -> object:
        total = 0
        for piece in pieces:  # type: ignore[attr-defined]
            if keep:
                kept[total : total + len(piece)] = piece
            total += len(piece)
        yield str(total).encode()
        over.release()

    server = grpc.server(futures.ThreadPoolExecutor(2), options=OPTIONS)
    handler = {"Send": grpc.stream_stream_rpc_method_handler(count)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bench.Bare", handler),))
    pipe.send(server.add_insecure_port("127.0.0.1:0"))
    server.start()
    for _ in range(repeats):
        over.acquire()
    server.stop(1).wait()


def send_grpc(port: int, data: memoryview, repeats: int, chunk: int) -> list[float]:
    times = []
    with grpc.insecure_channel(f"127.0.0.1:{port}", OPTIONS) as channel:
        grpc.channel_ready_future(channel).result(10)
        for _ in range(repeats):
            begin = time.perf_counter()
            pieces = (bytes(data[i : i + chunk]) for i in range(0, len(data), chunk))
            reply = b"".join(channel.stream_stream("/bench.Bare/Send")(pieces))
            times.append(time.perf_counter() - begin)
            assert int(reply) == len(data)
    return times


# --- this package ---------------------------------------------------------------------


class End:
    """One end of an edge: it greets, takes every payload, and acknowledges it."""

    def __init__(self, vertex: int, size: int, home: Path, tls: bool, address: str | None) -> None:
        files = TlsFiles(
            Identity("bench", vertex), home / f"key-{vertex}", home / f"cert-{vertex}", home / "ca"
        )
        self.greeted = threading.Event()
        self.acknowledged: queue.SimpleQueue[int] = queue.SimpleQueue()
        self.link: Any = None
        self.transport = Transport(
            vertex=vertex,
            run="bench",
            vectors=(VectorSpec("folded", "float32", size),),
            agreement={},
            neighbors=(1 - vertex,),
            deliver=self.take,
            monitor=Monitor(vertex),
            listen=None if address else "127.0.0.1:0",
            dial={1 - vertex: address} if address else {},
            tls=files if tls else None,
            operations=Operations(status=lambda _: pb.StatusReply(), stop=lambda _: pb.StopReply()),
            limits=Limits(),
        )
        self.transport.start()

    def take(self, event: LinkEvent) -> None:
        """What the protocol would do where all goes well."""
        link: Any = event.link
        match event:
            case Connected():
                link.send(Hello())
            case Greeted():
                self.link = link
                self.greeted.set()
            case Offered():
                link.reserve(event.offer)
            case Completed():
                link.send(Ack(event.offer.round, event.payload.digest))
            case Acknowledged():
                self.acknowledged.put(event.round)


def serve_peer(pipe: Connection, repeats: int, home: Path, tls: bool) -> None:
    """Receives the large payload; shares nothing, so that only one way is measured."""
    LOGGER.disabled = True
    end = End(0, TOTAL // 4, home, tls, None)
    pipe.send(end.transport.port)
    pipe.recv()
    end.transport.stop()


def send_peer(port: int, repeats: int, home: Path, tls: bool) -> list[float]:
    LOGGER.disabled = True
    end = End(1, TOTAL // 4, home, tls, f"127.0.0.1:{port}")
    assert end.greeted.wait(10.0)
    vector = np.random.default_rng(0).random(TOTAL // 4, dtype=np.float32)
    times = []
    for k in range(1, repeats + 1):
        frame = codec.encode({"folded": vector}, run="bench", round=k, vertex=1)
        begin = time.perf_counter()
        outgoing = Outgoing.of(frame)
        payload = Payload(outgoing.checksum, outgoing)
        end.link.send_payload(Offer(k, payload.digest), payload)
        assert end.acknowledged.get(timeout=30) == k
        times.append(time.perf_counter() - begin)
    end.transport.stop()
    return times


def certificates(home: Path) -> None:
    authority = Authority.create("bench", 2)
    (home / "ca").write_bytes(authority.pem)
    for vertex in (0, 1):
        key, certificate = authority.issue(vertex, 1)
        write_private(home / f"key-{vertex}", key)
        (home / f"cert-{vertex}").write_bytes(certificate)


def measure(repeats: int, turns: int = 3) -> dict[str, float]:
    """MiB/s of each way, best of `turns` processes and `repeats` payloads in each."""
    context = mp.get_context("spawn")
    data = memoryview(np.random.default_rng(0).bytes(TOTAL))
    found: dict[str, float] = {}

    def timed(name: str, serve: object, send: object, *extra: object) -> None:
        near, far = context.Pipe()
        process = context.Process(target=serve, args=(far, repeats, *extra))
        process.start()
        times = send(near.recv())  # type: ignore[operator]
        near.send("done")
        process.join(20)
        found[name] = max(found.get(name, 0.0), TOTAL / MIB / min(times))

    with tempfile.TemporaryDirectory() as directory:
        home = Path(directory)
        certificates(home)
        for _ in range(turns):  # by turns: the machine's pace changes
            timed("raw TCP", serve_tcp, lambda p: send_tcp(p, data, repeats))
            for chunk in CHUNKS:
                for keep in (False, True):
                    timed(
                        f"bare gRPC, {chunk // 1024} KiB chunks{', kept' if keep else ''}",
                        serve_grpc,
                        lambda p, chunk=chunk: send_grpc(p, data, repeats, chunk),
                        keep,
                    )
            for tls in (False, True):
                timed(
                    f"peers, {'mutual TLS' if tls else 'plaintext'}",
                    serve_peer,
                    lambda p, tls=tls: send_peer(p, repeats, home, tls),
                    home,
                    tls,
                )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    found = measure(arguments.repeats)
    if arguments.json:
        print(json.dumps(found))
        return
    bare = max(v for k, v in found.items() if k.startswith("bare") and "kept" not in k)
    kept = max(v for k, v in found.items() if "kept" in k)
    for name, speed in found.items():
        print(
            f"{name:32} {speed:7.0f} MiB/s   {speed / bare:5.2f} of bare gRPC   "
            f"{speed / kept:5.2f} of one that keeps the bytes   "
            f"{speed / found['raw TCP']:5.2f} of TCP"
        )


if __name__ == "__main__":
    main()
