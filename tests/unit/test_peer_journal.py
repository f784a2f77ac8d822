"""What an agent must not lose: what is read again is what was written, damage is never taken."""

import errno
import json
import os
import stat
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from flower_dhb import ConfigError
from flower_dhb.errors import DamageError, NotNowError
from flower_dhb.files import write_durably
from flower_dhb.peer.device import disk
from flower_dhb.peer.device.disk import Disk
from flower_dhb.peer.device.journal import Contents, Journal
from flower_dhb.peer.monitor import Monitor
from tests.support.events import Events


class Store(Journal):
    """The journal of run `r`, with what it reported."""

    def __init__(self, directory, run="r", write=write_durably):
        self.said = []
        super().__init__(directory, run, self.said.append, write)

    def state(self, k, **more):
        self.save(k, contents(k), record(k, **more))

    def payload(self, k, base=None, **more):
        """The payload of round k, grown from the state after the round before it."""
        at = contents(k - 1 if base is None else base)
        arrays = {**at.arrays, "trained": np.full(4, k + 0.5, np.float32)}
        trained = Contents(arrays, {**at.document, "train": k})
        self.share(k, b"payload %d" % k, trained, record(k - 1, **more))


def contents(k):
    arrays = {"x": np.full(4, k, np.float32), "fixed": np.arange(3.0)}
    return Contents(arrays, {"agent-round": k})


def record(closed, kept=()):
    return {"closed": closed, "kept": list(kept), "edges": {"1": {"counted": [closed, 1, 2]}}}


def names(directory):
    """Names without their ending, in the order in which the rounds were written."""
    stems = [p.stem.split("-") for p in directory.glob("*-*.safetensors")]
    return [f"{kind}-{k}" for k, kind in sorted((int(k), kind) for kind, k in stems)]


def damage(directory, name):
    file = directory / f"{name}.safetensors"
    data = file.read_bytes()
    file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


# --- what comes back ----------------------------------------------------------------------


def test_all_kinds_of_arrays_and_the_documents_come_back(tmp_path):
    arrays = {
        "matrix": np.arange(6.0).reshape(2, 3),
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "strided": np.arange(10)[::3],
        "scalar": np.array(2.5, np.float32),
        "empty": np.empty((0, 3), np.float16),
        "bytes": np.frombuffer(b"abc", np.uint8),
        "flags": np.array([True, False]),
        "payload": np.arange(2),  # a name of the journal's own
    }
    document = {"agent-round": 6, "records": {"a": [1, 0.5, "x", None, True]}}
    for at, write in enumerate((Store.save, Store.share)):
        home = tmp_path / str(at)
        more = () if write is Store.save else (b"own",)
        write(Store(home), 7, *more, Contents(arrays, document), record(7))
        found = Store(home).load()
        assert (found.round, found.contents.document) == (7, document)
        assert (found.record, found.payload) == (record(7), None if at == 0 else b"own")
        assert set(found.contents.arrays) == set(arrays)
        for name, array in arrays.items():
            back = found.contents.arrays[name]
            assert (back.dtype, back.shape) == (array.dtype, array.shape)
            np.testing.assert_array_equal(back, array)


def test_a_payload_holds_what_differs_from_the_state_under_it(tmp_path):
    store = Store(tmp_path)
    store.state(4)
    store.payload(5)
    assert set(load_file(tmp_path / "payload-5.safetensors")) == {"payload", "round/trained"}
    found = Store(tmp_path).load()
    assert (found.round, found.payload, found.record["closed"]) == (5, b"payload 5", 4)
    assert found.contents.document == {"agent-round": 4, "train": 5}
    assert {n: a.tolist() for n, a in found.contents.arrays.items()} == {
        "x": [4.0] * 4, "fixed": [0.0, 1.0, 2.0], "trained": [5.5] * 4,
    }  # fmt: skip


@pytest.mark.parametrize("saved", [None, 2])
def test_without_the_state_before_it_a_payload_holds_all_that_is_needed(tmp_path, saved):
    store = Store(tmp_path)
    if saved is not None:
        store.state(saved)
    store.payload(5)
    own = {"payload", "round/trained", "round/x", *(["round/fixed"] if saved is None else [])}
    assert set(load_file(tmp_path / "payload-5.safetensors")) == own
    found = Store(tmp_path).load()
    assert {n: a.tolist() for n, a in found.contents.arrays.items()} == {
        "x": [4.0] * 4, "fixed": [0.0, 1.0, 2.0], "trained": [5.5] * 4,
    }  # fmt: skip


