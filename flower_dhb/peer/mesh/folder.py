"""Changes of a mesh's folder that are there whole, or not at all, whenever the process ends.

What is to change is written into a folder of its own, with a list of what goes where. One
rename makes it hold. After that everything is moved to its place; a command that finds such a
folder finishes the move before it does anything else.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flower_dhb.errors import ConfigError, NotNowError
from flower_dhb.files import make_folder, sync_folder, write_durably

if sys.platform != "win32":
    import fcntl

__all__ = ["Change", "changing", "settle"]

_DRAFT, _HOLDS = ".change", ".changed"  # before the rename, and after it
_LIST = "list.json"
_LOCK = ".lock"


class Change:
    """Files and folders that a command adds to a mesh's folder, or replaces. See `changing`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._draft = directory / _DRAFT
        self._places: list[str] = []
        self._asides: list[tuple[str, str]] = []

    def write(self, name: str, data: bytes, *, private: bool = False) -> None:
        """Add or replace a file. name: below the mesh's folder."""
        path = self._draft / name
        self._folder(path.parent)
        write_durably(path, data, private=private)
        self._places.append(name)

    def put_aside(self, name: str, to: str) -> None:
        """Move what is there under a name to another one, before anything takes its place."""
        self._asides.append((name, to))

    def commit(self) -> None:
        """Make it hold. Raises OSError; the mesh's folder is then as it was."""
        there = [(name, to) for name, to in self._asides if (self.directory / name).exists()]
        listed = {"aside": there, "place": self._places}
        write_durably(self._draft / _LIST, json.dumps(listed).encode())
        self._draft.rename(self.directory / _HOLDS)
        sync_folder(self.directory)
        _finish(self.directory)

    def _folder(self, folder: Path) -> None:
        """Make a folder of the draft; those of devices and keys are for their owner only."""
        if not folder.is_dir():
            self._folder(folder.parent)
            make_folder(folder, mode=0o700)


@contextmanager
def changing(directory: Path) -> Iterator[Change]:
    """Hold the folder of a mesh for one change, with an earlier one finished or dropped.

    Nothing is changed before `commit`. Raises NotNowError if another command holds it, and
    ConfigError if it is no mesh's.
    """
    if not (directory / "mesh.toml").is_file():
        raise ConfigError(f"{directory / 'mesh.toml'}: No such file; 'mesh create' writes it")
    handle = os.open(directory / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if sys.platform != "win32":
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                    raise
                raise NotNowError(
                    f"{directory}: another command is changing this mesh; wait until it is done"
                ) from None
        _finish(directory)
        shutil.rmtree(directory / _DRAFT, ignore_errors=True)
        make_folder(directory / _DRAFT, mode=0o700)
        yield Change(directory)
    finally:
        shutil.rmtree(directory / _DRAFT, ignore_errors=True)
        os.close(handle)


def settle(directory: Path) -> None:
    """Finish a change that holds, should a command have been ended in the midst of it."""
    if (directory / _HOLDS).is_dir():
        with changing(directory):
            pass


def _finish(directory: Path) -> None:
    """Move what holds to its place; a part of that may have been done before."""
    source = directory / _HOLDS
    if not source.is_dir():
        return
    listed = json.loads((source / _LIST).read_bytes())
    for name, to in listed["aside"]:
        if (directory / name).exists() and not (directory / to).exists():
            make_folder((directory / to).parent, mode=0o700)
            (directory / name).rename(directory / to)
            sync_folder((directory / to).parent)
    for name in listed["place"]:
        if (source / name).exists():
            make_folder((directory / name).parent, mode=0o700)
            (source / name).replace(directory / name)
            sync_folder((directory / name).parent)
    # It holds as long as its list is there whole, so it goes under the name of a draft.
    shutil.rmtree(directory / _DRAFT, ignore_errors=True)
    source.rename(directory / _DRAFT)
    shutil.rmtree(directory / _DRAFT)
