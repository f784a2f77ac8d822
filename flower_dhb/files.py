"""Files that are there whole, or not at all; and those that a user writes."""

from __future__ import annotations

import errno
import os
import re
import secrets
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from flower_dhb.errors import ConfigError

__all__ = [
    "flat",
    "make_folder",
    "read_toml",
    "remedy_of",
    "remove_temporaries",
    "replacing",
    "sync",
    "sync_folder",
    "with_remedy",
    "write_durably",
]

_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{16}\.tmp")
_ORPHAN_S = 3600.0  # nobody writes one file for an hour
# What file systems say that cannot force a directory to the disk.
_CANNOT = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EBADF, errno.EACCES}

_REMEDIES = {
    errno.ENOSPC: "free space on this disk",
    errno.EDQUOT: "free space on this disk, or raise the quota",
    errno.EIO: "the disk fails: look at the kernel's log, and replace the disk if that goes on",
    errno.EROFS: "the disk is read-only, as it is after an error: check it, and mount it for "
    "writing",
    errno.EMFILE: "too many files are open in this process: raise the limit (LimitNOFILE)",
    errno.ENFILE: "too many files are open on this machine",
    errno.ENOENT: "the directory is gone: mount its disk, or make it again",
    errno.ENOTDIR: "a file stands where a directory should be: move it away",
    errno.EACCES: "give the directory to the user of this process",
    errno.EPERM: "give the directory to the user of this process",
    errno.ENODEV: "the disk is gone: connect it again",
    errno.ENXIO: "the disk is gone: connect it again",
    errno.ESTALE: "the file server has lost the directory: mount it again",
}

_cleaned: set[Path] = set()


def write_durably(
    path: Path, data: bytes, *, private: bool = False, make_folder: bool = True
) -> None:
    """Replace a file. When this returns, it survives a crash of process and machine.

    The data is written under another name in the same folder, forced to the disk, and
    renamed, so a reader finds the old file or the new one, and so does whoever comes after
    a crash. Several processes may write the same file: the last one wins.

    private: nobody but the owner can read the file, at no moment. make_folder: a folder that
    does not exist is made; if not, its absence is an error.

    Raises OSError, for example if the disk is full; the old file is then still there. It is
    the first error: what fails in tidying up after it is not told.
    """
    with replacing(path, private=private, make_folder=make_folder) as write:
        write(data)


@contextmanager
def replacing(
    path: Path, *, private: bool = False, make_folder: bool = True
) -> Iterator[Callable[[bytes | memoryview], None]]:
    """Replace a file as `write_durably` does, by what is handed to a function piece by piece.

    If anything is raised meanwhile, the old file stays as it is.
    """
    if make_folder:
        path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name[:40]}.{secrets.token_hex(8)}.tmp")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    handle = os.open(temporary, flags, 0o600 if private else 0o666)
    try:
        file = os.fdopen(handle, "wb", buffering=0)

        def write(data: bytes | memoryview) -> None:
            rest = memoryview(data)
            while rest:
                rest = rest[file.write(rest) :]

        try:
            yield write
            sync(file)
            now = os.fstat(handle).st_mtime
        finally:
            with suppress(OSError):  # the data are on the disk, or an error is under way
                file.close()
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)  # the rename itself must reach the disk
    _remove_orphans(path.parent, now)


def read_toml(path: Path, remedy: str) -> dict[str, Any]:
    """A TOML file. Raises ConfigError with the file, what is wrong with it, and the remedy."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; {remedy}") from None
    except ValueError as error:  # neither UTF-8 nor TOML
        raise ConfigError(f"{path}: not readable as TOML: {error}; {remedy}") from None


def flat(config: Mapping[str, Any], where: object, above: str = "") -> dict[str, Any]:
    """A nested run config with dots in its keys, as Flower hands it to apps.

    Raises ConfigError, which says where, for a value that is neither text nor number nor boolean.
    """
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            found |= flat(value, where, f"{above}{key}.")
        elif isinstance(value, bool | int | float | str):
            found[f"{above}{key}"] = value
        else:
            raise ConfigError(
                f"{where}: '{above}{key}' must be a text, a number or a boolean, got {value!r}"
            )
    return found


def sync(file: IO[Any]) -> None:
    """Force to the disk what was written to an open file. Raises OSError."""
    file.flush()
    force = getattr(os, "fdatasync", os.fsync)  # without the times, where that is offered
    force(file.fileno())


def make_folder(folder: Path, *, mode: int = 0o777, parents: bool = True) -> None:
    """Make a folder, if it is not there, so that it survives a crash of the machine.

    mode: of the folder itself. parents: folders above it are made, too. Raises OSError.
    """
    if folder.is_dir():
        return
    if parents:
        make_folder(folder.parent)
    folder.mkdir(mode=mode, exist_ok=True)
    sync_folder(folder.parent)


def remedy_of(error: OSError) -> str:
    """What a user does about what the system refused; empty where there is nothing to say."""
    return _REMEDIES.get(error.errno or 0, "")


def with_remedy(text: str, error: OSError) -> str:
    """A text about what the system refused, and the remedy behind it if there is one."""
    remedy = remedy_of(error)
    return f"{text}. Remedy: {remedy}" if remedy else text


def remove_temporaries(folder: Path) -> None:
    """Remove what killed processes left in a folder in which nobody else writes.

    Raises OSError if the folder cannot be read.
    """
    for path in folder.iterdir():
        if _TEMPORARY.fullmatch(path.name):
            with suppress(OSError):  # it is in nobody's way but the disk's
                path.unlink()


def sync_folder(folder: Path) -> None:
    """Force a folder's entries to the disk, where system and file system can do that."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except PermissionError:  # Windows opens no folders
        return
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _CANNOT:
            raise
    finally:
        os.close(handle)


def _remove_orphans(folder: Path, now: float) -> None:
    """Remove what a process left that was killed while it wrote, once for each folder.

    now: time by the file system's own clock.
    """
    folder = folder.absolute()
    if folder in _cleaned:
        return
    _cleaned.add(folder)
    # Whatever fails here, the write itself is done.
    with suppress(OSError):
        for path in folder.iterdir():
            if _TEMPORARY.fullmatch(path.name) and now - path.stat().st_mtime > _ORPHAN_S:
                path.unlink()
