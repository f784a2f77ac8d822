"""A mesh of real peer processes on this machine, watched through their log lines."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Container, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from flower_dhb.cli import main
from flower_dhb.peer.device.ending import Ending
from flower_dhb.peer.device.settings import PeerSettings
from flower_dhb.peer.mesh.create import Host, MeshPlan, create_mesh, local_hosts
from flower_dhb.peer.mesh.overview import read_overview
from flower_dhb.peer.watch.replay import Replay, of_mesh
from tests.support.forks import AVAILABLE, Fork

ROOT = Path(__file__).resolve().parents[2]
APP = Path(__file__).resolve().parent / "peer_app"
# What the app at the root imports, and PyTorch when it first makes an optimizer.
DIGITS = ("sklearn.datasets", "torch.func", "torch._dynamo")
COMMAND = "from flower_dhb.cli import main; raise SystemExit(main())"

# Of peers of which nothing is to be missing because this machine is busy.
PATIENT = {"timing": {"least-s": 10.0}}

Event = dict[str, Any]


def run_cli(
    *arguments: object, timeout: float = 60.0, load: Sequence[str] = ()
) -> subprocess.CompletedProcess[str]:
    """One command of the command line, as a process. load: what else it will import."""
    words = list(map(str, arguments))
    if not AVAILABLE:
        return subprocess.run(
            [sys.executable, "-c", COMMAND, *words],
            capture_output=True,
            text=True,
            timeout=timeout,
            env=environment(),
            check=False,
        )
    process = Fork(words, environment(), load=load)
    out, err = process.communicate(timeout)
    return subprocess.CompletedProcess(words, process.wait(), out, err)


def environment() -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


class Process:
    """One peer: its process and everything that it has logged."""

    def __init__(
        self,
        settings: Path,
        changed: threading.Condition,
        prefix: Sequence[str] = (),
        load: Sequence[str] = (),
    ) -> None:
        self.events: list[Event] = []
        self._changed = changed
        words = ["peer", str(settings), "--log", "json"]
        self.popen: subprocess.Popen[str] | Fork
        if AVAILABLE and not prefix:
            self.popen = Fork(words, environment(), load=load, output=False)
        else:
            self.popen = subprocess.Popen(
                [*prefix, sys.executable, "-c", COMMAND, *words],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                env=environment(),
            )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.popen.stderr is not None
        for line in self.popen.stderr:
            try:
                event = json.loads(line)
            except ValueError:
                event = {"event": "text", "text": line}
            with self._changed:
                self.events.append(event)
                self._changed.notify_all()
        with self._changed:
            self.events.append({"event": "ended"})
            self._changed.notify_all()

    def end(self) -> None:
        if self.popen.poll() is None:
            self.popen.kill()
        self.popen.wait()
        self._reader.join()
        assert self.popen.stderr is not None
        self.popen.stderr.close()


class Mesh:
    """A mesh in a directory, whose peers can be started, killed, stopped and started again.

    load: what its app imports beside what a peer does.
    """

    def __init__(
        self,
        out: Path,
        *,
        app: Path = APP,
        hosts: list[Host] | None = None,
        n: int = 8,
        plaintext: bool = False,
        peer: Mapping[str, Any] | None = None,
        load: Sequence[str] | None = None,
        **overrides: Any,
    ) -> None:
        self.out = out
        self.changed = threading.Condition()
        self.processes: dict[int, Process] = {}
        config = {key.replace("_", "-"): value for key, value in overrides.items()}
        plan = MeshPlan(
            app=app,
            out=out,
            hosts=hosts or local_hosts(n),
            overrides=config,
            plaintext=plaintext,
            peer=peer,
        )
        self.paths = dict(enumerate(create_mesh(plan)))
        self._load = (DIGITS if app == ROOT else ()) if load is None else load

    def __enter__(self) -> Mesh:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes.values():
            process.end()

    # --- processes --------------------------------------------------------------------

    def change(self, name: str, *words: object, at_round: int | None = None) -> str:
        """A command of day two, such as `add`, on the running mesh. Returns what it said."""
        when = [] if at_round is None else ["--at-round", at_round]
        said, wrong = io.StringIO(), io.StringIO()
        with redirect_stdout(said), redirect_stderr(wrong):
            status = main(["mesh", name, str(self.out), *map(str, [*words, *when])])
        assert status == 0, (said.getvalue(), wrong.getvalue(), self.tail())
        for path in self.out.glob("vertex-*/peer.toml"):
            self.paths[int(path.parent.name.removeprefix("vertex-"))] = path
        return said.getvalue()

    def start(self, *vertices: int, prefix: Callable[[int], list[str]] | None = None) -> None:
        for v in vertices or self.paths:
            if v in self.processes:
                self.processes[v].end()
            before = prefix(v) if prefix else []
            self.processes[v] = Process(self.paths[v], self.changed, before, self._load)

    def kill(self, vertex: int) -> None:
        """As `kill -9` does."""
        self.signal(vertex, signal.SIGKILL)
        self.processes[vertex].popen.wait()

    def signal(self, vertex: int, number: int) -> None:
        self.processes[vertex].popen.send_signal(number)  # nothing, if it has ended

    def finish(self, timeout: float = 60.0, *, alone: Container[int] = ()) -> None:
        """Wait until all peers have ended, and well. alone: who may have finished alone."""
        self.wait(
            lambda: all(_ended(p) for p in self.processes.values()), timeout, "the run to be over"
        )
        codes = {v: p.popen.wait() for v, p in self.processes.items()}
        good = {v: {0, Ending.ALONE} if v in alone else {0} for v in codes}
        assert all(code in good[v] for v, code in codes.items()), (codes, self.tail())

    # --- what they say ----------------------------------------------------------------

    def wait(self, holds: Callable[[], bool], timeout: float, what: str) -> None:
        end = time.monotonic() + timeout
        with self.changed:
            while not holds():
                left = end - time.monotonic()
                assert left > 0.0, f"waited {timeout:g} s for {what}: {self.tail()}"
                self.changed.wait(left)

    def wait_round(self, vertex: int, k: int, timeout: float = 60.0) -> None:
        """Until a peer has finished round k."""
        self.wait(
            lambda: any(e["round"] >= k for e in self.named(vertex, "round")),
            timeout,
            f"round {k} of vertex {vertex}",
        )

    def wait_event(self, vertex: int, name: str, timeout: float = 60.0, **fields: object) -> Event:
        def found() -> list[Event]:
            return [
                e
                for e in self.named(vertex, name)
                if all(str(value) in str(e.get(key)) for key, value in fields.items())
            ]

        self.wait(lambda: bool(found()), timeout, f"'{name}' {fields} of vertex {vertex}")
        return found()[0]

    def named(self, vertex: int, name: str) -> list[Event]:
        process = self.processes.get(vertex)
        return [e for e in (process.events if process else []) if e.get("event") == name]

    def tail(self) -> str:
        return "\n".join(
            f"{v}: {event}" for v, p in self.processes.items() for event in list(p.events)[-4:]
        )

    # --- what they leave --------------------------------------------------------------

    def settings(self, vertex: int) -> PeerSettings:
        return PeerSettings.load(self.paths[vertex])

    def model(self, vertex: int) -> dict[str, np.ndarray]:
        return dict(load_file(self.out / f"vertex-{vertex}" / "state" / "model.safetensors"))

    def parameters(self) -> np.ndarray:
        return np.stack([self.model(v)["x"] for v in self.paths])

    def history(self, vertex: int) -> list[dict[str, Any]]:
        path = self.out / f"vertex-{vertex}" / "state" / "history.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()]

    def replay(self) -> Replay:
        """What all peers recorded, held against each other: nothing may be amiss."""
        replay = of_mesh(read_overview(self.out), self.out)
        findings = [str(found) for found in (*replay.findings(), *replay.gaps)]
        assert not findings, (findings, replay.one_sided, replay.unseen)
        assert replay.rounds_checked > 0
        return replay

    def missing_edges(self) -> dict[int, set[tuple[int, int]]]:
        """Edges that did not count, by round, as both ends tell it; they must agree."""
        missing: dict[int, set[tuple[int, int]]] = {}
        for v in self.paths:
            for entry in self.history(v):
                for j in entry.get("missing", []):
                    missing.setdefault(entry["round"], set()).add((v, j))
        return missing


def _ended(process: Process) -> bool:
    return any(e.get("event") == "ended" for e in process.events)
