"""What is named by where it is: `package.module:name`."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import Any

from flower_dhb.errors import ConfigError, unknown

__all__ = ["imported"]


def imported(reference: str, what: str) -> Any:
    """The object of a module that `package.module:name` means.

    Modules are looked for where Python looks, and in the current folder. what: what it is for,
    for messages. Raises ConfigError that says which part is not there, and ConfigError with the
    module's own words if it cannot be imported.
    """
    module_name, _, name = reference.partition(":")
    if not all(part.isidentifier() for part in [*module_name.split("."), name]):
        raise ConfigError(f"{what} '{reference}' is not of the form package.module:name")
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = import_module(module_name)
    except ModuleNotFoundError as error:
        if not f"{module_name}.".startswith(f"{error.name}."):
            raise  # the module is there; a library that it needs is not
        raise ConfigError(
            f"{what} '{reference}': there is no module '{error.name}'; it is looked for in "
            f"{os.getcwd()} and where Python finds its libraries"
        ) from None
    except Exception as error:
        raise ConfigError(
            f"{what} '{reference}': importing '{module_name}' failed: "
            f"{type(error).__name__}: {error}"
        ) from error
    if not hasattr(module, name):
        names = [n for n in vars(module) if not n.startswith("_")]
        raise ConfigError(f"{what} '{reference}': {unknown(f'name in {module_name}', name, names)}")
    return getattr(module, name)
