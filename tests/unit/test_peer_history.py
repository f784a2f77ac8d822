"""Lines of a peer's history are there whole or not at all, whatever the disk does meanwhile."""

import errno
import json

import pytest

from flower_dhb.peer.watch.history import History, keep_until


class Sick:
    """A file that takes some bytes and then none; for a while it cannot be cut off either."""

    def __init__(self, file, takes, keeps_torn=False):
        self.file, self.takes, self.keeps_torn = file, takes, keeps_torn

    def __getattr__(self, name):
        return getattr(self.file, name)

    def write(self, data):
        if self.takes is None:
            return self.file.write(data)
        if not self.takes:
            raise OSError(errno.ENOSPC, "No space left on device")
        n = self.file.write(data[: self.takes])
        self.takes = 0
        return n

    def truncate(self, size):
        if self.keeps_torn:
            raise OSError(errno.EROFS, "Read-only file system")
        return self.file.truncate(size)


def rounds(path):
    return [json.loads(line)["round"] for line in path.read_text().splitlines()]


@pytest.fixture
def history(tmp_path):
    history = History(tmp_path / "h.jsonl")
    yield history
    history.close()


@pytest.mark.parametrize("torn", [False, True])
def test_a_line_that_the_disk_took_in_part_is_taken_back_and_the_first_error_told(
    history, tmp_path, torn
):
    history.append({"round": 1}, durable=True)
    history._file = sick = Sick(history._file, takes=5, keeps_torn=torn)
    with pytest.raises(OSError, match="No space left"):
        history.append({"round": 2}, durable=True)
    assert (tmp_path / "h.jsonl").read_bytes().endswith(b'{"rou' if torn else b"}\n")
    sick.takes = 0  # still full
    if torn:
        with pytest.raises(OSError, match="Read-only"):
            history.append({"round": 2}, durable=True)
    sick.takes, sick.keeps_torn = None, False
    history.append({"round": 2}, durable=True)
    history.append({"round": 3}, durable=False)
    assert rounds(tmp_path / "h.jsonl") == [1, 2, 3]


def test_a_file_that_was_removed_is_begun_anew(history, tmp_path):
    history.append({"round": 1}, durable=False)
    (tmp_path / "h.jsonl").unlink()
    history.append({"round": 2}, durable=True)
    assert rounds(tmp_path / "h.jsonl") == [2]


def test_lines_that_a_bad_disk_spoiled_are_dropped_and_no_other(tmp_path):
    path = tmp_path / "h.jsonl"
    path.write_bytes(b'{"round": 1}\n\xff\xfe\x00\n{"round": 2}\n[]\n{"round": 3}\n{"rou')
    keep_until(path, 2)
    assert rounds(path) == [1, 2]
