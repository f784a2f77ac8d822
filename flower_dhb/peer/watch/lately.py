"""What a peer has seen lately: who took part in its rounds, what it waits for, whether it stalls.

It is told of every event once the agent has taken it, and of what the agent then wants done. All
times are seconds of one clock that never goes back.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from itertools import islice
from statistics import median

from flower_dhb.peer.protocol.agent import Agent, Phase
from flower_dhb.peer.protocol.effects import Combine, Effect, Rejoin
from flower_dhb.peer.protocol.events import (
    Connected,
    Disconnected,
    Event,
    LinkEvent,
    Trained,
    TrainingFailed,
)

__all__ = ["ROUNDS", "Lately"]

ROUNDS = 20  # that are looked back at
_LOOKED_AT = 2000  # for that, where most of them are shared with nobody
# A round that takes longer than all of these stalls. Nothing is known of the first one, in which
# an app loads its data and compiles.
_LEAST_STALL_S, _STALLED_ROUNDS, _FIRST_ROUND_S = 30.0, 5.0, 600.0
_AT_REST = (Phase.JOINING, Phase.FINISHING, Phase.LINGERING, Phase.STOPPING, Phase.STOPPED)


class Lately:
    """The last rounds of an agent, from the events that it takes.

    failures: rounds in a row in which the app has failed; last_error: what it said in them.
    """

    def __init__(self, agent: Agent, now: float) -> None:
        self._agent = agent
        self.failures = 0
        self.last_error = ""
        self._ended_at = self._shared_at = now
        self._closed, self._round = agent.closed, agent.round
        self._since_round = agent.closed  # what was before this process, nobody knows here
        self._is_new = True
        self._parts: dict[int, frozenset[int]] = {}  # neighbors that counted, by round
        self._agreed: dict[int, deque[float]] = {}
        self._noted: set[int] = set()  # neighbors that could count in the open round
        self._heard: dict[int, float] = {}
        self._known: set[int] = set()
        self._lost: dict[int, float] = {}  # since when neighbors are not connected
        self._meet(now)

    def saw(self, event: Event, effects: Iterable[Effect], now: float) -> None:
        """The agent has taken an event, and wants these things done."""
        agent = self._agent
        if agent.round != self._round:
            self._round, self._shared_at = agent.round, now
            self._noted.clear()
        self._meet(now)
        if isinstance(event, LinkEvent):
            self._listen(event, now)
        elif isinstance(event, TrainingFailed):
            self.failures += 1
            self.last_error = event.why
        elif isinstance(event, Trained):
            self.failures, self.last_error = 0, ""
        for effect in effects:
            if isinstance(effect, Combine):
                self._is_new = False
                if self._is_shared(effect.round):
                    self._parts[effect.round] = frozenset(effect.payloads)
                for j in effect.payloads:
                    self._note(j, now)
            elif isinstance(effect, Rejoin) and self._is_new:
                self._since_round = effect.round  # it was away, and is back
        if agent.closed != self._closed:
            self._closed, self._ended_at = agent.closed, now
            for old in sorted(self._parts)[:-ROUNDS]:
                del self._parts[old]

    def _meet(self, now: float) -> None:
        """Know all neighbors; an edition of the mesh may bring more."""
        for j in self._agent.edges.keys() - self._known:
            self._known.add(j)
            self._lost[j] = now

    def _listen(self, event: LinkEvent, now: float) -> None:
        j = event.neighbor
        edge = self._agent.edges.get(j)
        if edge is None:
            return
        if edge.up:
            self._lost.pop(j, None)
        else:
            self._lost.setdefault(j, now)
        # That a connection is tried is no sign of life.
        if not isinstance(event, Connected | Disconnected):
            self._heard[j] = now
        if edge.agreed:
            self._note(j, now)

    def _note(self, neighbor: int, now: float) -> None:
        """An edge can count in the open round; the first moment is the one to remember."""
        if neighbor not in self._noted and self._agent.round == self._round:
            self._noted.add(neighbor)
            times = self._agreed.setdefault(neighbor, deque(maxlen=ROUNDS))
            times.append(now - self._shared_at)

    # --- to be seen ---------------------------------------------------------------------

    def since_round_s(self, now: float) -> float:
        """Seconds since a round ended, or since the beginning."""
        return now - self._ended_at

    def stalled_s(self, usual_s: float, now: float) -> float:
        """Seconds since a round ended, if no round takes so long, else 0.

        usual_s: what its rounds usually take, 0 if it has ended none.
        """
        timing = self._agent.config.timing
        since = self.since_round_s(now)
        if self._agent.phase in _AT_REST:
            return 0.0
        limit = max(_LEAST_STALL_S, _STALLED_ROUNDS * usual_s) + timing.ceiling_s
        if usual_s == 0.0:
            limit = timing.start_s + _FIRST_ROUND_S
        return since if since > limit else 0.0

    def waits_for(self, now: float) -> list[int]:
        """Neighbors that keep the open round open, or that are missing for a beginning."""
        agent = self._agent
        edges = agent.edges.items()
        if agent.phase is Phase.CONNECTING:
            return [j for j, edge in edges if not edge.up]
        if agent.phase is Phase.WAITING and agent.round > agent.closed:
            return [j for j, edge in edges if agent.near.wait_s(edge, now) > 0.0]
        return []

    def rounds(self) -> list[int]:
        """The newest rounds of the neighborhood that this process could have a part in.

        Of graphs that take turns, those in which a neighbor is due.
        """
        up = [edge.closed for edge in self._agent.edges.values() if edge.up]
        newest = max([self._agent.closed, *up])
        back = range(newest, self._since_round, -1)
        return [*islice((r for r in back[:_LOOKED_AT] if self._is_shared(r)), ROUNDS)][::-1]

    def _is_shared(self, round: int) -> bool:
        edition = self._agent.near.editions.then(round)
        return bool(edition.due(round)) or not edition.turns

    def took_part(self, neighbor: int | None = None) -> int:
        """In how many of `rounds()` a neighbor's payload counted: any, or that neighbor's."""
        found = (self._parts.get(r, frozenset()) for r in self.rounds())
        return sum(bool(j) if neighbor is None else neighbor in j for j in found)

    def agreed_s(self, neighbor: int) -> float | None:
        """Median seconds from sharing an own payload until an edge could count."""
        times = self._agreed.get(neighbor)
        return float(median(times)) if times else None

    def down_s(self, neighbor: int, now: float) -> float:
        """Seconds since a neighbor was connected and had greeted last, 0 if it is and has."""
        return now - self._lost.get(neighbor, now)

    def heard_s(self, neighbor: int, now: float) -> float | None:
        """Seconds since anything came from a neighbor, None if nothing has."""
        at = self._heard.get(neighbor)
        return None if at is None else now - at
