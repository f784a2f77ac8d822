"""Schedules that broke a promise once, and what was wrong in the core.

The seeds belong to the schedules as they are drawn today. Whoever changes how a schedule is drawn
(plan, faults, links, disk) finds other seeds for the same defects by running the simulator around
a core that has them.
"""

from __future__ import annotations

__all__ = ["REGRESSIONS"]

_SAYS_MORE = (
    "a restarted agent took a neighbor's later counted round as proof that the one before did "
    "not count: both ends called a round one-sided in which they agreed"
)
_SAID_BEFORE = (
    "a round was given up in doubt although the neighbor had said that it counted it; the doubt "
    "was dropped later as if nothing differed"
)
_DOUBT_STAYS = "a doubt outlived the neighbor's word that it has passed the round"
_LACKS = (
    "a restarted agent waited for a payload that its neighbor did not send again, because the "
    "agent had acknowledged it in its former life"
)
_OVERTAKEN = (
    "the payload that a restarted neighbor lacked counted while it was on its way again, and that "
    "of the next round took its place on the connection"
)
_SIDE_BY_SIDE = "two agents that began again side by side waited for each other"
_RELEASE_LOST = "a release fell into a greeting and was never said again"
_AGAIN_AND_AGAIN = (
    "an agent that had lost its disk rested alone after it began again, fell behind meanwhile, and "
    "so began again and again"
)
_SEEKS_NO_MORE = (
    "an agent that had begun again from a final model, and so had finished, was taken for one that "
    "still looks for a model: whoever asked it asked again at each answer, and took none"
)
_BREAKS_OFF = "both ends waited for a payload that had arrived damaged"
_HELPS_FOR_EVER = (
    "whoever had been sent again the payload of a round that it then counted was sent nothing else "
    "until it said so, which it never did while it was behind"
)
_OTHER_EPOCH = (
    "an agent in a newer epoch gave the edge up before it had sent anything that names the epoch, "
    "round after round"
)
_ONE_SIDED_ALREADY = (
    "an agent that was set back to an older disk shared a round again that its neighbor had found "
    "to count at one end only; nothing told it so, and it waited for a payload that never came"
)
_NOBODY_THERE = (
    "an agent that had been sent again what it lacked died before it said so, and nobody noticed "
    "yet that its connection was dead (the promise asked for what no core can do)"
)
_EDITION_TO_COME = (
    "a payload of a round after the last that was known was refused, and not sent again once the "
    "edition with more rounds was there: both ends waited for each other"
)
_ENDS_BEFORE = (
    "what a neighbor said of a round after the last was not heard, although that neighbor knew of "
    "no edition with fewer rounds yet: a doubt outlived its word"
)
_NO_MODEL = (
    "an agent that was removed before its first round gave its start as a final model, and others "
    "began again from it without end"
)
_DROPPED = (
    "who began again where its own edition ended dropped a payload that the next edition needs"
)
_NEIGHBORS_AGAIN = (
    "an agent that was removed and at once a member again went on, on a connection on which it had "
    "said goodbye: its neighbor gave it nothing more"
)
_ROUNDED = (
    "the time at which a round is decided was a sum of differences: rounded down, it was a time at "
    "which an edge still kept the round open, and the clock of an agent rang again and again"
)
_NOT_ASKED = (
    "an agent that believed a liar, and so waited for payloads as new as its, was held to wait for "
    "an older one that it had not asked for (the promise asked for what nobody waits for)"
)
_MADE_SINCE = (
    "an agent whose disk was turned back made the same payload again after its Hello, and took its "
    "neighbor's Hello for a vote, although that neighbor let go of the payload at the same greeting"
)
_SKIPPED = (
    "an agent that followed its neighbors over a round into one in which an edge takes no turn "
    "told the other end nothing of the round that it had left out, since in the newer edition the "
    "edge was not due there; in the older one, the only one known at the other end, it was"
)

REGRESSIONS = (
    (500042, "pairs", _SAYS_MORE),
    (500052, "long", _SAYS_MORE),
    (500032, "failures", _SAID_BEFORE),
    (500038, "wild", _SAID_BEFORE),
    (500084, "storm", _DOUBT_STAYS),
    (500156, "liar", _DOUBT_STAYS),
    (500018, "memory", _LACKS),
    (500089, "thirds", _LACKS),
    (1000947, "long", _OVERTAKEN),
    (1004307, "long", _OVERTAKEN),
    (101471, "liar", _SIDE_BY_SIDE),
    (101981, "liar", _SIDE_BY_SIDE),
    (500043, "links", _BREAKS_OFF),
    (500103, "links", _BREAKS_OFF),
    (500263, "wild", _RELEASE_LOST),
    (41023, "wild", _RELEASE_LOST),
    (107, "sprint", _AGAIN_AND_AGAIN),
    (1134, "loss", _HELPS_FOR_EVER),
    (1224, "loss", _HELPS_FOR_EVER),
    (2154, "loss", _OTHER_EPOCH),
    (2243, "memory", _OTHER_EPOCH),
    (77367, "long", _SEEKS_NO_MORE),
    (10191, "editions", _EDITION_TO_COME),
    (101752, "mutable", _ENDS_BEFORE),
    (103418, "mutable", _NO_MODEL),
    (302857, "mutable", _DROPPED),
    (500024, "mutable", _NEIGHBORS_AGAIN),
    (3001824, "loss", _ONE_SIDED_ALREADY),
    (3003211, "crashes", _NOBODY_THERE),
    (77000050, "twins", _ROUNDED),
    (91100153, "liar", _NOT_ASKED),
    (104600241, "loss", _MADE_SINCE),
    (201672, "turned", _SKIPPED),
)
