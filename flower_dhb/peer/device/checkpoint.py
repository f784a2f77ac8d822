"""An agent's state on disk: written whole or not at all, the one before kept.

`round-12.safetensors` holds the arrays, and in its metadata a small JSON document and the
checksum of both. It is written under another name, forced to the disk, and renamed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import xxhash
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import save

from flower_dhb.errors import StateError
from flower_dhb.files import write_durably

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
        self._known: list[int] | None = None

    def save(self, checkpoint: Checkpoint) -> None:
        """Write one. When this returns, it survives a crash of process and machine."""
        arrays = {name: np.asarray(array, order="C") for name, array in checkpoint.arrays.items()}
        about = json.dumps(
            {"run": self._run, "round": checkpoint.round, "state": checkpoint.document}
        )
        metadata = {"about": about, "checksum": _checksum(about, arrays)}
        if self._known is None:
            self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._known = self._rounds()
        write_durably(self._path(checkpoint.round), save(arrays, metadata=metadata))
        self._known = sorted({*self._known, checkpoint.round})
        # A later one that is damaged stays until its round is written anew.
        for old in [k for k in self._known if k <= checkpoint.round][:-_KEEP]:
            self._path(old).unlink(missing_ok=True)
            self._known.remove(old)

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
        with safetensors.safe_open(self._path(k), framework="numpy") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        found = _checksum(metadata["about"], arrays)
        if found != metadata["checksum"]:
            raise ValueError(f"its checksum is {found}, expected {metadata['checksum']}")
        document = json.loads(metadata["about"])
        if document["run"] != self._run:
            raise StateError(
                f"{self._directory}: checkpoint is of run '{document['run']}', expected "
                f"'{self._run}'; choose another state-dir for another run"
            )
        return Checkpoint(k, arrays, document["state"])

    def _rounds(self) -> list[int]:
        stems = (p.stem.removeprefix("round-") for p in self._directory.glob("round-*.safetensors"))
        return sorted(int(stem) for stem in stems if stem.isdecimal())

    def _path(self, k: int) -> Path:
        return self._directory / f"round-{k}.safetensors"


def _checksum(about: str, arrays: Mapping[str, NDArray[Any]]) -> str:
    digest = xxhash.xxh3_64(about.encode())
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype.str}{list(array.shape)}".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
