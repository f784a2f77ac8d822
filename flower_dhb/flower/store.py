"""Where an agent's state rests between rounds: Flower's context, or a file.

Flower keeps a context in memory only, so a restarted SuperNode has lost it. Where the
node config names a `state-dir`, the state lies in a file there, written atomically. The
relay has it removed when its run is over; what runs that crashed have left is removed when
the agent begins another run.

A run may be taken up again by another ServerApp while the agent still works for the one that
died. So a file says in which attempt it was written, and an earlier one never replaces it.
"""

from __future__ import annotations

import json
import os
import re
import secrets
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any, Protocol, TypedDict

import numpy as np
import safetensors
from flwr.app import Array, ArrayRecord, ConfigRecord, Context
from numpy.typing import NDArray
from safetensors.numpy import save

from flower_dhb.agent.compression import NONE, Compression
from flower_dhb.agent.compression.compressor import Codes
from flower_dhb.agent.node import Node, Pending, Snapshot, compressor_of
from flower_dhb.agent.screening import Lengths, Screen
from flower_dhb.algorithms import Algorithm
from flower_dhb.algorithms.measurement import measured
from flower_dhb.errors import RoundError, StateError
from flower_dhb.files import write_durably
from flower_dhb.flower.arrays import carried
from flower_dhb.types import Entry, Layout, NDArrays, Payload, State, dtype_name

__all__ = [
    "MODEL_FILE",
    "STATE_DIR",
    "Store",
    "keep_model",
    "load_snapshot",
    "open_store",
    "snapshot_vectors",
]

_STATE, _ABOUT = "flower_dhb.state", "flower_dhb.state_about"
_DRAWN = "flower_dhb.secret"
_DRAWN_BYTES = 32
_RAW = "flower_dhb.raw"
STATE_DIR, MODEL_FILE = "state-dir", "model-file"


class NodeKeys(TypedDict, total=False):
    """Keys of a node config that this package reads, or writes for apps to read."""

    vertex: int
    """The vertex that the node is. Without it `partition-id` says so."""
    partition_id: int
    """The same, in the word of Flower's own templates, by which most apps find their data.

    A SuperNode of such an app names it, with `vertex` or in its place. `mesh create` sets it to the
    vertex.
    """
    num_partitions: int
    """Number of agents. Only apps read it, and those that do need it at each SuperNode.

    `mesh create` sets it.
    """
    state_dir: str
    """Directory in which a SuperNode keeps its agent's state, so that a restart keeps it.

    Peers refuse it: they have `state-dir` at the top of `peer.toml`.
    """
    model_file: str
    """File in which a SuperNode keeps its agent's newest model, for whoever uses it there.

    It is written at each evaluation, and at the end of a run that is encrypted or collects models,
    as safetensors, and stays. Peers refuse it: they have `model.safetensors` in their state
    directory.
    """
    mesh: str
    """The node's own directory of a mesh, with key, certificate and authority.

    `flower-dhb mesh create` or `flower-dhb mesh identities` writes it. It says who the node is, to
    its neighbors, and nobody between them can change that. Direct rounds and encryption need it.
    Peers refuse it: they have `[tls]`.
    """
    address: str
    """Where other nodes reach a SuperNode in direct rounds; without it the node only dials.

    Allowed: `host:port`.
    """
    listen: str
    """What it binds, if that is not all interfaces with the port of `address`.

    Allowed: `host:port`.
    """
    encryption: str
    """`neighbors`: payloads leave this node only sealed for its neighbors, whatever a run says.

    Peers refuse it: they encrypt in any case. Allowed: `none`, `neighbors`.
    """


_NAME = re.compile(r"run-[0-9a-f]{16,}(\.[0-9]+)?-vertex-([0-9]+)\.(safetensors|before|secret)")
_ORPHAN_S = 24 * 3600.0  # a run that goes on writes its file in every round


