"""What a peer hands to its operator, and what the operator makes of it."""

import errno
import io
import json
import re
import tracemalloc

import grpc
import numpy as np
import pytest
from safetensors.numpy import load_file

from flower_dhb.errors import ConfigError, NotNowError, StateError
from flower_dhb.peer.device import shelf
from flower_dhb.peer.device.journal import Contents, Journal
from flower_dhb.peer.device.log_file import LogFile
from flower_dhb.peer.device.shelf import Shelf
from flower_dhb.peer.mesh import visits
from flower_dhb.peer.monitor import Monitor
from flower_dhb.peer.watch.ledger import read_ledger
from flower_dhb.peer.wire import files
from flower_dhb.peer.wire import relay_pb2 as pb
from flower_dhb.peer.wire.files import What
from flower_dhb.types import Layout


@pytest.fixture
def state(tmp_path):
    """A state directory with all that can be fetched but a model."""
    folder = tmp_path / "state"
    (folder / "record").mkdir(parents=True)
    (folder / "history.jsonl").write_text('{"round": 1}\n')
    (folder / "record" / "record.jsonl").write_text('{"round": 1}\n')
    for name in ("round-9-shared", "round-10-shared", "round-10-combined"):
        (folder / "record" / f"{name}.safetensors").write_bytes(name.encode())
    (folder / "record" / "key.pem").write_text("secret")
    (folder / "record" / "round-x.safetensors").write_text("secret")
    return folder


def taken(there, what, **fields):
    """What is sent, by name."""
    found = {}
    for piece in there.fetch(pb.FetchRequest(what=what, **fields)):
        if piece.WhichOneof("kind") == "file":
            name, size = piece.file.name, piece.file.bytes
            found[name] = (size, b"")
        else:
            size, before = found[name]
            found[name] = (size, before + piece.data)
    assert all(len(data) == size for size, data in found.values())
    return {name: data for name, (_, data) in found.items()}


# --- the device ---------------------------------------------------------------------------


def test_only_files_of_the_list_are_handed_out(state, tmp_path):
    there = Shelf(state, None, Monitor(0))
    assert taken(there, What.HISTORY) == {"history.jsonl": b'{"round": 1}\n'}
    record = taken(there, What.RECORD)
    assert list(record) == [
        "record.jsonl", "round-9-shared.safetensors", "round-10-combined.safetensors",
        "round-10-shared.safetensors", "ledger.json",
    ]  # fmt: skip
    assert list(taken(there, What.RECORD, after=9))[1:3] == list(record)[2:4]
    assert list(taken(there, What.RECORD, after=99)) == ["record.jsonl", "ledger.json"]
    assert {files.what_of(name) for name in record} == {What.RECORD}


def test_what_is_not_there_is_said_with_the_reason(state, tmp_path):
    there = Shelf(state, None, Monitor(0))
    empty = Shelf(tmp_path / "none", tmp_path / "none.log", Monitor(0))
    for one, what, why in (
        (there, What.LOG, "keeps no log file.*journalctl.*--log-file FILE"),
        (empty, What.LOG, "nothing of that kind: its log file is not there"),
        (there, What.MODEL, "holds no state of a peer"),
        (empty, What.RECORD, "it keeps no record"),
        (empty, What.HISTORY, "it has not ended a round yet"),
        (there, 99, "has no files of that kind"),
    ):
        with pytest.raises(StateError, match=why):
            list(one.fetch(pb.FetchRequest(what=what)))


def test_a_slow_line_costs_no_memory_and_two_are_served_at_a_time(state, monkeypatch):
    monkeypatch.setattr(shelf, "_PIECE_BYTES", 4)
    there = Shelf(state, None, Monitor(0))
    open_calls = [there.fetch(pb.FetchRequest(what=What.HISTORY)) for _ in range(2)]
    for call in open_calls:
        assert next(call).file.bytes == 13
        assert next(call).data == b'{"ro'
    with pytest.raises(NotNowError, match="others are fetching"):
        next(there.fetch(pb.FetchRequest(what=What.HISTORY)))
    with (state / "history.jsonl").open("a") as file:
        file.write("more")  # what is added meanwhile comes the next time
    assert sum(len(piece.data) for piece in open_calls[0]) == 9
    open_calls[1].close()  # as gRPC does when the operator is gone
    assert len(taken(there, What.HISTORY)["history.jsonl"]) == 17


def test_a_log_file_is_bounded_and_ends_no_peer(tmp_path):
    beside, path = io.StringIO(), tmp_path / "deep" / "x.log"
    log = LogFile(path, beside, limit_bytes=20)
    for k in range(9):
        log.write(f"line {k}\n")
    kept = path.with_name("x.log.1").read_text() + path.read_text()
    assert kept == "".join(f"line {k}\n" for k in range(4, 9)) or kept.endswith("line 8\n")
    assert max(p.stat().st_size for p in path.parent.iterdir()) <= 28
    found = taken(Shelf(tmp_path, path, Monitor(0)), What.LOG)
    assert list(found) == ["peer.log.1", "peer.log"]
    assert b"".join(found.values()).decode() == kept
    log.close()
    path.unlink()
    path.mkdir()  # no disk takes a line there
    log.write("last\n")
    assert beside.getvalue().endswith("line 8\nlast\n")


