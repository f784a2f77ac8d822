"""What a run's numbers depend on beside its settings: code, and versions of libraries."""

from __future__ import annotations

import hashlib
import inspect
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Any

import flower_dhb

__all__ = ["digest_of_code", "digest_of_rule", "digest_of_runtime", "versions"]

_OWN = Path(flower_dhb.__file__).parent
# What computes the numbers of every run; rules and problems have digests of their own.
_RUNTIME = (
    *("agent/mixing.py", "algorithms/base.py", "algorithms/measurement.py", "compare/runs.py"),
    *("engine/*.py", "problems/optimizers.py", "problems/splits.py"),
)


def versions() -> dict[str, str]:
    """Versions of the libraries that numbers depend on."""
    return {name: _version(name) for name in ("flower-dhb", "numpy", "torch")}


@cache
def digest_of_runtime() -> str:
    """Digest of what computes: versions of libraries, and the sources of the engine."""
    found = hashlib.sha256(repr(versions()).encode())
    for pattern in _RUNTIME:
        for path in sorted(_OWN.glob(pattern)):
            found.update(f"{path.name}\0".encode() + _source(path))
    return found.hexdigest()[:16]


def digest_of_rule(rule: Any) -> str:
    """Digest of the sources of a rule's class and of all that it derives from."""
    kind: Any = type(rule)
    return _digest_of_class(kind)


@cache
def _digest_of_class(kind: Any) -> str:
    return digest_of_code(*kind.__mro__)


def digest_of_code(*things: Any) -> str:
    """Digest of the modules that define functions, classes or objects, and of what those use.

    Followed are the modules that a module names and that lie in the same folder tree as it, so
    a project's own helpers count. Libraries, which have versions, and this package's engine
    (`digest_of_runtime`) do not. What has no file, such as a line typed at a prompt, is taken
    by its source text where Python has it.
    """
    files: dict[Path, None] = {}
    loose = []
    for thing in things:
        module = _module_of(thing)
        path = None if module is None else _file_of(module)
        if module is not None and path is not None:
            _follow(module, _root(module, path), files)
        elif module is None or module.__name__ == "__main__":
            loose.append(_text_of(thing))
    found = hashlib.sha256("\0".join(loose).encode())
    for source in sorted(hashlib.sha256(_source(path)).hexdigest() for path in files):
        found.update(source.encode())
    return found.hexdigest()[:16]


def _follow(module: ModuleType, root: Path, files: dict[Path, None]) -> None:
    """Add a module's file, and those of the modules that its names come from, below `root`."""
    path = _file_of(module)
    if path is None or path in files or not path.is_relative_to(root):
        return
    if path.is_relative_to(_OWN) and root != path.parent:
        return
    files[path] = None
    for value in list(vars(module).values()):
        other = value if isinstance(value, ModuleType) else _module_of(value)
        if other is not None and other is not module:
            _follow(other, root, files)


def _root(module: ModuleType, path: Path) -> Path:
    """The folder in which a project's helpers are looked for: that of its top package."""
    if path.is_relative_to(_OWN):
        return path.parent  # a rule of this package: its own folder, `algorithms`
    above = module.__name__.count(".") + (path.name == "__init__.py")
    return path.parents[min(above, len(path.parents) - 1)]


def _module_of(thing: Any) -> ModuleType | None:
    name = getattr(thing, "__module__", None)
    if not isinstance(name, str):
        name = type(thing).__module__
    return sys.modules.get(name)


def _file_of(module: ModuleType) -> Path | None:
    """A module's own source; None for what an installed library or Python itself has."""
    file = getattr(module, "__file__", None)
    if not isinstance(file, str) or not file.endswith(".py"):
        return None
    path = Path(file).resolve()
    library = {"site-packages", "dist-packages"} & set(path.parts)
    standard = path.is_relative_to(Path(inspect.__file__).resolve().parent)
    return None if (library and not path.is_relative_to(_OWN)) or standard else path


def _text_of(thing: Any) -> str:
    try:
        return inspect.getsource(thing)
    except (OSError, TypeError):
        return getattr(thing, "__qualname__", type(thing).__qualname__)


def _source(path: Path) -> bytes:
    try:
        return path.read_bytes().replace(b"\r\n", b"\n")
    except OSError:  # a module of an archive
        return str(path).encode()


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "unknown"