class Store(Protocol):
    """Keeps one agent's snapshot.

    lasts: whether what is saved outlives the message in which it is saved, whatever becomes of
    that.
    """

    @property
    def lasts(self) -> bool:
        """See above."""

    def attempt(self) -> int:
        """In which attempt at the run the stored snapshot was written, 0 if there is none.

        Raises StateError if that cannot be read.
        """

    def load(
        self, algorithm: Algorithm, layout: Layout, compression: Compression = NONE
    ) -> Snapshot | None:
        """The stored snapshot, None if there is none.

        Raises StateError if there is one that cannot be used.
        """

    def load_before(
        self, algorithm: Algorithm, layout: Layout, compression: Compression = NONE
    ) -> Snapshot | None:
        """The snapshot that was kept beside its successors; None if there is none to be used."""

    def save(self, snapshot: Snapshot, algorithm: Algorithm, *, beside: bool = False) -> None:
        """Replace the stored snapshot.

        beside: keep the one that is replaced, in place of what was kept before, for a run that is
        taken up again from there. Raises OSError if the new one cannot be kept, RoundError if a
        later attempt has one already.
        """

    def secret(self) -> bytes:
        """32 random bytes that the agent keeps for the run beside its state, and shows nobody.

        Drawn when they are asked for the first time, and anew if they are lost. Raises OSError if
        they cannot be kept.
        """

    def discard(self) -> None:
        """Remove snapshot and secret, if there are any. Raises OSError if that fails."""


def keep_model(context: Context, run: str, node: Node) -> None:
    """Keep an agent's model where its node config says. Raises OSError if it cannot be kept."""
    path = context.node_config.get(MODEL_FILE)
    if path is None:
        return
    arrays = {name: np.asarray(array, order="C") for name, array in node.arrays().items()}
    about = {"run": run, "vertex": str(node.vertex), "round": str(node.round)}
    write_durably(Path(str(path)), save(arrays, metadata=about))


def open_store(context: Context, run: str, vertex: int, attempt: int = 0) -> Store:
    """The store that an agent's node config asks for.

    attempt: how often the run has been taken up again by now.
    """
    directory = context.node_config.get(STATE_DIR)
    if directory is None:
        return _ContextStore(context, run, attempt)
    return _FileStore(Path(str(directory)), run, vertex, attempt)


class _ContextStore:
    """Keeps the state in the context's own state, which an app may replace at any time."""

    def __init__(self, context: Context, run: str, attempt: int) -> None:
        self._context = context
        self._run = run
        self._attempt = attempt

    lasts = False  # a context goes back to Flower with the answer

    def attempt(self) -> int:
        return self._attempt  # another ServerApp's messages come with another context

    def load(
        self, algorithm: Algorithm, layout: Layout, compression: Compression = NONE
    ) -> Snapshot | None:
        state = self._context.state
        record, about = state.get(_STATE), state.get(_ABOUT)
        if not isinstance(record, ArrayRecord) or not isinstance(about, ConfigRecord):
            return None
        try:
            arrays = {name: _from_raw(array) for name, array in record.items()}
            document = json.loads(str(about["json"]))
        except (ValueError, TypeError, KeyError) as error:
            raise StateError(f"damaged state: {error}") from None
        return load_snapshot(
            document,
            arrays,
            algorithm=algorithm,
            layout=layout,
            run=self._run,
            compression=compression,
        )

    def load_before(
        self,
        algorithm: Algorithm,  # noqa: ARG002
        layout: Layout,  # noqa: ARG002
        compression: Compression = NONE,  # noqa: ARG002
    ) -> Snapshot | None:
        return None  # nor does anybody come back to it

    def save(
        self,
        snapshot: Snapshot,
        algorithm: Algorithm,
        *,
        beside: bool = False,  # noqa: ARG002
    ) -> None:
        document, arrays = snapshot_vectors(snapshot, algorithm, self._run)
        record = ArrayRecord()
        for name, array in arrays.items():
            data = np.asarray(array, order="C").tobytes()
            record[name] = carried(dtype_name(array.dtype), tuple(array.shape), _RAW, data)
        self._context.state[_STATE] = record
        self._context.state[_ABOUT] = ConfigRecord({"json": json.dumps(document)})

    def secret(self) -> bytes:
        record = self._context.state.get(_DRAWN)
        if isinstance(record, ConfigRecord) and record.get("run") == self._run:
            kept = record.get("secret")
            if isinstance(kept, bytes) and len(kept) == _DRAWN_BYTES:
                return kept
        drawn = secrets.token_bytes(_DRAWN_BYTES)
        self._context.state[_DRAWN] = ConfigRecord({"run": self._run, "secret": drawn})
        return drawn

    def discard(self) -> None:
        for key in (_STATE, _ABOUT, _DRAWN):
            self._context.state.pop(key, None)


