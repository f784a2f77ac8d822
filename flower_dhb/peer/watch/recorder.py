"""The flight recorder: what a peer sent, received and used, round by round.

With `checksums` a JSON line a round; with `payloads` also the vectors, so that
`flower-dhb replay` can compute the run again and say whether every peer did what the
law says.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import xxhash
from numpy.typing import NDArray
from safetensors.numpy import save_file

from flower_dhb.agent import codec
from flower_dhb.agent.node import Snapshot
from flower_dhb.peer.wire.frames import Bytes

__all__ = ["Recorder", "fingerprint"]


class Recorder:
    """Writes the record of one peer. mode: `off`, `checksums` or `payloads`."""

    def __init__(self, directory: Path, mode: str) -> None:
        self.on = mode != "off"
        self._payloads = mode == "payloads"
        self._directory = directory
        self._file: TextIO | None = None
        self._line: dict[str, Any] = {}

    def shared(
        self,
        label: int,
        trained_as: int,
        frame: Bytes,
        received: Mapping[int, Bytes],
        before: Snapshot,
        after: Snapshot,
    ) -> None:
        """A round was closed. before: the state that was trained from; after: with `pending`."""
        self._line = {
            "round": label,
            "trained_as": trained_as,
            "from": fingerprint({"x": before.state.parameters}),
            "sent": fingerprint(_vectors(frame)),
            "received": {str(j): fingerprint(_vectors(f)) for j, f in received.items()},
        }
        if self._payloads and after.pending is not None:
            arrays = {f"before/{k}": v for k, v in _state(before).items()}
            arrays |= {f"sent/{k}": v for k, v in _vectors(frame).items()}
            arrays["trained"] = after.pending.trained
            self._save(label, "shared", arrays)

    def combined(self, label: int, snapshot: Snapshot) -> None:
        """The round was combined."""
        state = _state(snapshot)
        self._line["to"] = fingerprint({"x": snapshot.state.parameters})
        if self._payloads:
            self._save(label, "combined", state)
        self._write(self._line)

    def rejoined(self, label: int, snapshot: Snapshot) -> None:
        """The state was lost, or too old, and taken from the neighbors."""
        if self.on:
            to = fingerprint({"x": snapshot.state.parameters})
            self._write({"round": label, "rejoined": True, "to": to})

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    def _save(self, label: int, what: str, arrays: Mapping[str, NDArray[Any]]) -> None:
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = self._directory / f"round-{label}-{what}.safetensors"
        save_file({name: np.asarray(a, order="C") for name, a in arrays.items()}, path)

    def _write(self, line: dict[str, Any]) -> None:
        if self._file is None:
            self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._file = (self._directory / "record.jsonl").open("a", encoding="utf-8")
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()


def fingerprint(vectors: Mapping[str, NDArray[Any]]) -> str:
    """Checksum of vectors by name, whatever frame they travelled in."""
    digest = xxhash.xxh3_64()
    for name, vector in vectors.items():
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(vector).view(np.uint8).data)
    return digest.hexdigest()


def _vectors(frame: Bytes) -> dict[str, NDArray[Any]]:
    return codec.decode(frame, codec.read_header(frame))


def _state(snapshot: Snapshot) -> dict[str, NDArray[Any]]:
    return {
        "parameters": snapshot.state.parameters,
        **{f"memory/{name}": v for name, v in snapshot.state.memory.items()},
    }
