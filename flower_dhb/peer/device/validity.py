"""Certificates and time: open connections are judged every hour, and the end is told in advance."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from flower_dhb.peer.monitor import Monitor
from flower_dhb.peer.wire.identity import OPERATOR
from flower_dhb.peer.wire.tls import TlsFiles

__all__ = ["WARN_DAYS", "Validity"]

WARN_DAYS = 30
_JUDGE_S = 3600.0
_DAY_S = 86400.0


class Validity:
    """Looks every hour. judge: ends connections whose other end is not believed any more."""

    def __init__(self, tls: TlsFiles, monitor: Monitor, judge: Callable[[], None]) -> None:
        self._tls, self._monitor, self._judge = tls, monitor, judge
        self._told_at: float | None = None
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="validity", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def stop(self) -> None:
        """Look no more."""
        self._ending.set()
        if self._thread.is_alive():
            self._thread.join()

    def look(self, now: float) -> None:
        """Judge the connections, and warn of an end within 30 days, once a day.

        now: monotonic seconds.
        """
        self._judge()
        # An hour less than a day: looks are an hour apart and a little more.
        if self._told_at is not None and now < self._told_at + _DAY_S - _JUDGE_S / 2:
            return
        standing = self._tls.standing()
        if standing is None or standing.days_left > WARN_DAYS:
            self._told_at = None
            return
        self._told_at = now
        if standing.certificate_days <= standing.authority_days:
            what, ends, days = "certificate", standing.ends, standing.certificate_days
            vertex = self._tls.identity.vertex
            who = "operator" if vertex == OPERATOR else f"vertex {vertex}"
            remedy = f"--{who}' and copy the files over the old ones"
        else:
            what, days = "authority", standing.authority_days
            ends = standing.authority_ends or standing.now
            remedy = "--authority', which takes two steps"
        self._monitor.warning(
            "certificate-ends",
            what=what,
            days_left=int(days // 1),
            ends=f"{ends:%Y-%m-%d %H:%M} UTC",
            what_now=f"renew it with 'flower-dhb mesh renew MESH {remedy}; there is no restart",
        )

    def _run(self) -> None:
        while True:
            self.look(time.monotonic())
            if self._ending.wait(_JUDGE_S):
                return
