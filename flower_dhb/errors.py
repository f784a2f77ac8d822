"""The error tree: every error that this package raises on purpose.

Each message says who, when, what was found, what was expected, and the remedy.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

__all__ = [
    "ConfigError",
    "DamageError",
    "EstimateError",
    "FlowerDhbError",
    "GraphError",
    "NotNowError",
    "PayloadError",
    "RoundError",
    "StateError",
    "lacking",
    "unknown",
]


class FlowerDhbError(Exception):
    """Base of all errors of this package."""


class ConfigError(FlowerDhbError, ValueError):
    """A setting is not allowed, or two settings do not go together."""


class GraphError(ConfigError):
    """A communication graph or a mixing matrix is not usable."""


class PayloadError(FlowerDhbError, ValueError):
    """Arrays or bytes are not what an agent may share or accept."""


class EstimateError(PayloadError):
    """A payload is a change of one that this agent does not hold; sent whole it can be used."""


class StateError(FlowerDhbError):
    """An agent's stored state is absent, damaged, or of another round."""


class DamageError(StateError):
    """There is a stored state, and no file of it can be used."""


class NotNowError(FlowerDhbError):
    """The machine cannot do it at this moment; the same may succeed later, with nothing changed."""


class RoundError(FlowerDhbError, RuntimeError):
    """A round cannot be started or finished."""


def unknown(what: str, name: object, known: Iterable[str]) -> str:
    """Message for a name that is none of the known ones, with the nearest match."""
    names = list(known)
    close = get_close_matches(str(name), names, n=1)
    hint = f", did you mean '{close[0]}'?" if close else "."
    return f"unknown {what} '{name}'{hint} Known: {', '.join(names)}"


def lacking(error: BaseException) -> str | None:
    """What the system has no more of, with the remedy; None if the error is of another kind."""
    limits = "ulimit -v, MemoryMax"
    if isinstance(error, MemoryError):
        what = str(error) or "an allocation failed"
        return (
            f"memory ran out ({what}): give this process more ({limits}), or take a smaller model"
        )
    if isinstance(error, RuntimeError) and "can't start new thread" in str(error):
        return (
            "the system gives this process no more threads: raise the limit of their number "
            f"(ulimit -u, TasksMax), or that of its memory ({limits})"
        )
    return None
