"""Durable files: whole or not at all, whoever else writes, whatever the system cannot do."""

import errno
import os
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from flower_dhb import files
from flower_dhb.files import write_durably


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_written_replaced_and_alone(tmp_path):
    path = tmp_path / "deep" / "state.bin"
    write_durably(path, b"old")
    write_durably(path, b"new and longer")
    assert path.read_bytes() == b"new and longer"
    assert names(path.parent) == ["state.bin"]


def test_the_order_that_survives_a_crash(tmp_path, monkeypatch):
    """Data on the disk before the rename, the rename on the disk before the return."""
    path, steps = tmp_path / "a", []
    real_replace, real_open = Path.replace, os.open
    folders = set()

    def force(handle):
        kind = "folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "data"
        if kind == "data":
            assert os.fstat(handle).st_size == 3  # nothing is left in Python's buffer
        steps.append(kind)

    monkeypatch.setattr(files.os, "fdatasync", force, raising=False)
    monkeypatch.setattr(files.os, "fsync", force)
    monkeypatch.setattr(
        Path, "replace", lambda self, to: (steps.append("rename"), real_replace(self, to))[1]
    )
    monkeypatch.setattr(
        files.os, "open", lambda p, *a, **k: (folders.add(str(p)), real_open(p, *a, **k))[1]
    )
    write_durably(path, b"abc")
    assert steps == ["data", "rename", "folder"]
    assert str(tmp_path) in folders


def test_without_fdatasync_fsync_is_called(tmp_path, monkeypatch):
    """Windows and macOS have no fdatasync."""
    forced = []
    monkeypatch.delattr(files.os, "fdatasync", raising=False)
    monkeypatch.setattr(files.os, "fsync", lambda handle: forced.append(handle))
    write_durably(tmp_path / "a", b"abc")
    assert len(forced) == 2  # the data, and the folder


def test_a_system_that_opens_no_folders_writes_all_the_same(tmp_path, monkeypatch):
    real = os.open

    def as_on_windows(path, flags, *rest, **more):
        if os.path.isdir(path):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path, flags, *rest, **more)

    monkeypatch.setattr(files.os, "open", as_on_windows)
    write_durably(tmp_path / "a", b"x")
    write_durably(tmp_path / "a", b"y")
    assert (tmp_path / "a").read_bytes() == b"y"
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize(
    ("code", "tolerated"), [(errno.EINVAL, True), (errno.ENOTSUP, True), (errno.EIO, False)]
)
def test_a_file_system_that_cannot_force_a_folder_is_told_from_a_broken_disk(
    tmp_path, monkeypatch, code, tolerated
):
    real = os.fsync

    def fsync(handle):
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(code, os.strerror(code))
        real(handle)

    monkeypatch.setattr(files.os, "fsync", fsync)
    if tolerated:
        write_durably(tmp_path / "a", b"x")
    else:
        with pytest.raises(OSError, match="Input/output error"):
            write_durably(tmp_path / "a", b"x")
    assert (tmp_path / "a").read_bytes() == b"x"


@pytest.mark.skipif(sys.platform == "win32", reason="no limits of a process there")
def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "state"
    write_durably(path, b"old")
    program = (
        "import resource, sys; from pathlib import Path\n"
        "from flower_dhb.files import write_durably\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try: write_durably(Path(sys.argv[1]), bytes(5000))\n"
        "except OSError as error: print(error.strerror)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True
    )
    assert done.stdout == "File too large\n"
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["state"]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt()])
def test_whatever_stops_it_the_old_file_stays_and_the_temporary_one_goes(
    tmp_path, monkeypatch, error
):
    path = tmp_path / "state"
    write_durably(path, b"old")

    def stop(file):
        raise error

    monkeypatch.setattr(files, "sync", stop)
    with pytest.raises(type(error)):
        write_durably(path, b"new")
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["state"]


def test_the_first_error_is_told_and_not_what_fails_in_tidying_up(tmp_path, monkeypatch):
    """A disk that is full, and then read-only."""

    def full(file):
        raise OSError(errno.ENOSPC, "No space left on device")

    def unlink(self, missing_ok=False):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(files, "sync", full)
    monkeypatch.setattr(Path, "unlink", unlink)
    with pytest.raises(OSError, match="No space left") as error:
        write_durably(tmp_path / "a", b"x")
    assert error.value.errno == errno.ENOSPC


