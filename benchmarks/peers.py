"""Peers beside Flower's simulation and deployment: seconds per round, transfer, idle, memory.

`python -m benchmarks.peers` measures everything in one run and prints one table; `--json
FILE` also writes the numbers. Peers are real processes with mutual TLS on loopback, 8 on
a ring, 5 local steps on digits, checkpoint every round; all runtimes train the same app
(`benchmarks/peers_app`). Needs about ten minutes, most of them Flower's deployment.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from benchmarks import peers_transfer
from flower_dhb.peer.mesh.create import MeshPlan, create_mesh, local_hosts
from flower_dhb.runs.superlink import local_superlink

APP = Path(__file__).resolve().parent / "peers_app"
ROOT = Path(__file__).resolve().parents[1]
MODELS = {"17 thousand": "128,64", "1 million": "960,960"}
N = 8
PEER = "from flower_dhb.cli import main; raise SystemExit(main())"


def environment() -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


@contextlib.contextmanager
def mesh(
    home: Path, vertices: range, n: int = N, **config: Any
) -> Iterator[list[subprocess.Popen[bytes]]]:
    plan = MeshPlan(app=APP, out=home, hosts=local_hosts(n), overrides=config)
    paths = create_mesh(plan)
    processes = []
    for v in vertices:
        log = (home / f"{v}.log").open("wb")
        command = [sys.executable, "-c", PEER, "peer", str(paths[v]), "--log", "json"]
        processes.append(subprocess.Popen(command, stdout=log, stderr=log, env=environment()))
        log.close()
    try:
        yield processes
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
            process.wait()


def peers_round(home: Path, hidden: str, rounds: int) -> dict[str, float]:
    """Median seconds between the ends of a peer's rounds, and its parts."""
    with mesh(home, range(N), hidden=hidden, rounds=rounds) as processes:
        codes = [process.wait(400) for process in processes]
    assert codes == [0] * N, codes
    spent: dict[str, list[float]] = {"seconds": [], "train_seconds": [], "wait_seconds": []}
    ends = []
    for v in range(N):
        text = (home / f"vertex-{v}" / "state" / "history.jsonl").read_text()
        entries = [json.loads(line) for line in text.splitlines()][5:]
        for key, values in spent.items():
            values += [e[key] for e in entries]
        stamps = [
            json.loads(line)["time"]
            for line in (home / f"{v}.log").read_text().splitlines()
            if '"event": "round"' in line
        ]
        ends.append([time_of(s) for s in stamps])
    gaps = [b - a for row in ends for a, b in itertools.pairwise(row[5:])]
    overall = statistics.mean((row[-1] - row[5]) / (len(row) - 6) for row in ends)
    return {
        "seconds per round": overall,
        "median": statistics.median(gaps),
        **{key: statistics.median(values) for key, values in spent.items()},
    }


def time_of(stamp: str) -> float:
    import datetime

    return datetime.datetime.fromisoformat(stamp).timestamp()


def simulation_round(home: Path, hidden: str, rounds: int) -> float:
    """Median seconds of a round under `flwr run` in simulation, the first ones left out."""
    out = home / "seconds.json"
    with local_superlink(home / "flwr") as superlink:
        settings = {"hidden": hidden, "rounds": rounds, "out": str(out)}
        run = superlink.submit(APP, N, settings)
        with superlink.log(run) as lines:
            text = lines.read()
    assert out.exists(), text[-3000:]
    return statistics.median(json.loads(out.read_text())[2:])


