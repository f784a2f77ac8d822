"""How a peer's process ends: its exit statuses, and which error leads to which."""

from __future__ import annotations

from enum import IntEnum

from flower_dhb.errors import ConfigError, DamageError, NotNowError, RoundError, lacking

__all__ = ["FINAL", "Ending", "ending_of"]


class Ending(IntEnum):
    """Exit statuses of `flower-dhb peer`; the table in docs/peers.md says them to the user."""

    FINISHED = 0
    UNFORESEEN = 1
    CONFIGURATION = 2
    STOPPED = 3
    ALONE = 4
    FAILING = 5
    DAMAGED = 6
    AGAIN = 75  # EX_TEMPFAIL of sysexits.h


# After these another start is of no use before somebody has done something.
FINAL = (Ending.CONFIGURATION, Ending.STOPPED, Ending.ALONE, Ending.DAMAGED)


def ending_of(error: BaseException) -> Ending:
    """The exit status for an error that ended a peer."""
    match error:
        case KeyboardInterrupt():
            return Ending.STOPPED
        case ConfigError() | ModuleNotFoundError():
            return Ending.CONFIGURATION
        case DamageError():
            return Ending.DAMAGED
        case RoundError():
            return Ending.FAILING
        case NotNowError() | OSError():
            return Ending.AGAIN
        case _ if lacking(error) is not None:
            return Ending.AGAIN
        case _:
            return Ending.UNFORESEEN
