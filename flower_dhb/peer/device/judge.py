"""Screening on a device: what a neighbor sent is looked at before it is acknowledged.

An edge whose payload is not believed is given up before the vote, so that it counts at
neither end. The rule and its numbers are `agent.screening`'s; here they are held against
bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from flower_dhb.agent import codec
from flower_dhb.agent.node import Snapshot
from flower_dhb.agent.screening import Lengths, Own, Screen
from flower_dhb.algorithms import Algorithm
from flower_dhb.peer.wire.frames import Bytes

__all__ = ["Judge"]


@dataclass(frozen=True)
class _Stand:
    """Where this agent stands in the round that it shares."""

    round: int
    own: Own
    memory: Screen


class Judge:
    """Says which payloads are not to be used, and why.

    quarantines: called with neighbor and last round of a quarantine as it begins. What it
    remembers of neighbors is lost with the process; the numbers that the bound is made of are
    part of the agent's state.
    """

    def __init__(self, algorithm: Algorithm, quarantines: Callable[[int, int], None]) -> None:
        self._factor = algorithm.screening_factor
        self._names = algorithm.vectors
        self._quarantines = quarantines
        self._strikes = Screen()
        self._stand: _Stand | None = None

    def shares(self, round: int, frame: Bytes, snapshot: Snapshot) -> None:
        """The agent shares a payload. snapshot: its state before the round."""
        if self._factor is None:
            return
        parameters = snapshot.state.parameters
        payload = codec.decode(frame, codec.read_header(frame), verified=True)
        pending = snapshot.pending
        lengths = None if pending is None else pending.lengths
        if lengths is None:  # the release that wrote the state did not keep them
            trained = None if pending is None else pending.trained
            lengths = Lengths.of(self._names, payload, parameters, trained)
        own = Own(self._names, payload, lengths)
        self._stand = _Stand(round, own, snapshot.screen.begun(parameters))

    def look(self, neighbor: int, round: int, frame: Bytes) -> tuple[bool, str]:
        """Whether a neighbor's payload is absurd, and why it is not to be used, if so.

        A payload of another round than the one that is shared is not looked at: nothing is
        known yet that it could be held against.
        """
        stand = self._stand
        if self._factor is None or stand is None or stand.round != round:
            return False, ""
        theirs = codec.decode(frame, codec.read_header(frame), verified=True)
        memory = replace(stand.memory, strikes=self._strikes.strikes)
        away = stand.own.distance(theirs)
        absurd, why = memory.verdict(self._factor, round, stand.own, neighbor, theirs, away)
        if absurd or not why:
            fine = () if absurd else (neighbor,)
            self._strikes = self._strikes.judged(round, (neighbor,) if absurd else (), fine)
        if absurd and self._strikes.ignores(neighbor, round + 1):
            self._quarantines(neighbor, self._strikes.strikes[neighbor].until)
        return absurd, why
