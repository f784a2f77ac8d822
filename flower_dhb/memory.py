"""Memory that a machine has left."""

from __future__ import annotations

from pathlib import Path

__all__ = ["free_bytes"]

_FILE = Path("/proc/meminfo")


def free_bytes() -> int | None:
    """Memory that a program may still take; None where the system does not say."""
    try:
        lines = dict(line.split(":", 1) for line in _FILE.read_text().splitlines())
        return 1024 * int(lines["MemAvailable"].split()[0])
    except (OSError, ValueError, KeyError, IndexError):
        return None