class _FileStore:
    lasts = True

    def __init__(self, folder: Path, run: str, vertex: int, attempt: int) -> None:
        self._path = folder / f"run-{run}-vertex-{vertex}.safetensors"
        self._before_path = self._path.with_suffix(".before")
        self._secret_path = self._path.with_suffix(".secret")
        self._run = run
        self._vertex = vertex
        self._attempt = attempt

    def attempt(self) -> int:
        if not self._path.exists():
            return 0
        document, _ = self._read(self._path, ())
        try:
            return _count("attempt", document)
        except KeyError as error:
            raise StateError(f"{self._path}: damaged state file: it lacks {error}") from None

    def load(
        self, algorithm: Algorithm, layout: Layout, compression: Compression = NONE
    ) -> Snapshot | None:
        return self._load(self._path, algorithm, layout, compression)

    def load_before(
        self, algorithm: Algorithm, layout: Layout, compression: Compression = NONE
    ) -> Snapshot | None:
        with suppress(StateError):
            return self._load(self._before_path, algorithm, layout, compression)
        return None

    def _load(
        self, path: Path, algorithm: Algorithm, layout: Layout, compression: Compression
    ) -> Snapshot | None:
        if not path.exists():
            return None
        document, arrays = self._read(path, None)
        return load_snapshot(
            document,
            arrays,
            algorithm=algorithm,
            layout=layout,
            run=self._run,
            compression=compression,
        )

    def _read(self, path: Path, names: Sequence[str] | None) -> tuple[dict[str, Any], NDArrays]:
        """A file's document, and some arrays of it, or all."""
        try:
            with safetensors.safe_open(path, framework="numpy") as file:
                document = json.loads(file.metadata()["about"])
                if type(document) is not dict:
                    raise TypeError(f"it holds {type(document).__name__}")
                wanted = file.keys() if names is None else names
                return document, {name: file.get_tensor(name) for name in wanted}
        except (OSError, ValueError, TypeError, KeyError, safetensors.SafetensorError) as error:
            raise StateError(f"{path}: damaged state file: {error}") from None

    def save(self, snapshot: Snapshot, algorithm: Algorithm, *, beside: bool = False) -> None:
        with suppress(StateError):  # a damaged file is replaced
            if self.attempt() > self._attempt:
                raise RoundError(
                    f"the run was taken up again (attempt {self.attempt()}); what this agent has "
                    f"trained for attempt {self._attempt} is not kept"
                )
        document, arrays = snapshot_vectors(snapshot, algorithm, self._run)
        document["attempt"] = self._attempt
        contiguous = {name: np.asarray(array, order="C") for name, array in arrays.items()}
        data = save(contiguous, metadata={"about": json.dumps(document)})
        begins = not self._path.exists()
        if beside and not begins:
            self._keep_beside()
        write_durably(self._path, data)
        if begins:
            self._remove_orphans()

    def _keep_beside(self) -> None:
        """A death on the way loses nothing: until the file is replaced, it is what is kept."""
        self._before_path.unlink(missing_ok=True)
        try:
            os.link(self._path, self._before_path)
        except OSError:  # not every file system has a second name for a file
            write_durably(self._before_path, self._path.read_bytes())

    def secret(self) -> bytes:
        with suppress(FileNotFoundError):
            kept = self._secret_path.read_bytes()
            if len(kept) == _DRAWN_BYTES:
                self._secret_path.touch()  # so that nobody takes it for an orphan's
                return kept
        drawn = secrets.token_bytes(_DRAWN_BYTES)
        write_durably(self._secret_path, drawn, private=True)
        return drawn

    def discard(self) -> None:
        for path in (self._path, self._before_path, self._secret_path):
            path.unlink(missing_ok=True)

    def _remove_orphans(self) -> None:
        """Remove this agent's files of other runs that nobody has written to for a day.

        Runs at the same time keep theirs, and so does whatever bears another name.
        """
        # Whatever fails here, the state itself is kept. Times are the file system's own.
        with suppress(OSError):
            now = self._path.stat().st_mtime
            for path in self._path.parent.iterdir():
                name = _NAME.fullmatch(path.name)
                own = (self._path, self._before_path, self._secret_path)
                if name is None or int(name[2]) != self._vertex or path in own:
                    continue
                with suppress(OSError):  # another agent's process may have been faster
                    if path.is_file() and now - path.stat().st_mtime > _ORPHAN_S:
                        path.unlink()


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
    arrays |= {f"sent/{name}": vector for name, vector in snapshot.sent.items()}
    for j, heard in snapshot.heard.items():
        arrays |= {f"heard/{j}/{name}": vector for name, vector in heard.items()}
    document: dict[str, Any] = {
        "run": run,
        "round": snapshot.round,
        "pending_round": None,
        "epoch": snapshot.epoch,
        "algorithm": algorithm.to_config(),
        "screen": snapshot.screen.to_config(),
        "sent_round": snapshot.sent_round,
    }
    if snapshot.pending is not None:
        document["pending_round"] = snapshot.pending.round
        document["measured"] = dict(snapshot.pending.measured)
        lengths = snapshot.pending.lengths
        document["lengths"] = None if lengths is None else list(astuple(lengths))
        arrays["trained"] = snapshot.pending.trained
        if snapshot.pending.statistics.size:
            arrays["trained_statistics"] = snapshot.pending.statistics
        if snapshot.pending.codes is not None:
            arrays |= {f"codes/{name}": data for name, data in snapshot.pending.codes.items()}
    return document, arrays


