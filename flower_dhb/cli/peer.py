"""`flower-dhb peer`: take part in a mesh, on one device."""

from __future__ import annotations

import argparse
import gc
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TextIO, cast

from flower_dhb.peer.device.ending import Ending, ending_of

if TYPE_CHECKING:
    from flower_dhb.peer.device.daemon import Result

__all__ = ["configure", "execute", "status_of"]

status_of = ending_of


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("settings", type=Path, help="the device's peer.toml")
    parser.add_argument("--log", choices=("text", "json"), help="form of the log lines")
    parser.add_argument(
        "--log-file",
        type=Path,
        help="keep the log lines in this file, too, so that 'mesh fetch' can fetch them; beyond "
        "10 MiB it becomes FILE.1",
    )
    parser.add_argument("--state-dir", type=Path, help="where state and history are kept")
    parser.add_argument("--metrics-port", type=int, help="loopback port for Prometheus")
    parser.add_argument(
        "--with-parent", type=int, metavar="PID", help="stop when this process, its parent, is gone"
    )


@contextmanager
def _no_collecting() -> Iterator[None]:
    """Imports make many objects and no garbage; looking for it takes a tenth of their time."""
    collected = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collected:
            gc.enable()


def execute(arguments: argparse.Namespace) -> int:
    """Run until the last round is over, or SIGINT or SIGTERM. Returns one of `Ending`."""
    with _no_collecting():
        from flower_dhb.peer.monitor import Monitor, set_up_logging
        from flower_dhb.peer.wire.native_log import capture_native_log, let_native_log_speak

        let_native_log_speak()
        from flower_dhb.peer.device.home import Home
        from flower_dhb.peer.device.log_file import LogFile
        from flower_dhb.peer.device.settings import PeerSettings

    settings = PeerSettings.load(arguments.settings)
    if arguments.metrics_port is not None:
        settings = replace(settings, metrics_port=arguments.metrics_port)
    if arguments.state_dir is not None:
        settings = replace(settings, state_dir=arguments.state_dir)
    if arguments.log_file is not None:
        settings = replace(settings, log_file=arguments.log_file)
    monitor = Monitor(settings.vertex, settings.names)
    capture_native_log(monitor)
    # Flower adds a log handler of its own on import, so ours comes after.
    with _no_collecting():
        from flower_dhb.peer.device.daemon import Peer

    log = (
        None if settings.log_file is None else cast(TextIO, LogFile(settings.log_file, sys.stderr))
    )
    set_up_logging(arguments.log or settings.log, log)
    begun, peer, result, trouble = time.monotonic(), None, None, None
    try:
        with Home(settings.state_dir) as home:
            peer = Peer(settings, monitor, home)
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, lambda *_: peer.stop())
            if arguments.with_parent is not None:
                watch = threading.Thread(target=_stop_with, args=(arguments.with_parent, peer.stop))
                watch.daemon = True
                watch.start()
            result = peer.run()
    except BaseException as error:
        trouble = error
        raise
    finally:
        ending = _ending(result, trouble)
        monitor.event(
            "ends",
            logging.INFO if ending in (Ending.FINISHED, Ending.STOPPED) else logging.WARNING,
            how="removed" if result and result.removed else ending.name.lower(),
            status=int(ending),
            round=None if peer is None else peer.agent.closed,
            rounds=settings.rounds if peer is None else peer.agent.rounds,
            model=str(settings.state_dir / "model.safetensors") if result and result.done else None,
            duration_s=round(time.monotonic() - begun, 1),
            why=None if trouble is None else f"{type(trouble).__name__}: {trouble}",
        )
    return ending


def _ending(result: Result | None, trouble: BaseException | None) -> Ending:
    if trouble is not None or result is None:
        return ending_of(trouble or KeyboardInterrupt())
    if not result.done:
        return Ending.STOPPED
    alone = result.alone_since is not None and not result.removed
    return Ending.ALONE if alone else Ending.FINISHED


def _stop_with(parent: int, stop: Callable[[], None]) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    stop()