def test_it_goes_on_after_a_restart_as_if_there_had_been_none(tmp_path):
    """The state that the last payload lies on is under the next one, too."""
    Store(tmp_path).state(4)
    store = Store(tmp_path)
    store.load()
    store.payload(5)
    assert set(load_file(tmp_path / "payload-5.safetensors")) == {"payload", "round/trained"}
    again = Store(tmp_path)
    again.load()
    again.payload(6, base=4)
    assert set(load_file(tmp_path / "payload-6.safetensors")) == {"payload", "round/trained"}
    assert Store(tmp_path).load().payload == b"payload 6"


def test_another_state_under_a_payload_is_damage(tmp_path):
    store = Store(tmp_path)
    store.state(3)
    store.state(4)
    store.payload(5)
    Store(tmp_path / "other").save(4, contents(9), record(4))
    (tmp_path / "other" / "round-4.safetensors").rename(tmp_path / "round-4.safetensors")
    again = Store(tmp_path)
    assert again.load().round == 4
    assert again.said == ["payload-5.safetensors is damaged: 'x' is not what was written"]
    (tmp_path / "round-4.safetensors").unlink()
    again = Store(tmp_path)
    assert again.load().round == 3
    assert "payload-5.safetensors is damaged" in again.said[0]


# --- what is kept -------------------------------------------------------------------------


def test_the_last_two_of_each_are_kept_of_any_number_of_rounds(tmp_path):
    store = Store(tmp_path)
    for k in (1, 2, 3, 9, 10, 11):  # with a gap, and past the digits' order
        store.payload(k)
        store.state(k)
        store.free(k)
    assert names(tmp_path) == ["payload-10", "round-10", "payload-11", "round-11"]
    found = Store(tmp_path).load()
    assert (found.round, found.payload) == (11, None)
    assert store.said == []


def test_a_payload_that_may_be_asked_for_is_kept_until_it_is_freed(tmp_path):
    store = Store(tmp_path)
    for k in range(1, 6):
        store.payload(k, kept=[2] if k > 2 else [])
        store.state(k, kept=[2, k])
        if k != 2:
            store.free(k)
    assert names(tmp_path) == ["payload-2", "payload-4", "round-4", "payload-5", "round-5"]
    again = Store(tmp_path)
    found = again.load()
    assert (found.round, found.kept) == (5, {2: b"payload 2", 5: b"payload 5"})
    again.payload(6)
    assert "payload-2" in names(tmp_path)
    again.free(2)
    assert names(tmp_path) == ["round-4", "payload-5", "round-5", "payload-6"]


def test_an_earlier_payload_that_is_damaged_is_reported_and_not_given(tmp_path):
    store = Store(tmp_path)
    for k in (1, 2):
        store.payload(k)
    store.state(2, kept=[1, 2, 7])
    damage(tmp_path, "payload-1")
    again = Store(tmp_path)
    assert again.load().kept == {2: b"payload 2"}
    assert again.said == ["payload-1.safetensors is damaged: its payload is not what was written"]


def test_the_newest_whole_one_is_taken_and_each_damaged_one_reported(tmp_path):
    store = Store(tmp_path)
    for k in (9, 10):
        store.payload(k)
        store.state(k)
    want = [(10, None), (10, b"payload 10"), (9, None), (9, b"payload 9")]
    for i, name in enumerate(["round-10", "payload-10", "round-9"]):
        again = Store(tmp_path)
        found = again.load()
        assert (found.round, found.payload) == want[i]
        assert len(again.said) == i
        damage(tmp_path, name)
    # What the oldest payload lay on is gone: the state after round 8 was never written.
    again = Store(tmp_path)
    found = again.load()
    assert (found.round, found.payload) == want[3]
    assert [text.split(" ")[0] for text in again.said] == [
        "round-10.safetensors", "payload-10.safetensors", "round-9.safetensors",
    ]  # fmt: skip
    damage(tmp_path, "payload-9")
    with pytest.raises(DamageError, match=r"\(payload-9.safetensors, .*on-damage = \"rejoin\""):
        Store(tmp_path).load()


