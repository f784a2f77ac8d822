"""The current model of an agent as a file: arrays by name, and where they come from.

It is read from the state directory, where the newest round is whole at any time: while the peer
runs, after it has ended, and after a `kill -9`. Only the model's own arrays are read, not the
rule's memory, and they are handed on in pieces, so that this costs twice the model's size.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load

from flower_dhb import __version__
from flower_dhb.errors import ConfigError, DamageError, PayloadError, StateError
from flower_dhb.peer.device.journal import DAMAGE, File, entries_of, within_payload
from flower_dhb.types import Entry, Layout, NDArrays

__all__ = ["Model", "current_model", "read_start"]

_OWN = "flower_dhb.state"  # the record of the app's context in which the mod keeps the agent
_TRIES = 5  # while a peer runs, files come and go
_PIECE_BYTES = 256 * 1024
_KINDS = {"f": "F", "i": "I", "u": "U"}


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model, and of which run, mesh, vertex and round it is."""

    layout: Layout
    parameters: NDArray[Any]
    statistics: NDArray[Any]
    local: Mapping[str, NDArray[Any]]
    run: str
    mesh: str
    vertex: int
    round: int

    @property
    def origin(self) -> str:
        """Where it comes from, in words."""
        return f"round {self.round} of vertex {self.vertex} in run '{self.run}'"

    @property
    def n_bytes(self) -> int:
        """Size of the file."""
        return len(self._header()) + sum(e.size * e.dtype.itemsize for e in self.layout.entries)

    def arrays(self) -> NDArrays:
        """The model's arrays by name, in its own shapes and dtypes."""
        return self.layout.unflatten(self.parameters, self.statistics, self.local)

    def pieces(self) -> Iterator[bytes | memoryview]:
        """The bytes of a safetensors file, at most 256 KiB at a time."""
        yield self._header()
        at = self._places()
        for entry in _order(self.layout):
            if entry.kind == "local":
                array = np.asarray(self.local[entry.name], order="C").reshape(-1)
            else:
                vector = self.parameters if entry.kind == "parameter" else self.statistics
                array = vector[at[entry.name] : at[entry.name] + entry.size]
            step = max(1, _PIECE_BYTES // entry.dtype.itemsize)
            for begin in range(0, entry.size, step):
                part = array[begin : begin + step].astype(entry.dtype)
                yield part.view(np.uint8).data

    def _places(self) -> dict[str, int]:
        """Where each array begins in its vector."""
        at = {"parameter": 0, "statistic": 0}
        places = {}
        for entry in self.layout.entries:
            if entry.kind != "local":
                places[entry.name] = at[entry.kind]
                at[entry.kind] += entry.size
        return places

    def _header(self) -> bytes:
        document: dict[str, Any] = {
            "__metadata__": {
                "run": self.run,
                "mesh": self.mesh,
                "vertex": str(self.vertex),
                "round": str(self.round),
                "layout": json.dumps(self.layout.to_config()),
                "software": __version__,
            }
        }
        at = 0
        for entry in _order(self.layout):
            size = entry.size * entry.dtype.itemsize
            document[entry.name] = {
                "dtype": _dtype_code(entry.dtype),
                "shape": list(entry.shape),
                "data_offsets": [at, at + size],
            }
            at += size
        text = json.dumps(document, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)  # what follows is aligned
        return len(text).to_bytes(8, "little") + text


def current_model(state_dir: Path, report: Callable[[str], None]) -> Model:
    """The newest model in a peer's state directory.

    report: called with a text for each file that is damaged. Raises StateError if there is none,
    DamageError if no file can be used, and ConfigError for one of a later release.
    """
    for left in reversed(range(_TRIES)):
        paths = entries_of(state_dir)
        if not paths:
            raise StateError(
                f"{state_dir}: holds no state of a peer; it is the directory that 'state-dir' in "
                "peer.toml names. Before its first round a peer's model is start.safetensors"
            )
        gone, damaged = False, []
        for path in reversed(paths):
            try:
                found = _model_in(path)
            except FileNotFoundError as error:
                if left:  # the peer runs, and has removed what it needs no more: look again
                    gone = True
                    break
                damaged.append(f"{path.name} lacks {Path(error.filename or '').name}")
            except (ConfigError, StateError):
                raise
            except DAMAGE as error:
                damaged.append(f"{path.name} is damaged: {error}")
            else:
                for text in damaged:
                    report(text)
                return found
        if not gone:
            break
    raise DamageError(f"{state_dir}: no file of the state can be used: {'; '.join(damaged)}")


def read_start(path: Path) -> tuple[NDArrays, str]:
    """Arrays to start from, and where they come from in words.

    Such are: arrays by name, a model that a peer has left or `flower-dhb export` has written, and
    a file of a peer's state. Raises ConfigError for anything else.
    """
    try:
        file = File(path)
        metadata = file.metadata
        if "checksum" in metadata and "about" in metadata:
            model = _model_in(path)
            arrays, origin = model.arrays(), model.origin
        elif "about" in metadata or "flower_dhb" in metadata:
            raise ConfigError(
                f"{path}: is the state of an agent or a comparison, which lacks the names of the "
                "model's arrays; a run's folder has each agent's model as agent-000.safetensors"
            )
        else:
            found = load(path.read_bytes())
            arrays, origin = {name: found[name] for name in file.names}, ""
            if "round" in metadata and "vertex" in metadata:
                origin = (
                    f"round {metadata['round']} of vertex {metadata['vertex']} in run "
                    f"'{metadata.get('run', '')}'"
                )
        Layout.of(arrays).flatten(arrays)
    except ConfigError as error:
        text = str(error)
        raise ConfigError(text if text.startswith(str(path)) else f"{path}: {text}") from None
    except StateError as error:
        raise ConfigError(str(error)) from None
    except OSError as error:
        raise ConfigError(f"{path}: no readable initial arrays: {error.strerror}") from None
    except (PayloadError, *DAMAGE) as error:
        raise ConfigError(f"{path}: no readable initial arrays: {error}") from None
    return arrays, origin


def _model_in(path: Path) -> Model:
    """The model in one file of the state, or in it and the one that it grew from."""
    file = File(path)
    about = file.about()
    if "layout" not in about:
        raise StateError(
            f"{path}: was written by a release of flower_dhb that did not write down the names of "
            "the model's arrays; let the peer end one round with this release"
        )
    of_record = about["state"]["records"].get(_OWN)
    if of_record is None:
        raise StateError(
            f"{path}: no round has been trained yet; the model is that of start.safetensors"
        )
    vectors: dict[str, NDArray[Any]] = {}
    base: File | None = None
    for name, dtype, shape, _ in of_record["arrays"]:
        if name not in ("parameters", "statistics") and not name.startswith("local/"):
            continue
        stored = f"{_OWN}/{name}"
        raw = file.array(within_payload(stored) if "payload" in about else stored)
        if raw is None and about.get("base") is not None:
            base = base or File(path.with_name(f"round-{int(about['base'])}.safetensors"))
            raw = base.array(stored)
        if raw is None or file.digest(raw) != about["digests"][stored]:
            raise ValueError(f"'{stored}' is not what was written")
        vectors[name] = raw.view(dtype).reshape(shape)
    layout = Layout.from_config(about["layout"])
    return Model(
        layout=layout,
        parameters=vectors["parameters"],
        statistics=vectors.get("statistics", layout.empty_statistics()),
        local={n.removeprefix("local/"): a for n, a in vectors.items() if n.startswith("local/")},
        run=about["run"],
        mesh=about["mesh"],
        vertex=about["vertex"],
        round=about["record"]["closed"],
    )


def _order(layout: Layout) -> list[Entry]:
    """As arrays lie in the file: the widest first, so that each is aligned."""
    return sorted(layout.entries, key=lambda e: (-e.dtype.itemsize, e.name))


def _dtype_code(dtype: np.dtype[Any]) -> str:
    if dtype.kind == "b":
        return "BOOL"
    if dtype.kind not in _KINDS:
        raise StateError(f"arrays of dtype {dtype} cannot be written to a safetensors file")
    return f"{_KINDS[dtype.kind]}{8 * dtype.itemsize}"
