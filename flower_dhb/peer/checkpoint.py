"""An agent's state on disk: written whole or not at all, the one before kept.

`round-12.safetensors` holds the arrays, `round-12.json` a small document with the
checksum of the arrays' file. The document is written last: without it there is no
checkpoint of that round. Each file is written under another name, forced to the disk,
and renamed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from flower_dhb.errors import StateError

__all__ = ["Checkpoint", "Checkpoints"]

_KEEP = 2


@dataclass(frozen=True)
class Checkpoint:
    """Arrays by name, and a plain document, after a round."""

    round: int
    arrays: Mapping[str, NDArray[Any]]
    document: Mapping[str, Any]


class Checkpoints:
    """The checkpoints of one peer in one directory.

    report: called with a text for each checkpoint that is damaged.
    """

    def __init__(self, directory: Path, run: str, report: Callable[[str], None]) -> None:
        self._directory = directory
        self._run = run
        self._report = report

    def save(self, checkpoint: Checkpoint) -> None:
        """Write one. When this returns, it survives a crash of process and machine."""
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        arrays = {name: np.ascontiguousarray(array) for name, array in checkpoint.arrays.items()}
        data = save(arrays)
        document = {
            "run": self._run,
            "round": checkpoint.round,
            "bytes": len(data),
            "checksum": xxhash.xxh3_64_hexdigest(data),
            "state": checkpoint.document,
        }
        self._write(self._path(checkpoint.round, "safetensors"), data)
        self._write(self._path(checkpoint.round, "json"), json.dumps(document).encode())
        self._sync()
        self._prune()

    def load(self) -> Checkpoint | None:
        """The newest whole one; None if there is none.

        Raises StateError if there are some and none of them can be used: to begin anew
        would be to lose them silently.
        """
        rounds = self._rounds()
        for k in reversed(rounds):
            try:
                return self._read(k)
            except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
                self._report(f"checkpoint of round {k} is damaged: {error}")
        if rounds:
            raise StateError(
                f"{self._directory}: none of the checkpoints of rounds {rounds} can be used; move "
                "them away to begin again from the neighbors"
            )
        return None

    def _read(self, k: int) -> Checkpoint:
        document = json.loads(self._path(k, "json").read_bytes())
        if document["run"] != self._run:
            raise StateError(
                f"{self._directory}: checkpoint is of run '{document['run']}', expected "
                f"'{self._run}'; choose another state-dir for another run"
            )
        data = self._path(k, "safetensors").read_bytes()
        found = xxhash.xxh3_64_hexdigest(data)
        if (len(data), found) != (document["bytes"], document["checksum"]):
            raise ValueError(
                f"{len(data)} bytes with checksum {found}, expected {document['bytes']} with "
                f"{document['checksum']}"
            )
        return Checkpoint(k, load(data), document["state"])

    def _rounds(self) -> list[int]:
        stems = (p.stem.removeprefix("round-") for p in self._directory.glob("round-*.json"))
        return sorted(int(stem) for stem in stems if stem.isdecimal())

    def _prune(self) -> None:
        keep = set(self._rounds()[-_KEEP:])
        for path in self._directory.glob("round-*"):
            stem = path.stem.removeprefix("round-")
            if stem.isdecimal() and int(stem) not in keep:
                path.unlink(missing_ok=True)

    def _path(self, k: int, ending: str) -> Path:
        return self._directory / f"round-{k}.{ending}"

    def _write(self, path: Path, data: bytes) -> None:
        temporary = path.with_name(path.name + ".tmp")
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)

    def _sync(self) -> None:
        handle = os.open(self._directory, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