def test_a_damaged_one_pushes_no_whole_one_out(tmp_path):
    """Three files, until the damaged rounds are written anew, one by one."""
    store = Store(tmp_path)
    store.state(4)
    store.state(5)
    (tmp_path / "round-6.safetensors").write_bytes(b"")
    damage(tmp_path, "round-5")
    again = Store(tmp_path)
    assert again.load().round == 4
    again.state(5)
    assert names(tmp_path) == ["round-4", "round-5", "round-6"]
    assert Store(tmp_path).load().round == 5
    again.state(6)
    assert names(tmp_path) == ["round-5", "round-6"]
    again.state(7)
    assert names(tmp_path) == ["round-6", "round-7"]


def test_what_lies_beside_is_neither_read_nor_deleted(tmp_path):
    others = [
        "round-x.safetensors", "round-9.tmp", "round-²3.safetensors", "other-9.safetensors",
        "model.safetensors",
    ]  # fmt: skip
    for name in others:
        (tmp_path / name).write_bytes(b"mine")
    store = Store(tmp_path)
    assert store.load() is None
    for k in range(1, 5):
        store.state(k)
    assert store.load().round == 4
    assert all((tmp_path / name).read_bytes() == b"mine" for name in others)


def test_there_is_none_in_a_directory_that_is_not_there(tmp_path):
    store = Store(tmp_path / "a" / "state")
    assert store.load() is None
    store.state(1)
    assert stat.S_IMODE((tmp_path / "a" / "state").stat().st_mode) == 0o700
    assert store.load().round == 1


def test_the_state_of_another_run_is_refused_though_an_older_one_is_of_this(tmp_path):
    Store(tmp_path).state(1)
    Store(tmp_path, "other").state(2)
    with pytest.raises(
        ConfigError, match=r"of run 'other', expected 'r'; choose another state-dir"
    ):
        Store(tmp_path).load()


# --- damage -------------------------------------------------------------------------------


def rewritten(file, change):
    """Write a file again with its metadata changed or kept, as an editor of files would."""
    with safe_open(file, framework="numpy") as opened:
        metadata = dict(opened.metadata())
    arrays = load_file(file)
    arrays, metadata = change(arrays, metadata)
    save_file(arrays, file, metadata)


def document(key, value):
    def change(arrays, metadata):
        about = json.loads(metadata["about"])
        about[key] = value
        return arrays, {**metadata, "about": json.dumps(about)}

    return change


def changed(name, change):
    return lambda a, m: ({k: change(v) if k == name else v for k, v in a.items()}, m)


CHANGES = {
    "nothing": lambda a, m: (a, m),
    "value": changed("round/trained", lambda v: v + 1),
    "name": lambda a, m: ({k.replace("trained", "other"): v for k, v in a.items()}, m),
    "dtype": changed("round/trained", lambda v: v.view(np.int32)),
    "shape": changed("round/trained", lambda v: v.reshape(2, 2)),
    "one more": lambda a, m: ({**a, "round/y": np.zeros(1)}, m),
    "one less": lambda a, m: ({k: v for k, v in a.items() if k != "round/trained"}, m),
    "payload": changed("payload", lambda v: v ^ 1),
    "no payload": lambda a, m: ({k: v for k, v in a.items() if k != "payload"}, m),
    "record": document("record", record(9)),
    "state": document("state", {"agent-round": 99}),
    "round": document("round", 99),
    "no metadata": lambda a, m: (a, None),
    "no checksum": lambda a, m: (a, {"about": m["about"]}),
    "no document": lambda a, m: (a, {"checksum": m["checksum"]}),
}


@pytest.mark.parametrize("what", CHANGES)
def test_the_checksums_are_of_all_that_is_in_the_file(tmp_path, what):
    store = Store(tmp_path)
    store.state(2)
    store.payload(3)
    rewritten(tmp_path / "payload-3.safetensors", CHANGES[what])
    again = Store(tmp_path)
    assert again.load().round == (3 if what == "nothing" else 2)
    assert len(again.said) == (what != "nothing")


