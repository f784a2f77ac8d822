"""An agent of the protocol whose app and disk do at once what it asks; its connections are real."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

from flower_dhb.peer.monitor import Monitor
from flower_dhb.peer.protocol import effects as do
from flower_dhb.peer.protocol import events as ev
from flower_dhb.peer.protocol.agent import Agent
from flower_dhb.peer.protocol.edition import Edition
from flower_dhb.peer.protocol.settings import Config, Timing
from flower_dhb.peer.wire.frames import Outgoing, RefusedError
from flower_dhb.peer.wire.words import reason_of

PATIENT = Timing(ceiling_s=60.0, least_s=60.0, reconnect_s=60.0, start_s=60.0)


class Shell:
    """Trains when `train` is called, and then does the rest by itself.

    frame: the own payload of a round. closed: the last round that has ended before it begins.
    used: payloads that counted, by round.
    """

    def __init__(
        self,
        vertex: int,
        neighbors: tuple[int, ...],
        frame: Callable[[int], bytes],
        *,
        rounds: int = 50,
        closed: int = 0,
        timing: Timing = PATIENT,
    ) -> None:
        self.monitor = Monitor(vertex)
        edition = Edition(1, 1, rounds, neighbors)
        self.config = Config(vertex=vertex, editions=(edition,), timing=timing)
        self.agent = Agent(self.config, time.monotonic())
        if closed:
            record: dict[str, Any] = {**self.agent._record(), "closed": closed, "label": closed}
            self.agent = Agent(self.config, time.monotonic(), record=record)
        self.frame = frame
        self.used: dict[int, dict[int, bytes]] = {}
        self.done: Counter[str] = Counter()
        self.to_train: deque[do.Train] = deque()
        self.changed = threading.Condition(threading.RLock())
        self._events: deque[ev.Event] = deque()
        self._handling = False

    def edge(self, j: int) -> Any:
        return self.agent.edges[j]

    def up(self) -> tuple[int, ...]:
        return tuple(j for j, edge in self.agent.edges.items() if edge.up)

    def start(self) -> None:
        self.deliver(ev.Started())

    def train(self) -> None:
        """What the app was asked to train is trained."""
        self.to_train.popleft()
        self.deliver(ev.Trained())

    def deliver(self, event: ev.Event) -> None:
        with self.changed:
            self._events.append(event)
            if self._handling:
                return
            self._handling = True
            while self._events:
                for effect in self.agent.handle(self._events.popleft(), time.monotonic()):
                    self.done[type(effect).__name__] += 1
                    self._do(effect)
            self._handling = False
            self.changed.notify_all()

    def wait(self, holds: Callable[[], bool], seconds: float = 10.0) -> None:
        with self.changed:
            assert self.changed.wait_for(holds, seconds), f"waited {seconds} s"

    def _do(self, effect: do.Effect) -> None:
        match effect:
            case do.Send():
                effect.link.send(effect.message)
            case do.SendPayload():
                effect.link.send_payload(effect.offer, effect.payload)
            case do.Reserve():
                effect.link.reserve(effect.offer)
            case do.Refuse():
                effect.link.refuse(
                    RefusedError(reason_of(effect.reason), effect.text, effect.round)
                )
            case do.Close():
                effect.link.abort() if effect.at_once else effect.link.close(effect.text)
            case do.Count():
                self.monitor.count(effect.name, effect.neighbor)
            case do.Note():
                tell = self.monitor.warning if effect.warning else self.monitor.event
                tell(effect.name, **effect.fields)
            case do.Train():
                self.to_train.append(effect)
            case do.Journal():
                outgoing = Outgoing.of(self.frame(effect.round))
                self._events.append(ev.Journaled(ev.Payload(outgoing.checksum, outgoing)))
            case do.Combine():
                self.used[effect.round] = {j: bytes(p.handle) for j, p in effect.payloads.items()}
                self._events.append(ev.Combined())
            case do.Save():
                self._events.append(ev.Saved(effect.round))


class Silent:
    """A connection to a neighbor that says nothing more than a test says for it."""

    def send(self, message: object) -> None: ...
    def send_payload(self, offer: object, payload: object) -> None: ...
    def reserve(self, offer: object) -> None: ...
    def refuse(self, error: object) -> None: ...
    def close(self, text: str) -> None: ...
    def abort(self) -> None: ...
