"""Floods against a peer with 256 descriptors: what its rounds, memory, log and neighbors notice.

`python -m benchmarks.peers_flood` starts three peers on this machine for each flood, floods one
of them from the address of its neighbors, restarts a neighbor that dials it meanwhile, asks it
for its status all the time, and prints a table. `--seconds` is the length of each flood.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from flower_dhb.peer.mesh.fleet import Fleet  # noqa: E402
from flower_dhb.peer.wire.identity import Identity, host_name  # noqa: E402
from tests.support.floods import Flood  # noqa: E402
from tests.support.peers import Mesh  # noqa: E402

LIMITED = ["/bin/sh", "-c", 'ulimit -n 256 && exec "$@"', "sh"]
FLOODS = ("none", "silent", "handshakes", "named handshakes", "stalled handshakes", "greedy")


@dataclass
class Found:
    """What a flood did to a peer. Seconds, MB, bytes an hour."""

    flood: str
    done: dict[str, int]
    rounds: int
    missed: int
    memory_mb: float
    descriptors: int
    cpu: float
    log_bytes_hour: float
    status_s: float
    status_failed: int
    back_s: float
    from_start_s: float
    turned_away: dict[str, int]


def measure(kind: str, seconds: float, home: Path, silent: int, handshakes: int) -> Found:
    """One flood against one of three peers. A neighbor is restarted half-way."""
    with Mesh(home, n=3, topology="ring:3", rounds=10**6, step_s=0.05) as mesh:
        called = [j for v in mesh.paths for j in mesh.settings(v).dial]
        victim = max(mesh.paths, key=called.count)  # which both of the others dial
        dials, other = (v for v in mesh.paths if v != victim)
        mesh.start(prefix=lambda v: LIMITED if v == victim else [])
        for v in mesh.paths:
            mesh.wait_round(v, 20)
        if kind == "greedy":  # takes the place of a neighbor, with its certificate
            mesh.kill(other)
            mesh.wait_event(victim, "parted", neighbor=other)
            mesh.wait_round(victim, last_round(mesh, victim) + 20)
        process = psutil.Process(mesh.processes[victim].popen.pid)
        before, cpu = process.memory_info().rss, sum(process.cpu_times()[:2])
        events = mesh.processes[victim].events
        first_round, first_event, begin = last_round(mesh, victim), len(events), time.monotonic()
        flood = start(kind, mesh, victim, other, seconds, silent, handshakes)
        fleet, peak, files, waits, failed = Fleet(mesh.out), before, 0, [], 0
        restarted = 0.0
        back: dict[str, float] = {}
        told = last_round(mesh, victim)
        try:
            while (now := time.monotonic()) < begin + seconds:
                asked = time.monotonic()
                failed += victim in fleet.status(5.0, 0).failures
                waits.append(time.monotonic() - asked)
                peak = max(peak, process.memory_info().rss)
                files = max(files, process.num_fds())
                if not restarted and now > begin + seconds / 2:
                    told = last_round(mesh, victim)
                    mesh.kill(dials)
                    restarted = time.time()
                    mesh.start(dials)
                time.sleep(0.2)
            mesh.wait_event(dials, "connected", 60, neighbor=victim)
            resumed = stamp(mesh.named(dials, "resumed")[0])
            connected = stamp(mesh.wait_event(dials, "connected", 60, neighbor=victim))
            back = {"back": connected - resumed, "start": connected - restarted}
            reply = fleet.status(5.0, 0).replies[victim]
        finally:
            fleet.close()
            done = flood.end() if flood is not None else {}
        spent = time.monotonic() - begin
        lines = [e for e in events[first_event:] if e.get("event") != "round"]
        missing = mesh.missing_edges()
        missed = sum(
            (victim, dials) in edges or (kind != "greedy" and (victim, other) in edges)
            for k, edges in missing.items()
            if first_round < k <= told
        )
        return Found(
            kind, done, last_round(mesh, victim) - first_round, missed,
            (peak - before) / 1e6, files, (sum(process.cpu_times()[:2]) - cpu) / spent,
            sum(len(json.dumps(line)) + 1 for line in lines) / spent * 3600.0,
            max(waits), failed, back["back"], back["start"],
            {k: n for k, n in reply.counts.items() if k.startswith(("turned-away", "cut-off"))},
        )  # fmt: skip


def start(
    kind: str, mesh: Mesh, victim: int, other: int, seconds: float, silent: int,
    handshakes: int,
) -> Flood | None:  # fmt: skip
    settings = mesh.settings(victim)
    address, name = str(settings.listen), host_name(Identity(settings.mesh, victim))
    match kind:
        case "silent":
            return Flood("silent", address, seconds, silent)
        case "handshakes":
            return Flood("handshakes", address, seconds, handshakes)
        case "named handshakes":
            return Flood("handshakes", address, seconds, handshakes, name)
        case "stalled handshakes":
            return Flood("stalled", address, seconds, 200, name)
        case "greedy":
            return Flood("greedy", address, seconds, mesh.out / f"vertex-{other}", name)
    return None


def last_round(mesh: Mesh, vertex: int) -> int:
    return max((int(e["round"]) for e in mesh.named(vertex, "round")), default=0)


def stamp(event: dict[str, Any]) -> float:
    """Seconds since 1970 at which a line was written."""
    import datetime

    return datetime.datetime.fromisoformat(event["time"]).timestamp()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--silent", type=int, default=5000)
    parser.add_argument("--handshakes", type=int, default=20000)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("floods", nargs="*", default=FLOODS)
    arguments = parser.parse_args()
    row = "{:20} {:>7} {:>7} {:>7} {:>6} {:>6} {:>9} {:>7} {:>7} {:>7}"
    print(
        row.format(
            "flood",
            "rounds",
            "missed",
            "MB more",
            "files",
            "cores",
            "log KB/h",
            "status",
            "back s",
            "start s",
        )
    )
    for kind in arguments.floods:
        with tempfile.TemporaryDirectory() as directory:
            found = measure(
                kind, arguments.seconds, Path(directory) / "m", arguments.silent,
                arguments.handshakes,
            )  # fmt: skip
        print(
            row.format(
                kind,
                found.rounds,
                found.missed,
                f"{found.memory_mb:.1f}",
                found.descriptors,
                f"{found.cpu:.2f}",
                f"{found.log_bytes_hour / 1e3:.0f}",
                f"{found.status_s:.2f}" + ("!" if found.status_failed else ""),
                f"{found.back_s:.1f}",
                f"{found.from_start_s:.1f}",
            ),
            json.dumps({**found.done, **found.turned_away}),
            flush=True,
        )


if __name__ == "__main__":
    main()