@pytest.mark.parametrize("kind", ["round", "payload"])
def test_a_file_that_is_cut_off_anywhere_is_not_taken(tmp_path, kind):
    store = Store(tmp_path)
    store.state(2)
    file = tmp_path / f"{kind}-3.safetensors"
    store.state(3) if kind == "round" else store.payload(3)
    whole = file.read_bytes()
    for cut in [*range(0, len(whole), 7), len(whole) - 1]:
        file.write_bytes(whole[:cut])
        assert Store(tmp_path).load().round == 2
    file.write_bytes(whole)
    assert Store(tmp_path).load().round == 3


def unreadable(monkeypatch, errors):
    """Files that cannot be read, by name."""
    real = Path.read_bytes

    def read(self):
        if self.stem in errors:
            raise OSError(errors[self.stem], os.strerror(errors[self.stem]), str(self))
        return real(self)

    monkeypatch.setattr(Path, "read_bytes", read)


@pytest.mark.parametrize("code", [errno.EMFILE, errno.EACCES, errno.ENOMEM])
def test_what_cannot_be_read_now_is_not_damaged(tmp_path, monkeypatch, code):
    """To take an older one would undo what the newest has promised."""
    store = Store(tmp_path)
    store.state(1)
    store.payload(2)
    unreadable(monkeypatch, {"payload-2": code})
    again = Store(tmp_path)
    with pytest.raises(NotNowError, match=f"cannot be read: {os.strerror(code)}"):
        again.load()
    assert again.said == []


def test_an_earlier_payload_that_cannot_be_read_now_is_not_given_up(tmp_path, monkeypatch):
    store = Store(tmp_path)
    store.payload(1)
    store.state(1)
    store.payload(2, kept=[1])
    unreadable(monkeypatch, {"payload-1": errno.EMFILE})
    with pytest.raises(NotNowError, match="Too many open files"):
        Store(tmp_path).load()


def test_a_bad_place_of_the_disk_is_damage_and_a_bad_disk_is_not(tmp_path, monkeypatch):
    store = Store(tmp_path)
    store.state(1)
    store.state(2)
    unreadable(monkeypatch, {"round-2": errno.EIO})
    again = Store(tmp_path)
    assert again.load().round == 1
    assert "round-2.safetensors is damaged: [Errno 5] Input/output error" in again.said[0]
    unreadable(monkeypatch, {"round-1": errno.EIO, "round-2": errno.EIO})
    with pytest.raises(NotNowError, match=r"cannot be read: Input/output error\. Remedy: the d"):
        Store(tmp_path).load()


def test_a_payload_holds_all_if_the_state_under_it_is_gone(tmp_path):
    """Somebody has removed the directory, or a part of it."""
    store = Store(tmp_path)
    store.state(1)
    (tmp_path / "round-1.safetensors").unlink()
    store.payload(2)
    found = Store(tmp_path).load()
    assert (found.round, found.payload) == (2, b"payload 2")
    np.testing.assert_array_equal(found.contents.arrays["fixed"], np.arange(3.0))


def test_a_damaged_life_is_set_aside_whole_and_the_next_one_begins_anew(tmp_path):
    for life in (1, 2):
        store = Store(tmp_path)
        store.state(3)
        store.payload(4)
        (tmp_path / "history.jsonl").write_text("lines")
        (tmp_path / "lock").touch()
        damage(tmp_path, "round-3")
        damage(tmp_path, "payload-4")
        again = Store(tmp_path)
        with pytest.raises(DamageError):
            again.load()
        aside = again.set_aside()
        assert aside == tmp_path / f"damaged-{life}"
        assert sorted(p.name for p in aside.iterdir()) == [
            "history.jsonl", "payload-4.safetensors", "round-3.safetensors",
        ]  # fmt: skip
        assert again.load() is None
        again.payload(1)
        assert Store(tmp_path).load().payload == b"payload 1"
        (tmp_path / "payload-1.safetensors").unlink()


# --- the disk -----------------------------------------------------------------------------


class Full:
    """Writes files, but for so many times first."""

    def __init__(self, times):
        self.left = times
        self.written = []

    def __call__(self, path, data):
        if self.left:
            self.left -= 1
            raise OSError(28, "No space left on device")
        write_durably(path, data)
        self.written.append(path.stem)


