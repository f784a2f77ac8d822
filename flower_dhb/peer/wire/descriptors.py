"""How many descriptors there are, and who may have how many of them."""

from __future__ import annotations

from dataclasses import dataclass

from flower_dhb.peer.monitor import Monitor
from flower_dhb.peer.wire.pipes import PIPES

__all__ = ["CONNECTIONS", "OPERATORS", "Room", "needed_for", "raise_limit", "room_for"]

CONNECTIONS = 2  # of one identity: one that lives, and one that dies
_MOST = 8192
_OWN = 64 + 2 * PIPES  # files, threads of gRPC, the app's data; pipes of the gate
OPERATORS = 4  # connections of those who ask for status
_LEFT = 32  # for strangers: with fewer, it is said that there are few
_EACH = 3  # descriptors of a connection: ours, gRPC's, and the one between


@dataclass(frozen=True)
class Room:
    """Connections of unknown origin that a peer has at a time.

    waiting: that have not yet been let through to gRPC, one descriptor each. handshakes: that
    have, and have not yet shown a certificate; three descriptors each.
    """

    waiting: int
    handshakes: int


def raise_limit(most: int = _MOST) -> int:
    """Let this process open as many files as the system allows it. Returns how many that are."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return most
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = most if hard == resource.RLIM_INFINITY else min(most, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        except (OSError, ValueError):  # a system that promises more than it gives
            return soft
        return wanted
    return most if soft == resource.RLIM_INFINITY else soft


def room_for(limit: int, neighbors: int, monitor: Monitor) -> Room:
    """What strangers may take of `limit` descriptors. The peer's own are never among them.

    Says so where neighbors and files alone need more than there are.
    """
    own = needed_for(neighbors)
    left = limit - own
    if left < _LEFT:
        monitor.warning(
            "few-descriptors",
            why=f"{limit} descriptors are few for {neighbors} neighbors, which may need {own}; "
            "raise the hard limit (ulimit -Hn, LimitNOFILE)",
        )
    # A third of what is left stays free.
    return Room(waiting=_within(4, left // 3, 64), handshakes=_within(2, left // 9, 16))


def needed_for(neighbors: int) -> int:
    """Descriptors that a peer may need for its neighbors, its operator and its own files."""
    return _OWN + _EACH * (CONNECTIONS * neighbors + OPERATORS)


def _within(least: int, number: int, most: int) -> int:
    return max(least, min(number, most))
