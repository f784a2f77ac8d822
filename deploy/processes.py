"""Processes of one deployment: found by their Flower home, and ended all at once.

As a program it waits for the end of standard input, which is that of whoever started it, and then
ends what the deployment in a folder has left: nothing runs on after a `kill -9` of its owner.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import psutil

__all__ = ["HOME", "kill_all", "processes_of", "runs"]

HOME = "FLWR_HOME"


def processes_of(home: Path) -> list[psutil.Process]:
    """Living processes whose Flower home is this folder or lies in it."""
    found = []
    for process in psutil.process_iter():
        try:
            its = process.environ().get(HOME)
            if its and Path(its).is_relative_to(home) and _alive(process):
                found.append(process)
        except psutil.Error:
            continue
    return found


def runs(process: psutil.Process, program: str) -> bool:
    """Whether a process is this program of Flower."""
    try:
        return any(Path(word).name == program for word in process.cmdline()[:3])
    except psutil.Error:
        return False


def _alive(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def kill_all(processes: Sequence[psutil.Process]) -> int:
    """Kill processes at once; returns how many there were."""
    for process in processes:
        try:
            process.send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(processes, timeout=10.0)
    return len(processes)


def guard(folder: Path) -> None:
    """Wait until standard input ends, and end what the deployment in `folder` has left then."""
    while os.read(0, 1024):
        pass
    while kill_all(processes_of(folder)):
        pass


if __name__ == "__main__":
    guard(Path(sys.argv[1]))
