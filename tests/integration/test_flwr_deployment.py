"""Flower's deployment runtime: a real SuperLink, three real SuperNodes, one of them killed."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from flower_dhb.runs.superlink import end_family, executable, free_ports, wait_until_up

pytestmark = [pytest.mark.slow, pytest.mark.timeout(420)]

APP = Path(__file__).parent / "apps" / "deployed"
VICTIM = 2


class Fleet:
    """A SuperLink and SuperNodes as processes on loopback."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_ports(1)[0]
        home = folder / "home"
        home.mkdir()
        (home / "config.toml").write_text(
            '[superlink]\ndefault = "fleet"\n\n[superlink.fleet]\n'
            f'address = "127.0.0.1:{self.port}"\ninsecure = true\n'
        )
        self.environment = os.environ | {
            "FLWR_HOME": str(home),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
            "PATH": f"{Path(executable('flwr')).parent}{os.pathsep}{os.environ['PATH']}",
        }
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def superlink(self) -> None:
        command = ["flower-superlink", "--insecure", "--host", "127.0.0.1"]
        self._start("superlink", [*command, "--port", str(self.port)], self.port)

    def supernode(self, vertex: int) -> None:
        port, health = free_ports(2)
        config = f'vertex={vertex} state-dir="{self.folder / "state"}"'
        command = ["flower-supernode", "--insecure", "--superlink", f"127.0.0.1:{self.port}"]
        command += ["--host", "127.0.0.1", "--port", str(port), "--node-config", config]
        command += ["--health-server-address", f"127.0.0.1:{health}"]
        self._start(f"node-{vertex}", command, port)

    def kill(self, vertex: int) -> None:
        end_family(self.processes.pop(f"node-{vertex}"))

    def submit(self, runs: Path) -> subprocess.Popen[bytes]:
        command = ["flwr", "run", str(APP), "--stream", "--run-config", f'runs-dir="{runs}"']
        return self._start("run", command, None)

    def _start(self, name: str, command: list[str], port: int | None) -> subprocess.Popen[bytes]:
        path = self.folder / f"{name}.log"
        with path.open("ab") as log:
            process = subprocess.Popen(
                [executable(command[0]), *command[1:]],
                env=self.environment,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
            )
        self.processes[name] = process
        if port is not None:
            wait_until_up(process, port, path)
        return process

    def end(self) -> None:
        for process in reversed(self.processes.values()):
            end_family(process)


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    fleet = Fleet(tmp_path)
    try:
        fleet.superlink()
        for vertex in range(3):
            fleet.supernode(vertex)
        yield fleet
    finally:
        fleet.end()


def rows_in(runs: Path) -> list[dict[str, Any]]:
    paths = list(runs.glob("*/history.jsonl"))
    if not paths:
        return []
    return [json.loads(line) for line in paths[0].read_text().splitlines()]


def wait_for(
    condition: Callable[[], bool], process: subprocess.Popen[bytes], limit_s: float
) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert process.poll() is None, "the run ended early"
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_a_killed_supernode_is_missed_and_takes_its_vertex_back_with_its_state(
    fleet: Fleet, tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    process = fleet.submit(runs)
    wait_for(lambda: len(rows_in(runs)) >= 1, process, 120)
    fleet.kill(VICTIM)
    wait_for(lambda: any(row["missing"] for row in rows_in(runs)), process, 120)
    fleet.supernode(VICTIM)
    assert process.wait(timeout=240) == 0

    rows = rows_in(runs)
    log = (tmp_path / "run.log").read_text()
    assert len(rows) == 8, log[-3000:]
    missed = [row["round"] for row in rows if row["missing"]]
    assert missed, "its neighbors noticed"
    assert all(row["missing"] in ([], [VICTIM]) for row in rows)
    assert rows[-1]["missing"] == [], rows
    events = [event["what"] for row in rows for event in row["events"]]
    assert any(f"vertex {VICTIM} is back" in event for event in events), events
    # Its state lay in a file, so it goes on from there and need not rejoin.
    assert all(row["rejoined"] == [] for row in rows), rows
    models = next(runs.iterdir()).glob("agent-*.safetensors")
    assert len(list(models)) == 3
