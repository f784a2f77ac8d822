"""Checkpoints: what is read again is what was written, and what is damaged is never taken."""

import json
import stat

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from flower_dhb import StateError
from flower_dhb.peer.device.checkpoint import Checkpoint, Checkpoints
from flower_dhb.peer.device.checkpoint import _checksum as checksum


class Store(Checkpoints):
    """Checkpoints of run `r`, with what they reported."""

    def __init__(self, directory, run="r"):
        self.said = []
        super().__init__(directory, run, self.said.append)


def checkpoint(k):
    return Checkpoint(k, {"x": np.full(4, k, np.float32)}, {"agent-round": k})


def path(directory, k):
    return directory / f"round-{k}.safetensors"


def rounds(directory):
    return sorted(int(p.stem.removeprefix("round-")) for p in directory.glob("*.safetensors"))


def damage(directory, k):
    file = path(directory, k)
    data = file.read_bytes()
    file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


def test_all_kinds_of_arrays_and_the_document_come_back(tmp_path):
    arrays = {
        "matrix": np.arange(6.0).reshape(2, 3),
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "strided": np.arange(10)[::3],
        "scalar": np.array(2.5, np.float32),
        "empty": np.empty((0, 3), np.float16),
        "bytes": np.frombuffer(b"abc", np.uint8),
        "flags": np.array([True, False]),
    }
    document = {"agent-round": 6, "records": {"a": [1, 0.5, "x", None, True]}}
    Store(tmp_path).save(Checkpoint(7, arrays, document))
    found = Store(tmp_path).load()
    assert (found.round, found.document) == (7, document)
    assert set(found.arrays) == set(arrays)
    for name, array in arrays.items():
        assert found.arrays[name].dtype == array.dtype
        assert found.arrays[name].shape == array.shape
        np.testing.assert_array_equal(found.arrays[name], array)


def test_the_last_two_are_kept_of_any_number_of_rounds(tmp_path):
    store = Store(tmp_path)
    kept = []
    for k in (1, 2, 3, 9, 10, 11):  # with a gap, and past the digits' order
        store.save(checkpoint(k))
        kept.append(rounds(tmp_path))
    assert kept == [[1], [1, 2], [2, 3], [3, 9], [9, 10], [10, 11]]
    assert Store(tmp_path).load().round == 11
    assert store.said == []


def test_the_newest_whole_one_is_taken_and_each_damaged_one_reported(tmp_path):
    store = Store(tmp_path)
    for k in (9, 10):
        store.save(checkpoint(k))
    (tmp_path / "later").mkdir()
    path(tmp_path, 10).rename(tmp_path / "later" / "x")
    store = Store(tmp_path)
    store.save(checkpoint(10))
    store.save(checkpoint(11))
    damage(tmp_path, 11)
    again = Store(tmp_path)
    assert again.load().round == 10
    assert [text.split(":")[0] for text in again.said] == ["checkpoint of round 11 is damaged"]
    damage(tmp_path, 10)
    again = Store(tmp_path)
    with pytest.raises(StateError, match=r"checkpoints of rounds \[10, 11\] can be used; move"):
        again.load()
    assert [text.split(":")[0] for text in again.said] == [
        "checkpoint of round 11 is damaged",
        "checkpoint of round 10 is damaged",
    ]


def test_a_damaged_one_pushes_no_whole_one_out(tmp_path):
    """Three files, until the damaged rounds are written anew, one by one."""
    store = Store(tmp_path)
    store.save(checkpoint(4))
    store.save(checkpoint(5))
    path(tmp_path, 6).write_bytes(b"")
    damage(tmp_path, 5)
    again = Store(tmp_path)
    assert again.load().round == 4
    again.save(checkpoint(5))
    assert rounds(tmp_path) == [4, 5, 6]
    assert Store(tmp_path).load().round == 5
    again.save(checkpoint(6))
    assert rounds(tmp_path) == [5, 6]
    assert Store(tmp_path).load().round == 6
    again.save(checkpoint(7))
    assert rounds(tmp_path) == [6, 7]


