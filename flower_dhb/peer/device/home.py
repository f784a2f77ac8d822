"""A peer's state directory: one process holds it, and knows it again when it comes back."""

from __future__ import annotations

import errno
import os
import secrets
import sys
import weakref
from contextlib import suppress
from pathlib import Path
from typing import Self

from flower_dhb.errors import NotNowError
from flower_dhb.files import make_folder, remove_temporaries, with_remedy

if sys.platform != "win32":
    import fcntl

__all__ = ["HeldError", "Home"]

_LOCK = "lock"
_STATE_FILES = "*-*.safetensors"
_WIDTH = 64  # of what stands in the lock's file, so that it is replaced in place

_held: weakref.WeakSet[Home] = weakref.WeakSet()


class HeldError(NotNowError):
    """Another process holds the state directory."""


class Home:
    """The state directory of one peer, locked from `take` until `release` or the process's end.

    The lock is the system's (`flock` on a file in the directory), so it is gone with the process
    however that ends. The file holds the process's number, for whoever finds the directory
    taken, and a token, by which the process finds its own directory after its disk was away.
    On Windows nothing is locked.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._token = secrets.token_hex(8)
        self._handle: int | None = None
        self._folder = (0, 0)  # device and number of the directory
        self._parent_device = 0

    def take(self) -> None:
        """Make the directory if it is not there, and hold it.

        Raises HeldError if another process holds it, NotNowError if the disk does not take it.
        """
        if self._handle is not None:
            return
        try:
            make_folder(self.path, mode=0o700)
            self._lock()
        except BlockingIOError as error:
            raise HeldError(f"{self.path}: {error.strerror}") from None
        except OSError as error:
            text = (
                f"{self.path}: {error.strerror or error}; a peer sends nothing that it cannot keep"
            )
            raise NotNowError(with_remedy(text, error)) from None
        with suppress(OSError):
            remove_temporaries(self.path)

    def check(self) -> bool:
        """Refuse to go on unless the directory is the one that is held.

        One that was removed is made again, as long as it is on the same disk; one whose disk
        is away is waited for. Returns whether another directory is held now than before. Raises
        OSError if there is none that could be held.
        """
        if self._handle is None:
            return False
        if _identity(self.path / _LOCK) == _identity_of(os.fstat(self._handle)):
            return False
        before = self._folder
        self._take_again()
        return self._folder != before

    def release(self) -> None:
        """Let go of the directory."""
        _held.discard(self)
        if self._handle is not None:
            with suppress(OSError):
                os.close(self._handle)
            self._handle = None

    def __enter__(self) -> Self:
        self.take()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def _take_again(self) -> None:
        found = _identity(self.path)
        if found is None:
            device = os.stat(self.path.parent).st_dev
            if device != self._parent_device:
                raise OSError(errno.ENODEV, os.strerror(errno.ENODEV), str(self.path))
            make_folder(self.path, mode=0o700, parents=False)
        elif found != self._folder and not self._is_signed():
            if found[0] != self._folder[0]:
                raise OSError(errno.ENODEV, os.strerror(errno.ENODEV), str(self.path))
            if any(self.path.glob(_STATE_FILES)):
                raise FileExistsError(
                    errno.EEXIST, "another directory with a state lies in its place", str(self.path)
                )
        before, self._handle = self._handle, None
        try:
            self._lock()
        except OSError:
            self._handle = before
            raise
        if before is not None:
            with suppress(OSError):
                os.close(before)

    def _lock(self) -> None:
        handle = os.open(self.path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if sys.platform != "win32":
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            folder, parent = os.stat(self.path), os.stat(self.path.parent)
        except BlockingIOError:
            holder = _read(handle).partition(" ")[0]
            os.close(handle)
            raise BlockingIOError(
                errno.EWOULDBLOCK,
                f"process {holder or '(unknown)'} holds this state directory; two peers on one "
                "directory would destroy it. Stop that process, or give each its own state-dir",
                str(self.path),
            ) from None
        except BaseException:
            os.close(handle)
            raise
        with suppress(OSError):  # a full disk: then nobody learns who holds it
            os.write(handle, f"{os.getpid()} {self._token}".ljust(_WIDTH - 1).encode() + b"\n")
        self._handle = handle
        self._folder, self._parent_device = _identity_of(folder), parent.st_dev
        _held.add(self)

    def _is_signed(self) -> bool:
        """Whether the directory is the one that this process has held before."""
        try:
            handle = os.open(self.path / _LOCK, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            return self._token in _read(handle).split()
        except OSError:
            return False
        finally:
            os.close(handle)


def _read(handle: int) -> str:
    return os.read(handle, _WIDTH).decode(errors="replace")


def _identity(path: Path) -> tuple[int, int] | None:
    """Device and number of what lies at a path, None if nothing does."""
    try:
        return _identity_of(os.stat(path))
    except FileNotFoundError:
        return None


def _identity_of(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino


def _close_in_child() -> None:
    """A forked child lets go of the locks, lest it holds them when its parent is gone."""
    for home in list(_held):
        home.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)
