"""How fast the way to a neighbor is, measured by bytes that mean nothing.

The dialing end asks, and takes the times. The answering end keeps nothing, does nothing beside its
answer, and answers each neighbor so many bytes only, so that nobody can keep its link busy.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass

import grpc

from flower_dhb.peer.wire import relay_pb2 as pb
from flower_dhb.peer.wire.link import Allowance
from flower_dhb.peer.wire.operations import SERVICE

__all__ = ["LIMIT_BYTES", "MEASURE", "Rate", "Way", "answer", "measure", "new_allowance"]

MEASURE = f"/{SERVICE}/Measure"
LIMIT_BYTES = 512 * 1024  # of one call, in both directions together

_ALLOWED = 8.0 * 2**20, 8.0 * 2**10  # bytes in a row, and a second, for one neighbor
_LEAST = 4096  # bytes that each call counts for
# A fast way takes all of these, 0.9 MB; one of 100 kbit/s the first two, in two seconds.
_SIZES = tuple(2**10 * k for k in (4, 16, 64, 256, 512))
_ENOUGH_S = 0.5  # of sending, for a rate that can be told
_FINEST_S = 0.02  # what is over sooner may have been held up by the two programs
_TRIPS = 3


@dataclass(frozen=True)
class Rate:
    """What one direction carries. at_least: whether it may be more, and was too fast to be told."""

    bytes_per_s: float
    at_least: bool


@dataclass(frozen=True)
class Way:
    """The way to a neighbor and back, beside what else goes there now."""

    round_trip_s: float
    there: Rate
    back: Rate


# --- the answering end ------------------------------------------------------------------------


def new_allowance() -> Allowance:
    """How much of this one neighbor may ask for: bytes."""
    return Allowance(*_ALLOWED)


def answer(request: pb.MeasureRequest, allowance: Allowance) -> pb.MeasureReply | None:
    """What is answered; None if it is more than the caller may ask for."""
    n_bytes = len(request.data) + request.answer_bytes
    if n_bytes > LIMIT_BYTES or not allowance.take(max(n_bytes, _LEAST)):
        return None
    return pb.MeasureReply(data=os.urandom(request.answer_bytes))


# --- the asking end ---------------------------------------------------------------------------


def measure(channel: grpc.Channel, vertex: int, timeout_s: float) -> Way:
    """Measure the way to the other end of a channel, in two seconds or 0.9 MB each way.

    vertex: who asks. timeout_s: for each answer. Raises grpc.RpcError if one does not come.
    """
    ask = channel.unary_unary(
        MEASURE,
        request_serializer=pb.MeasureRequest.SerializeToString,
        response_deserializer=pb.MeasureReply.FromString,
    )

    def took(request: pb.MeasureRequest) -> float:
        begin = time.monotonic()
        ask(request, metadata=(("vertex", str(vertex)),), timeout=timeout_s)
        return time.monotonic() - begin

    took(pb.MeasureRequest())  # which connects
    trip = min(took(pb.MeasureRequest()) for _ in range(_TRIPS))
    there = _rate(lambda n: took(pb.MeasureRequest(data=os.urandom(n))), trip)
    back = _rate(lambda n: took(pb.MeasureRequest(answer_bytes=n)), trip)
    return Way(trip, there, back)


def _rate(took: Callable[[int], float], trip: float) -> Rate:
    """Send more and more, until that takes much longer than a round trip."""
    for size in _SIZES:
        seconds = took(size)
        sending = seconds - trip
        if sending >= max(_ENOUGH_S, 2.0 * trip):
            return Rate(size / sending, at_least=False)
    if sending >= max(_FINEST_S, trip):
        return Rate(size / sending, at_least=False)
    return Rate(size / seconds, at_least=True)
