"""A dashboard that is really served, in a thread of the test."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from flower_dhb.dashboard.server import Server
from flower_dhb.dashboard.sources import Source

__all__ = ["serving"]


@contextmanager
def serving(source: Source) -> Iterator[Server]:
    """Serve it for as long as that lasts."""
    server = Server(source)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        yield server
    finally:
        server.stop()
        thread.join(20)
        assert not thread.is_alive()
