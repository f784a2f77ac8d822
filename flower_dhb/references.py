"""What `package.module:Name` means, and who may have it imported.

Whoever runs a process may name any module: in a run config, in `peer.toml`, on the command line.
A message may not. Importing a module runs it, so an agent that a message tells of a rule takes
it only from what its app has brought anyway (`docs/decisions/0027`).
"""

from __future__ import annotations

import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from flower_dhb.errors import ConfigError

__all__ = ["can_be_imported", "folder_here", "imported", "is_reference", "taken_from_the_app"]


def is_reference(text: str) -> bool:
    """Whether a text has the form `module:Name` or `package.module:Name`."""
    module, colon, name = text.partition(":")
    return bool(colon) and all(part.isidentifier() for part in (*module.split("."), name))


def imported(reference: str, folder: str | None = None) -> Any:
    """What `module:Name` means to whoever runs this process.

    folder: of the app, whose modules come first. Without one, modules of the current directory
    are found as well, after all that are installed. Raises ConfigError that says what is missing.
    """
    module, _, name = reference.partition(":")
    place = folder or "the current directory"
    with _findable(folder):
        try:
            found = import_module(module)
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"'{reference}': there is no module '{error.name}' in {place}, nor is it installed"
            ) from error
        except Exception as error:
            raise ConfigError(
                f"'{reference}': module '{module}' cannot be imported: "
                f"{type(error).__name__}: {error}"
            ) from error
    return _member(reference, found, name)


def taken_from_the_app(reference: str) -> Any:
    """What `module:Name` means if a message says it: only what this process's app has brought.

    That is a module that is loaded, one of a package that is loaded, or one that lies where
    packages are not installed, as an app's own modules do; of Python's own library, nothing. Raises
    ConfigError for all others.
    """
    module = reference.partition(":")[0]
    if module not in sys.modules and not _is_the_apps(module.partition(".")[0]):
        raise ConfigError(
            f"'{reference}': a message names it, but this agent's app has no module '{module}', "
            "and an agent imports no other because a message says so. Import it in the "
            "ClientApp's module, if the rule is to be used"
        )
    return imported(reference)


def can_be_imported(kind: type) -> bool:
    """Whether another process finds this very class by its module and name."""
    found = sys.modules.get(kind.__module__)
    return kind.__module__ != "__main__" and getattr(found, kind.__qualname__, None) is kind


def folder_here(path: object) -> str | None:
    """The path of a folder if it is on this machine, else None."""
    return str(path) if path is not None and Path(str(path)).is_dir() else None


def _is_the_apps(package: str) -> bool:
    if package in sys.stdlib_module_names:
        return False
    if package in sys.modules:
        return True
    try:
        spec = find_spec(package)
    except (ImportError, ValueError):
        return False
    places = [spec.origin, *(spec.submodule_search_locations or ())] if spec else []
    paths = [Path(place).resolve() for place in places if place]
    installed = {Path(path).resolve() for path in sysconfig.get_paths().values()}
    return bool(paths) and not any(installed & {*path.parents} for path in paths)


def _member(reference: str, module: Any, name: str) -> Any:
    try:
        return getattr(module, name)
    except AttributeError:
        raise ConfigError(f"'{reference}': module '{module.__name__}' has no '{name}'") from None


@contextmanager
def _findable(folder: str | None) -> Iterator[None]:
    """Have modules found in the app's folder, or in the current directory after all others.

    The folder stays: modules import others later, and so do processes that unpickle.
    """
    if folder is not None:
        path = str(Path(folder).resolve())
        if path not in sys.path:
            sys.path.insert(0, path)
    elif not {"", str(Path.cwd())} & {*sys.path}:
        sys.path.append(str(Path.cwd()))
    yield
