"""Compressed payloads on an edge: what is sent in place of a payload, and what becomes of it.

Inside a device a payload is always whole: it is what the neighbors make of what is sent, the public
payload (`agent.compression`). On its way it may be a *change*: a compressed frame, from which the
receiver makes the same bytes. Where a change is one of the public payload before, the receiver must
hold that one. If it lacks some rounds, the changes of these come along, one after the other, as
long as they are shorter than the payload itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flower_dhb.agent import codec
from flower_dhb.agent.codec import Header
from flower_dhb.agent.compression import Compressor
from flower_dhb.agent.compression import frame as compressed
from flower_dhb.agent.compression.frame import Frame
from flower_dhb.errors import PayloadError
from flower_dhb.types import Payload

__all__ = ["MOST_CHANGES", "Change", "Held", "Known", "digest", "follow"]

MOST_CHANGES = 64  # in one payload

Bytes = bytes | bytearray | memoryview


@dataclass(frozen=True)
class Change:
    """One round's payload as a compressed frame.

    base: digest of the public payload that it is a change of, 0 if of none. public: of its own.
    """

    round: int
    data: bytes
    base: int
    public: int

    @classmethod
    def of(
        cls, frame: Frame, compressor: Compressor, *, run: str, round: int, vertex: int
    ) -> Change:
        """What is sent of a round's payload."""
        data = compressed.encode(frame, compressor, run=run, round=round, vertex=vertex)
        return cls.of_frame(data, round)

    @classmethod
    def of_frame(cls, data: bytes, round: int) -> Change:
        """A round's own payload that is compressed already."""
        known, public = compressed.digests(data)
        return cls(round, data, int(known, 16) if known else 0, int(public, 16))


def digest(payload: Payload, compressor: Compressor) -> int:
    """A number that names a public payload, 0 for none."""
    name = compressed.digest(payload, compressor.names)
    return int(name, 16) if name else 0


def follow(before: Sequence[Change], change: Change, limit_bytes: int) -> tuple[Change, ...]:
    """Changes that lead to a payload, the newest last, all of them no longer than a limit."""
    found = [change]
    left = limit_bytes - len(change.data)
    for earlier in reversed(before):
        if not found[0].base or earlier.public != found[0].base:
            continue  # of a round in which nothing was sent
        left -= len(earlier.data)
        if left < 0 or len(found) == MOST_CHANGES:
            break
        found.insert(0, earlier)
    return tuple(found)


@dataclass(frozen=True)
class Held:
    """A public payload that is here. digest: 0 if there is none."""

    digest: int = 0
    payload: Payload | None = None


class Known:
    """What this device holds of one neighbor's public payloads, across connections.

    payload: the last one, as the disk has it; None if there is none.
    """

    def __init__(self, compressor: Compressor, payload: Payload | None = None) -> None:
        self.compressor = compressor
        self.held = Held()
        if compressor.estimates and payload:
            self.held = Held(digest(payload, compressor), payload)

    def hold(self, frame: Bytes) -> None:
        """A payload came whole, or was made of changes: the next change will be one of it."""
        if self.compressor.estimates:
            vectors = codec.decode(frame, codec.read_header(frame), verified=True)
            payload = self.compressor.vectors(vectors)
            self.held = Held(digest(payload, self.compressor), payload)

    def rebuild(
        self, data: Bytes, changes: Sequence[tuple[int, int]], held: Held, expect: Header
    ) -> bytes:
        """The payload that changes of these rounds and lengths lead to, as its sender has it.

        held: what the first of them is a change of. Raises PayloadError as `frame.decode` does.
        """
        view, payload, at = memoryview(data), held.payload, 0
        for k, size in changes:
            inner = Header(expect.run, k, expect.vertex, expect.vectors)
            frame = view[at : at + size]
            if not compressed.is_compressed(frame):
                raise PayloadError(
                    f"{inner.sender}: no compressed payload, though announced as one"
                )
            payload = compressed.decode(frame, inner, self.compressor, payload)
            at += size
        return codec.encode(payload or {}, run=expect.run, round=expect.round, vertex=expect.vertex)
