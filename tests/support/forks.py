"""`flower-dhb` as processes that start at once: forks of one process that has loaded it.

Loading Flower and gRPC takes a second of processor time, PyTorch three more. A process that has
done so and nothing else (no thread, no channel) forks one that runs the command. It is a process
of its own: it can be killed and stopped, has its own files, environment and directory, and ends
as any program of Python ends.
"""

from __future__ import annotations

import array
import atexit
import gc
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from flower_dhb.peer.wire.native_log import let_native_log_speak

ROOT = Path(__file__).resolve().parents[2]
AVAILABLE = sys.platform == "linux"
# What the commands import sooner or later.
PEER = (
    "flower_dhb.cli.peer",
    "flower_dhb.cli.mesh",
    "flower_dhb.peer.device.daemon",
    "flower_dhb.peer.mesh.create",
    "flower_dhb.peer.mesh.fleet",
    "flower_dhb.peer.watch.replay",
    "flower_dhb.flower.mod",
    "flwr.clientapp",
)
_LONGEST = 1 << 20


# --- the process that forks ---------------------------------------------------------------------


def serve(control: socket.socket) -> list[str] | None:
    """Fork whatever is asked for. Returns the command's words in the fork, None at the end."""
    path = list(sys.path)
    while True:
        data, ancillary, _, _ = control.recvmsg(_LONGEST, 1024)
        if not data:
            return None
        request = json.loads(data)
        if "ended" in request:
            _, status = os.waitpid(request["ended"], 0)
            control.send(json.dumps(os.waitstatus_to_exitcode(status)).encode())
            continue
        if request["speaks"]:
            let_native_log_speak()
        for module in request["load"]:
            importlib.import_module(module)
        sys.path[:] = path
        gc.freeze()  # so that the fork does not write into the pages that it shares
        files = array.array("i")
        for _, _, numbers in ancillary:
            files.frombytes(numbers)
        pid = os.fork()
        if pid == 0:
            control.close()
            for here, there in zip(files, (1, 2), strict=False):
                os.dup2(here, there)
                os.close(here)
            os.set_inheritable(files[2], False)  # it is open as long as this process lives
            os.environ.clear()
            os.environ.update(request["environment"])
            os.chdir(request["directory"])
            words: list[str] = request["words"]
            sys.argv[1:] = words
            return words
        for number in files:
            os.close(number)
        control.send(json.dumps(pid).encode())


# --- who asks it --------------------------------------------------------------------------------


class _Server:
    """The process that forks, started when the first fork is wanted."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._control: socket.socket | None = None

    def _start(self) -> socket.socket:
        here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.forks", str(there.fileno())],
            pass_fds=[there.fileno()],
            stdin=subprocess.DEVNULL,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        )
        there.close()

        def end() -> None:
            here.close()
            process.wait()

        atexit.register(end)
        return here

    def ask(self, request: dict[str, object], files: Sequence[int] = ()) -> int:
        with self._lock:
            if self._control is None:
                self._control = self._start()
            socket.send_fds(self._control, [json.dumps(request).encode()], files)
            answer = self._control.recv(_LONGEST)
        assert answer, "the process that forks has ended"
        return int(json.loads(answer))


# What is loaded before all else, such as another clock, is so in the process that forks; and gRPC
# reads when it is loaded whether it is to tell of refused handshakes, as a peer's does.
_servers: dict[tuple[str, bool], _Server] = defaultdict(_Server)


class Fork:
    """A command that runs, with the methods of `subprocess.Popen` that tests use."""

    def __init__(
        self,
        words: Sequence[str],
        environment: dict[str, str],
        *,
        load: Sequence[str] = (),
        output: bool = True,
    ) -> None:
        """load: modules that it will import beside those of a peer. output: keep what it prints."""
        self._lock = threading.Lock()
        speaks = list(words[:1]) == ["peer"]
        self._server = _servers[environment.get("LD_PRELOAD", ""), speaks]
        self.returncode: int | None = None
        (err, err_end), (self._alive, alive_end) = os.pipe(), os.pipe()
        out, out_end = os.pipe() if output else (-1, os.open(os.devnull, os.O_WRONLY))
        request = {
            "words": list(words),
            "environment": environment,
            "directory": os.getcwd(),
            "speaks": speaks,
            "load": [*PEER, *load],
        }
        try:
            self.pid = self._server.ask(request, [out_end, err_end, alive_end])
        finally:
            for end in (out_end, err_end, alive_end):
                os.close(end)
        self.stdout = open(out, encoding="utf-8") if output else None  # noqa: SIM115
        self.stderr = open(err, encoding="utf-8")  # noqa: SIM115

    def __del__(self) -> None:
        os.close(self._alive)

    def communicate(self, timeout: float) -> tuple[str, str]:
        """All that it prints, and its end; it is killed if it does not end in time."""
        found: dict[str, str] = {}

        def read(name: str, file: IO[str] | None) -> None:
            if file is not None:
                with file:
                    found[name] = file.read()

        files = {"out": self.stdout, "err": self.stderr}
        readers = [threading.Thread(target=read, args=item, daemon=True) for item in files.items()]
        for reader in readers:
            reader.start()
        try:
            self.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise
        finally:
            for reader in readers:
                reader.join()
        return found.get("out", ""), found["err"]

    def poll(self) -> int | None:
        return self._end(0.0)

    def wait(self, timeout: float | None = None) -> int:
        status = self._end(timeout)
        if status is None:
            raise subprocess.TimeoutExpired("flower-dhb", timeout or 0.0)
        return status

    def _end(self, timeout: float | None) -> int | None:
        if self.returncode is None:
            select.select([self._alive], [], [], timeout)
        with self._lock:
            if self.returncode is None and select.select([self._alive], [], [], 0.0)[0]:
                self.returncode = self._server.ask({"ended": self.pid})
            return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)


if __name__ == "__main__":
    found = serve(socket.socket(fileno=int(sys.argv[1])))
    if found is not None:
        from flower_dhb.cli import main

        raise SystemExit(main(found))
