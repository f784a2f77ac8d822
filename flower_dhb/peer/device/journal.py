"""What an agent must not lose, on its disk: written whole or not at all, the ones before kept.

Two kinds of files lie in the directory. `round-12.safetensors` is the state after round 12.
`payload-13.safetensors` is the own payload of round 13, byte for byte as it is sent, and the
state that it grew from; of that state it holds only the arrays that differ from those in the
newest file of the first kind. Both hold the protocol's record, and a checksum over all. A file
is written under another name, forced to the disk, and renamed.

Each file says which *format* it has. A release reads those of the releases before it, and
refuses a later one by name. For that, four things never change: the metadata's `about` and
`checksum`, and in `about` the keys `format` and `software`.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from flower_dhb import __version__
from flower_dhb.errors import ConfigError, DamageError, NotNowError
from flower_dhb.files import make_folder, with_remedy, write_durably
from flower_dhb.peer.watch.ledger import FORMAT, read_about

__all__ = [
    "DAMAGE",
    "Contents",
    "File",
    "Found",
    "Journal",
    "entries_of",
    "within_payload",
]

_KEEP = 2
_STATE, _PAYLOAD = "round", "payload"
_FRAME = "payload"  # the array that holds a payload's bytes
_ORDER = {_PAYLOAD: 0, _STATE: 1}  # within a round
_Entry = tuple[int, str]  # round and kind
_BESIDE = ("history.jsonl", "record", "model.safetensors")  # what else a life leaves
# What tells of a place on the disk, or of a file that went in between, and not of the moment.
_BAD_PLACE = {errno.EIO, errno.ENOENT, errno.EBADMSG, getattr(errno, "EUCLEAN", errno.EIO)}


@dataclass(frozen=True)
class Contents:
    """All that the app's context holds: arrays by name, and a plain document."""

    arrays: Mapping[str, NDArray[Any]]
    document: Mapping[str, Any]


@dataclass(frozen=True)
class Found:
    """What a peer begins again from.

    round: the last that it ended, or (with a payload) the label of the one that is open.
    record: the protocol's. payload: own payload of the open round. kept: own payloads of
    earlier rounds that neighbors may still ask for.
    """

    round: int
    contents: Contents
    record: Mapping[str, Any]
    payload: bytes | None = None
    kept: Mapping[int, bytes] = field(default_factory=dict)


