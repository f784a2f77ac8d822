"""Flower's programs as processes that start at once: forks of one process that has loaded them.

`flower-supernode`, `flwr-clientapp` and the others load gRPC, FastAPI and SQLAlchemy, two seconds
of a processor for each process, and a deployment starts a process for each message. `quick` makes
an environment beside the one of the tests: the same Python, the same packages, and for each
program of Flower a script that asks for a fork, hands it arguments, environment, directory and
open files, passes signals on and ends as the fork ends. The fork runs the installed program. For
`ps` it has the environment and the command line that it would have had, so it is found, stopped
and killed as any other process; the script is not found. It loads our own package by itself, as
what an app is made of comes from its bundle.

The environment's `python` is such a script, too, for the module with which `flower-dhb supernode`
looks at an app; all else it hands to Python.
"""

from __future__ import annotations

import array
import atexit
import ctypes
import gc
import importlib
import json
import os
import runpy
import selectors
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Programs", "quick"]

_ROOT = Path(__file__).resolve().parents[2]
_VARIABLE = "FLOWER_PROGRAMS"
_NAMES = (
    *("flwr", "flower-superlink", "flower-supernode", "flower-superexec"),
    *("flwr-serverapp", "flwr-clientapp", "flwr-simulation", "flower-dhb"),
)
# What Python is asked for that is a fork as well.
_MODULE = "flower_dhb.site.gate"
# What they load.
_LOADED = (
    *("flwr.superlink.cli", "flwr.supernode.cli", "flwr.supercore.cli", "flwr.cli.app"),
    *("flwr.clientapp", "flwr.serverapp", "typer", "rich.console", "rich.table", "tomli_w"),
    *("numpy", "safetensors.numpy", "networkx", "scipy.sparse.linalg", "cryptography.x509"),
)
_LONGEST = 1 << 17
_END_WITH_PARENT = 1  # PR_SET_PDEATHSIG of Linux
_ROOM = "x" * (1 << 15)  # for the words and the environment of a fork

_SCRIPT = """#!{python} -IS
import json, os, signal, socket, sys
server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
try:
    server.connect("\\0" + os.environ["{variable}"])
except (KeyError, OSError):
    os.execv("{program}", ["{shown}", *sys.argv[1:]])
words = ["{script}", *sys.argv[1:]]
request = {{"words": words, "environment": dict(os.environ), "directory": os.getcwd()}}
fields = open("/proc/self/stat").read().rpartition(")")[2].split()
with open("/proc/self/mem", "r+b", 0) as memory:
    memory.seek(int(fields[47]))
    memory.write(bytes(int(fields[48]) - int(fields[47])))
socket.send_fds(server, [json.dumps(request).encode()], [0, 1, 2])
pid = int(server.recv(99) or 0)
if not pid:
    sys.exit(1)
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda number, _: os.kill(pid, number))
code = int(server.recv(99) or 1)
if code < 0:
    if -code != signal.SIGKILL:
        signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
os._exit(code)
"""

# By the name that `exec -a` gives it, Python finds the environment.
_PYTHON = """#!/bin/bash
case " $* " in
  *" -m {module} "*) exec "{ask}" "$@" ;;
esac
exec -a "{shown}" "{program}" "$@"
"""


# --- who wants them -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Programs:
    """The environment with the quick programs, and who forks them."""

    python: str
    name: str

    @contextmanager
    def used(self) -> Iterator[None]:
        """What this process starts meanwhile runs in that environment."""
        before = sys.executable, os.environ.get(_VARIABLE, "")
        sys.executable, os.environ[_VARIABLE] = self.python, self.name
        try:
            yield
        finally:
            sys.executable, os.environ[_VARIABLE] = before


