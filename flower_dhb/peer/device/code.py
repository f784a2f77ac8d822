"""Digests of the app's code: neighbors notice other versions of it, an operator allows some."""

from __future__ import annotations

import hashlib
import os
import sys
from functools import cache
from pathlib import Path

import xxhash

from flower_dhb.errors import ConfigError

__all__ = ["digest_of_code", "digest_of_folder"]

_IMPORTABLE = (".py", ".pyc", ".pyd", ".so")


def digest_of_code(directory: Path) -> str:
    """Digest of the Python modules in an app's directory that this process has loaded.

    Modules are told by their names and sources; line ends do not count, nor where the directory
    lies. Left out are installed packages, should they lie in it, and this package, whose version
    the protocol compares by itself.
    """
    root = directory.resolve()
    digest = xxhash.xxh3_64()

    @cache  # a process has thousands of modules in few folders
    def is_of_app(folder: str) -> bool:
        path = Path(os.path.realpath(folder))
        return path.is_relative_to(root) and "site-packages" not in path.parts

    for name, module in sorted(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if not isinstance(file, str) or name.partition(".")[0] == "flower_dhb":
            continue
        if not is_of_app(os.path.dirname(file)):
            continue
        try:
            source = Path(file).read_bytes()
        except OSError:  # a module of an archive, or one that is gone
            continue
        digest.update(f"{name}\0".encode() + source.replace(b"\r\n", b"\n") + b"\0")
    return digest.hexdigest()


def digest_of_folder(directory: Path) -> str:
    """SHA-256 digest of all that can be imported from an app's directory, loaded or not.

    Files are told by their paths and contents; hidden folders and `__pycache__` are left out.
    Raises ConfigError if a folder in it is a link, behind which other code may come to lie.
    """
    root = directory.resolve()
    digest = hashlib.sha256()
    for folder, below, files in os.walk(root):
        below[:] = sorted(b for b in below if not b.startswith(".") and b != "__pycache__")
        for name in below:
            if Path(folder, name).is_symlink():
                raise ConfigError(
                    f"{Path(folder, name)} is a link to a folder: put the folder itself there, "
                    "since the policy's digest is of the files in the app's directory"
                )
        for name in sorted(files):
            if not name.endswith(_IMPORTABLE):
                continue
            path = Path(folder, name)
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            digest.update(f"{path.relative_to(root).as_posix()}\0{content}\n".encode())
    return digest.hexdigest()
