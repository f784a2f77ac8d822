"""A digest of the app's code, so that neighbors notice when they run different versions of it."""

from __future__ import annotations

import os
import sys
from functools import cache
from pathlib import Path

import xxhash

__all__ = ["digest_of_code"]


def digest_of_code(directory: Path) -> str:
    """Digest of the Python modules in an app's directory that this process has loaded.

    Modules are told by their names and sources; line ends do not count, nor where the directory
    lies. Left out are installed packages, should they lie in it, and this package, whose version
    the protocol compares by itself.
    """
    root = directory.resolve()
    digest = xxhash.xxh3_64()
    folder_of = cache(os.path.realpath)  # a process has thousands of modules in few folders
    for name, module in sorted(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if not isinstance(file, str) or name.partition(".")[0] == "flower_dhb":
            continue
        folder, last = os.path.split(file)
        path = Path(folder_of(folder), last)
        if not path.is_relative_to(root) or "site-packages" in path.parts:
            continue
        try:
            source = path.read_bytes()
        except OSError:  # a module of an archive, or one that is gone
            continue
        digest.update(f"{name}\0".encode() + source.replace(b"\r\n", b"\n") + b"\0")
    return digest.hexdigest()
