"""One edge, as one of its ends sees it: the connection, the round, and what is settled.

**An edge counts in a round if its two ends hold each other's payload and acknowledgment.**
An acknowledgment is a *vote*: its sender has written its own payload of that round to its
disk before, so after a crash it sends the same bytes again, and knows that it may have voted.

- Before its vote an end may give the round up by itself: it *releases* the edge.
- After it, only the other end decides. If no answer comes in time, the end gives up *in
  doubt*: the other end may have counted the edge. Doubts are kept until the other end says
  how it ended. If it did count, the round is *one-sided*, and both ends know so.

The stages of an edge in one round, and what moves it from one to the next, are the table
`TRANSITIONS`; everything that is not in it cannot happen.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from flower_dhb.peer.protocol.events import Payload
from flower_dhb.peer.protocol.messages import NEVER, Counted, Offer
from flower_dhb.peer.protocol.patience import Patience

__all__ = ["REMEMBERED", "TRANSITIONS", "Connection", "Edge", "Stage", "Step"]

REMEMBERED = 64  # doubts and one-sided rounds by number; older ones are a total


class Connection(Enum):
    """Whether anybody is at the other end of an edge."""

    DOWN = "down"
    GREETING = "greeting"
    UP = "up"


class Stage(Enum):
    """Of an edge, in the round that this end shares or has shared last.

    open: whether the round is undecided here.
    """

    IDLE = "idle", True  # the neighbor's payload is not here
    BOUND = "bound", True  # it is not, but before a restart this end may have voted
    VOTED = "voted", True  # it is here, and acknowledged
    COUNTED = "counted", False
    RELEASED = "released", False  # given up before a vote
    LOST = "lost", False  # given up by the neighbor, who said so
    DOUBT = "doubt", False  # given up after a vote
    APART = "apart", False  # no edge of the mesh's edition in this round

    open: bool

    def __new__(cls, label: str, undecided: bool) -> Stage:
        """A stage by its word, which is its value."""
        stage = object.__new__(cls)
        stage._value_, stage.open = label, undecided
        return stage


class Step(Enum):
    """What moves an edge to another stage."""

    VOTE = "vote"  # the neighbor's payload is complete, and this end acknowledges it
    COUNT = "count"  # the round ends; the neighbor has acknowledged too
    GIVE_UP = "give up"  # the round ends without the edge
    TOLD = "told"  # the neighbor says that it does not count
    FORGOTTEN = "forgotten"  # the neighbor knows no more of the payload that is here


TRANSITIONS: Mapping[tuple[Stage, Step], Stage] = {
    (Stage.IDLE, Step.VOTE): Stage.VOTED,
    (Stage.IDLE, Step.GIVE_UP): Stage.RELEASED,
    (Stage.IDLE, Step.TOLD): Stage.LOST,
    (Stage.BOUND, Step.VOTE): Stage.VOTED,
    (Stage.BOUND, Step.GIVE_UP): Stage.DOUBT,
    (Stage.BOUND, Step.TOLD): Stage.LOST,
    (Stage.VOTED, Step.COUNT): Stage.COUNTED,
    (Stage.VOTED, Step.GIVE_UP): Stage.DOUBT,
    (Stage.VOTED, Step.TOLD): Stage.LOST,
    (Stage.VOTED, Step.FORGOTTEN): Stage.IDLE,
}


@dataclass(slots=True)
class Edge:
    """All that one end knows of an edge.

    wants: the latest round that the neighbor says it is in. closed: the latest that it has
    ended. shares, digest: the payload that it shared when it greeted or offered last. acked:
    whether it holds our payload of the present round. counted: the last round in which the
    edge counted here; settled: whether it is known how that round ended there; lacking: the
    neighbor was restarted after its vote in the open round, and needs our payload again;
    helping: the same, in the round that counted here. theirs: the last round
    that counted for the neighbor, as it says. broken: a round whose payload broke off on this
    connection. sought: we have asked it for its newest payload; seeking: it asks for ours, and has
    nothing that we could begin again from. said: round and digest of the payload that our Hello
    of this connection named. sent: the round of the payload that was put in
    line last on this connection. parted_at: since when no present or later edition has this edge;
    parted: the neighbor was told so on this connection. anchor: a round that the neighbor was in
    for certain, and when.

    Of the payload under way: receiving_since, moved_at: when its header and its newest bytes
    came; arrived, total: bytes of it that are here, and all. in_vain: payloads in a row that
    were waited for while they came, and did not come whole. told_slow: it was said that the link
    is too slow.
    """

    neighbor: int
    patience: Patience
    connection: Connection = Connection.DOWN
    link: object = None
    opened_at: float = 0.0
    heard_at: float = 0.0
    receiving_since: float | None = None
    moved_at: float = 0.0
    arrived: int = 0
    total: int = 0
    in_vain: int = 0
    told_slow: bool = False
    down_since: float = 0.0
    wants: int = 0
    closed: int = 0
    shares: int = 0
    digest: int = 0
    done: bool = False
    stage: Stage = Stage.IDLE
    acked: bool = False
    counted: Counted = NEVER
    settled: bool = True
    theirs: Counted = NEVER
    lacking: bool = False
    helping: bool = False
    broken: int = 0
    sought: bool = False
    seeking: bool = False
    doubts: list[int] = field(default_factory=list)
    one_sided: list[int] = field(default_factory=list)
    doubts_total: int = 0
    one_sided_total: int = 0
    rounds_missed: int = 0
    said: tuple[int, int] = (0, 0)
    sent: int = 0
    anchor: tuple[int, float] | None = None
    parted_at: float | None = None
    parted: bool = False
    held: dict[int, tuple[Offer, Payload]] = field(default_factory=dict)

    @property
    def up(self) -> bool:
        """Whether the neighbor is connected and has greeted."""
        return self.connection is Connection.UP

    @property
    def agreed(self) -> bool:
        """Whether both ends hold what they need to count the edge."""
        return self.stage is Stage.VOTED and self.acked

    @property
    def unknown(self) -> int:
        """Rounds of which it is not known yet whether both ends say the same."""
        return len(self.doubts) + (not self.settled)

    def take(self, step: Step) -> bool:
        """Move to the next stage, if the table has one. Returns whether it has."""
        stage = TRANSITIONS.get((self.stage, step))
        if stage is None:
            return False
        self.stage = stage
        return True

    def doubt(self, round: int) -> None:
        """A round was given up after the vote."""
        self.doubts_total += 1
        self.doubts = [*self.doubts, round][-REMEMBERED:]

    def disagree(self, round: int) -> bool:
        """A round counts at one end only. Returns whether that is news."""
        if round in self.doubts:
            self.doubts.remove(round)
        if round == self.counted.round:
            self.settled, self.helping = True, False
        if round in self.one_sided:
            return False
        if len(self.one_sided) >= REMEMBERED and round < min(self.one_sided):
            return False
        self.one_sided_total += 1
        self.one_sided = sorted([*self.one_sided, round])[-REMEMBERED:]
        return True

    def newest(self) -> tuple[int, Payload] | None:
        """The neighbor's newest payload that is here, with its round."""
        if not self.held:
            return None
        newest = max(self.held)
        return newest, self.held[newest][1]

    # --- on the disk --------------------------------------------------------------------

    def record(self) -> dict[str, Any]:
        """What must outlive the process."""
        c = self.counted
        return {
            "counted": [c.round, c.mine, c.yours],
            "settled": self.settled,
            "doubts": list(self.doubts),
            "one_sided": list(self.one_sided),
            "doubts_total": self.doubts_total,
            "one_sided_total": self.one_sided_total,
            "rounds_missed": self.rounds_missed,
        }

    def restore(self, record: Mapping[str, Any]) -> None:
        """Inverse of `record`."""
        self.counted = Counted(*record["counted"])
        self.settled = record["settled"]
        self.doubts = list(record["doubts"])
        self.one_sided = list(record["one_sided"])
        self.doubts_total = record["doubts_total"]
        self.one_sided_total = record["one_sided_total"]
        self.rounds_missed = record["rounds_missed"]
