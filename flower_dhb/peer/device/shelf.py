"""What a peer hands to its operator: model, history, log and record, in bounded memory."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from flower_dhb import __version__
from flower_dhb.errors import NotNowError, StateError
from flower_dhb.peer.device.journal import DAMAGE, File, entries_of
from flower_dhb.peer.device.model import current_model
from flower_dhb.peer.monitor import Monitor
from flower_dhb.peer.wire import files
from flower_dhb.peer.wire import relay_pb2 as pb
from flower_dhb.peer.wire.files import What

__all__ = ["Shelf"]

_PIECE_BYTES = 256 * 1024
_AT_A_TIME = 2
_KNOWN = (What.MODEL, What.HISTORY, What.LOG, What.RECORD)


class Shelf:
    """The files of one peer. Calls come from threads of gRPC.

    A file is sent in pieces as the operator takes them, so that a slow line costs no memory. A
    file that grows meanwhile is sent as long as it was when its turn came. The model costs twice
    its size, so one is sent at a time; two callers at a time are served in all.
    """

    def __init__(self, state_dir: Path, log: Path | None, monitor: Monitor) -> None:
        self._state_dir, self._log, self._monitor = state_dir, log, monitor
        self._places = threading.BoundedSemaphore(_AT_A_TIME)
        self._model = threading.Lock()

    def fetch(self, request: pb.FetchRequest) -> Iterator[pb.FetchPiece]:
        """The files of a kind. Raises StateError if there are none, NotNowError if others fetch.

        Raises OSError if one cannot be read.
        """
        if request.what not in _KNOWN:
            raise StateError(f"flower_dhb {__version__} has no files of that kind")
        if not self._places.acquire(blocking=False):
            raise NotNowError("others are fetching from this device; try again when they are done")
        try:
            self._monitor.event("fetched", what=What.Name(request.what).lower())
            if request.what == What.MODEL:
                yield from self._current_model()
            elif request.what == What.HISTORY:
                yield from self._each(
                    [self._state_dir / files.HISTORY], "it has not ended a round yet"
                )
            elif request.what == What.LOG:
                yield from self._logs()
            else:
                yield from self._records(request.after)
        finally:
            self._places.release()

    def _current_model(self) -> Iterator[pb.FetchPiece]:
        if not self._model.acquire(blocking=False):
            raise NotNowError("somebody else is fetching the model; try again when that is done")
        try:
            model = current_model(
                self._state_dir, lambda why: self._monitor.warning("damaged", why=why)
            )
            yield _begins(files.MODEL, model.n_bytes)
            for piece in model.pieces():
                for at in range(0, len(piece), _PIECE_BYTES):
                    yield pb.FetchPiece(data=bytes(piece[at : at + _PIECE_BYTES]))
        finally:
            self._model.release()

    def _logs(self) -> Iterator[pb.FetchPiece]:
        if self._log is None:
            raise StateError(
                "it keeps no log file: its lines go to standard error, in a service to the journal "
                "(journalctl -u flower-dhb-peer@…); with 'flower-dhb peer --log-file FILE', or "
                "log-file in peer.toml, it keeps one that can be fetched"
            )
        older = self._log.with_name(f"{self._log.name}.1")
        named = {older: f"{files.LOG}.1", self._log: files.LOG}
        yield from self._each(list(named), "its log file is not there", named)

    def _records(self, after: int) -> Iterator[pb.FetchPiece]:
        folder = self._state_dir / "record"
        vectors = []
        for path in folder.glob("round-*.safetensors") if folder.is_dir() else ():
            k = files.round_of(path.name)
            if k is not None and k > after:
                vectors.append((k, path.name, path))
        paths = [folder / files.RECORD, *(path for _, _, path in sorted(vectors))]
        yield from self._each(paths, "it keeps no record; 'record' in peer.toml says so")
        edges = self._ledger()
        yield _begins(files.LEDGER, len(edges))
        yield pb.FetchPiece(data=edges)

    def _ledger(self) -> bytes:
        """What the disk knows of the edges, for `flower-dhb replay`."""
        for path in reversed(entries_of(self._state_dir)):
            try:
                about = File(path).about()
            except DAMAGE:
                continue
            return json.dumps({"edges": about["record"]["edges"]}).encode()
        return b'{"edges": {}}'

    def _each(
        self, paths: list[Path], without: str, named: dict[Path, str] | None = None
    ) -> Iterator[pb.FetchPiece]:
        some = False
        for path in paths:
            try:
                file = path.open("rb")
            except FileNotFoundError:
                continue
            with file:
                some = True
                yield from _sent(file, (named or {}).get(path, path.name))
        if not some:
            raise StateError(f"there is nothing of that kind: {without}")


def _begins(name: str, size: int) -> pb.FetchPiece:
    return pb.FetchPiece(file=pb.File(name=name, bytes=size))


def _sent(file: IO[bytes], name: str) -> Iterator[pb.FetchPiece]:
    """A file that is open, as long as it is now; what is cut off meanwhile ends the call."""
    left = file.seek(0, 2)
    file.seek(0)
    yield _begins(name, left)
    while left:
        data = file.read(min(_PIECE_BYTES, left))
        if not data:
            raise StateError(f"{name} has become shorter while it was read; try again")
        left -= len(data)
        yield pb.FetchPiece(data=data)
