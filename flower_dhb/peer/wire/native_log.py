"""gRPC's C library writes its log to standard error; here it becomes events like all others.

That is where a refused handshake is told: TLS turns strangers away before any of our
code runs. The library names the reason, not the stranger: a certificate that is not
trusted names nobody.

A library that is about to end the process says why, and then nobody reads it any more. So a
line stays where it was written until it has been told, and a guard (a shell that sleeps)
carries what is left to the real standard error when the process is gone.
"""

from __future__ import annotations

import faulthandler
import os
import re
import socket
import subprocess  # nosec B404
import sys
import threading
import time
from contextlib import suppress

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
_READ_BYTES = 65536
_PAUSE_S = 0.1  # for the end of a line
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

    Python's own standard error is left as it was; a crash is told there, with the place in the
    Python code.
    """
    original = os.dup(2)
    reader, writer = socket.socketpair()
    sys.stderr.flush()
    sys.stderr = os.fdopen(original, "w", buffering=1, encoding="utf-8", errors="replace")
    faulthandler.enable(sys.stderr)
    os.dup2(writer.fileno(), 2)
    writer.close()
    _guard(reader, original)
    threading.Thread(target=_read, args=(reader, monitor), name="native-log", daemon=True).start()


def _guard(reader: socket.socket, original: int) -> None:
    """Start what tells the last words. Where there is no shell they are lost, as anything is."""
    held, lifeline = os.pipe()  # the other end of `held` closes when this process is gone
    with suppress(OSError):
        guard = subprocess.Popen(  # noqa: S603  # nosec B603
            ["/bin/sh", "-c", _LAST_WORDS], stdin=held, stdout=reader.fileno(), stderr=original
        )
        _GUARDS.append((guard, lifeline))
    os.close(held)


# Whatever ends the process and its group must let the guard speak first.
_LAST_WORDS = "trap '' INT TERM HUP QUIT; read -r _; exec cat <&1 >&2"
_GUARDS: list[tuple[subprocess.Popen[bytes], int]] = []


def _read(reader: socket.socket, monitor: Monitor) -> None:
    """Tell line by line. A line is taken away after it has been told, for the guard's sake."""
    with reader:
        seen = b""
        while data := reader.recv(_READ_BYTES, socket.MSG_PEEK):
            size = data.rfind(b"\n") + 1
            if not size:  # the rest of the line is to come, unless it does not
                if data != seen and len(data) < _READ_BYTES:
                    seen = data
                    time.sleep(_PAUSE_S)
                    continue
                size = len(data)
            for line in data[:size].decode(errors="replace").splitlines():
                _tell(line.strip(), monitor)
            while size:
                size -= len(reader.recv(size))


def _tell(text: str, monitor: Monitor) -> None:
    reason = handshake_reason(text)
    if reason is not None:
        monitor.count("turned-away.handshake")
        monitor.warning("turned-away", reason="handshake", why=reason)
    elif text and not _CHATTER.match(text):
        monitor.event("native", why=text[:500])
