"""Files that are there whole, or not at all."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["write_durably"]


def write_durably(path: Path, data: bytes) -> None:
    """Replace a file. When this returns, it survives a crash of process and machine.

    The data is written under another name, forced to the disk, and renamed. Raises OSError.
    """
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    handle = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(handle)  # the rename itself must reach the disk
    finally:
        os.close(handle)
