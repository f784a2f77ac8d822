"""Why a connection is not there, from gRPC's words to those of whoever has to mend it."""

from __future__ import annotations

import re

from flower_dhb.peer.wire.native_log import handshake_reason

__all__ = ["cause_of"]

# What gRPC and the system say, and what that means. The first that is found holds.
_CAUSES: tuple[tuple[str, str], ...] = (
    ("Connection refused", "nothing listens there: its peer is not running, or on another port"),
    (
        r"No route to host|Network is unreachable|Host is unreachable|Network is down",
        "no network leads there",
    ),
    (
        r"DNS resolution failed|[Nn]ame or service not known|Could not contact DNS|not resolve|"
        r"Domain name not found",
        "its host name is not known to the network's DNS",
    ),
    (
        r"[Hh]andshake[^:]*timed? ?out|Handshake timeout",
        "something listens there, but does not answer as a peer does",
    ),
    (
        r"[Tt]imed? ?out|[Dd]eadline [Ee]xceeded|FD shutdown|Connect timeout",
        "no answer: the device is off or away, or a firewall drops what is sent to it",
    ),
    (r"Permission denied|Operation not permitted", "this device's firewall forbids it"),
    (r"Too many open files", "this device has too many files open (ulimit -n)"),
    (
        r"Socket closed|Connection reset|Broken pipe|GOAWAY|RST_STREAM|Stream removed|"
        r"[Cc]onnection closed|EOF|End of TCP stream",
        "the other end closed the connection: its peer has ended, or something between cut it",
    ),
    (r"Cancelled|CANCELLED|Channel closed", "this end gave it up"),
)
_ADDRESS = re.compile(r"\b(?:ipv[46]|dns|unix):\S+:\s+")


def cause_of(details: str) -> str:
    """Why a call failed, in words. details: as gRPC has it; what is not known stays as it is.

    Of a text of several parts the last one is the cause: gRPC begins with what it tried.
    """
    if "andshake failed" in details or "SSL_ERROR" in details:
        reason = handshake_reason(f"Handshake failed {details}") or ""
        return f"TLS failed: {reason}"
    for pattern, words in _CAUSES:
        if re.search(pattern, details):
            return words
    _, mark, last = details.rpartition("last error: ")
    return _ADDRESS.sub("", last if mark else details).strip() or "no reason was given"