def test_what_cannot_be_written_is_an_error_and_the_older_ones_stay(tmp_path):
    store = Store(tmp_path)
    store.state(1)
    store.payload(2)
    full = Store(tmp_path, write=Full(2))
    with pytest.raises(OSError, match="No space"):
        full.state(2)
    with pytest.raises(OSError, match="No space"):
        full.payload(3)
    found = Store(tmp_path).load()
    assert (found.round, found.payload) == (2, b"payload 2")
    full.state(2)
    assert Store(tmp_path).load().round == 2


def wait(holds):
    end = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.001)


@pytest.fixture
def log():
    with Events() as heard:
        yield heard


class Line:
    """A disk's thread, what it was asked, and what it has said that it did."""

    def __init__(self, tmp_path, times=0, held=False):
        self.full = Full(times)
        self.monitor = Monitor(0)
        self.journal = Store(tmp_path, write=self.full)
        self.failed, self.done = [], []
        self.check = lambda: False
        self.disk = Disk(self.journal, self.monitor, self.failed.append, lambda: self.check())
        if not held:
            self.disk.start()

    def state(self, k, due=True, tell=()):
        done = lambda: self.done.append(f"round-{k}")  # noqa: E731
        self.disk.put(disk.State(k, contents(k), record(k), list(tell), due, done))

    def payload(self, k):
        done = lambda: self.done.append(f"payload-{k}")  # noqa: E731
        frame = b"payload %d" % k
        self.disk.put(disk.Payload(k, frame, contents(k - 1), record(k - 1), done))


def test_what_is_in_line_is_written_in_order_and_told_when_it_is_there(tmp_path):
    line = Line(tmp_path)
    told = []
    line.payload(1)
    line.state(1, tell=[lambda: told.append(list(line.full.written))])
    line.disk.put(disk.Model(tmp_path / "m", b"model", lambda: line.done.append("model")))
    line.disk.put(disk.Free(1))
    line.disk.close()
    assert line.done == ["payload-1", "round-1", "model"]
    assert line.full.written == ["payload-1", "round-1"]
    assert told == [["payload-1"]]  # of a round is told before its state is there
    assert (tmp_path / "m").read_bytes() == b"model"
    assert line.failed == []


def test_a_state_with_a_payload_in_line_behind_it_is_one_write_with_it(tmp_path):
    line = Line(tmp_path, held=True)
    told = []
    line.payload(1)
    line.state(1, tell=[lambda: told.append(1)])
    line.payload(2)
    line.state(2)
    line.disk.start()
    line.disk.close()
    assert line.full.written == ["payload-1", "payload-2", "round-2"]
    assert line.done == ["payload-1", "payload-2", "round-2"]
    assert told == [1]


class Slow(Full):
    """Writes, and takes its time."""

    def __init__(self, seconds):
        super().__init__(0)
        self.seconds = seconds

    def __call__(self, path, data):
        time.sleep(self.seconds)
        super().__call__(path, data)


@pytest.mark.parametrize(
    ("write_s", "train_s", "together"), [(0.1, 0.01, True), (0.01, 0.1, False)]
)
def test_where_the_app_is_faster_than_the_disk_a_state_waits_for_its_payload(
    tmp_path, write_s, train_s, together
):
    line = Line(tmp_path)
    line.journal._write_durably = slow = Slow(write_s)
    for k in range(1, 6):
        line.payload(k)
        end = time.monotonic() + 10
        while f"payload-{k}" not in line.done:
            assert time.monotonic() < end
            time.sleep(0.001)
        if k < 5:
            line.state(k)
            time.sleep(train_s)  # the app
    begin = time.monotonic()
    line.state(5)  # the last round: no payload follows
    line.disk.close()
    assert time.monotonic() - begin < 5.0
    assert line.done[-1] == "round-5"
    # The first one tells what a state takes, and how soon a payload follows.
    written = [name for name in slow.written if name.startswith("round")]
    assert written == (["round-1", "round-5"] if together else [f"round-{k}" for k in range(1, 6)])


def test_a_state_that_waits_in_vain_is_written(tmp_path):
    line = Line(tmp_path)
    line.disk._gap_s, line.disk._state_s = 0.02, 1.0
    line.state(1)
    end = time.monotonic() + 10
    while not line.done:
        assert time.monotonic() < end
        time.sleep(0.001)
    line.disk.close()
    assert line.full.written == ["round-1"]


