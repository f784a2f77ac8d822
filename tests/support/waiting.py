"""Waiting in tests for what another thread does."""

import time


def wait_for(holds, what="it", seconds=10.0):
    """Until `holds()`; an AssertionError that names `what` if that takes longer."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, f"waited {seconds:g} s for {what}"
        time.sleep(0.002)
