"""What a peer tells of its rounds, one JSON line each, for whoever reads them later."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from flower_dhb.files import sync, write_durably

__all__ = ["History", "keep_until"]


class History:
    """Appends lines to a file that is made when the first one comes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO | None = None

    def append(self, entry: Mapping[str, Any], *, durable: bool) -> None:
        """Write a line, whole or not at all. Raises OSError."""
        if self._file is None:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._file = self._path.open("ab", buffering=0)
        before = self._file.tell()
        line = json.dumps(entry).encode() + b"\n"
        try:
            if self._file.write(line) != len(line):
                raise OSError(f"{self._path}: a line was written in part; is the disk full?")
            if durable:
                sync(self._file)
        except OSError:
            self._file.truncate(before)
            raise

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None


def keep_until(path: Path, last: int) -> None:
    """Drop the lines of rounds that a crash undid, and one that it cut off."""
    if not path.exists():
        return
    text = path.read_text(encoding="utf-8")
    kept = []
    for line in text.splitlines():
        try:
            if json.loads(line)["round"] <= last:
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError):
            continue
    if "".join(kept) != text:
        write_durably(path, "".join(kept).encode())
