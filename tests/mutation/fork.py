"""Pytest in a forked child, on a copy of the tree, with a fence around what a mutant may touch."""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# What takes seconds to import; the child inherits it. The package itself is never among these.
HEAVY = """
numpy scipy.linalg scipy.sparse.linalg scipy.optimize networkx torch sklearn.datasets
safetensors.numpy safetensors.torch flwr.serverapp.strategy flwr.clientapp flwr.simulation
flwr.client.grpc_rere_client.connection flwr.server.grid flwr.app flwr.common grpc
google.protobuf.json_format cryptography.x509 prometheus_client rich.live rich.table psutil
tomli_w xxhash hypothesis hypothesis.extra.numpy matplotlib.pyplot cvxpy ray pytest
_pytest.assertion.rewrite pytest_timeout
"""
LEFT_OUT = shutil.ignore_patterns(
    *(".git", ".venv", ".mutation", ".hypothesis", ".flwr", ".*_cache", "runs", "shared", "build"),
)


def preload(names: str = HEAVY) -> None:
    """Import once what every child needs. names: of modules, in words."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("MPLBACKEND", "Agg")
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    for name in names.split():
        with contextlib.suppress(Exception):
            importlib.import_module(name)
    gc.collect()
    gc.freeze()  # or each child would walk all of it, more than once
    package = [name for name in sys.modules if name.split(".")[0] == "flower_dhb"]
    if package:
        raise RuntimeError(f"already imported before any mutant was made: {package}")


@contextlib.contextmanager
def copy_of(root: Path) -> Iterator[Path]:
    """A copy of the working tree that mutants may change; gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="mutation-") as folder:
        tree = Path(folder) / "tree"
        shutil.copytree(root, tree, ignore=LEFT_OUT, symlinks=True)
        yield tree


@contextlib.contextmanager
def changed(path: Path, source: str) -> Iterator[None]:
    """A module with another source, for a while."""
    original = path.read_text(encoding="utf-8")
    _write(path, source)
    try:
        yield
    finally:
        _write(path, original)


def _write(path: Path, source: str) -> None:
    """The compiled form goes: of the same second and size, it would pass for the next one."""
    path.write_text(source, encoding="utf-8")
    for compiled in path.parent.glob(f"__pycache__/{path.stem}.*.pyc"):
        compiled.unlink()


def in_child(tree: Path, work: Callable[[], Any], limit_s: float) -> Any:
    """What `work` returned in a fork of this process, or None if it ran out of time or died."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        code = 1
        try:
            os.setsid()  # its children go with it
            _settle(tree)
            answer = json.dumps(work()).encode()
            with os.fdopen(writer, "wb") as stream:
                stream.write(answer)
            code = 0
        except BaseException:
            traceback.print_exc()  # into said.txt
        finally:
            os._exit(code)
    os.close(writer)
    os.set_blocking(reader, False)
    received, end = b"", time.monotonic() + limit_s
    try:
        while time.monotonic() < end:
            with contextlib.suppress(BlockingIOError):
                while part := os.read(reader, 1 << 16):
                    received += part
            if os.waitpid(pid, os.WNOHANG)[0]:
                pid = 0
                with contextlib.suppress(BlockingIOError):
                    while part := os.read(reader, 1 << 16):
                        received += part
                break
            time.sleep(0.02)
    finally:
        os.close(reader)
        _end(pid)
    return json.loads(received) if received else None


def _end(pid: int) -> None:
    if pid:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _settle(tree: Path) -> None:
    os.chdir(tree)
    sys.path[:] = [str(tree)] + [entry for entry in sys.path if entry not in ("", os.getcwd())]
    sys.path_importer_cache.clear()
    sys.dont_write_bytecode = False  # rewritten tests are kept in the copy for the next child
    os.environ["PYTHONPATH"] = str(tree)  # for what the tests start
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    said = os.open(tree.parent / "said.txt", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    for stream in range(3):
        os.dup2(said, stream)
    _fence(Path(tempfile.gettempdir()).resolve())


def _fence(folder: Path) -> None:
    """Refuse to end processes that are not one's own, and to touch files outside `folder`."""
    import psutil

    me, allowed = os.getpid(), (str(folder), "/dev/", "/proc/")

    def inside(path: object) -> bool:
        if isinstance(path, int) or path is None:
            return True
        text = os.fsdecode(path) if isinstance(path, bytes | os.PathLike) else str(path)
        return os.path.abspath(text).startswith(allowed)

    def guard(event: str, args: tuple[Any, ...]) -> None:
        if event in ("os.kill", "os.killpg"):
            pid = args[0]
            with contextlib.suppress(psutil.NoSuchProcess):
                if pid <= 1 or me not in [p.pid for p in psutil.Process(pid).parents()] + [pid]:
                    raise PermissionError(f"a mutant may not end process {pid}")
        elif event in ("os.remove", "os.rmdir", "shutil.rmtree"):
            relative = isinstance(args[1], int) and args[1] != -1  # to an open folder: rmtree's
            if not relative and not inside(args[0]):
                raise PermissionError(f"a mutant may not delete {args[0]}")
        elif event == "os.rename" and not (inside(args[0]) and inside(args[1])):
            raise PermissionError(f"a mutant may not rename {args[0]} to {args[1]}")
        elif event == "open" and set(str(args[1])) & set("wax+") and not inside(args[0]):
            raise PermissionError(f"a mutant may not write {args[0]}")

    sys.addaudithook(guard)
