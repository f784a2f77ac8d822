"""Where an agent's state rests between rounds: Flower's context, or a file.

Flower keeps a context in memory only, so a restarted SuperNode has lost it. Where the
node config names a `state-dir`, the state lies in a file there, written atomically.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import safetensors
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, RecordDict
from numpy.typing import NDArray
from safetensors.numpy import save

from flower_dhb.algorithms import Algorithm
from flower_dhb.errors import StateError
from flower_dhb.files import write_durably
from flower_dhb.node import Pending, Snapshot
from flower_dhb.types import Layout, NDArrays, State, dtype_name

__all__ = ["Store", "load_snapshot", "open_store", "snapshot_vectors"]

_STATE, _ABOUT = "flower_dhb.state", "flower_dhb.state_about"
_RAW = "flower_dhb.raw"
STATE_DIR = "state-dir"


class Store(Protocol):
    """Keeps one agent's snapshot."""

    def load(self, algorithm: Algorithm, layout: Layout) -> Snapshot | None:
        """The stored snapshot, None if there is none.

        Raises StateError if there is one that cannot be used.
        """

    def save(self, snapshot: Snapshot, algorithm: Algorithm) -> None:
        """Replace the stored snapshot."""


def open_store(context: Context, run: str, vertex: int) -> Store:
    """The store that an agent's node config asks for."""
    directory = context.node_config.get(STATE_DIR)
    if directory is None:
        return _ContextStore(context.state, run)
    return _FileStore(Path(str(directory)) / f"run-{run}-vertex-{vertex}.safetensors", run)


class _ContextStore:
    def __init__(self, state: RecordDict, run: str) -> None:
        self._state = state
        self._run = run

    def load(self, algorithm: Algorithm, layout: Layout) -> Snapshot | None:
        record, about = self._state.get(_STATE), self._state.get(_ABOUT)
        if not isinstance(record, ArrayRecord) or not isinstance(about, ConfigRecord):
            return None
        arrays = {name: _from_raw(array) for name, array in record.items()}
        document = json.loads(str(about["json"]))
        return load_snapshot(document, arrays, algorithm=algorithm, layout=layout, run=self._run)

    def save(self, snapshot: Snapshot, algorithm: Algorithm) -> None:
        document, arrays = snapshot_vectors(snapshot, algorithm, self._run)
        record = ArrayRecord()
        for name, array in arrays.items():
            record[name] = Array(
                dtype_name(array.dtype),
                tuple(array.shape),
                _RAW,
                np.asarray(array, order="C").tobytes(),
            )
        self._state[_STATE] = record
        self._state[_ABOUT] = ConfigRecord({"json": json.dumps(document)})


class _FileStore:
    def __init__(self, path: Path, run: str) -> None:
        self._path = path
        self._run = run

    def load(self, algorithm: Algorithm, layout: Layout) -> Snapshot | None:
        if not self._path.exists():
            return None
        try:
            with safetensors.safe_open(self._path, framework="numpy") as file:
                document = json.loads(file.metadata()["about"])
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, ValueError, TypeError, KeyError, safetensors.SafetensorError) as error:
            raise StateError(f"{self._path}: damaged state file: {error}") from None
        return load_snapshot(document, arrays, algorithm=algorithm, layout=layout, run=self._run)

    def save(self, snapshot: Snapshot, algorithm: Algorithm) -> None:
        document, arrays = snapshot_vectors(snapshot, algorithm, self._run)
        contiguous = {name: np.asarray(array, order="C") for name, array in arrays.items()}
        data = save(contiguous, metadata={"about": json.dumps(document)})
        write_durably(self._path, data)


def _from_raw(array: Array) -> NDArray[Any]:
    if array.stype != _RAW:
        raise StateError(f"stored state has serialization '{array.stype}', expected '{_RAW}'")
    return np.frombuffer(array.data, dtype=array.dtype).reshape(array.shape)


def snapshot_vectors(
    snapshot: Snapshot, algorithm: Algorithm, run: str
) -> tuple[dict[str, Any], NDArrays]:
    """A snapshot as a small plain document and named arrays, to be stored anywhere."""
    arrays: NDArrays = {"parameters": snapshot.state.parameters}
    if snapshot.statistics.size:
        arrays["statistics"] = snapshot.statistics
    arrays |= {f"memory/{name}": vector for name, vector in snapshot.state.memory.items()}
    arrays |= {f"local/{name}": array for name, array in snapshot.local.items()}
    document: dict[str, Any] = {
        "run": run,
        "round": snapshot.round,
        "pending_round": None,
        "algorithm": algorithm.to_config(),
    }
    if snapshot.pending is not None:
        document["pending_round"] = snapshot.pending.round
        arrays["trained"] = snapshot.pending.trained
        if snapshot.pending.statistics.size:
            arrays["trained_statistics"] = snapshot.pending.statistics
    return document, arrays


def load_snapshot(
    document: Mapping[str, Any],
    arrays: Mapping[str, NDArray[Any]],
    *,
    algorithm: Algorithm,
    layout: Layout,
    run: str,
) -> Snapshot:
    """Inverse of `snapshot_vectors`.

    Raises StateError if the state is of another run, rule or model, or incomplete.
    """
    try:
        if document["run"] != run:
            raise StateError(f"state is of run {document['run']}, expected {run}")
        if document["algorithm"] != algorithm.to_config():
            raise StateError(f"state is of rule {document['algorithm']}, expected {algorithm}")
        memory = {name: arrays[f"memory/{name}"] for name in algorithm.memory}
        state = State(arrays["parameters"], memory)
        if any(v.shape != (layout.size,) for v in (state.parameters, *memory.values())):
            raise StateError(f"state is of another model, expected {layout.size} parameters")
        local = {e.name: arrays[f"local/{e.name}"] for e in layout.entries if e.kind == "local"}
        statistics = _statistics(arrays, "statistics", layout)
        pending = None
        if document["pending_round"] is not None:
            trained_statistics = _statistics(arrays, "trained_statistics", layout)
            pending = Pending(document["pending_round"], arrays["trained"], trained_statistics)
        return Snapshot(document["round"], state, statistics, local, pending)
    except KeyError as error:
        raise StateError(f"state lacks {error}") from None


def _statistics(arrays: Mapping[str, NDArray[Any]], name: str, layout: Layout) -> NDArray[Any]:
    return arrays[name] if layout.statistics_size else layout.empty_statistics()