def load_snapshot(
    document: Mapping[str, Any],
    arrays: Mapping[str, NDArray[Any]],
    *,
    algorithm: Algorithm,
    layout: Layout,
    run: str,
    compression: Compression = NONE,
) -> Snapshot:
    """Inverse of `snapshot_vectors`.

    What a compression remembers is not missed: without it the next payload is sent whole.

    Raises StateError if the state is of another run, rule or model, or incomplete.
    """
    try:
        if document["run"] != run:
            raise StateError(f"state is of run {document['run']}, expected {run}")
        if document["algorithm"] != algorithm.to_config():
            raise StateError(f"state is of rule {document['algorithm']}, expected {algorithm}")
        memory = {name: _vector(arrays, f"memory/{name}", layout) for name in algorithm.memory}
        state = State(_vector(arrays, "parameters", layout), memory)
        local = {e.name: _local(arrays, e) for e in layout.entries if e.kind == "local"}
        statistics = _statistics(arrays, "statistics", layout)
        sent = _vectors(arrays, "sent", algorithm, layout) if compression.on else {}
        heard = _heard(arrays, algorithm, layout) if compression.estimates else {}
        pending = None
        if document["pending_round"] is not None:
            trained = _vector(arrays, "trained", layout)
            number_pending = _count("pending_round", document)
            pending = Pending(
                number_pending,
                trained,
                _statistics(arrays, "trained_statistics", layout),
                _measured(document, algorithm, replace(state, round=number_pending - 1), trained),
                _lengths(document.get("lengths")),
                _codes(arrays, algorithm, layout, compression),
            )
        number, epoch = _count("round", document), _count("epoch", document)
        screen = Screen.from_config(document["screen"])
        sent_round = _count("sent_round", document) if sent else 0
        return Snapshot(
            number, state, statistics, local, pending, epoch, screen, sent, heard, sent_round
        )
    except KeyError as error:
        raise StateError(f"state lacks {error}") from None
    except (AttributeError, TypeError, ValueError) as error:
        raise StateError(f"damaged state: {error}") from None


