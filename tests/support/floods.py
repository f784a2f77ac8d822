"""Strangers and neighbors that flood a peer's port; each runs in a process of its own.

`python -m tests.support.floods KIND HOST:PORT SECONDS …` floods for so long and prints as JSON
what it has done. All of them call from the address of the honest neighbors.
"""

from __future__ import annotations

import json
import os
import selectors
import socket
import ssl
import subprocess
import sys
import threading
import time
from pathlib import Path

from tests.support.peers import ROOT, environment


class Flood:
    """A flood under way; `end` waits for it and returns what it has done."""

    def __init__(self, kind: str, address: str, seconds: float, *words: object) -> None:
        self._popen = subprocess.Popen(
            [sys.executable, "-m", "tests.support.floods", kind, address, str(seconds)]
            + [str(word) for word in words],
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=environment(),
        )

    def end(self, timeout: float = 60.0) -> dict[str, int]:
        out, _ = self._popen.communicate(timeout=timeout)
        done: dict[str, int] = json.loads(out)
        return done

    def kill(self) -> None:
        self._popen.kill()
        self._popen.communicate()


def silent(address: tuple[str, int], until: float, most: int) -> dict[str, int]:
    """Up to `most` connections at a time that say nothing; for each that is closed a new one."""
    selector = selectors.DefaultSelector()
    opened = closed = 0
    while time.monotonic() < until:
        for _ in range(min(100, most - (opened - closed))):
            end = socket.socket()
            end.setblocking(False)
            end.connect_ex(address)
            selector.register(end, selectors.EVENT_READ)
            opened += 1
        for key, _ in selector.select(0.01):
            selector.unregister(key.fileobj)
            key.fileobj.close()  # type: ignore[union-attr]
            closed += 1
    return {"opened": opened, "open at the end": opened - closed}


def handshakes(
    address: tuple[str, int], until: float, most: int, name: str = "", threads: int = 128
) -> dict[str, int]:
    """Up to `most` TLS handshakes without a certificate, as fast as the peer takes them."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    begun, done = [0] * threads, [0] * threads

    def shake(i: int) -> None:
        while time.monotonic() < until and sum(begun) < most:
            begun[i] += 1
            try:
                with socket.create_connection(address, 5.0) as plain:
                    plain.settimeout(2.0)
                    with context.wrap_socket(plain, server_hostname=name or None) as end:
                        done[i] += 1
                        end.recv(1)
            except OSError:
                continue

    workers = [threading.Thread(daemon=True, target=shake, args=(i,)) for i in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return {"begun": sum(begun), "answered": sum(done)}


def stalled(address: tuple[str, int], until: float, most: int, hello: str) -> dict[str, int]:
    """Up to `most` connections at a time that begin a handshake and never go on."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    out = ssl.MemoryBIO()
    try:
        context.wrap_bio(ssl.MemoryBIO(), out, server_hostname=hello or None).do_handshake()
    except ssl.SSLWantReadError:
        first = out.read()
    opened = closed = 0
    selector = selectors.DefaultSelector()
    while time.monotonic() < until:
        for _ in range(min(20, most - (opened - closed))):
            opened += 1
            end = socket.create_connection(address)
            try:
                end.sendall(first)
            except OSError:
                end.close()
                closed += 1
                continue
            selector.register(end, selectors.EVENT_READ)
        for key, _ in selector.select(0.05):
            end = key.fileobj  # type: ignore[assignment]
            try:
                over = not end.recv(65536)
            except OSError:
                over = True
            if over:
                selector.unregister(end)
                end.close()
                closed += 1
    return {"opened": opened, "open at the end": opened - closed}


def greedy(address: tuple[str, int], until: float, home: str, name: str) -> dict[str, int]:
    """A certified neighbor that opens stream after stream, says Hello, and reads nothing."""
    import grpc

    from flower_dhb.peer.wire import relay_pb2 as pb
    from flower_dhb.peer.wire.frames import VERSION
    from flower_dhb.peer.wire.transport import EXCHANGE

    key, certificate, authority = (
        (Path(home) / f"{part}.pem").read_bytes() for part in ("key", "certificate", "authority")
    )
    credentials = grpc.ssl_channel_credentials(authority, key, certificate)
    options = [("grpc.ssl_target_name_override", name), ("grpc.use_local_subchannel_pool", 1)]
    hello = pb.Frame(hello=pb.Hello(version=VERSION)).SerializeToString()
    held = threading.Event()
    opened = refused = 0

    def says_hello():  # type: ignore[no-untyped-def]
        yield hello
        held.wait()

    channels = []
    while time.monotonic() < until:
        channels.append(grpc.secure_channel(f"{address[0]}:{address[1]}", credentials, options))
        calls = [channel.stream_stream(EXCHANGE)(says_hello()) for channel in 4 * channels[-1:]]
        opened += len(calls)
        time.sleep(0.05)
        refused += sum(not call.is_active() for call in calls)
        if len(channels) > 40:  # a way in may take a second or two
            channels.pop(0).close()
    held.set()
    return {"opened": opened, "refused at once": refused}


KINDS = {"silent": silent, "handshakes": handshakes, "stalled": stalled, "greedy": greedy}


def main() -> None:
    kind, address, seconds, *words = sys.argv[1:]
    os.nice(10)  # real strangers compute on machines of their own
    host, _, port = address.rpartition(":")
    arguments = [int(word) if word.isdecimal() else word for word in words]
    until = time.monotonic() + float(seconds)
    done = KINDS[kind]((host, int(port)), until, *arguments)  # type: ignore[operator]
    print(json.dumps(done), flush=True)
    os._exit(0)  # what is still open ends with the process


if __name__ == "__main__":
    main()
