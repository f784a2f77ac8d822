"""What a run needs to go on after its ServerApp has died: a folder that is whole at any moment.

After each round the relay's books are written as one safetensors file: which payloads lie in
whose mailbox, of which round, and what is known of the round. A run goes on from the last such
file: nobody has got a payload of a later round, since a round's payloads leave with the next
round's messages. The history is a file of JSON lines beside it.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import struct
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
from flwr.app import Array, ArrayRecord, MetricRecord

from flower_dhb.algorithms import Algorithm
from flower_dhb.errors import ConfigError, NotNowError, StateError
from flower_dhb.files import make_folder, replacing, sync, with_remedy, write_durably
from flower_dhb.flower.arrays import record_of
from flower_dhb.flower.ledger import Ledger
from flower_dhb.flower.result import ServerlessResult
from flower_dhb.metrics import RoundRecord
from flower_dhb.topology.turns import Graphs

if sys.platform != "win32":
    import fcntl

__all__ = ["Checkpoint", "Kept", "held", "read_records"]

_VERSION = 2
_START, _BOOKS = "start.safetensors", "mailboxes.safetensors"
_RECORDS, _ATTEMPT, _LOCK = "records.jsonl", "attempt", "lock"
_ABOUT = "about"


@dataclass(frozen=True, kw_only=True)
class Line:
    """A finished round: its record, and the metrics that Flower's Result has of it."""

    record: RoundRecord
    train: MetricRecord | None = None
    evaluate: MetricRecord | None = None
    server: MetricRecord | None = None

    @classmethod
    def of(cls, record: RoundRecord, result: ServerlessResult) -> Line:
        """What a result holds of a round."""
        k = record.round
        return cls(
            record=record,
            train=result.train_metrics_clientapp.get(k),
            evaluate=result.evaluate_metrics_clientapp.get(k),
            server=result.evaluate_metrics_serverapp.get(k),
        )

    def give(self, result: ServerlessResult) -> None:
        """Put the metrics back where they were."""
        k = self.record.round
        for metrics, found in (
            (result.train_metrics_clientapp, self.train),
            (result.evaluate_metrics_clientapp, self.evaluate),
            (result.evaluate_metrics_serverapp, self.server),
        ):
            if found is not None:
                metrics[k] = found

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        metrics = {"train": self.train, "evaluate": self.evaluate, "server": self.server}
        return {
            "record": self.record.to_dict(),
            **{name: None if m is None else dict(m.items()) for name, m in metrics.items()},
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Line:
        """Inverse of `to_json`. Raises KeyError, TypeError or ValueError for what it cannot be."""
        found = {
            name: None if values[name] is None else MetricRecord(values[name])
            for name in ("train", "evaluate", "server")
        }
        return cls(record=RoundRecord.from_dict(values["record"]), **found)


@dataclass(frozen=True, kw_only=True)
class Kept:
    """A run as its folder has it.

    initial: what the agents began from. round: whose payloads lie in the mailboxes. lines: the
    finished rounds, that before the first among them. before: rounds without an exchange that were
    trained with that of the mailboxes, and of which nobody has heard. unfinished: the round of the
    mailboxes, if its evaluation was still to come. attempt: how often the run was taken up again,
    this time included.
    """

    initial: ArrayRecord
    round: int
    attempt: int
    lines: list[Line]
    before: list[Line]
    unfinished: Line | None
    about: Mapping[str, Any]
    frames: Mapping[str, Array] = field(repr=False)

    @property
    def run(self) -> str:
        """Name of the run, by which agents know their state."""
        return str(self.about["books"]["run"])

    def check(self, topology: Graphs, algorithm: Algorithm) -> None:
        """Raise ConfigError unless the run is one over this graph by this rule."""
        for what, found, expected in (
            ("topology", topology.digest, self.about["books"]["topology"]),
            ("algorithm", algorithm.to_config(), self.about["books"]["algorithm"]),
        ):
            if found != expected:
                raise ConfigError(
                    f"checkpoint: the run that is to go on has {what} {expected}, this strategy "
                    f"has {found}; make the strategy as it was, or give another checkpoint folder"
                )

    def fill(self, ledger: Ledger) -> None:
        """Give the books back.

        Raises ConfigError if they are of another model, StateError if they are damaged.
        """
        try:
            ledger.restore(self.about["books"], self.frames, self.attempt)
        except ConfigError:
            raise
        except (KeyError, TypeError, ValueError) as error:
            raise StateError(f"checkpoint: damaged books: {error!r}") from None


class Checkpoint:
    """The folder of one run, held by one process from `hold` to `release` or its end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._handle: int | None = None
        self._told = False

    def hold(self) -> None:
        """Make the folder and hold it.

        Raises NotNowError if another process holds it: the run's ServerApp lives.
        """
        make_folder(self.folder)
        if sys.platform == "win32":
            return
        handle = os.open(self.folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(handle)
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise
            raise NotNowError(
                f"{self.folder}: another process goes on with this run; end it first"
            ) from None
        self._handle = handle

    def release(self) -> None:
        """Let go of the folder."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def read(self) -> Kept | None:
        """The run that is kept here, None if no round of it was trained.

        Raises StateError if there is one that cannot be used.
        """
        path = self.folder / _BOOKS
        if not path.exists():
            return None
        about, frames = _read(path)
        _, initial = _read(self.folder / _START)
        try:
            if about["version"] != _VERSION:
                raise StateError(
                    f"{path} is of version {about['version']}, expected {_VERSION}; go on with the "
                    "flower_dhb that wrote it"
                )
            k = int(about["round"])
            lines = [line for line in _lines(self.folder) if line.record.round <= k]
            current = Line.from_json(about["line"])
            known = {line.record.round for line in lines}
            before = [Line.from_json(values) for values in about["before"]]
            attempt = self.folder / _ATTEMPT
            attempts = int(attempt.read_text()) if attempt.exists() else 0
        except (KeyError, TypeError, ValueError) as error:
            raise StateError(f"{path}: damaged: {error!r}") from None
        done = bool(lines) and lines[-1].record.round == k
        return Kept(
            initial=record_of(initial),
            round=k,
            attempt=attempts + 1,
            lines=lines,
            before=[line for line in before if line.record.round not in known],
            unfinished=None if done else current,
            about=about,
            frames=frames,
        )

    def open(self, initial: ArrayRecord, kept: Kept | None) -> None:
        """A run begins from these arrays, or the one that was read goes on.

        What the folder held of another run is gone, and so is a line that was being written
        when the ServerApp died.
        """
        attempt = self.folder / _ATTEMPT
        if kept is None:
            for path in (self.folder / _BOOKS, attempt):
                path.unlink(missing_ok=True)
            _write(self.folder / _START, {}, dict(initial.items()))
        else:
            # Before any agent hears of it: two ServerApps may never count as one attempt.
            write_durably(attempt, str(kept.attempt).encode())
        lines = kept.lines if kept is not None else []
        text = "".join(json.dumps(line.to_json()) + "\n" for line in lines)
        write_durably(self.folder / _RECORDS, text.encode())

    def keep(
        self,
        ledger: Ledger,
        record: RoundRecord,
        result: ServerlessResult,
        before: Iterable[RoundRecord] = (),
    ) -> None:
        """Keep a round that is trained and delivered, before anybody hears of it.

        before: rounds that were trained with it, of which nobody has heard either.
        """
        books, frames = ledger.books()
        about = {
            "version": _VERSION,
            "round": record.round,
            "books": books,
            "line": Line.of(record, result).to_json(),
            "before": [Line.of(one, result).to_json() for one in before],
        }
        with self._telling(result):
            _write(self.folder / _BOOKS, about, frames)

    def append(self, record: RoundRecord, result: ServerlessResult) -> None:
        """Keep a finished round's record."""
        line = json.dumps(Line.of(record, result).to_json()) + "\n"
        with self._telling(result), (self.folder / _RECORDS).open("a", encoding="utf-8") as file:
            file.write(line)
            sync(file)

    def remove(self) -> None:
        """The run is over: nothing can go on from here any more."""
        self.release()
        shutil.rmtree(self.folder, ignore_errors=True)

    @contextmanager
    def _telling(self, result: ServerlessResult) -> Iterator[None]:
        """A run is worth more than its checkpoint: what a disk refuses is told once."""
        try:
            yield
        except OSError as error:
            if not self._told:
                self._told = True
                why = with_remedy(f"{self.folder}: {error.strerror}", error)
                result.warn(
                    f"the run goes on, but not after a death of its ServerApp, since its "
                    f"checkpoint cannot be written: {why}"
                )


@contextmanager
def held(folder: Path | None) -> Iterator[Checkpoint | None]:
    """The checkpoint in a folder, held meanwhile; None where no folder is named."""
    if folder is None:
        yield None
        return
    checkpoint = Checkpoint(folder)
    checkpoint.hold()
    try:
        yield checkpoint
    finally:
        checkpoint.release()


def read_records(folder: Path) -> list[RoundRecord]:
    """The finished rounds of the run that a folder keeps. Raises StateError if they are damaged."""
    try:
        return [line.record for line in _lines(folder) if line.record.round > 0]
    except (KeyError, TypeError, ValueError) as error:
        raise StateError(f"{folder / _RECORDS}: damaged: {error!r}") from None


def _lines(folder: Path) -> list[Line]:
    """All whole lines, each round once."""
    path = folder / _RECORDS
    data = path.read_bytes() if path.exists() else b""
    found: dict[int, Line] = {}
    for text in data[: data.rfind(b"\n") + 1].splitlines():
        line = Line.from_json(json.loads(text))
        found.setdefault(line.record.round, line)
    return [found[k] for k in sorted(found)]


# Flower's arrays as safetensors: their bytes as they are, and beside them what they are.


def _write(path: Path, about: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
    """Replace a file, piece by piece: the arrays may be gigabytes, and are not copied."""
    what = {name: [a.dtype, list(a.shape), a.stype] for name, a in arrays.items()}
    document = json.dumps({**about, "arrays": what})
    header: dict[str, Any] = {"__metadata__": {_ABOUT: document}}
    at = 0
    for name, array in arrays.items():
        size = len(array.data)
        header[name] = {"dtype": "U8", "shape": [size], "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with replacing(path) as write:
        write(struct.pack("<Q", len(text)) + text)
        for array in arrays.values():
            write(array.data)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Array]]:
    """Inverse of `_write`. Raises StateError if the file is not there, or damaged."""
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            about = json.loads(file.metadata()[_ABOUT])
            arrays = {
                str(name): Array(
                    str(dtype),
                    tuple(int(side) for side in shape),
                    str(stype),
                    file.get_tensor(name).tobytes(),
                )
                for name, (dtype, shape, stype) in about["arrays"].items()
            }
            return dict(about), arrays
    except (OSError, ValueError, TypeError, KeyError, safetensors.SafetensorError) as error:
        raise StateError(f"{path}: damaged checkpoint: {error}") from None
