"""What a peer waits for, said once a minute as long as it does: a silent log tells nothing."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from flower_dhb.peer.monitor import Monitor
from flower_dhb.peer.protocol.agent import Agent, Phase
from flower_dhb.peer.protocol.edge import Edge

__all__ = ["Vigil", "Wait", "wait_of"]


@dataclass(frozen=True)
class Wait:
    """Something that takes its time.

    what: in words. key: the same as long as it is the same wait. neighbors: for whom. why: as
    far as known, one reason each.
    """

    what: str
    key: tuple[Any, ...]
    neighbors: tuple[int, ...] = ()
    why: str = ""


def wait_of(agent: Agent, now: float, monitor: Monitor) -> Wait:
    """What an agent waits for at this moment."""
    edges, near = agent.edges, agent.near
    phase, k = agent.phase, max(agent.round, agent.closed + 1)
    match phase:
        case Phase.CONNECTING:
            waited = [e for e in edges.values() if not e.up]
            what = "waits to begin, for neighbors that are not connected,"
        case Phase.JOINING:
            waited = [e for e in edges.values() if e.newest() is None]
            what = "waits to join its neighbors, whose payloads it begins from,"
        case Phase.WAITING:
            waited = [e for e in edges.values() if near.wait_s(e, now) > 0.0]
            what = f"waits in round {k} for neighbors' payloads"
            if not waited:
                waited = [e for e in edges.values() if not e.up]
                what = f"keeps its usual pace after round {agent.closed}, with no neighbor's part,"
        case Phase.REJOINING:
            waited = [e for e in edges.values() if e.sought]
            what = f"waits for a neighbor's model, since its own of round {agent.closed} is too old"
        case Phase.LINGERING:
            waited = [e for e in edges.values() if not e.done]
            what = "has finished, and stays for neighbors that have not,"
        case Phase.STOPPING:
            waited = near.half_agreed()
            what = f"ends, once it is known which payloads count in round {k},"
        case Phase.TRAINING:
            waited, what = [], f"is in the app, which trains round {k},"
        case Phase.COMBINING:
            waited, what = [], f"is in the app, which combines or evaluates round {agent.closed},"
        case _:
            waited, what = [], f"waits for its disk in round {k}"
            trouble = monitor.trouble(None)
            return Wait(what, (phase, k), why=trouble.text if trouble is not None else "")
    why = "; ".join(_why(edge, monitor) for edge in waited)
    return Wait(what, (phase, k), tuple(e.neighbor for e in waited), why)


def _why(edge: Edge, monitor: Monitor) -> str:
    """Why a neighbor is waited for, as far as this device knows."""
    if not edge.up:
        trouble = monitor.trouble(edge.neighbor)
        return trouble.text if trouble is not None else f"{edge.neighbor} has not connected"
    if edge.receiving_since is not None and edge.total:
        return f"of {edge.neighbor}'s payload {edge.arrived:,} of {edge.total:,} bytes are here"
    return f"{edge.neighbor} is connected, and in round {edge.wants}"


class Vigil:
    """Looks every few seconds, and writes a line for each minute of the same wait.

    look: what is waited for now, None if nothing can be.
    """

    def __init__(
        self,
        look: Callable[[], Wait | None],
        monitor: Monitor,
        *,
        every_s: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._look, self._monitor, self._every_s, self._clock = look, monitor, every_s, clock
        self._key: tuple[Any, ...] | None = None
        self._since = self._told = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="vigil", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def stop(self) -> None:
        """Look no more."""
        self._over.set()

    def look(self) -> None:
        """Look once, and write a line if one is due."""
        wait, now = self._look(), self._clock()
        if wait is None or wait.key != self._key:
            self._key = None if wait is None else wait.key
            self._since = self._told = now
        elif now - self._told >= self._every_s:
            self._told = now
            self._monitor.event("waits", **self._fields(wait, now - self._since))

    def _fields(self, wait: Wait, since_s: float) -> Mapping[str, Any]:
        fields: dict[str, Any] = {"what": wait.what, "since_s": round(since_s)}
        if wait.neighbors:
            fields["neighbors"] = list(wait.neighbors)
        if wait.why:
            fields["why"] = wait.why
        return fields

    def _run(self) -> None:
        while not self._over.wait(self._every_s / 20.0):
            self.look()
