"""What an agent wants done. The shell does it in the order in which it is listed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from flower_dhb.peer.protocol.events import Payload
from flower_dhb.peer.protocol.messages import Message, Offer, Reason

__all__ = [
    "Close",
    "Combine",
    "Count",
    "Effect",
    "End",
    "Fail",
    "Finish",
    "Free",
    "Journal",
    "Neighbors",
    "Note",
    "Refuse",
    "Rejoin",
    "Reserve",
    "Save",
    "Send",
    "SendPayload",
    "Train",
]


# --- to a neighbor ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Send:
    """Put a short message in line."""

    link: object
    message: Message


@dataclass(frozen=True, slots=True)
class SendPayload:
    """Put a payload in line; one that is still under way on this link is abandoned."""

    link: object
    offer: Offer
    payload: Payload


@dataclass(frozen=True, slots=True)
class Reserve:
    """Take what a header announces."""

    link: object
    offer: Offer


@dataclass(frozen=True, slots=True)
class Refuse:
    """Do not take it, and say why."""

    link: object
    reason: Reason
    round: int
    text: str


@dataclass(frozen=True, slots=True)
class Close:
    """End a connection. at_once: without waiting for what is in line."""

    link: object
    text: str
    at_once: bool = False


@dataclass(frozen=True, slots=True)
class Neighbors:
    """Be connected with these from now on, ascending, and with nobody else."""

    vertices: tuple[int, ...]


# --- to the agent's own app and disk ----------------------------------------------------


@dataclass(frozen=True, slots=True)
class Train:
    """Train a round; `Trained` or `TrainingFailed` answers.

    due: whether any neighbor is due in it, as far as is known now.
    """

    round: int
    epoch: int
    due: bool = True


@dataclass(frozen=True, slots=True)
class Journal:
    """Write own payload, the state that it grew from, and `record`, to the disk; `Journaled`.

    round: the label that the payload gets. trained_as: the round that it was trained as.
    early: the payload is known before training. edition: of the mesh, which the payload is of.
    lasting: if not, nothing is written: memory will do for this round, in which nobody is due.
    """

    round: int
    trained_as: int
    epoch: int
    early: bool
    record: Mapping[str, Any]
    edition: int
    lasting: bool = True


@dataclass(frozen=True, slots=True)
class Combine:
    """End a round with the payloads that count, by neighbor; `Combined` answers.

    edition: the one whose weights both ends of these edges use.
    """

    round: int
    trained_as: int
    payloads: Mapping[int, Payload]
    edition: int


@dataclass(frozen=True, slots=True)
class Rejoin:
    """Begin again from the neighbors: their rounds and payloads; `Rejoined` answers."""

    round: int
    epoch: int
    payloads: Mapping[int, tuple[int, Payload]]
    edition: int


@dataclass(frozen=True, slots=True)
class Save:
    """Write the state of a round's end, and `record`; `Saved` answers, whenever it is done.

    Everything that is written reaches the disk in the order of these effects. failure: why
    the agent did not train, empty if it did. edition: of the mesh, in the round. last: no round
    follows, so it must be written itself. again: it was asked for before, and not as the last.
    """

    round: int
    record: Mapping[str, Any]
    failure: str = ""
    edition: int = 1
    last: bool = False
    again: bool = False


@dataclass(frozen=True, slots=True)
class Free:
    """The own payload of a round will not be asked for again."""

    round: int


@dataclass(frozen=True, slots=True)
class Finish:
    """The last round is over: write the model; `Finished` answers.

    alone_since: the last round in which a neighbor's payload counted, -1 if this agent has
    not been alone. round: of the final payload, one more than the last. removed: this agent is no
    member of the mesh any more.
    """

    alone_since: int
    round: int
    removed: bool = False


@dataclass(frozen=True, slots=True)
class End:
    """Nothing is left to do. done: the last round is over."""

    done: bool


@dataclass(frozen=True, slots=True)
class Fail:
    """The run cannot go on here."""

    why: str


# --- to whoever watches -----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Count:
    """Add to a counter."""

    name: str
    neighbor: int | None = None


@dataclass(frozen=True, slots=True)
class Note:
    """Write a line of the log. warning: it asks for attention."""

    name: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    warning: bool = True


Effect = (
    Send
    | SendPayload
    | Reserve
    | Refuse
    | Close
    | Neighbors
    | Train
    | Journal
    | Combine
    | Rejoin
    | Save
    | Free
    | Finish
    | End
    | Fail
    | Count
    | Note
)
