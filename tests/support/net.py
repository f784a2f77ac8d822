"""Two halves of a network that can be cut and joined: namespaces, or proxies without rights."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import threading
import uuid
from collections.abc import Callable
from pathlib import Path

import tomli_w

from flower_dhb.peer.mesh.create import Host, local_hosts
from tests.support.peers import Mesh


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


def namespaces_allowed() -> bool:
    """Whether this process may make network namespaces."""
    if shutil.which("ip") is None or os.geteuid() != 0:
        return False
    name = f"probe-{uuid.uuid4().hex[:8]}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False)
    if made.returncode == 0:
        _ip("netns", "del", name)
    return made.returncode == 0


class Namespaces:
    """Two network namespaces joined by one cable; a cut loses packets without a word."""

    def __init__(self, first: set[int], n: int) -> None:
        tag = uuid.uuid4().hex[:6]
        self.first = first
        self.names = (f"dhb-{tag}-a", f"dhb-{tag}-b")
        self._cables = (f"d{tag}a", f"d{tag}b")
        own, between = ("10.213.1.1", "10.213.1.2"), ("10.213.0.1", "10.213.0.2")
        for name in self.names:
            _ip("netns", "add", name)
            _ip("-n", name, "link", "set", "lo", "up")
        _ip("link", "add", self._cables[0], "type", "veth", "peer", "name", self._cables[1])
        for i, name in enumerate(self.names):
            _ip("link", "set", self._cables[i], "netns", name)
            _ip("-n", name, "addr", "add", f"{own[i]}/32", "dev", "lo")
            _ip("-n", name, "addr", "add", f"{between[i]}/30", "dev", self._cables[i])
            self._up(i)
        self.hosts = [Host(v, f"{own[0 if v in first else 1]}:{21000 + v}") for v in range(n)]

    def _up(self, i: int) -> None:
        other = ("10.213.1.2", "10.213.1.1")[i]
        via = ("10.213.0.2", "10.213.0.1")[i]
        _ip("-n", self.names[i], "link", "set", self._cables[i], "up")
        _ip("-n", self.names[i], "route", "replace", other, "via", via)

    def place(self, mesh: Mesh) -> None:
        """Nothing to do: addresses say where a peer is."""

    def prefix(self, vertex: int) -> list[str]:
        return ["ip", "netns", "exec", self.names[0 if vertex in self.first else 1]]

    def cut(self) -> None:
        _ip("-n", self.names[1], "link", "set", self._cables[1], "down")

    def heal(self) -> None:
        self._up(1)
        self._up(0)

    def close(self) -> None:
        for name in self.names:
            _ip("netns", "del", name)


class Proxies:
    """A proxy on each edge between the halves; a cut proxy swallows what it gets."""

    def __init__(self, first: set[int], n: int) -> None:
        self.first = first
        self.hosts = local_hosts(n)
        self._open = threading.Event()
        self._open.set()
        self._listeners: list[socket.socket] = []
        self._pairs: list[tuple[socket.socket, socket.socket]] = []

    def place(self, mesh: Mesh) -> None:
        """Send the connections between the halves through proxies."""
        import tomllib

        for v, path in mesh.paths.items():
            document = tomllib.loads(path.read_text())
            for neighbor in document["neighbors"]:
                if "address" in neighbor and (v in self.first) != (
                    neighbor["vertex"] in self.first
                ):
                    neighbor["address"] = self.before(neighbor["address"])
            Path(path).write_text(tomli_w.dumps(document))

    def prefix(self, vertex: int) -> list[str]:
        return []

    def cut(self) -> None:
        self._open.clear()

    def heal(self) -> None:
        for pair in self._pairs:  # what was swallowed cannot be given back
            for end in pair:
                _shut(end)
        self._pairs.clear()
        self._open.set()

    def close(self) -> None:
        for listener in self._listeners:
            _shut(listener)
        self.heal()

    def before(self, address: str) -> str:
        """The address of a proxy before one."""
        host, _, port = address.rpartition(":")
        listener = socket.create_server(("127.0.0.1", 0))
        self._listeners.append(listener)
        threading.Thread(
            target=self._serve, args=(listener, (host, int(port))), daemon=True
        ).start()
        return f"127.0.0.1:{listener.getsockname()[1]}"

    def _serve(self, listener: socket.socket, target: tuple[str, int]) -> None:
        while True:
            try:
                near, _ = listener.accept()
            except OSError:
                return  # closed
            try:
                far = socket.create_connection(target)
            except OSError:  # nobody listens there yet: dial again
                _shut(near)
                continue
            self._pairs.append((near, far))
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                if self._open.is_set():
                    sink.sendall(data)
        except OSError:
            pass
        _shut(source)
        _shut(sink)


def _shut(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
    end.close()


CUTS: dict[str, Callable[[set[int], int], Namespaces | Proxies]] = {"proxies": Proxies}
if namespaces_allowed():
    CUTS["namespaces"] = Namespaces
