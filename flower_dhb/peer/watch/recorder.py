"""The flight recorder: what a peer sent, received and used, round by round.

With `checksums` a JSON line a round; with `payloads` also the vectors, so that
`flower-dhb replay` can compute the run again and say whether every peer did what the
law says.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray
from safetensors.numpy import save

from flower_dhb import __version__
from flower_dhb.agent import codec
from flower_dhb.agent.node import Snapshot
from flower_dhb.peer.watch.history import History, keep_until
from flower_dhb.peer.watch.records import RECORD_FORMAT
from flower_dhb.peer.wire.frames import Bytes

__all__ = ["Recorder", "fingerprint"]


_WRITTEN = {"format": RECORD_FORMAT, "software": __version__}  # each line says by whom


class Recorder:
    """Writes the record of one peer. mode: `off`, `checksums` or `payloads`."""

    def __init__(self, directory: Path, mode: str) -> None:
        self.on = mode != "off"
        self._payloads = mode == "payloads"
        self._directory = directory
        self._lines = History(directory / "record.jsonl")

    def begins_after(self, closed: int) -> None:
        """Drop the lines of later rounds: a crash undid them."""
        keep_until(self._directory / "record.jsonl", closed)

    def ended(
        self,
        label: int,
        trained_as: int,
        frame: Bytes,
        received: Mapping[int, Bytes],
        before: Snapshot,
        after: Snapshot,
        edition: int = 1,
    ) -> None:
        """A round was combined. before: the state with what was trained; after: what came of it.

        edition: of the mesh, whose weights it used.
        """
        sent = _vectors(frame)
        if self._payloads:
            if before.pending is not None:
                arrays = {f"before/{k}": v for k, v in _state(before).items()}
                arrays |= {f"sent/{k}": v for k, v in sent.items()}
                arrays["trained"] = before.pending.trained
                if before.pending.codes is not None:
                    arrays |= {f"codes/{k}": v for k, v in before.pending.codes.items()}
                    arrays |= {f"known/{k}": v for k, v in before.sent.items()}
                self._save(label, "shared", arrays)
            self._save(label, "combined", _state(after))
        line = {
            **_WRITTEN,
            "round": label,
            "trained_as": trained_as,
            "edition": edition,
            "from": fingerprint({"x": before.state.parameters}),
            "sent": fingerprint(sent),
            "received": {str(j): fingerprint(_vectors(f)) for j, f in received.items()},
            "to": fingerprint({"x": after.state.parameters}),
            "epoch": before.epoch,
            "left_epoch": after.epoch,
        }
        self._lines.append(line, durable=False)

    def rejoined(self, label: int, snapshot: Snapshot) -> None:
        """The state was lost, or too old, and taken from the neighbors."""
        to = fingerprint({"x": snapshot.state.parameters})
        line = {
            **_WRITTEN,
            "round": label,
            "rejoined": True,
            "to": to,
            "left_epoch": snapshot.epoch,
        }
        self._lines.append(line, durable=False)

    def close(self) -> None:
        """Close the file."""
        self._lines.close()

    def _save(self, label: int, what: str, arrays: Mapping[str, NDArray[Any]]) -> None:
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = self._directory / f"round-{label}-{what}.safetensors"
        path.write_bytes(save({name: np.asarray(a, order="C") for name, a in arrays.items()}))


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
