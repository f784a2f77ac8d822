"""The protocol's messages as frames of the wire, and back."""

from __future__ import annotations

import math

from flower_dhb.peer.protocol.messages import (
    Ack,
    Counted,
    Goodbye,
    Hello,
    Message,
    Offer,
    Reason,
    Release,
    Seek,
)
from flower_dhb.peer.wire import relay_pb2 as pb

__all__ = ["frame_of", "goodbye_of", "hello_of", "offer_of", "put_offer", "reason_of"]

_TEXT = 200
_REASONS: dict[Reason, pb.Refusal.Reason] = {
    reason: getattr(pb.Refusal, reason.name) for reason in Reason
}


def frame_of(message: Message) -> pb.Frame:
    """A short message, ready for the wire. A Hello lacks what the two ends must have in common."""
    match message:
        case Hello():
            return pb.Frame(
                hello=pb.Hello(
                    round=message.round,
                    digest=message.digest,
                    closed=message.closed,
                    counted=_counted(message.counted),
                    holds=message.holds,
                    doubts=message.doubts,
                    one_sided=message.one_sided,
                    done=message.done,
                    epoch=message.epoch,
                    pace_s=message.pace_s,
                    edition=message.edition,
                )
            )
        case Ack():
            return pb.Frame(ack=pb.Ack(round=message.round, digest=message.digest))
        case Release():
            return pb.Frame(release=pb.Release(round=message.round))
        case Seek():
            return pb.Frame(seek=pb.Seek())
        case Goodbye():
            return pb.Frame(
                goodbye=pb.Goodbye(
                    done=message.done,
                    text=message.text,
                    counted=_counted(message.counted),
                    closed=message.closed,
                )
            )


def hello_of(found: pb.Hello) -> Hello:
    """Where the other end stands."""
    return Hello(
        round=found.round,
        digest=found.digest,
        closed=found.closed,
        counted=_counted_of(found.counted),
        holds=found.holds,
        doubts=tuple(found.doubts),
        one_sided=tuple(found.one_sided),
        done=found.done,
        epoch=found.epoch,
        pace_s=found.pace_s if 0.0 <= found.pace_s < math.inf else 0.0,
        edition=found.edition or 1,
    )


def goodbye_of(found: pb.Goodbye) -> Goodbye:
    """Why the other end goes."""
    return Goodbye(found.done, found.text[:_TEXT], _counted_of(found.counted), found.closed)


def put_offer(offer: Offer, header: pb.Header) -> None:
    """The protocol's part of a header whose codec part is there."""
    header.ack, header.closed, header.epoch = offer.ack, offer.closed, offer.epoch
    header.final, header.edition = offer.final, offer.edition
    if offer.counted.round:
        header.counted.CopyFrom(_counted(offer.counted))


def offer_of(header: pb.Header) -> Offer:
    """What a header says to the protocol."""
    return Offer(
        round=header.round,
        digest=header.checksum,
        closed=header.closed,
        counted=_counted_of(header.counted),
        ack=header.ack,
        epoch=header.epoch,
        final=header.final,
        edition=header.edition or 1,
    )


def reason_of(reason: Reason) -> pb.Refusal.Reason:
    """The protocol's reason as the wire's."""
    return _REASONS[reason]


def _counted(counted: Counted) -> pb.Counted:
    return pb.Counted(round=counted.round, mine=counted.mine, yours=counted.yours)


def _counted_of(found: pb.Counted) -> Counted:
    return Counted(found.round, found.mine, found.yours)
