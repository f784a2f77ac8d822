"""A state directory is held by one process, and known again when it comes back."""

import os
import shutil
import signal
import subprocess
import sys

import pytest

from flower_dhb.errors import NotNowError
from flower_dhb.peer.device import home as module
from flower_dhb.peer.device.home import Home

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="nothing is locked there")

HOLD = """
import sys
from pathlib import Path
from flower_dhb.peer.device.home import Home
home = Home(Path(sys.argv[1]))
home.take()
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def home(tmp_path):
    home = Home(tmp_path / "state")
    home.take()
    yield home
    home.release()


def test_a_second_process_is_refused_with_the_number_of_the_first(tmp_path):
    first = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path / "state"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    second = Home(tmp_path / "state")
    try:
        assert first.stdout.readline() == "held\n"
        with pytest.raises(NotNowError, match=rf"state: process {first.pid} holds this state dir"):
            second.take()
        first.send_signal(signal.SIGKILL)
        first.wait()
        second.take()
        third = Home(tmp_path / "state")
        with pytest.raises(NotNowError, match=rf"process {os.getpid()} holds"):
            third.take()
    finally:
        first.kill()
        first.communicate()
        second.release()


def test_a_forked_child_that_outlives_its_parent_holds_nothing(home):
    (reader, writer), (ready, says) = os.pipe(), os.pipe()
    child = os.fork()
    if not child:  # what an app's data loader is
        os.close(writer)
        os.write(says, b"x")
        os.read(reader, 1)
        os._exit(0)
    try:
        os.read(ready, 1)
        home.release()
        other = Home(home.path)
        other.take()
        other.release()
    finally:
        os.close(writer)
        os.waitpid(child, 0)
        for pipe in (reader, ready, says):
            os.close(pipe)


def test_it_is_made_and_private_and_what_a_killed_process_left_is_removed(tmp_path):
    path = tmp_path / "a" / "state"
    with Home(path):
        assert path.stat().st_mode & 0o777 == 0o700
    left = path / ".round-3.safetensors.0123456789abcdef.tmp"
    left.write_bytes(b"half")
    (path / "round-2.safetensors").write_bytes(b"whole")
    with Home(path):
        assert sorted(p.name for p in path.iterdir()) == ["lock", "round-2.safetensors"]


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (OSError(28, "No space left on device"), "free space"),
        (OSError(30, "Read-only file system"), "mount it for writing"),
        (PermissionError(13, "Permission denied"), "give the directory to the user"),
        (OSError(24, "Too many open files"), "LimitNOFILE"),
    ],
)
def test_what_the_disk_says_at_the_start_comes_with_a_remedy(tmp_path, monkeypatch, error, remedy):
    def refuse(*_, **__):
        raise error

    monkeypatch.setattr(module.os, "open", refuse)
    with pytest.raises(NotNowError, match=rf"state: {error.strerror}; .*Remedy: .*{remedy}"):
        Home(tmp_path / "state").take()


# --- while it is held ---------------------------------------------------------------------


def test_as_long_as_it_lies_there_all_is_well(home):
    (home.path / "round-1.safetensors").write_bytes(b"x")
    assert home.check() is False
    moved = home.path.rename(home.path.with_name("moved"))
    moved.rename(home.path)
    assert home.check() is False


def test_one_that_was_removed_is_made_again_and_held(home):
    shutil.rmtree(home.path)
    assert home.check() is True
    assert home.check() is False
    with pytest.raises(NotNowError, match="holds this state directory"):
        Home(home.path).take()


def test_a_lock_that_was_removed_is_taken_again(home):
    (home.path / "round-1.safetensors").write_bytes(b"x")
    (home.path / "lock").unlink()
    assert home.check() is False  # the directory is the same
    with pytest.raises(NotNowError, match="holds this state directory"):
        Home(home.path).take()


def test_a_lock_that_somebody_else_took_meanwhile_is_waited_for(home):
    (home.path / "lock").unlink()
    other = Home(home.path)
    other.take()
    with pytest.raises(OSError, match="holds this state directory"):
        home.check()
    other.release()
    home.check()


def test_no_directory_is_made_where_its_parent_is_gone(home, tmp_path):
    away = tmp_path.with_name("away")
    tmp_path.rename(away)
    with pytest.raises(FileNotFoundError):
        home.check()
    away.rename(tmp_path)
    assert home.check() is False


def test_the_folder_under_an_unmounted_disk_is_not_taken_for_it(home):
    """The path is there, on another disk than before."""
    device, number = home._folder
    home._folder, home._parent_device = (device + 1, number), home._parent_device + 1
    shutil.rmtree(home.path)
    with pytest.raises(OSError, match="No such device"):
        home.check()
    assert not home.path.exists()
    home.path.mkdir()
    with pytest.raises(OSError, match="No such device"):
        home.check()
    assert list(home.path.iterdir()) == []


def test_a_disk_that_comes_back_is_known_by_what_was_written_on_it(home, tmp_path):
    """The same directory, though its device has another number now."""
    (home.path / "round-1.safetensors").write_bytes(b"x")
    copy = tmp_path / "copy"
    shutil.copytree(home.path, copy)
    shutil.rmtree(home.path)
    copy.rename(home.path)
    home._folder = (home._folder[0] + 1, home._folder[1])
    assert home.check() is True
    assert home.check() is False


def test_the_state_of_somebody_else_is_not_written_over(home):
    shutil.rmtree(home.path)
    home.path.mkdir()
    (home.path / "round-9.safetensors").write_bytes(b"another life")
    with pytest.raises(FileExistsError, match="another directory with a state"):
        home.check()
    (home.path / "round-9.safetensors").unlink()
    assert home.check() is True
