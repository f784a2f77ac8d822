"""What two neighbors say to each other, whatever carries it.

A payload is named by its digest everywhere, so that both ends of an edge speak of the
same bytes or notice that they do not.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

__all__ = [
    "NEVER",
    "Ack",
    "Counted",
    "Goodbye",
    "Hello",
    "Message",
    "Offer",
    "Reason",
    "Release",
    "Seek",
]


class Reason(Enum):
    """Why something that a neighbor sent is not accepted."""

    MALFORMED = "malformed"
    STALE = "stale"
    AHEAD = "ahead"
    REPEATED = "repeated"
    EPOCH = "epoch"
    EDITION = "edition"


@dataclass(frozen=True, slots=True)
class Counted:
    """The last round in which an edge counted at one end, by the payloads that it used.

    mine: digest of the payload of the end that speaks. yours: of the other end's.
    """

    round: int = 0
    mine: int = 0
    yours: int = 0

    def reversed(self) -> Counted:
        """The same, as the other end says it."""
        return Counted(self.round, self.yours, self.mine)


NEVER = Counted()


@dataclass(frozen=True, slots=True)
class Hello:
    """The first message of each end: where it stands, as its disk knows it.

    round, digest: of the payload that it shares now, 0 if none. closed: the last round that
    it has ended. counted: the last in which this edge counted for it. holds: digest of the
    receiver's payload of `round` that it has acknowledged, 0 if none. doubts: rounds that it
    gave up after its acknowledgment, and knows no more of. one_sided: rounds that are known
    to count at one end only. done: it has ended its last round. epoch: of its memory. pace_s: usual
    seconds of its rounds, 0 if it has none yet. edition: of the mesh, which the payload of `round`
    is of.
    """

    round: int = 0
    digest: int = 0
    closed: int = 0
    counted: Counted = NEVER
    holds: int = 0
    doubts: tuple[int, ...] = ()
    one_sided: tuple[int, ...] = ()
    done: bool = False
    epoch: int = 0
    pace_s: float = 0.0
    edition: int = 1


@dataclass(frozen=True, slots=True)
class Offer:
    """A payload is about to come: the protocol's part of its header.

    closed, counted, edition: as in Hello. ack: digest of the receiver's payload of the same round
    that this acknowledges, 0 for none. final: it is no round's payload, but the model of an agent
    that has finished, for one that comes late.
    """

    round: int
    digest: int
    closed: int = 0
    counted: Counted = NEVER
    ack: int = 0
    epoch: int = 0
    final: bool = False
    edition: int = 1


@dataclass(frozen=True, slots=True)
class Ack:
    """I hold your payload of this round. If you hold mine, the edge counts for both of us."""

    round: int
    digest: int


@dataclass(frozen=True, slots=True)
class Release:
    """I have ended this round, or shall end it, without your payload."""

    round: int


@dataclass(frozen=True, slots=True)
class Seek:
    """I begin again from my neighbors: send me your newest payload."""


@dataclass(frozen=True, slots=True)
class Goodbye:
    """I close the connection. done: I take part in no later round.

    closed, counted: as in Hello; without closed, a neighbor that is done has ended the run's last.
    """

    done: bool = False
    text: str = ""
    counted: Counted = NEVER
    closed: int = 0


Message = Hello | Ack | Release | Seek | Goodbye