def test_a_model_is_handed_out_in_pieces_in_twice_its_size(tmp_path):
    n = 2**20
    vectors = {"parameters": np.arange(n, dtype=np.float32), "memory/m": np.ones(n, np.float32)}
    raw = {f"flower_dhb.state/{k}": v.view(np.uint8) for k, v in vectors.items()}
    about = [[name, "float32", [n], ""] for name in vectors]
    document = {"records": {"flower_dhb.state": {"arrays": about}}}
    layout = Layout.of({"w": vectors["parameters"]}).to_config()
    whose = {"mesh": "m", "vertex": 3, "layout": layout}
    journal = Journal(tmp_path, "r", print, whose=whose)
    journal.save(7, Contents(raw, document), {"closed": 7, "kept": []})
    del raw, vectors
    tracemalloc.start()
    there = Shelf(tmp_path, None, Monitor(3))
    size = longest = 0
    with (tmp_path / "fetched").open("wb") as file:
        for found in there.fetch(pb.FetchRequest(what=What.MODEL)):
            if found.WhichOneof("kind") == "file":
                assert found.file.name == "model.safetensors"
                size = found.file.bytes
                with pytest.raises(NotNowError, match="fetching the model"):
                    next(there.fetch(pb.FetchRequest(what=What.MODEL)))
            longest = max(longest, len(found.data))
            file.write(found.data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (tmp_path / "fetched").stat().st_size == size
    assert longest == 256 * 1024
    assert peak < 2 * 4 * n  # the vector of parameters, and pieces
    np.testing.assert_array_equal(load_file(tmp_path / "fetched")["w"], np.arange(n))


# --- the operator -------------------------------------------------------------------------


def piece(name=None, size=0, data=b""):
    return pb.FetchPiece(data=data) if name is None else pb.FetchPiece(
        file=pb.File(name=name, bytes=size)
    )  # fmt: skip


def test_what_is_sent_is_stored_and_read_again(tmp_path):
    pieces = [
        piece("record.jsonl", 3), piece(data=b"ab"), piece(data=b"c"),
        piece("round-3-shared.safetensors", 0),
        piece("round-3-combined.safetensors", 1), piece(data=b"d"),
        piece("ledger.json", 13), piece(data=b'{"edges": {}}'),
    ]  # fmt: skip
    sizes: dict[str, int] = {}
    visits._store(pieces, What.RECORD, tmp_path / "record", sizes)
    assert (tmp_path / "record" / "record.jsonl").read_bytes() == b"abc"
    assert (tmp_path / "record" / "round-3-shared.safetensors").read_bytes() == b""
    assert json.loads((tmp_path / "ledger.json").read_text()) == {"edges": {}}
    assert read_ledger(tmp_path).edges == {}
    assert (len(sizes), sum(sizes.values())) == (4, 17)
    assert visits._complete_until(tmp_path / "record") == 2
    assert visits._complete_until(tmp_path) == 0


@pytest.mark.parametrize(
    ("pieces", "why"),
    [
        ([piece("../../etc/passwd", 1), piece(data=b"x")], "a file of the name '../../etc/passwd'"),
        ([piece("peer.toml", 1), piece(data=b"x")], "a file of the name 'peer.toml'"),
        ([piece("peer.log", 1), piece(data=b"x")], "a file of the name 'peer.log'"),
        ([piece("round-3-shared.safetensors", 1)], "its last file is not whole"),
        ([piece("record.jsonl", 2), piece(data=b"x"), piece("ledger.json", 1)], "begins before"),
        ([piece("record.jsonl", 1), piece(data=b"xy")], "more bytes than it said"),
        ([piece(data=b"xy")], "more bytes than it said"),
    ],
)
def test_a_device_that_sends_what_no_peer_sends_leaves_nothing(tmp_path, pieces, why):
    """A device that was stolen has its own keys, and may answer anything."""
    with pytest.raises(grpc.RpcError) as error:
        visits._store(pieces, What.RECORD, tmp_path / "a" / "record", {})
    assert re.search(re.escape(why), error.value.details())
    assert error.value.code() is grpc.StatusCode.DATA_LOSS
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


class _Fleet:
    """A fleet whose one device is asked without a connection."""

    def __init__(self):
        self.hosts = {0: "a:1"}

    def ask_all(self, ask, vertices):
        return {0: ask(None)}, {}


def test_a_full_disk_at_the_operators_end_is_said_with_the_remedy(tmp_path, monkeypatch):
    def full(channel, folder, kinds):
        raise OSError(errno.ENOSPC, "No space left on device", str(folder / "x"))

    monkeypatch.setattr(visits, "_from", full)
    with pytest.raises(NotNowError, match=r"vertex-0/x: No space left .*Remedy: free space on"):
        visits.fetch(_Fleet(), tmp_path, None, ["models"])
    (tmp_path / "mesh.toml").touch()
    with pytest.raises(ConfigError, match="is a mesh; choose a directory of its own"):
        visits.fetch(_Fleet(), tmp_path, None, ["models"])
