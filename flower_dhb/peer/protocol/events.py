"""What can happen to an agent.

Events of a connection carry its `link`, a value that the shell chooses and that is never
used twice in the life of an agent; an event of another link than the neighbor's present one
is dropped.
"""

from __future__ import annotations

from dataclasses import dataclass

from flower_dhb.peer.protocol.edition import Edition
from flower_dhb.peer.protocol.messages import NEVER, Counted, Hello, Offer
from flower_dhb.peer.protocol.settings import Timing

__all__ = [
    "Acknowledged",
    "Announced",
    "Arriving",
    "Broken",
    "Combined",
    "Completed",
    "Connected",
    "Disconnected",
    "Event",
    "Finished",
    "Greeted",
    "Heard",
    "Journaled",
    "Left",
    "LinkEvent",
    "Offered",
    "Payload",
    "Rejoined",
    "Released",
    "Saved",
    "Screened",
    "Sought",
    "Started",
    "Stopped",
    "Tick",
    "Trained",
    "TrainingFailed",
]


@dataclass(frozen=True, slots=True)
class Payload:
    """A payload as the protocol knows it. handle: the shell's own, never looked into."""

    digest: int
    handle: object


# --- of a connection --------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LinkEvent:
    """Something that a neighbor's connection brings."""

    neighbor: int
    link: object


@dataclass(frozen=True, slots=True)
class Connected(LinkEvent):
    """A connection is there; nothing has been said."""


@dataclass(frozen=True, slots=True)
class Disconnected(LinkEvent):
    """A connection has ended."""


@dataclass(frozen=True, slots=True)
class Greeted(LinkEvent):
    """The neighbor's Hello came, and it belongs to the same run."""

    hello: Hello


@dataclass(frozen=True, slots=True)
class Offered(LinkEvent):
    """The header of a payload came. The answer is `Reserve` or `Refuse`."""

    offer: Offer


@dataclass(frozen=True, slots=True)
class Completed(LinkEvent):
    """A payload is complete and checked."""

    offer: Offer
    payload: Payload


@dataclass(frozen=True, slots=True)
class Broken(LinkEvent):
    """A payload that was reserved for will not be complete: it was refused on its way."""


@dataclass(frozen=True, slots=True)
class Acknowledged(LinkEvent):
    """The neighbor holds our payload of a round."""

    round: int
    digest: int


@dataclass(frozen=True, slots=True)
class Released(LinkEvent):
    """The neighbor ends a round without our payload."""

    round: int


@dataclass(frozen=True, slots=True)
class Sought(LinkEvent):
    """The neighbor wants our newest payload, to begin again from it."""


@dataclass(frozen=True, slots=True)
class Left(LinkEvent):
    """The neighbor said goodbye: done, counted, closed as in Goodbye."""

    done: bool
    counted: Counted = NEVER
    closed: int = 0


@dataclass(frozen=True, slots=True)
class Heard(LinkEvent):
    """A sign of life."""


@dataclass(frozen=True, slots=True)
class Arriving(LinkEvent):
    """More of a payload that was reserved for is here: so many bytes of so many."""

    n_bytes: int
    total: int


# --- of the agent itself ----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Started:
    """The agent may begin."""


@dataclass(frozen=True, slots=True)
class Announced:
    """An edition of the mesh that is new here. It is on the disk: a restart knows it, too.

    timing: the time limits that hold from now on, None if they are as before.
    """

    edition: Edition
    timing: Timing | None = None


@dataclass(frozen=True, slots=True)
class Trained:
    """The app has trained."""


@dataclass(frozen=True, slots=True)
class TrainingFailed:
    """The app has failed; the state is as it was."""

    why: str


@dataclass(frozen=True, slots=True)
class Journaled:
    """The record that `Journal` asked for is on the disk. payload: as it will be sent."""

    payload: Payload


@dataclass(frozen=True, slots=True)
class Screened:
    """A neighbor's payload that is here is not to be used, as the shell has found.

    It comes before the vote for it: before `Journaled` of the same round. A payload that is
    looked at as it comes is `Broken` instead of `Completed`.
    """

    neighbor: int
    round: int


@dataclass(frozen=True, slots=True)
class Combined:
    """The state is that of the round's end.

    refused: the app's agent did not accept a payload that counted, so the other end used it
    and this one did not.
    """

    refused: bool = False


@dataclass(frozen=True, slots=True)
class Rejoined:
    """The state is the neighbors'. failure: why it is not, empty if all went well."""

    failure: str = ""


@dataclass(frozen=True, slots=True)
class Saved:
    """The state of a round's end is on the disk, or is part of a later record that is."""

    round: int


@dataclass(frozen=True, slots=True)
class Finished:
    """The model is on the disk. final: it as a payload, for neighbors that return late."""

    final: Payload


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


@dataclass(frozen=True, slots=True)
class Stopped:
    """The process is to end."""


Event = (
    LinkEvent
    | Announced
    | Started
    | Trained
    | TrainingFailed
    | Journaled
    | Screened
    | Combined
    | Rejoined
    | Saved
    | Finished
    | Tick
    | Stopped
)