@contextmanager
def quick(folder: Path, load: Sequence[str] = ()) -> Iterator[Programs]:
    """Make the environment in `folder`, and start the process that forks.

    load: modules that the apps will import. Where there is no Linux or no virtual environment,
    the programs are those that there are.
    """
    if sys.platform != "linux" or not (Path(sys.prefix) / "pyvenv.cfg").exists():
        yield Programs(sys.executable, "")
        return
    _make_environment(folder)
    python = str(folder / "bin" / "python")
    name = f"flower-dhb-programs-{os.getpid()}-{os.urandom(4).hex()}"
    words = ["-m", "tests.support.programs", _ROOM, name, *_LOADED, *load]
    path = os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH", "")]))
    fixed = {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "FLWR_TELEMETRY_ENABLED": "0"}
    with subprocess.Popen(
        [python, *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=_ROOT,
        env={**os.environ, **fixed, "OMP_NUM_THREADS": "1", "ROOM": _ROOM},
        start_new_session=True,
    ) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        assert server.stdout.readline() == b"ready\n"
        yield Programs(python, name)
        server.stdin.close()


def _make_environment(folder: Path) -> None:
    """The environment of this Python once more, with other programs of Flower."""
    prefix = Path(sys.prefix)
    here = prefix / "bin"
    (folder / "bin").mkdir(parents=True)
    for path in prefix.iterdir():
        if path.name != "bin":
            (folder / path.name).symlink_to(path)
    for path in here.iterdir():
        other = folder / "bin" / path.name
        if path.name not in _NAMES:
            other.symlink_to(path)
            continue
        _write(other, _script(here, program=path, shown=path, script=other))
        (folder / "bin" / f"{path.name}.installed").symlink_to(path)
    python, program = folder / "bin" / "python", here / "python"
    ask = folder / "bin" / "python.fork"
    python.unlink()
    text = _PYTHON.format(module=_MODULE, ask=ask, shown=python, program=program)
    _write(python, text)
    _write(ask, _script(here, program=program, shown=python, script=python))


def _script(here: Path, **names: object) -> str:
    return _SCRIPT.format(python=os.path.realpath(here / "python"), variable=_VARIABLE, **names)


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
    path.chmod(0o755)


# --- the process that forks -----------------------------------------------------------------------


class _Server:
    """Forks whatever is asked for, until its standard input ends."""

    def __init__(self, name: str) -> None:
        self._waiting: dict[int, socket.socket] = {}  # by the number of the fork
        self._selector = selectors.DefaultSelector()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(f"\0{name}")
        self._listener.listen(64)
        self._ended, self._wake = os.pipe()
        for end in (self._ended, self._wake):
            os.set_blocking(end, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._wake, warn_on_full_buffer=False)
        for readable in (0, self._listener, self._ended):
            self._selector.register(readable, selectors.EVENT_READ)

    def serve(self) -> list[str] | None:
        """The words of a program in a fork; None at the end."""
        while True:
            for key, _ in self._selector.select():
                if key.fd == 0:
                    for pid in self._waiting:
                        os.kill(pid, signal.SIGKILL)
                    return None
                if key.fileobj is self._listener:
                    connection, _ = self._listener.accept()
                    self._selector.register(connection, selectors.EVENT_READ)
                elif key.fd == self._ended:
                    os.read(self._ended, 4096)
                    self._bury()
                elif isinstance(key.fileobj, socket.socket):
                    words = self._hear(key.fileobj)
                    if words is not None:
                        return words

    def _hear(self, connection: socket.socket) -> list[str] | None:
        """A request, or the end of who made one."""
        try:
            data, ancillary, _, _ = connection.recvmsg(_LONGEST, 1024)
        except ConnectionError:
            data, ancillary = b"", []
        if not data:
            for pid in [pid for pid, its in self._waiting.items() if its is connection]:
                os.kill(pid, signal.SIGKILL)
                del self._waiting[pid]
            self._selector.unregister(connection)
            connection.close()
            return None
        files = array.array("i")
        for _, _, numbers in ancillary:
            files.frombytes(numbers)
        pid = os.fork()
        if pid == 0:
            return self._become(json.loads(data), list(files))
        for number in files:
            os.close(number)
        self._waiting[pid] = connection
        connection.send(str(pid).encode())
        return None

    def _bury(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            connection = self._waiting.pop(pid, None)
            if connection is not None:
                try:
                    connection.send(str(os.waitstatus_to_exitcode(status)).encode())
                except ConnectionError:
                    continue

    def _become(self, request: dict[str, object], files: list[int]) -> list[str]:
        """In the fork: the files, the environment and the words of a process of its own."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        ctypes.CDLL(None).prctl(_END_WITH_PARENT, signal.SIGKILL)
        os.setsid()
        for connection in [*self._waiting.values(), self._listener]:
            connection.close()
        for here, there in zip(files, (0, 1, 2), strict=True):
            os.dup2(here, there)
        os.closerange(3, 1024)  # what belongs to the process that forks
        environment: dict[str, str] = request["environment"]  # type: ignore[assignment]
        words: list[str] = request["words"]  # type: ignore[assignment]
        os.environ.clear()  # before its strings are overwritten
        _appear(words, environment)
        os.environ.update(environment)
        os.chdir(str(request["directory"]))
        return words


def _appear(words: Sequence[str], environment: dict[str, str]) -> None:
    """Have /proc show other words and another environment than those of the start."""
    fields = Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    first, middle, start, end = (int(field) for field in fields[45:49])
    python = [] if words[0] == sys.executable else [sys.executable]
    shown = [*python, *words], [f"{key}={value}" for key, value in environment.items()]
    with open("/proc/self/mem", "r+b", 0) as memory:
        for (here, there), texts in zip(((first, middle), (start, end)), shown, strict=True):
            data = b"".join(os.fsencode(text) + b"\0" for text in texts)
            assert len(data) < there - here, "no room for them"
            memory.seek(here)
            memory.write(data.ljust(there - here, b"\0"))


def _main(_: str, name: str, modules: Sequence[str]) -> None:
    path = list(sys.path)
    for module in modules:
        importlib.import_module(module)
    assert "flower_dhb" not in sys.modules
    sys.path[:] = path
    gc.collect()
    gc.freeze()  # so that a fork does not write into the pages that it shares
    server = _Server(name)
    print("ready", flush=True)
    words = server.serve()
    if words is None:
        return
    import numpy as np

    np.random.seed()  # a state that no other fork has
    try:
        _run(words)
        status: object = None
    except SystemExit as end:
        status = end.code
    # What Ray has loaded waits for ever when a fork is taken down as other processes are.
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status if isinstance(status, int) else int(status is not None))


def _run(words: list[str]) -> None:
    """What Python would run with these words, or the program of this name."""
    if words[0] == sys.executable:
        sys.argv[:] = words[words.index("-m") + 1 :]
        del sys.path[0]  # as it was started with -P
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
        return
    program = words[0]
    sys.argv[:] = words
    sys.path[0] = str(Path(program).parent)
    if Path(program).name == "flwr":  # it reads the environment when it is loaded
        for module in [name for name in sys.modules if name.startswith("flwr.cli")]:
            del sys.modules[module]
    code = compile(Path(f"{program}.installed").read_text(encoding="utf-8"), program, "exec")
    exec(code, {"__name__": "__main__", "__file__": program})  # noqa: S102


if __name__ == "__main__":
    _main(sys.argv[1], sys.argv[2], sys.argv[3:])
