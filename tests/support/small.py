"""A bare environment with `.[peer]`, and a mesh of two NumPy peers in it: sizes and times.

Usage: python -m tests.support.small [--keep FOLDER]. Needs nothing but Python. Ends with
status 1 if the environment or a peer is larger than it may be, or something is installed that
a peer does not need.
"""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
APP = ROOT / "tests" / "support" / "peer_app"
MOST_MB = 300  # of the environment, as files on the disk, without pip
MOST_RESIDENT_MB = 100  # of a peer; docs/benchmarks.md has what was measured
NEVER = ("torch", "ray", "sklearn", "scipy", "networkx", "matplotlib", "pandas", "psutil")
DEADLINE_S = 60.0


def install(folder):
    """Make an environment, install the package with the extra `peer`, and remove pip."""
    python = folder / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    pip = [python, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "install", f"{ROOT}[peer]"], check=True)
    subprocess.run([*pip, "uninstall", "--yes", "setuptools", "pip"], check=True)
    return python


def size_mb(folder):
    """What files take on the disk, in 10^6 bytes."""
    return sum(file.lstat().st_blocks * 512 for file in folder.rglob("*")) / 1e6


def resident_mb(process):
    """Resident memory of a process, in 10^6 bytes."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) * 1024 / 1e6


def events(log):
    """The lines of a peer's log, as far as they are whole."""
    return [json.loads(line) for line in log.read_text().splitlines() if line.endswith("}")]


def wait(what, processes, logs, happened):
    """Until `happened` of each log; raises RuntimeError if a peer ends or time is up."""
    end = time.monotonic() + DEADLINE_S
    while not all(happened(events(log)) for log in logs):
        for process, log in zip(processes, logs, strict=True):
            if process.poll() not in (None, 0) or time.monotonic() > end:
                raise RuntimeError(f"no {what}; the log ends with:\n{log.read_text()[-2000:]}")
        time.sleep(0.02)


def run_mesh(python, folder):
    """Two peers for some rounds: seconds to the first connection, and what each keeps resident."""
    program, mesh = python.with_name("flower-dhb"), folder / "mesh"
    create = [program, "mesh", "create", "--topology", "path:2", "--app", APP, "--out", mesh]
    create += ["--run-config", "rounds=25", "--run-config", "step-s=0.1"]
    subprocess.run(create, check=True, stdout=subprocess.DEVNULL)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    processes, logs = [], []
    begun = time.monotonic()
    try:
        for vertex in (0, 1):
            logs.append(folder / f"peer-{vertex}.log")
            words = [program, "peer", mesh / f"vertex-{vertex}" / "peer.toml", "--log", "json"]
            with logs[-1].open("wb") as log:
                processes.append(subprocess.Popen(words, stdout=log, stderr=log, env=environment))
        wait("connection", processes, logs, lambda found: any(named(e, "connected") for e in found))
        connected = time.monotonic() - begun
        wait("10 rounds", processes, logs, lambda found: sum(named(e, "round") for e in found) > 9)
        resident = [resident_mb(process) for process in processes]
        for process in processes:
            if process.wait(timeout=DEADLINE_S) != 0:
                raise RuntimeError(f"a peer ended with status {process.returncode}")
    finally:
        for process in processes:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
                process.wait()
    return connected, resident


def named(event, name):
    """Whether a line of the log tells of this."""
    return event.get("event") == name


def main():
    """Install, run, print, and say whether all is as small as it may be."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--keep", type=Path, help="leave the environment in this folder")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="flower-dhb-small-") as temporary:
        folder = Path(temporary)
        python = install((arguments.keep or folder / "environment").resolve())
        size = size_mb(python.parents[1])
        print(f"environment with [peer]: {size:.0f} MB")
        probe = "import importlib.util, sys; print([n for n in sys.argv[1:] "
        probe += "if importlib.util.find_spec(n)])"
        words = [python, "-c", probe, *NEVER]
        extra = subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()
        connected, resident = run_mesh(python, folder)
        print(f"both peers connected {connected:.2f} s after their start")
        print(f"resident memory of a NumPy peer: {', '.join(f'{r:.0f} MB' for r in resident)}")
    failed = []
    if size > MOST_MB:
        failed.append(f"the environment has more than {MOST_MB} MB")
    if max(resident) > MOST_RESIDENT_MB:
        failed.append(f"a peer keeps more than {MOST_RESIDENT_MB} MB")
    if extra != "[]":
        failed.append(f"installed without need: {extra}")
    for why in failed:
        print(f"test-small: {why}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
