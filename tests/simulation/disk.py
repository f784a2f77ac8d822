"""A disk with one writer: what was asked for first is there first, and a crash keeps a prefix."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from flower_dhb.peer.protocol.events import Journaled, Payload, Saved

from .app import State

if TYPE_CHECKING:
    from .process import Process
    from .world import World

__all__ = ["Disk", "Write"]

_REMEMBERED = 8  # writes that an old disk can go back to


class Write:
    """A journal's record (with the own payload), or a state between two rounds."""

    __slots__ = ("closed", "payload", "record", "round", "state", "text")

    def __init__(
        self,
        round: int,
        closed: int,
        record: Mapping[str, Any],
        state: State,
        payload: Payload | None,
        text: str | None,
    ) -> None:
        self.round, self.closed, self.record = round, closed, record
        self.state, self.payload, self.text = state, payload, text


class Disk:
    """The disk of one agent.

    writes: those that are whole, newest last. waiting: those that are not there yet. own: own
    payloads of journals, until they are freed. promised: digests of all journals that were ever
    whole, by round.
    """

    __slots__ = ("busy", "own", "promised", "seconds", "waiting", "world", "writes")

    def __init__(self, world: World, seconds: float) -> None:
        self.world, self.seconds = world, seconds
        self.writes: list[Write] = []
        self.waiting: list[Write] = []
        self.own: dict[int, Payload] = {}
        self.promised: dict[int, set[int]] = {}
        self.busy = False

    def put(self, process: Process, write: Write) -> None:
        """Put a write in line."""
        self.waiting.append(write)
        if not self.busy:
            self._begin(process)

    def _begin(self, process: Process) -> None:
        self.busy = True
        world = self.world
        world.push(world.now + self.seconds * (0.5 + world.random()), self._end, process, None)

    def _end(self, process: Process, _b: object) -> None:
        if not process.alive or process.disk is not self:
            return
        written = [self.waiting.pop(0)]
        if self.world.plan.groups_writes and written[0].payload is None and self.waiting:
            written.append(self.waiting.pop(0))  # the later record says it all, and is answered
        self.busy = False
        self.keep(written[-1])
        if self.waiting:
            self._begin(process)
        for write in reversed(written):
            if write.payload is not None:
                process.answer(Journaled(write.payload))
            elif write is written[-1] or self.world.random() < 0.5:
                process.answer(Saved(write.round))

    def keep(self, write: Write) -> None:
        """A write is whole."""
        self.writes.append(write)
        del self.writes[:-_REMEMBERED]
        if write.payload is not None:
            self.own[write.round] = write.payload
            self.promised.setdefault(write.round, set()).add(write.payload.digest)

    def free(self, round: int) -> None:
        """Forget an own payload at once."""
        self.own.pop(round, None)

    def crash(self, kept: float) -> None:
        """Power is gone. kept: share of what was in line that arrives; the next is torn."""
        number = round(kept * len(self.waiting))
        for write in self.waiting[:number]:
            self.keep(write)
        self.waiting.clear()
        self.busy = False

    def turn_back(self, writes: int) -> None:
        """The disk is an older one."""
        del self.writes[max(0, len(self.writes) - writes) :]
        there = {w.round: w.payload for w in self.writes if w.payload is not None}
        self.own = {k: p for k, p in self.own.items() if there.get(k) is p}

    def copy(self) -> Disk:
        """A copy, as somebody makes who starts an agent twice."""
        twin = Disk(self.world, self.seconds)
        twin.writes, twin.own = list(self.writes), dict(self.own)
        twin.promised = {k: set(v) for k, v in self.promised.items()}
        return twin

    def read(self) -> dict[str, Any]:
        """What a new process of the agent begins with: arguments of `Agent`."""
        if not self.writes:
            return {"record": None, "payload": None, "kept": {}}
        newest = self.writes[-1]
        record = json.loads(json.dumps(newest.record))
        kept = {k: self.own[k] for k in record["kept"] if k in self.own}
        return {"record": record, "payload": newest.payload, "kept": kept}
