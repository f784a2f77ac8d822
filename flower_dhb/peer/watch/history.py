"""What a peer tells of its rounds, one JSON line each, for whoever reads them later."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from flower_dhb.files import sync, write_durably

__all__ = ["History", "keep_until"]


class History:
    """Appends lines to a file that is made when the first one comes.

    A file that was removed, or whose directory was, is made again.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO | None = None
        # Where a part of a line begins that could not be taken back.
        self._torn_at: int | None = None

    def append(self, entry: Mapping[str, Any], *, durable: bool) -> None:
        """Write a line, whole or not at all. Raises OSError."""
        file = self._open()
        if self._torn_at is not None:
            file.truncate(self._torn_at)
            self._torn_at = None
        before = file.seek(0, os.SEEK_END)
        line = json.dumps(entry).encode() + b"\n"
        try:
            rest = memoryview(line)
            while rest:  # a disk that is nearly full takes a part, and says why only then
                rest = rest[file.write(rest) :]
            if durable:
                sync(file)
        except OSError:
            self._torn_at = before
            with suppress(OSError):  # the first error is the one to tell
                file.truncate(before)
                self._torn_at = None
            raise

    def _open(self) -> BinaryIO:
        if self._file is not None and not _is_at(self._path, self._file):
            self.close()
        if self._file is None:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._file, self._torn_at = self._path.open("ab", buffering=0), None
        return self._file

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            with suppress(OSError):  # what had to be on the disk is
                self._file.close()
            self._file = None


def keep_until(path: Path, last: int) -> None:
    """Drop the lines of rounds that a crash undid, and one that it cut off."""
    if not path.exists():
        return
    text = path.read_bytes()
    kept = []
    for line in text.split(b"\n"):
        try:
            if json.loads(line)["round"] <= last:
                kept.append(line + b"\n")
        except (ValueError, KeyError, TypeError):  # cut off, or damaged
            continue
    if b"".join(kept) != text:
        write_durably(path, b"".join(kept))


def _is_at(path: Path, file: BinaryIO) -> bool:
    """Whether an open file is the one that lies at a path."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return False
    return os.path.samestat(found, os.fstat(file.fileno()))
