"""gRPC's C library writes its log to standard error; here it becomes events like all others.

That is where a refused handshake is told: TLS turns strangers away before any of our
code runs. The library names the reason, not the stranger: a certificate that is not
trusted names nobody.
"""

from __future__ import annotations

import os
import re
import sys
import threading

from flower_dhb.peer.monitor import Monitor

__all__ = ["capture_native_log", "handshake_reason", "let_native_log_speak"]

_REASONS = {
    "certificate has expired": "its certificate has expired, or this clock is wrong",
    "certificate is not yet valid": "its certificate is not valid yet, or this clock is wrong",
    "BAD_SIGNATURE": "its certificate is signed by another authority",
    "self signed": "its certificate is self-made",
    "self-signed": "its certificate is self-made",
    "unable to get local issuer": "its certificate is signed by an unknown authority",
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "it showed no certificate",
    "WRONG_VERSION_NUMBER": "it does not speak TLS",
    "HTTP_REQUEST": "it does not speak TLS",
}
# Information that is none, a dialing end's own refusal (which it logs itself), and a remark
# on the log level.
_CHATTER = re.compile(r"I\d{4} |.*No match found for server name|.*Log level INFO")
_CODE = re.compile(r"SSL routines:OPENSSL_internal:([A-Z0-9_]+)")


def handshake_reason(line: str) -> str | None:
    """Why a handshake failed, in words; None if the line tells of no handshake."""
    if "Handshake failed" not in line:
        return None
    for mark, reason in _REASONS.items():
        if mark in line:
            return reason
    code = _CODE.search(line)
    return code.group(1) if code else "the TLS handshake failed"


def let_native_log_speak() -> None:
    """Have the C library tell of refused handshakes; to be called before gRPC is imported.

    Flower asks the library to keep them to itself, also for the processes that it starts.
    """
    if os.environ.get("GRPC_VERBOSITY", "error").lower() in ("error", "none"):
        os.environ["GRPC_VERBOSITY"] = "info"


def capture_native_log(monitor: Monitor) -> None:
    """Read what the C library writes to standard error, for the rest of the process's life.

    Python's own standard error is left as it was.
    """
    original = os.dup(2)
    reader, writer = os.pipe()
    sys.stderr.flush()
    sys.stderr = os.fdopen(original, "w", buffering=1, encoding="utf-8", errors="replace")
    os.dup2(writer, 2)
    os.close(writer)
    threading.Thread(target=_read, args=(reader, monitor), name="native-log", daemon=True).start()


def _read(reader: int, monitor: Monitor) -> None:
    with os.fdopen(reader, encoding="utf-8", errors="replace") as lines:
        for line in lines:
            text = line.strip()
            reason = handshake_reason(text)
            if reason is not None:
                monitor.count("turned-away.handshake")
                monitor.warning("turned-away", reason="handshake", why=reason)
            elif text and not _CHATTER.match(text):
                monitor.event("native", text=text[:500])