def test_what_lies_beside_is_neither_read_nor_deleted(tmp_path):
    others = ["round-x.safetensors", "round-9.tmp", "round-².safetensors", "model.safetensors"]
    for name in others:
        (tmp_path / name).write_bytes(b"mine")
    store = Store(tmp_path)
    assert store.load() is None
    for k in range(1, 5):
        store.save(checkpoint(k))
    assert store.load().round == 4
    assert all((tmp_path / name).read_bytes() == b"mine" for name in others)


def test_there_is_none_in_a_directory_that_is_not_there(tmp_path):
    store = Store(tmp_path / "a" / "state")
    assert store.load() is None
    store.save(checkpoint(1))
    assert stat.S_IMODE((tmp_path / "a" / "state").stat().st_mode) == 0o700
    assert store.load().round == 1


def test_the_state_of_another_run_is_refused_though_an_older_one_is_of_this(tmp_path):
    Store(tmp_path).save(checkpoint(1))
    Store(tmp_path, "other").save(checkpoint(2))
    with pytest.raises(StateError, match=r"of run 'other', expected 'r'; choose another state-dir"):
        Store(tmp_path).load()


def rewritten(directory, change):
    """Write a file again with its metadata changed or kept, as an editor of files would."""
    file = path(directory, 3)
    with safe_open(file, framework="numpy") as opened:
        metadata = dict(opened.metadata())
    arrays = load_file(file)
    arrays, metadata = change(arrays, metadata)
    save_file(arrays, file, metadata)


def other_document(arrays, metadata):
    about = json.loads(metadata["about"])
    about["state"]["agent-round"] = 99
    return arrays, {**metadata, "about": json.dumps(about)}


CHANGES = {
    "nothing": lambda a, m: (a, m),
    "value": lambda a, m: ({"x": a["x"] + 1}, m),
    "name": lambda a, m: ({"y": a["x"]}, m),
    "dtype": lambda a, m: ({"x": a["x"].view(np.int32)}, m),
    "shape": lambda a, m: ({"x": a["x"].reshape(2, 2)}, m),
    "one more": lambda a, m: ({**a, "y": np.zeros(1)}, m),
    "document": other_document,
    "no metadata": lambda a, m: (a, None),
    "no checksum": lambda a, m: (a, {"about": m["about"]}),
    "no document": lambda a, m: (a, {"checksum": m["checksum"]}),
}


@pytest.mark.parametrize("what", CHANGES)
def test_the_checksum_is_of_all_that_is_in_the_file(tmp_path, what):
    store = Store(tmp_path)
    store.save(checkpoint(2))
    store.save(checkpoint(3))
    rewritten(tmp_path, CHANGES[what])
    assert store.load().round == (3 if what == "nothing" else 2)
    assert len(store.said) == (what != "nothing")
    if what in ("value", "name", "dtype", "shape", "one more", "document"):
        assert "its checksum is" in store.said[0]


def test_a_document_that_is_none_is_damage_though_its_checksum_is_right(tmp_path):
    store = Store(tmp_path)
    store.save(checkpoint(2))
    for about in ("3", "[1]", "{}", "{"):
        arrays = {"x": np.zeros(1)}
        save_file(arrays, path(tmp_path, 3), {"about": about, "checksum": checksum(about, arrays)})
        assert store.load().round == 2
    assert len(store.said) == 4
    assert not any("its checksum is" in text for text in store.said)


def test_one_that_somebody_has_removed_is_not_missed(tmp_path):
    store = Store(tmp_path)
    for k in (1, 2):
        store.save(checkpoint(k))
    path(tmp_path, 1).unlink()
    store.save(checkpoint(3))
    assert rounds(tmp_path) == [2, 3]


def test_what_cannot_be_written_is_an_error_and_the_older_ones_stay(tmp_path):
    store = Store(tmp_path)
    store.save(checkpoint(1))
    store.save(checkpoint(2))
    path(tmp_path, 3).mkdir()  # as good as a full disk
    (path(tmp_path, 3) / "x").touch()
    with pytest.raises(OSError, match="round-3"):
        store.save(checkpoint(3))
    assert (store.load().round, rounds(tmp_path)[:2]) == (2, [1, 2])
