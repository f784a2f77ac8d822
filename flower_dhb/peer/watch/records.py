"""What the flight recorders wrote, read so that the records of a whole fleet need little memory."""

from __future__ import annotations

import json
import os
from array import array
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from safetensors.numpy import load_file

from flower_dhb.errors import ConfigError
from flower_dhb.peer.watch.ledger import check_format

__all__ = ["RECORD_FORMAT", "Lines", "Record", "Spans", "read_record"]

RECORD_FORMAT = 1  # of a line, and of the files beside it

_BLOCK = 256  # lines that are read at once


@dataclass
class Spans:
    """Rounds, as ranges of what follows on each other. They are added in ascending order."""

    ranges: list[tuple[int, int]] = field(default_factory=list)

    def add(self, first: int, last: int | None = None) -> None:
        """Add a round, or all from the first to the last."""
        last = first if last is None else last
        if self.ranges and first <= self.ranges[-1][1] + 1:
            begin, end = self.ranges[-1]
            self.ranges[-1] = (min(begin, first), max(end, last))
        else:
            self.ranges.append((first, last))

    def __len__(self) -> int:
        """How many rounds there are."""
        return sum(last - first + 1 for first, last in self.ranges)

    def __str__(self) -> str:
        """`round 3`, `rounds 3–7 and 9`."""
        shown = [f"{a}" if a == b else f"{a}–{b}" for a, b in self.ranges]
        if len(shown) > 8:
            shown = [*shown[:7], f"{len(shown) - 7} more ranges up to {self.ranges[-1][1]}"]
        word = "round" if len(self) == 1 else "rounds"
        *first, end = shown or ["none"]
        return f"{word} {', '.join(first)} and {end}" if first else f"{word} {end}"


class Lines(Mapping[int, Mapping[str, Any]]):
    """The lines of a record by round, in ascending order; only the block in use is in memory.

    Of two lines of one round the later one holds: the round was done again. Lines that a crash
    cut off are passed over. Raises OSError if the file cannot be read, and ConfigError for a line
    that a later release has written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        places: dict[int, tuple[int, int]] = {}
        with path.open("rb") as file:
            at = 0
            for line in file:
                document: dict[str, Any] = {}
                with suppress(ValueError, KeyError, TypeError):
                    document = json.loads(line)
                    places[int(document["round"])] = (at, len(line))
                if isinstance(document, dict):
                    check_format(document, path, RECORD_FORMAT)
                at += len(line)
        self._rounds = array("q", sorted(places))
        self._places = [array("q", (places[k][i] for k in self._rounds)) for i in (0, 1)]
        self._block: tuple[int, list[Mapping[str, Any]]] = (-1, [])

    def __len__(self) -> int:
        """How many rounds there are."""
        return len(self._rounds)

    def __iter__(self) -> Iterator[int]:
        """Rounds, ascending."""
        return iter(self._rounds)

    def __contains__(self, k: object) -> bool:
        """Whether there is a line of a round."""
        return isinstance(k, int) and self._index(k) >= 0

    def __getitem__(self, k: int) -> Mapping[str, Any]:
        """The line of a round."""
        index = self._index(k)
        if index < 0:
            raise KeyError(k)
        block, place = divmod(index, _BLOCK)
        if self._block[0] != block:
            self._block = (block, self._read(block * _BLOCK))
        return self._block[1][place]

    @property
    def ends(self) -> tuple[int, int] | None:
        """First and last round, None if there are none."""
        return (self._rounds[0], self._rounds[-1]) if self._rounds else None

    def _index(self, k: int) -> int:
        index = bisect_left(self._rounds, k)
        return index if index < len(self._rounds) and self._rounds[index] == k else -1

    def _read(self, begin: int) -> list[Mapping[str, Any]]:
        lines = []
        offsets, sizes = (places[begin : begin + _BLOCK] for places in self._places)
        with self._path.open("rb") as file:
            for offset, size in zip(offsets, sizes, strict=True):
                file.seek(offset)
                lines.append(json.loads(file.read(size)))
        return lines


@dataclass(frozen=True)
class Record:
    """What one peer wrote down: a line a round, and the files beside it, if there are any."""

    vertex: int
    lines: Lines
    directory: Path
    has_files: bool

    def covers(self, k: int) -> bool:
        """Whether a round lies between its first line and its last."""
        ends = self.lines.ends
        return ends is not None and ends[0] < k < ends[1]

    def took_part(self, k: int) -> bool:
        """Whether it shared a payload in a round, by its own record."""
        return k in self.lines and not self.lines[k].get("rejoined")

    def arrays(self, k: int, what: str) -> dict[str, NDArray[Any]] | None:
        """Vectors of a round, None if the recorder kept checksums only."""
        if not self.has_files:
            return None
        path = self.directory / f"round-{k}-{what}.safetensors"
        return dict(load_file(path)) if path.exists() else None


def read_record(directory: Path, vertex: int) -> Record:
    """One peer's record. Raises ConfigError if there is none."""
    path = directory / "record.jsonl"
    try:
        with os.scandir(directory) as entries:
            has_files = any(entry.name.startswith("round-") for entry in entries)
        return Record(vertex, Lines(path), directory, has_files)
    except OSError as error:
        raise ConfigError(
            f'{path}: {error.strerror}; set record = "payloads" in the device\'s peer.toml'
        ) from None
