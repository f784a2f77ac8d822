"""A log that can be fetched: lines go to standard error, and to a file of bounded size."""

from __future__ import annotations

import io
from contextlib import suppress
from pathlib import Path
from typing import TextIO

__all__ = ["LogFile"]

_LIMIT_BYTES = 10 * 2**20


class LogFile(io.TextIOBase):
    """Writes on to `beside`, and appends to a file.

    A file of more than `limit_bytes` becomes `NAME.1`, and the one of that name goes. What the
    disk does not take is in `beside` alone: a full disk ends no peer. Raises OSError if the file
    cannot be opened at first.
    """

    def __init__(self, path: Path, beside: TextIO, limit_bytes: int = _LIMIT_BYTES) -> None:
        self._path, self._beside, self._limit = path, beside, limit_bytes
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab", buffering=0)

    def write(self, text: str) -> int:
        """Write a line to both."""
        self._beside.write(text)
        with suppress(OSError, ValueError):
            if self._file.closed:
                self._file = self._path.open("ab", buffering=0)
            elif self._file.tell() > self._limit:
                self._file.close()
                self._path.replace(self._path.with_name(f"{self._path.name}.1"))
                self._file = self._path.open("ab", buffering=0)
            self._file.write(text.encode(errors="replace"))
        return len(text)

    def flush(self) -> None:
        """The file is never behind."""
        self._beside.flush()

    def close(self) -> None:
        """Close the file, and not what is beside it."""
        self._file.close()
