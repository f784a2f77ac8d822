"""Faults that are injected into a deployment while a run goes on, each by one call.

The same are tested and measured: `python -m benchmarks.deployment_faults` makes a table of them.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path

from deploy.local import Deployment
from tests.support.waiting import wait_for

__all__ = ["AWAY_S", "FAULTS", "Fault"]

AWAY_S = 60.0
_LONG_S = 600.0

# Injects a fault at a vertex; the folder is that of the app's `trouble`.
Fault = Callable[[Deployment, Path, int], None]


def node_with_its_key(deployment: Deployment, trouble: Path, vertex: int) -> None:
    """A SuperNode is killed and started again at once."""
    deployment.kill_node(vertex)
    deployment.start_node(vertex)


def node_with_a_new_key(deployment: Deployment, trouble: Path, vertex: int) -> None:
    """A SuperNode is killed, and another one takes its place at once: a new id for Flower."""
    deployment.kill_node(vertex)
    deployment.start_node(vertex, key=f"-{time.time_ns()}")


def node_with_its_key_later(deployment: Deployment, trouble: Path, vertex: int) -> None:
    """A SuperNode is killed and started again after a minute."""
    deployment.kill_node(vertex)
    time.sleep(AWAY_S)
    deployment.start_node(vertex)


def node_with_a_new_key_later(deployment: Deployment, trouble: Path, vertex: int) -> None:
    """A SuperNode is killed, and another one takes its place after a minute."""
    deployment.kill_node(vertex)
    time.sleep(AWAY_S)
    deployment.start_node(vertex, key=f"-{time.time_ns()}")


def client_app_killed(deployment: Deployment, trouble: Path, vertex: int) -> None:
    """The process of a ClientApp is killed while it trains."""
    _strike(deployment, trouble, vertex, signal.SIGKILL)


def client_app_terminated(deployment: Deployment, trouble: Path, vertex: int) -> None:
    """The process of a ClientApp is asked to end while it trains, as a service manager does."""
    _strike(deployment, trouble, vertex, signal.SIGTERM)


def superlink_restarted(deployment: Deployment, trouble: Path, vertex: int) -> None:
    """The SuperLink is killed and started again on its database."""
    deployment.stop_link()
    deployment.start_link()


FAULTS: dict[str, Fault] = {
    "SuperNode killed, back at once": node_with_its_key,
    "SuperNode killed, back at once with a new key": node_with_a_new_key,
    "SuperNode killed, back after a minute": node_with_its_key_later,
    "SuperNode killed, back after a minute with a new key": node_with_a_new_key_later,
    "ClientApp killed": client_app_killed,
    "ClientApp terminated": client_app_terminated,
    "SuperLink killed, back at once": superlink_restarted,
}


def _strike(deployment: Deployment, trouble: Path, vertex: int, how: signal.Signals) -> None:
    """Send a signal to a ClientApp that trains, and trains for long until then."""
    slow, trains = trouble / f"slow-{vertex}", trouble / f"trains-{vertex}"
    usual = slow.read_text() if slow.exists() else "0"
    slow.write_text(str(_LONG_S))
    wait_for(trains.exists, f"vertex {vertex} to train", seconds=240.0)
    for process in deployment.app_of(vertex):
        process.send_signal(how)
    trains.unlink()
    slow.write_text(usual)