def _count(name: str, document: Mapping[str, Any]) -> int:
    value = document[name]
    if type(value) is not int or value < 0:
        raise StateError(f"damaged state: its {name.replace('_', ' ')} is {value!r}")
    return value


def _measured(
    document: Mapping[str, Any], algorithm: Algorithm, state: State, trained: NDArray[Any]
) -> Mapping[str, float]:
    """What the rule has measured of a pending round, taken anew where a release did not keep it."""
    found = document.get("measured")
    if found is None:
        return measured(algorithm, state, trained).measured
    if bool(found) != bool(algorithm.products):
        raise StateError(f"damaged state: {algorithm} has measured {list(found)}")
    return {str(name): float(number) for name, number in found.items()}


def _lengths(found: Sequence[Any] | None) -> Lengths | None:
    if found is None:
        return None
    path, step, length = (float(number) for number in found)
    return Lengths(path, step, length)


def _vectors(
    arrays: Mapping[str, NDArray[Any]], kind: str, algorithm: Algorithm, layout: Layout
) -> Payload:
    """The vectors of a payload, all of them or none."""
    names = [name for name in algorithm.vectors if f"{kind}/{name}" in arrays]
    if len(names) < len(algorithm.vectors):
        return {}
    return {name: _vector(arrays, f"{kind}/{name}", layout) for name in names}


def _heard(
    arrays: Mapping[str, NDArray[Any]], algorithm: Algorithm, layout: Layout
) -> dict[int, Payload]:
    """The last public payloads of the neighbors."""
    words = (name.split("/") for name in arrays if name.startswith("heard/"))
    vertices = sorted({int(vertex) for _, vertex, *_ in words})
    found = {j: _vectors(arrays, f"heard/{j}", algorithm, layout) for j in vertices}
    return {j: payload for j, payload in found.items() if payload}


def _codes(
    arrays: Mapping[str, NDArray[Any]],
    algorithm: Algorithm,
    layout: Layout,
    compression: Compression,
) -> Codes | None:
    """What is sent of a pending payload, None if that is sent whole."""
    compressor = compressor_of(compression, algorithm, layout)
    if compressor is None or not any(name.startswith("codes/") for name in arrays):
        return None
    shape, dtype = (compressor.coder.size,), np.dtype(np.uint8)
    names = algorithm.vectors
    return {name: _checked(name, arrays[f"codes/{name}"], shape, dtype) for name in names}


def _vector(arrays: Mapping[str, NDArray[Any]], name: str, layout: Layout) -> NDArray[Any]:
    return _checked(name, arrays[name], (layout.size,), layout.dtype)


def _statistics(arrays: Mapping[str, NDArray[Any]], name: str, layout: Layout) -> NDArray[Any]:
    if not layout.statistics_size:
        return layout.empty_statistics()
    return _checked(name, arrays[name], (layout.statistics_size,), layout.statistics_dtype)


def _local(arrays: Mapping[str, NDArray[Any]], entry: Entry) -> NDArray[Any]:
    return _checked(entry.name, arrays[f"local/{entry.name}"], entry.shape, entry.dtype)


def _checked(
    name: str, array: NDArray[Any], shape: tuple[int, ...], dtype: np.dtype[Any]
) -> NDArray[Any]:
    if (array.shape, array.dtype) != (shape, dtype):
        raise StateError(
            f"state is of another model: '{name}' is {array.dtype}{list(array.shape)}, expected "
            f"{dtype}{list(shape)}"
        )
    return array
