"""What an operator does with devices that run: stops them, and fetches what they have."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import grpc

from flower_dhb.errors import ConfigError, NotNowError
from flower_dhb.files import replacing, with_remedy, write_durably
from flower_dhb.peer.mesh.fleet import Fleet, call
from flower_dhb.peer.wire import files
from flower_dhb.peer.wire import relay_pb2 as pb
from flower_dhb.peer.wire.files import What
from flower_dhb.peer.wire.operations import FETCH, STATUS, STOP, document_of

__all__ = ["KINDS", "Fetched", "Stopped", "fetch", "stop"]

# What can be fetched, by the operator's word for it.
KINDS = {
    "models": What.MODEL,
    "histories": What.HISTORY,
    "logs": What.LOG,
    "records": What.RECORD,
    "status": What.NOTHING,
}
_LOOK_AGAIN_S = 0.5
_GONE = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
_ABSENT = (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.UNIMPLEMENTED)


@dataclass(frozen=True)
class Stopped:
    """How devices took it.

    stopped: last finished round of those that have ended. ending: of those that have heard it
    and still end a call of their app. failures: why others did not hear it.
    """

    stopped: dict[int, int]
    ending: dict[int, int]
    failures: dict[int, str]


@dataclass(frozen=True)
class Fetched:
    """What came from one device. sizes: of its files, in bytes. absent: why a kind is not there."""

    sizes: Mapping[str, int]
    absent: Mapping[str, str]


def stop(fleet: Fleet, vertices: set[int] | None, timeout_s: float, wait_s: float) -> Stopped:
    """Ask peers to stop, and wait until they have.

    vertices: which, if not all. timeout_s: for an answer. wait_s: for a peer to end, which it does
    after the current call of its app.
    """
    heard, failures = fleet.ask_all(
        lambda channel: call(channel, STOP, pb.StopRequest(), pb.StopReply, timeout_s), vertices
    )
    rounds = {v: reply.round for v, reply in heard.items()}
    ending, end = dict(rounds), time.monotonic() + wait_s
    while ending and time.monotonic() < end:
        time.sleep(_LOOK_AGAIN_S)
        there, _ = fleet.ask_all(lambda channel: _is_there(channel, timeout_s), set(ending))
        ending = {v: k for v, k in ending.items() if there.get(v, True)}
    return Stopped({v: k for v, k in rounds.items() if v not in ending}, ending, failures)


def fetch(
    fleet: Fleet, out: Path, vertices: set[int] | None, kinds: Iterable[str]
) -> tuple[dict[int, Fetched], dict[int, str]]:
    """Fetch files into `out/vertex-3`, each there whole or not at all.

    What the mesh is, `mesh.toml`, is copied to `out/overview.toml`: graph, names, weights.

    Of records only what is not there yet is fetched, so that whoever was interrupted goes on.
    Returns what came, and why others sent nothing, by vertex. Raises ConfigError if `out` is a
    mesh, and NotNowError if it takes no files.
    """
    if (out / "mesh.toml").exists():
        raise ConfigError(f"{out}: is a mesh; choose a directory of its own for what is fetched")
    wanted = list(kinds)
    turn: Iterator[int] = iter(sorted(fleet.hosts if vertices is None else vertices))
    found: dict[int, Fetched] = {}
    failures: dict[int, str] = {}
    lock = threading.Lock()
    broken: list[BaseException] = []

    def some() -> None:
        while not broken:
            with lock:
                vertex = next(turn, None)
            if vertex is None:
                return
            try:
                ask = partial(_from, folder=out / f"vertex-{vertex}", kinds=wanted)
                replies, why = fleet.ask_all(ask, {vertex})
            except BaseException as error:
                broken.append(error)
                return
            found.update(replies)
            failures.update(why)

    threads = [threading.Thread(target=some) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if found and not broken:
        try:
            overview = (fleet.directory / "mesh.toml").read_bytes()
            write_durably(out / "overview.toml", overview)
        except OSError as full:
            broken.append(full)
    for error in broken:
        if isinstance(error, OSError):
            text = f"{error.filename or out}: {error.strerror or error}"
            raise NotNowError(with_remedy(text, error)) from None
        raise error
    return dict(sorted(found.items())), dict(sorted(failures.items()))


def _status(channel: grpc.Channel, timeout_s: float) -> pb.StatusReply:
    return call(channel, STATUS, pb.StatusRequest(), pb.StatusReply, timeout_s)


def _is_there(channel: grpc.Channel, timeout_s: float) -> bool:
    """Whether a peer still answers; who is too slow for it is still there."""
    try:
        _status(channel, timeout_s)
    except grpc.RpcError as error:
        return error.code() not in _GONE
    return True


def _from(channel: grpc.Channel, folder: Path, kinds: list[str]) -> Fetched:
    sizes: dict[str, int] = {}
    absent: dict[str, str] = {}
    for kind in kinds:
        if kind == "status":
            text = json.dumps(document_of(_status(channel, 10.0)), indent=1).encode()
            write_durably(folder / "status.json", text)
            sizes["status.json"] = len(text)
            continue
        what = KINDS[kind]
        home = folder / "record" if what == What.RECORD else folder
        ask = channel.unary_stream(
            FETCH,
            request_serializer=pb.FetchRequest.SerializeToString,
            response_deserializer=pb.FetchPiece.FromString,
        )
        after = _complete_until(home) if what == What.RECORD else 0
        pieces = ask(pb.FetchRequest(what=what, after=after))
        try:
            _store(pieces, what, home, sizes)
        except grpc.RpcError as error:
            if error.code() not in _ABSENT:
                raise
            absent[kind] = str(error.details())
        finally:
            pieces.cancel()
    return Fetched(sizes, absent)


def _store(pieces: Iterable[pb.FetchPiece], what: int, home: Path, sizes: dict[str, int]) -> None:
    """Write the files of one call, and note their sizes; one that is not whole leaves nothing."""
    with ExitStack() as stack:  # of the file under way, which is discarded if anything is raised
        left = 0
        write: Callable[[bytes | memoryview], None] | None = None
        for piece in pieces:
            if piece.WhichOneof("kind") == "file":
                if left:
                    raise _Misbehaved("a file begins before the one before is whole")
                stack.pop_all().close()
                name, left = piece.file.name, piece.file.bytes
                if files.what_of(name) != what:
                    raise _Misbehaved(f"it sends a file of the name {name[:80]!r}")
                where = home.parent if name == files.LEDGER else home
                write = stack.enter_context(replacing(where / name))
                sizes[name] = left
            else:
                left -= len(piece.data)
                if left < 0 or write is None:
                    raise _Misbehaved("it sends more bytes than it said")
                write(piece.data)
        if left:
            raise _Misbehaved("its last file is not whole")


class _Misbehaved(grpc.RpcError):  # type: ignore[misc]
    """A device sends what no peer does; it is told like any other failure of that device."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self._why = why

    def code(self) -> grpc.StatusCode:
        """As that of gRPC's own."""
        return grpc.StatusCode.DATA_LOSS

    def details(self) -> str:
        """What it did."""
        return self._why


def _complete_until(folder: Path) -> int:
    """The last round but one whose recorded vectors are here: the last may lack a file."""
    rounds = [files.round_of(path.name) for path in folder.glob("round-*.safetensors")]
    return max(max((k for k in rounds if k is not None), default=0) - 1, 0)