def deployment_round(home: Path, hidden: str, rounds: int) -> float:
    """Median seconds of a round in Flower's deployment: a SuperLink and 8 SuperNodes."""
    out = home / "seconds.json"
    ports = [int(h.address.rpartition(":")[2]) for h in local_hosts(1 + N) if h.address]
    flwr_home = home / "flwr"
    flwr_home.mkdir(parents=True)
    address = f"127.0.0.1:{ports[0]}"
    env = {
        **environment(),
        "FLWR_HOME": str(flwr_home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
    }
    (flwr_home / "config.toml").write_text(
        f'[superlink]\ndefault = "here"\n\n[superlink.here]\naddress = "{address}"\n'
        "insecure = true\n"
    )
    log = (home / "deployment.log").open("wb")
    bin_dir = Path(sys.executable).parent
    commands = [
        [str(bin_dir / "flower-superlink"), "--insecure", "--host", "127.0.0.1",
         "--port", str(ports[0])]
    ]  # fmt: skip
    commands += [
        [str(bin_dir / "flower-supernode"), "--insecure", "--superlink", address,
         "--host", "127.0.0.1", "--port", str(ports[1 + i]),
         "--node-config", f"partition-id={i} num-partitions={N}"]
        for i in range(N)
    ]  # fmt: skip
    processes = []
    try:
        for i, command in enumerate(commands):
            processes.append(subprocess.Popen(command, stdout=log, stderr=log, env=env))
            if i == 0:
                time.sleep(6)
        config = f'hidden="{hidden}" rounds={rounds} out="{out}"'
        submit = subprocess.run(
            [str(bin_dir / "flwr"), "run", str(APP), "here", "--run-config", config],
            env=env, stdout=log, stderr=log, timeout=120, check=False,
        )  # fmt: skip
        assert submit.returncode == 0, (home / "deployment.log").read_text()[-3000:]
        end = time.monotonic() + 1500
        while not out.exists():
            assert time.monotonic() < end, (home / "deployment.log").read_text()[-3000:]
            time.sleep(1)
    finally:
        family = []
        for process in processes:
            if process.poll() is None:
                parent = psutil.Process(process.pid)
                family += [*parent.children(recursive=True), parent]
        for member in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
        psutil.wait_procs(family, timeout=10)
        for process in processes:
            process.wait()
        log.close()
    return statistics.median(json.loads(out.read_text())[1:])


def idle_share(home: Path, seconds: float = 10.0) -> float:
    """Share of a core that one connected, waiting peer uses: 7 of 8 wait for the last one."""
    with mesh(home, range(N - 1), rounds=5) as processes:
        end = time.monotonic() + 90
        while not all(
            (home / f"{v}.log").read_text().count('"connected"') >= 1 for v in range(N - 1)
        ):
            assert time.monotonic() < end
            time.sleep(0.5)
        time.sleep(20)  # those with all neighbors train their first round, then wait
        inner = psutil.Process(processes[2].pid)  # both of its neighbors are up
        begin, used = time.monotonic(), inner.cpu_times()
        time.sleep(seconds)
        after = inner.cpu_times()
        spent = after.user + after.system - used.user - used.system
        return spent / (time.monotonic() - begin)


def memory_per_neighbor(home: Path) -> float:
    """Peak memory that one more neighbor costs, in payloads: a complete graph beside a ring.

    7 peers, 9.2 million parameters (37 MB); whatever else a peer needs cancels out.
    """
    peaks = {}
    for topology in ("ring:7", "complete:7"):
        overrides = {"topology": topology, "hidden": "3000,3000", "rounds": 8}
        with mesh(home / topology, range(7), 7, **overrides) as processes:
            seen = [0] * 7
            while any(process.poll() is None for process in processes):
                for v, process in enumerate(processes):
                    with contextlib.suppress(psutil.Error, OSError, IndexError):
                        text = Path(f"/proc/{process.pid}/status").read_text()
                        seen[v] = int(text.split("VmHWM:")[1].split()[0]) * 1024
                time.sleep(0.2)
            assert [process.returncode for process in processes] == [0] * 7
        peaks[topology] = statistics.median(seen)
    payload = 4 * (64 * 3000 + 3000 + 3000 * 3000 + 3000 + 3000 * 10 + 10)
    return (peaks["complete:7"] - peaks["ring:7"]) / (6 - 2) / payload


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument(
        "--only",
        action="append",
        help="peers, simulation, deployment, transfer, memory or idle; repeat for several",
    )
    arguments = parser.parse_args()
    found: dict[str, Any] = {}

    def wanted(what: str) -> bool:
        return arguments.only is None or what in arguments.only

    with tempfile.TemporaryDirectory() as directory:
        home = Path(directory)
        for name, hidden in MODELS.items():
            turns: dict[str, list[float]] = {"peers": [], "simulation": [], "deployment": []}
            for turn in range(arguments.turns):  # by turns: the machine's pace changes
                here = home / f"{hidden}-{turn}"
                if wanted("peers"):
                    parts = peers_round(here / "peers", hidden, arguments.rounds)
                    found[f"peers, {name}, parts"] = parts
                    turns["peers"].append(parts["seconds per round"])
                if wanted("simulation"):
                    turns["simulation"].append(simulation_round(here / "simulation", hidden, 15))
                if wanted("deployment") and turn == 0:
                    turns["deployment"].append(deployment_round(here / "deployment", hidden, 3))
            for runtime, seconds in turns.items():
                if seconds:
                    found[f"{runtime}, {name}, seconds per round"] = seconds
            for runtime in ("simulation", "deployment"):
                if turns[runtime] and turns["peers"]:
                    found[f"{runtime} / peers, {name}"] = statistics.median(
                        turns[runtime]
                    ) / statistics.median(turns["peers"])
        if wanted("memory"):
            found["payloads of memory per neighbor"] = memory_per_neighbor(home / "memory")
        if wanted("idle"):
            found["idle share of a core"] = idle_share(home / "idle")
    if wanted("transfer"):
        found["transfer MiB/s"] = peers_transfer.measure(5)
    found["load average at the end"] = os.getloadavg()
    print(json.dumps(found, indent=2))
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