class Journal:
    """The files of one peer in one directory. Calls are made from one thread.

    report: called with a text for each file that is damaged. write: replaces a file durably.
    whose: what each file says beside: mesh, vertex, and the layout of the model.
    """

    def __init__(
        self,
        directory: Path,
        run: str,
        report: Callable[[str], None],
        write: Callable[[Path, bytes], None] = write_durably,
        whose: Mapping[str, Any] | None = None,
    ) -> None:
        self._directory = directory
        self._whose = whose or {}
        self._run = run
        self._report = report
        self._write_durably = write
        self._known: set[_Entry] | None = None  # once something was written
        self._newest = 0
        self._needed: set[int] = set()  # rounds of own payloads
        self._base: tuple[int, Mapping[str, str]] | None = None  # the newest state's digests

    # --- writing ------------------------------------------------------------------------

    def save(self, round: int, contents: Contents, record: Mapping[str, Any]) -> None:
        """Write the state after a round. When this returns, it survives a crash of the machine.

        Raises OSError if it cannot be written; what was there before is there still.
        """
        digests = {name: _digest(array) for name, array in contents.arrays.items()}
        self._write((round, _STATE), dict(contents.arrays), contents, record, digests)
        self._base = (round, digests)
        self._prune()

    def share(
        self,
        round: int,
        payload: bytes,
        contents: Contents,
        record: Mapping[str, Any],
    ) -> None:
        """Write an own payload and the state that it grew from; as durable as `save`."""
        digests = {name: _digest(array) for name, array in contents.arrays.items()}
        if self._base is not None and not self._path((self._base[0], _STATE)).exists():
            self._base = None  # somebody has removed it: this file is to hold all by itself
        base = self._base[1] if self._base is not None else {}
        arrays = {n: a for n, a in contents.arrays.items() if base.get(n) != digests[n]}
        frame = np.frombuffer(payload, np.uint8)
        about = {
            "base": self._base[0] if self._base is not None else None,
            "payload": _digest(frame),
        }
        self._write(
            (round, _PAYLOAD),
            {**{within_payload(n): a for n, a in arrays.items()}, _FRAME: frame},
            contents,
            record,
            digests,
            about,
        )
        self._needed.add(round)
        self._prune()

    def free(self, round: int) -> None:
        """An own payload will not be asked for again."""
        self._needed.discard(round)
        self._prune()

    def _write(
        self,
        entry: _Entry,
        arrays: Mapping[str, NDArray[Any]],
        contents: Contents,
        record: Mapping[str, Any],
        digests: Mapping[str, str],
        more: Mapping[str, Any] | None = None,
    ) -> None:
        about = json.dumps(
            {
                "format": FORMAT,
                "software": __version__,
                **self._whose,
                "run": self._run,
                "round": entry[0],
                "state": contents.document,
                "record": record,
                "digests": digests,
                **(more or {}),
            }
        )
        metadata = {"about": about, "checksum": xxhash.xxh3_64_hexdigest(about.encode())}
        if self._known is None:
            self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._known = self._entries()
        contiguous = {name: np.asarray(array, order="C") for name, array in arrays.items()}
        self._write_durably(self._path(entry), save(contiguous, metadata=metadata))
        self._known.add(entry)
        self._newest = entry[0]

    def _prune(self) -> None:
        """Remove what is not needed. What is later and damaged stays until it is written anew."""
        known = self._known or set()
        for kind in (_STATE, _PAYLOAD):
            rounds = sorted(k for k, what in known if what == kind and k <= self._newest)
            for k in rounds[:-_KEEP]:
                if kind == _PAYLOAD and k in self._needed:
                    continue
                with suppress(OSError):  # it is in nobody's way
                    self._path((k, kind)).unlink(missing_ok=True)
                known.discard((k, kind))

    # --- reading ------------------------------------------------------------------------

    def load(self) -> Found | None:
        """The newest file that is whole, with the payloads that it needs; None if there is none.

        Raises DamageError if there are some and none of them can be used: to begin anew
        would be to lose them silently. Raises NotNowError if they cannot be read at the moment,
        and ConfigError if they are of another run.
        """
        entries = [_entry(path) for path in entries_of(self._directory)]
        unread: list[OSError] = []
        for entry in reversed(entries):
            try:
                return self._read(entry)
            except ConfigError:
                raise
            except DAMAGE as error:
                if isinstance(error, OSError):
                    if error.errno not in _BAD_PLACE:
                        # The file may be whole: to take an older one would undo what it promised.
                        raise self._not_now(error) from None
                    if error.errno == errno.EIO:
                        unread.append(error)
                self._report(f"{self._path(entry).name} is damaged: {error}")
        if len(unread) == len(entries) > 0:  # no bad place, but the disk
            raise self._not_now(unread[0])
        if entries:
            names = ", ".join(self._path(entry).name for entry in entries)
            raise DamageError(
                f"{self._directory}: all files of the state are damaged ({names}). To begin again "
                "from the neighbors, as a device does that has lost its disk, set on-damage = "
                '"rejoin" in peer.toml, which keeps the files in a folder beside, or move them '
                "away; if the disk is at fault, replace it before"
            )
        return None

    def set_aside(self) -> Path:
        """Move all that this life left into a folder of its own, and begin anew.

        Returns the folder. Raises OSError.
        """
        n = 1
        while (aside := self._directory / f"damaged-{n}").exists():
            n += 1
        make_folder(aside, mode=0o700)
        for entry in sorted(self._entries()):
            self._path(entry).rename(aside / self._path(entry).name)
        for name in _BESIDE:
            if (self._directory / name).exists():
                (self._directory / name).rename(aside / name)
        self._known, self._base, self._needed = None, None, set()
        return aside

    def _read(self, entry: _Entry) -> Found:
        about, arrays = self._open(entry)
        payload = None
        if entry[1] == _PAYLOAD:
            payload = self._frame(about, arrays)
            arrays = {
                n.removeprefix(within_payload("")): a for n, a in arrays.items() if n != _FRAME
            }
            base: dict[str, NDArray[Any]] = {}
            if about["base"] is not None and not set(about["digests"]) <= set(arrays):
                under, base = self._open((int(about["base"]), _STATE))
                self._base = (int(about["base"]), under["digests"])
            arrays = {name: base[name] for name in about["digests"] if name not in arrays} | arrays
        else:
            self._base = (entry[0], about["digests"])
        for name in {*arrays, *about["digests"]}:
            if name not in arrays or about["digests"].get(name) != _digest(arrays[name]):
                raise ValueError(f"'{name}' is not what was written")
        record = about["record"]
        kept = {}
        for k in record["kept"]:
            frame = self._kept(int(k))
            if frame is not None:
                kept[int(k)] = frame
        self._needed = {*kept, *([entry[0]] if payload is not None else [])}
        return Found(entry[0], Contents(arrays, about["state"]), record, payload, kept)

    def _kept(self, round: int) -> bytes | None:
        """An own payload of an earlier round, None if it is not there any more."""
        entry = (round, _PAYLOAD)
        if entry not in self._entries():
            return None
        try:
            return self._frame(*self._open(entry))
        except ConfigError:
            raise
        except DAMAGE as error:
            if isinstance(error, OSError) and error.errno not in _BAD_PLACE:
                raise
            self._report(f"{self._path(entry).name} is damaged: {error}")
            return None

    def _open(self, entry: _Entry) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        # Read, not mapped: a bad place of the disk is then an error, and not the process's end.
        data = self._path(entry).read_bytes()
        document = read_about(_header(data)["__metadata__"], self._path(entry))
        arrays = load(data)
        if document["run"] != self._run:
            raise ConfigError(
                f"{self._directory}: {self._path(entry).name} is of run '{document['run']}', "
                f"expected '{self._run}'; choose another state-dir for another run"
            )
        return document, arrays

    def _frame(self, about: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> bytes:
        if _digest(arrays[_FRAME]) != about["payload"]:
            raise ValueError("its payload is not what was written")
        return arrays[_FRAME].tobytes()

    def _not_now(self, error: OSError) -> NotNowError:
        text = f"{self._directory}: the state cannot be read: {error.strerror or error}"
        return NotNowError(with_remedy(text, error))

    def _entries(self) -> set[_Entry]:
        return {_entry(path) for path in entries_of(self._directory)}

    def _path(self, entry: _Entry) -> Path:
        return self._directory / f"{entry[1]}-{entry[0]}.safetensors"


class File:
    """One file of a state, of which only what is asked for is read. Raises as `open` does.

    Raises ValueError, KeyError or TypeError if it is no safetensors file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            if not 2 <= size <= path.stat().st_size - 8:
                raise ValueError("it is no safetensors file")
            self._arrays: dict[str, Any] = json.loads(file.read(size))
        self._begin = 8 + size
        self.metadata: dict[str, str] = self._arrays.pop("__metadata__", {})

    @property
    def names(self) -> list[str]:
        """Of its arrays, in the order in which they lie in the file.

        safetensors' own `load` gives them in another order each time.
        """
        return sorted(self._arrays, key=lambda name: (self._arrays[name]["data_offsets"], name))

    def about(self) -> dict[str, Any]:
        """What the journal wrote about it. Raises ConfigError for a later format."""
        return read_about(self.metadata, self._path)

    def array(self, name: str) -> NDArray[np.uint8] | None:
        """The bytes of an array, None if it is not in this file."""
        if name not in self._arrays:
            return None
        begin, end = self._arrays[name]["data_offsets"]
        if not 0 <= begin <= end <= self._path.stat().st_size - self._begin:
            raise ValueError(f"'{name}' reaches beyond its end")
        found = np.empty(end - begin, np.uint8)
        with self._path.open("rb") as file:
            file.seek(self._begin + begin)
            if file.readinto(found.data) != len(found):
                raise ValueError(f"'{name}' is cut off")
        return found

    @staticmethod
    def digest(array: NDArray[Any]) -> str:
        """As the journal writes it beside an array."""
        return _digest(array)


def within_payload(name: str) -> str:
    """What an array of the state is called in the file of a payload."""
    return f"{_STATE}/{name}"


def entries_of(directory: Path) -> list[Path]:
    """The files of a state, the newest last."""
    paths = (path for path in directory.glob("*-*.safetensors") if _entry(path)[0] >= 0)
    return sorted(paths, key=lambda path: (_entry(path)[0], _ORDER[_entry(path)[1]]))


def _entry(path: Path) -> _Entry:
    """Round and kind by a file's name; round -1 if it is no file of a state."""
    kind, _, number = path.stem.partition("-")
    known = kind in _ORDER and number.isascii() and number.isdecimal()
    return (int(number), kind) if known else (-1, _STATE)


DAMAGE = (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError)


def _header(data: bytes) -> dict[str, Any]:
    """The header of a safetensors file. Raises ValueError or KeyError if there is none."""
    size = int.from_bytes(data[:8], "little")
    found: dict[str, Any] = json.loads(data[8 : 8 + size])
    return found


def _digest(array: NDArray[Any]) -> str:
    digest = xxhash.xxh3_64(f"{array.dtype.str}{list(array.shape)}".encode())
    digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