def test_a_folder_is_not_made_where_that_is_not_wanted(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_durably(tmp_path / "gone" / "a", b"x", make_folder=False)
    assert names(tmp_path) == []


def test_folders_are_made_durably_and_with_their_mode(tmp_path, monkeypatch):
    forced, real = [], os.fsync
    monkeypatch.setattr(files.os, "fsync", lambda h: (forced.append(os.fstat(h).st_ino), real(h)))
    files.make_folder(tmp_path / "a" / "b", mode=0o700)
    assert stat.S_IMODE((tmp_path / "a" / "b").stat().st_mode) == 0o700
    assert forced == [tmp_path.stat().st_ino, (tmp_path / "a").stat().st_ino]
    files.make_folder(tmp_path / "a" / "b")
    with pytest.raises(FileNotFoundError):
        files.make_folder(tmp_path / "c" / "d", parents=False)


def test_every_remedy_is_of_an_error_and_others_have_none():
    assert "free space" in files.remedy_of(OSError(errno.ENOSPC, "x"))
    assert files.remedy_of(OSError("odd")) == files.remedy_of(OSError(errno.EDOM, "x")) == ""


def test_temporaries_go_whatever_their_age_where_nobody_else_writes(tmp_path):
    for name in (".round-3.safetensors.0123456789abcdef.tmp", ".notes.tmp", "round-1.safetensors"):
        (tmp_path / name).write_bytes(b"x")
    files.remove_temporaries(tmp_path)
    assert names(tmp_path) == [".notes.tmp", "round-1.safetensors"]


def test_two_names_that_differ_in_their_suffix_do_not_meet(tmp_path, monkeypatch):
    """`a.json` is begun while `a.toml` is being written."""
    real, nested = files.sync, []

    def meanwhile(file):
        if not nested:
            nested.append(True)
            write_durably(tmp_path / "a.json", b"json")
        real(file)

    monkeypatch.setattr(files, "sync", meanwhile)
    write_durably(tmp_path / "a.toml", b"toml")
    assert (tmp_path / "a.toml").read_bytes() == b"toml"
    assert (tmp_path / "a.json").read_bytes() == b"json"


def test_many_writers_of_one_file_leave_one_of_their_texts(tmp_path):
    path = tmp_path / "state"
    texts = {bytes([65 + i]) * (1000 * i + 1) for i in range(6)}
    write_durably(path, b"A")
    failures, over = [], threading.Event()

    def write(text):
        try:
            for _ in range(10):
                write_durably(path, text)
        except OSError as error:
            failures.append(error)

    def read():
        while not over.is_set():
            if path.read_bytes() not in texts:
                failures.append("a mixture was read")

    reader = threading.Thread(daemon=True, target=read)
    writers = [threading.Thread(daemon=True, target=write, args=(text,)) for text in texts]
    reader.start()
    for thread in writers:
        thread.start()
    for thread in writers:
        thread.join()
    over.set()
    reader.join()
    assert failures == []
    assert names(tmp_path) == ["state"]


@pytest.mark.skipif(sys.platform == "win32", reason="modes mean little there")
def test_a_private_file_was_never_readable_by_others(tmp_path, monkeypatch):
    seen, real = [], files.sync
    monkeypatch.setattr(
        files, "sync", lambda f: (seen.append(os.fstat(f.fileno()).st_mode & 0o777), real(f))
    )
    before = os.umask(0o022)
    try:
        write_durably(tmp_path / "key", b"secret", private=True)
        write_durably(tmp_path / "page", b"open")
    finally:
        os.umask(before)
    assert seen == [0o600, 0o644]
    assert [stat.S_IMODE((tmp_path / n).stat().st_mode) for n in ("key", "page")] == [0o600, 0o644]


def test_what_a_killed_process_left_is_removed_when_it_is_old(tmp_path):
    old = tmp_path / ".round-3.safetensors.0123456789abcdef.tmp"
    fresh = tmp_path / ".round-4.safetensors.fedcba9876543210.tmp"
    stranger = tmp_path / ".notes.tmp"
    for path in (old, fresh, stranger):
        path.write_bytes(b"half")
    long_ago = time.time() - 2 * 3600
    for path in (old, stranger):
        os.utime(path, (long_ago, long_ago))
    write_durably(tmp_path / "round-5.safetensors", b"whole")
    assert names(tmp_path) == sorted([fresh.name, stranger.name, "round-5.safetensors"])


def test_names_as_long_as_a_file_system_takes_are_written(tmp_path):
    path = tmp_path / ("ñ" * 120)
    write_durably(path, b"x")
    assert path.read_bytes() == b"x"


def test_nobody_else_in_the_package_renames_or_forces_files():
    """One durable writer: a second one would have to be right in all of the above, too."""
    root = Path(files.__file__).parent
    for path in root.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        for mark in ("fsync", "fdatasync", "os.replace", '.tmp"', "mkstemp"):
            assert mark not in text or path == Path(files.__file__), f"{path}: {mark}"
