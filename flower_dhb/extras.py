"""Libraries that only an optional extra of this package installs, and what to say without them."""

from __future__ import annotations

from importlib.util import find_spec

from flower_dhb.errors import ConfigError

__all__ = ["installed", "needs_extra"]


def needs_extra(what: str, extra: str) -> ConfigError:
    """Error for something that needs an extra, with the command that installs it."""
    return ConfigError(f"{what} needs the '{extra}' extra: pip install 'flower-dhb[{extra}]'")


def installed(*libraries: str) -> bool:
    """Whether all of some libraries can be imported; none of them is loaded."""
    try:
        return all(find_spec(library) is not None for library in libraries)
    except (ImportError, ValueError):
        return False