def test_a_state_that_is_not_due_is_told_of_and_not_written(tmp_path):
    line = Line(tmp_path)
    told = []
    line.state(1, due=False, tell=[lambda: told.append(1)])
    line.state(2)
    line.disk.close()
    assert (told, line.done, line.full.written) == ([1], ["round-2"], ["round-2"])


def test_a_full_disk_is_tried_again_and_nothing_overtakes(tmp_path, log, monkeypatch):
    monkeypatch.setattr(disk, "_PAUSE_S", 0.01)
    line = Line(tmp_path, times=3)
    told = []
    line.state(1, tell=[lambda: told.append(1)])
    line.disk.put(disk.Free(0))
    end = time.monotonic() + 10
    while not line.done:
        assert time.monotonic() < end
        time.sleep(0.005)
    line.disk.close()
    assert (told, line.done, line.failed) == ([1], ["round-1"], [])
    (warning,) = log.named("disk-failed")  # once, not for each attempt
    assert "No space left" in warning["why"]
    assert line.monitor.total("disk-failed") == 3
    assert len(log.named("disk-writes-again")) == 1


def test_of_a_full_disk_nothing_is_said_to_be_written_and_it_can_be_closed(tmp_path, log):
    line = Line(tmp_path, times=10**9)
    line.payload(1)
    line.state(1)
    end = time.monotonic() + 10
    while not log.named("disk-failed"):
        assert time.monotonic() < end
        time.sleep(0.005)
    begin = time.monotonic()
    line.disk.close()
    assert time.monotonic() - begin < 5.0
    assert (line.done, line.full.written, line.failed) == ([], [], [])


def test_another_reason_is_told_and_each_comes_with_a_remedy(tmp_path, log, monkeypatch):
    monkeypatch.setattr(disk, "_PAUSE_S", 0.001)
    line = Line(tmp_path)
    codes = [errno.ENOSPC] * 3 + [errno.EROFS] * 2 + [errno.EIO]

    def write(path, data):
        if codes:
            code = codes.pop(0)
            raise OSError(code, os.strerror(code), str(path))
        line.full(path, data)

    line.journal._write_durably = write
    line.state(1)
    wait(lambda: line.done)
    line.disk.close()
    told = [(w["why"], w["what_now"]) for w in log.named("disk-failed")]
    assert [why for why, _ in told] == [
        "No space left on device", "Read-only file system", "Input/output error",
    ]  # fmt: skip
    for (_, what), remedy in zip(told, ("free space", "mount it", "replace"), strict=True):
        assert "nothing is sent until it is written" in what
        assert remedy in what


def test_nothing_is_written_into_a_directory_that_is_not_ours(tmp_path, log, monkeypatch):
    monkeypatch.setattr(disk, "_PAUSE_S", 0.001)
    line, gone = Line(tmp_path), [True] * 3

    def check():
        if gone:
            gone.pop()
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", str(tmp_path))
        return not line.full.written

    line.check = check
    line.state(1)
    line.state(2)
    wait(lambda: len(line.done) == 2)
    line.disk.close()
    assert line.full.written == ["round-1", "round-2"]
    assert len(log.named("disk-failed")) == 1
    assert len(log.named("state-directory-made-anew")) == 1
    totals = [line.monitor.total(name) for name in ("disk-trouble", "disk-writes-again")]
    assert totals == [1, 1]


def test_what_could_not_be_written_is_not_overtaken_at_the_end(tmp_path):
    """What comes later must not be there without it."""
    line = Line(tmp_path, held=True)

    def write(path, data):
        if path.stem == "payload-1":
            raise OSError(errno.ENOSPC, "No space left on device")
        line.full(path, data)

    line.journal._write_durably = write
    line.payload(1)
    line.state(1)
    line.disk.start()
    line.disk.close()
    assert (line.done, line.full.written) == ([], [])


def test_what_no_attempt_can_mend_is_handed_on(tmp_path):
    line = Line(tmp_path)
    line.disk.put(disk.Model(tmp_path / "m", "text", lambda: None))  # not bytes
    line.disk.close()
    assert [type(error) for error in line.failed] == [TypeError]
    assert not any(t.name == "disk" for t in threading.enumerate())
