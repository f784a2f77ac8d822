"""What a round costs two versions of the peers: seconds, bytes and forced writes, by turns.

`python -m benchmarks.peers_cost --before FOLDER` runs meshes of the version that lies in
FOLDER (a checkout of an older commit) and of this one, one after the other, several times, and
prints medians and ratios. Eight peers on a ring, mutual TLS on loopback, five local steps on
digits. Where the user may (root on Linux), each mesh has a network namespace of its own, so that
the bytes are those of the mesh alone.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MODELS = {"17 thousand": "128,64", "1 million": "960,960"}
N = 8

# Runs in every process of a mesh: counts what is forced to the disk.
COUNTER = """
import atexit, os, time
_spent = [0, 0.0]
def _counted(real):
    def forced(file):
        begin = time.perf_counter()
        real(file)
        _spent[0] += 1
        _spent[1] += time.perf_counter() - begin
    return forced
os.fsync, os.fdatasync = _counted(os.fsync), _counted(os.fdatasync)
def _tell():
    if _spent[0] and "FSYNCS" in os.environ:
        with open(os.path.join(os.environ["FSYNCS"], str(os.getpid())), "w") as file:
            file.write(f"{_spent[0]} {_spent[1]}")
atexit.register(_tell)
"""

# Runs one mesh, and prints its seconds per round and the bytes that crossed loopback.
MESH = """
import json, subprocess, sys
from pathlib import Path
tree, home, hidden, rounds = sys.argv[1:]
home = Path(home)
def sent():
    lines = Path("/proc/self/net/dev").read_text().splitlines()
    return next(int(line.split()[9]) for line in lines if line.strip().startswith("lo:"))
cli = [sys.executable, "-c", "from flower_dhb.cli import main; raise SystemExit(main())"]
config = ["--run-config", f'hidden="{hidden}"', "--run-config", f"rounds={rounds}"]
subprocess.run([*cli, "mesh", "create", "--topology", "ring:8", "--app",
                str(Path(tree) / "benchmarks" / "peers_app"), "--out", str(home),
                *config], check=True, stdout=subprocess.DEVNULL)
before = sent()
peers = [subprocess.Popen([*cli, "peer", str(home / f"vertex-{v}" / "peer.toml")],
                          stderr=subprocess.DEVNULL) for v in range(8)]
codes = [peer.wait(500) for peer in peers]
assert codes == [0] * 8, codes
seconds = []
for v in range(8):
    lines = (home / f"vertex-{v}" / "state" / "history.jsonl").read_text().splitlines()
    seconds += [json.loads(line)["seconds"] for line in lines[5:]]
print(json.dumps({"seconds": seconds, "bytes": sent() - before}))
"""


def run_mesh(tree: Path, hidden: str, rounds: int) -> dict[str, float]:
    """Seconds and bytes per agent and round, forced writes per round and agent."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        (home / "counter").mkdir()
        (home / "fsyncs").mkdir()
        (home / "counter" / "sitecustomize.py").write_text(COUNTER)
        env = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(home / "counter"), str(tree)]),
            "OMP_NUM_THREADS": "1",
            "FSYNCS": str(home / "fsyncs"),
        }
        command = [sys.executable, "-c", MESH, str(tree), str(home / "mesh"), hidden, str(rounds)]
        if os.name == "posix" and os.geteuid() == 0:
            own = 'ip link set lo up && exec "$@"'
            command = ["unshare", "--net", "sh", "-c", own, "mesh", *command]
        done = subprocess.run(
            command, env=env, cwd=folder, text=True, stdout=subprocess.PIPE, timeout=580, check=True
        )
        found = json.loads(done.stdout.splitlines()[-1])
        forced = [p.read_text().split() for p in (home / "fsyncs").iterdir()]
        rounds_of_all = rounds * N
        return {
            "seconds": statistics.median(found["seconds"]),
            "bytes": found["bytes"] / rounds_of_all,
            "forced writes": sum(int(n) for n, _ in forced) / rounds_of_all,
            "ms per forced write": 1e3
            * sum(float(s) for _, s in forced)
            / max(sum(int(n) for n, _ in forced), 1),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--before", type=Path, required=True, help="checkout of an older version")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=60)
    arguments = parser.parse_args()
    trees = {"before": arguments.before.resolve(), "after": ROOT}
    for size, hidden in MODELS.items():
        found: dict[str, list[dict[str, float]]] = {name: [] for name in trees}
        for _ in range(arguments.turns):
            for name, tree in trees.items():
                found[name].append(run_mesh(tree, hidden, arguments.rounds))
        print(f"\n{size} parameters, {arguments.turns} turns of {arguments.rounds} rounds")
        print("| per agent and round | before | after | after / before |\n|---|---|---|---|")
        for key in found["before"][0]:
            before, after = (statistics.median(run[key] for run in found[n]) for n in trees)
            print(f"| {key} | {before:.4g} | {after:.4g} | {after / before:.2f} |", flush=True)


if __name__ == "__main__":
    main()
