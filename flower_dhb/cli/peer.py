"""`flower-dhb peer`: take part in a mesh, on one device."""

from __future__ import annotations

import argparse
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

__all__ = ["ALONE", "STOPPED", "configure", "execute"]

ALONE = 3  # exit status of a peer that no neighbor had a part in at the end
STOPPED = 130


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("settings", type=Path, help="the device's peer.toml")
    parser.add_argument("--log", choices=("text", "json"), help="form of the log lines")
    parser.add_argument("--state-dir", type=Path, help="where state and history are kept")
    parser.add_argument("--metrics-port", type=int, help="loopback port for Prometheus")
    parser.add_argument(
        "--with-parent", type=int, metavar="PID", help="stop when this process, its parent, is gone"
    )


def execute(arguments: argparse.Namespace) -> int:
    """Run until the last round is over, or SIGINT or SIGTERM.

    Returns 0 if the run is over, 3 if it is and no neighbor had a part in the last rounds, so
    that the model is this device's own, and 130 if it was stopped before.
    """
    from flower_dhb.peer.monitor import Monitor, set_up_logging
    from flower_dhb.peer.wire.native_log import capture_native_log, let_native_log_speak

    let_native_log_speak()
    from flower_dhb.peer.device.settings import PeerSettings

    settings = PeerSettings.load(arguments.settings)
    if arguments.metrics_port is not None:
        settings = replace(settings, metrics_port=arguments.metrics_port)
    if arguments.state_dir is not None:
        settings = replace(settings, state_dir=arguments.state_dir)
    monitor = Monitor(settings.vertex)
    capture_native_log(monitor)
    # Flower adds a log handler of its own on import, so ours comes after.
    from flower_dhb.peer.device.daemon import Peer

    set_up_logging(arguments.log or settings.log)
    peer = Peer(settings, monitor)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: peer.stop())
    if arguments.with_parent is not None:
        watch = threading.Thread(target=_stop_with, args=(arguments.with_parent, peer.stop))
        watch.daemon = True
        watch.start()
    result = peer.run()
    if not result.done:
        return STOPPED
    return 0 if result.alone_since is None else ALONE


def _stop_with(parent: int, stop: Callable[[], None]) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    stop()
