"""A link of loopback that is slow, long or lossy: a proxy between two peers."""

from __future__ import annotations

import contextlib
import queue
import random
import socket
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import tomli_w

from tests.support.peers import Mesh

__all__ = ["Shape", "ShapedLinks"]

_SEGMENT = 1448
_BUFFER = 16 * 1024  # of the proxy's sockets: what waits elsewhere is the peers' own
_CREDIT_S = 0.1  # a thread that woke late makes up for it


@dataclass(frozen=True)
class Shape:
    """One direction of a link.

    bytes_s: rate. way_s: seconds to the other end. loss: share of segments that are lost; the
    bytes behind one wait for its repetition, two turns and 0.2 s, as TCP's receivers do.
    """

    bytes_s: float
    way_s: float = 0.0
    loss: float = 0.0


class ShapedLinks:
    """Proxies on all edges of a mesh, each with a link of its own; directions do not share."""

    def __init__(self, shape: Shape, seed: int = 0) -> None:
        self.shape = shape
        self._rng = random.Random(seed)  # noqa: S311
        self._sockets: list[socket.socket] = []

    def place(self, mesh: Mesh) -> None:
        """Send every connection of a mesh through a proxy."""
        import tomllib

        for path in mesh.paths.values():
            document = tomllib.loads(path.read_text())
            for neighbor in document["neighbors"]:
                if "address" in neighbor:
                    neighbor["address"] = self.before(neighbor["address"])
            Path(path).write_text(tomli_w.dumps(document))

    def before(self, address: str) -> str:
        """The address of a proxy before one."""
        host, _, port = address.rpartition(":")
        listener = socket.create_server(("127.0.0.1", 0))
        self._sockets.append(listener)
        target = (host, int(port))
        threading.Thread(target=self._serve, args=(listener, target), daemon=True).start()
        return f"127.0.0.1:{listener.getsockname()[1]}"

    def close(self) -> None:
        """Reset all connections, and listen no more."""
        for end in self._sockets:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def _serve(self, listener: socket.socket, target: tuple[str, int]) -> None:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
        while True:
            try:
                near, _ = listener.accept()
            except OSError:
                return  # closed
            far = socket.socket()
            far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
            far.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)
            near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)
            self._sockets += [near, far]
            try:
                far.connect(target)
            except OSError:  # nobody listens there yet: dial again
                near.close()
                continue
            for source, sink in ((near, far), (far, near)):
                line: queue.Queue[tuple[float, bytes]] = queue.Queue()
                threading.Thread(target=self._take, args=(source, line), daemon=True).start()
                threading.Thread(target=self._give, args=(line, sink), daemon=True).start()

    def _take(self, source: socket.socket, line: queue.Queue[tuple[float, bytes]]) -> None:
        """Take bytes at the rate of the link."""
        shape = self.shape
        size = max(min(_BUFFER, int(0.02 * shape.bytes_s)), 256)
        free = ready = 0.0
        while True:
            try:
                data = source.recv(size)
            except OSError:
                data = b""
            now = time.monotonic()
            free = max(free, now - _CREDIT_S) + len(data) / shape.bytes_s
            comes = free + shape.way_s
            if self._rng.random() < 1 - (1 - shape.loss) ** (len(data) / _SEGMENT):
                comes += 4 * shape.way_s + 0.2
            ready = max(ready, comes)  # in order
            line.put((ready, data))
            if not data:
                return
            time.sleep(max(free - now, 0.0))

    def _give(self, line: queue.Queue[tuple[float, bytes]], sink: socket.socket) -> None:
        """Give each piece when it has come."""
        while True:
            ready, data = line.get()
            time.sleep(max(ready - time.monotonic(), 0.0))
            try:
                if not data:
                    sink.shutdown(socket.SHUT_RDWR)
                    return
                sink.sendall(data)
            except OSError:
                return
