"""Frames on the wire: chunks out, checked payloads in, in bounded memory."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from flower_dhb.agent import codec
from flower_dhb.agent.codec import Header, VectorSpec
from flower_dhb.agent.compression import frame as compressed
from flower_dhb.errors import EstimateError, PayloadError
from flower_dhb.peer.protocol.messages import Offer
from flower_dhb.peer.wire import relay_pb2 as pb
from flower_dhb.peer.wire.changes import MOST_CHANGES, Change, Held, Known
from flower_dhb.peer.wire.words import put_offer

__all__ = [
    "CHUNK_BYTES",
    "MESSAGE_LIMIT_BYTES",
    "VERSION",
    "Assembler",
    "Bytes",
    "Outgoing",
    "RefusedError",
    "chunk_frame",
    "header_of",
    "parse",
    "relabel",
]

VERSION = 3
# The largest: measured best on loopback, of 64 KiB to 4 MiB (docs/benchmarks.md).
CHUNK_BYTES = 1024 * 1024
# A payload up to this size travels inside its header's frame, where that is no longer than a
# chunk: one message, not two.
WHOLE_BYTES = 256 * 1024
_STEP_BYTES = 256 * 1024
# gRPC refuses larger messages before they are in memory.
MESSAGE_LIMIT_BYTES = 1024 * 1024 + 64 * 1024

# Beside its vectors, a codec frame has a prefix and a short header.
_FRAME_OVERHEAD_BYTES = 4096 + 64
_CHUNK_TAG = 0x1A  # field 3, length-delimited: see relay.proto

Bytes: TypeAlias = bytes | bytearray | memoryview
Reason = pb.Refusal.Reason


class RefusedError(PayloadError):
    """Something that a neighbor sent is not accepted.

    told: the log has it already, word for word. known: digest of the public payload that is held
    here in place of the one that a change is of, 0 for none.
    """

    def __init__(self, reason: pb.Refusal.Reason, text: str, round: int = 0) -> None:
        super().__init__(text)
        self.reason = reason
        self.round = round
        self.told = False
        self.known = 0

    @property
    def kind(self) -> str:
        """The reason's name, for counters and logs."""
        return pb.Refusal.Reason.Name(self.reason).lower()


@dataclass(frozen=True)
class Outgoing:
    """One payload on its way to the neighbors: its header, and its bytes, which are shared.

    changes: what may be sent in its place, the newest last; see `changes.follow`. sent: bytes of
    what was sent, by neighbor.
    """

    header: Header
    frame: Bytes
    checksum: int
    changes: tuple[Change, ...] = ()
    sent: dict[int, int] = field(default_factory=dict, compare=False)

    @classmethod
    def of(cls, frame: Bytes, changes: tuple[Change, ...] = ()) -> Outgoing:
        """A codec frame, ready to be sent."""
        return cls(codec.read_header(frame), frame, codec.read_checksum(frame), changes)

    @property
    def public(self) -> int:
        """The digest of the public payload, 0 if nobody needs to know it."""
        return self.changes[-1].public if self.changes else 0

    def shortest(self, known: int | None = None) -> tuple[Change, ...]:
        """What to send to a neighbor in its place; empty if that is the payload itself.

        known: digest of the public payload that the neighbor holds, 0 if it holds none; None if
        that is not known, and it may hold the one before.
        """
        for at in reversed(range(len(self.changes))):
            if self.changes[at].base in (0, known):
                return self._if_shorter(self.changes[at:])
        return self._if_shorter(self.changes[-1:]) if known is None else ()

    def _if_shorter(self, changes: tuple[Change, ...]) -> tuple[Change, ...]:
        return changes if sum(len(c.data) for c in changes) < len(self.frame) else ()

    def pieces(
        self,
        offer: Offer | None = None,
        chunk_bytes: Callable[[], int] = lambda: CHUNK_BYTES,
        changes: tuple[Change, ...] = (),
    ) -> Iterator[bytes]:
        """Serialized frames: the header, with the protocol's part, then the chunks.

        chunk_bytes is asked for the size of each. changes: what is sent in its place.
        """
        data = b"".join(change.data for change in changes) if changes else self.frame
        message = pb.Header(
            run=self.header.run,
            round=self.header.round,
            vertex=self.header.vertex,
            vectors=[
                pb.Vector(name=v.name, dtype=v.dtype, size=v.size) for v in self.header.vectors
            ],
            total_bytes=len(data),
            checksum=self.checksum,
            changes=[pb.Change(round=c.round, bytes=len(c.data)) for c in changes],
            base=changes[0].base if changes else 0,
        )
        if offer is not None:
            put_offer(offer, message)
        small = len(data) <= min(WHOLE_BYTES, chunk_bytes())
        if small:
            message.whole = bytes(data)
        yield pb.Frame(header=message).SerializeToString()
        if not small:
            view, start = memoryview(data), 0
            while start < len(view):
                end = start + chunk_bytes()
                yield chunk_frame(view[start:end])
                start = end


def chunk_frame(data: Bytes) -> bytes:
    """A frame that holds one chunk: what protobuf would write, with one copy."""
    size, length = len(data), bytearray()
    while size > 0x7F:
        length.append(size & 0x7F | 0x80)
        size >>= 7
    length.append(size)
    return b"".join((bytes((_CHUNK_TAG,)), length, data))


def parse(raw: bytes) -> pb.Frame | memoryview:
    """A frame, empty if it is of a kind that this version lacks; for a chunk its bytes, not copied.

    Raises RefusedError if it is no frame.
    """
    data = _chunk(raw)
    if data is not None:
        return data
    try:
        frame = pb.Frame.FromString(raw)
    except DecodeError as error:
        raise RefusedError(Reason.MALFORMED, f"not a frame: {error}") from None
    if frame.WhichOneof("kind") == "chunk":
        return memoryview(frame.chunk)
    return frame


def _chunk(raw: bytes) -> memoryview | None:
    if not raw or raw[0] != _CHUNK_TAG:
        return None
    size, shift = 0, 0
    for at in range(1, min(len(raw), 6)):
        size |= (raw[at] & 0x7F) << shift
        shift += 7
        if raw[at] < 0x80:
            return memoryview(raw)[at + 1 :] if len(raw) - at - 1 == size else None
    return None


def header_of(message: pb.Header) -> Header:
    """A header as the codec knows it. Raises RefusedError if it cannot be one."""
    if len(message.vectors) > 16:
        raise RefusedError(
            Reason.SIZE, f"header lists {len(message.vectors)} vectors", message.round
        )
    vectors = tuple(VectorSpec(v.name[:64], v.dtype[:16], v.size) for v in message.vectors)
    return Header(message.run[:128], message.round, message.vertex, vectors)


def relabel(frame: Bytes, round: int) -> bytes:
    """The same payload under another round number."""
    header = codec.read_header(frame)
    payload = codec.decode(frame, header)
    return codec.encode(payload, run=header.run, round=round, vertex=header.vertex)


class Assembler:
    """Puts one neighbor's chunks together; at most one payload is under way.

    expect: run, vertex and vectors that every payload must have; its round is the
    receiver's business. known: what is held of the neighbor's, where payloads are compressed.
    """

    def __init__(
        self,
        run: str,
        neighbor: int,
        vectors: tuple[VectorSpec, ...],
        known: Known | None = None,
    ) -> None:
        self._run = run
        self._neighbor = neighbor
        self._vectors = vectors
        self._known = known
        self._changes: tuple[tuple[int, int], ...] = ()
        self._held = Held()
        self._expect: Header | None = None
        self._claimed = 0
        self._buffer = memoryview(b"")
        self._verifier: codec.Verifier | None = None
        self._filled = 0
        self._skip = 0
        self._buffers = _Buffers()

    def check(self, message: pb.Header) -> Header:
        """Hold a header against what every payload of this neighbor must be.

        No memory is taken. Raises RefusedError; the chunks that follow a refused header are
        passed over.
        """
        self.drop()
        expect = Header(self._run, message.round, self._neighbor, self._vectors)
        who = expect.sender
        if message.changes:
            self._check_changes(message, expect)
        elif not expect.n_bytes < message.total_bytes <= expect.n_bytes + _FRAME_OVERHEAD_BYTES:
            raise RefusedError(
                Reason.SIZE,
                f"{who}: header announces {message.total_bytes} bytes, expected {expect.n_bytes} "
                "of vectors and a short header; all agents must run the same model",
                message.round,
            )
        if not message.whole:
            self._skip = message.total_bytes
        try:
            expect.check(header_of(message))
        except RefusedError:
            raise
        except PayloadError as error:
            raise RefusedError(_why(message, expect), str(error), message.round) from None
        return expect

    def _check_changes(self, message: pb.Header, expect: Header) -> None:
        """Hold the lengths of changes against what a payload of this model may need."""
        who, changes = expect.sender, message.changes
        if self._known is None:
            raise RefusedError(
                Reason.SIZE,
                f"{who}: payload is compressed, and this agent's are not; all agents must run with "
                "the same compression",
                message.round,
            )
        compressor = self._known.compressor
        least = compressed.length(compressor, expect.vectors)
        most = MOST_CHANGES if compressor.estimates else 1
        rounds = [change.round for change in changes]
        fits = (
            len(changes) <= most
            and all(least < c.bytes <= least + _FRAME_OVERHEAD_BYTES for c in changes)
            and sum(c.bytes for c in changes) == message.total_bytes
            and message.total_bytes <= expect.n_bytes + _FRAME_OVERHEAD_BYTES
        )
        if not fits or rounds != sorted(set(rounds)) or rounds[-1] != message.round:
            raise RefusedError(
                Reason.SIZE,
                f"{who}: header announces {len(changes)} changes of rounds {rounds[:4]} … in "
                f"{message.total_bytes} bytes, expected up to {most} of {least} bytes and a short "
                "header each; all agents must run the same model and compression",
                message.round,
            )

    def require_base(self, message: pb.Header, expect: Header) -> None:
        """Refuse a change of what is not held here, so that its sender sends something else."""
        self._held = Held()
        if self._known is None or not (message.changes and self._known.compressor.estimates):
            return
        self._held = self._known.held
        if not message.base or message.base != self._held.digest:
            text = f"{expect.sender}: payload is a change of one that this agent does not hold"
            error = RefusedError(Reason.ESTIMATE, text, expect.round)
            error.known = self._held.digest
            raise error

    def hold(self, frame: Bytes) -> None:
        """A round's payload is complete: the next one may be a change of it."""
        if self._known is not None:
            self._known.hold(frame)

    def begin(self, message: pb.Header, expect: Header) -> bytes | None:
        """Take the memory for a payload whose header was accepted.

        Returns the payload if it came inside its header.
        """
        self._skip = 0
        self._claimed = message.checksum
        self._changes = tuple((change.round, change.bytes) for change in message.changes)
        if message.whole:
            if len(message.whole) != message.total_bytes:
                raise RefusedError(
                    Reason.SIZE,
                    f"{expect.sender}: header announces {message.total_bytes} bytes and holds "
                    f"{len(message.whole)}",
                    message.round,
                )
            if self._changes:
                return self._rebuilt(message.whole, expect)
            return bytes(_verified(message.whole, expect, message.checksum))
        self._expect, self._filled = expect, 0
        if self._changes:
            self._buffer = np.empty(message.total_bytes, np.uint8).data
        else:
            self._buffer = self._buffers.take(message.total_bytes, expect.n_bytes)
            self._verifier = codec.Verifier(self._buffer, expect)
        return None

    def _rebuilt(self, data: Bytes, expect: Header) -> bytes:
        """The payload that changes lead to, bit for bit the one that the header named."""
        if self._known is None:
            raise TypeError("changes came, and nothing is known that they could be changes of")
        held, self._held = self._held, Held()
        try:
            frame = self._known.rebuild(data, self._changes, held, expect)
        except EstimateError as error:
            raise RefusedError(Reason.ESTIMATE, str(error), expect.round) from None
        except PayloadError as error:
            raise _refusal(error, expect) from None
        if codec.read_checksum(frame) != self._claimed:
            text = f"{expect.sender}: its changes lead to another payload here than at its sender"
            raise RefusedError(Reason.ESTIMATE, text, expect.round)
        return frame

    def chunk(self, data: memoryview) -> Bytes | None:
        """Add the next bytes. Returns the payload when it is complete. Raises RefusedError."""
        if self._expect is None:
            if 0 < len(data) <= self._skip:
                self._skip -= len(data)
                return None
            self._skip = 0
            raise RefusedError(
                Reason.MALFORMED, f"neighbor {self._neighbor}: a chunk without a payload"
            )
        expect, end = self._expect, self._filled + len(data)
        if len(data) == 0 or end > len(self._buffer):
            total = len(self._buffer)
            self.drop()
            raise RefusedError(
                Reason.SIZE,
                f"{expect.sender}: chunk of {len(data)} bytes at {end - len(data)}, the header "
                f"announced {total} in all",
                expect.round,
            )
        buffer, verifier, begin = self._buffer, self._verifier, self._filled
        self._filled = end
        try:
            for at in range(0, len(data), _STEP_BYTES):  # each while it is in the cache
                part = data[at : at + _STEP_BYTES]
                stop = begin + at + len(part)
                buffer[stop - len(part) : stop] = part
                if verifier is not None:
                    verifier.advance(stop)
            if end < len(buffer):
                return None
            self.drop()
            if verifier is None:
                return self._rebuilt(buffer, expect)
            _check_claim(buffer, expect, self._claimed)
            verifier.finish()
        except PayloadError as error:
            left = len(buffer) - end
            self.drop()
            self._skip = left
            raise _refusal(error, expect) from None
        return buffer

    @property
    def progress(self) -> tuple[int, int]:
        """Bytes of the payload under way that are here, and of all; zeros if there is none."""
        return self._filled, len(self._buffer)

    def drop(self) -> None:
        """Forget the payload that is under way."""
        self._expect, self._verifier = None, None
        self._buffer, self._filled, self._skip = memoryview(b""), 0, 0


def _verified(frame: bytes, expect: Header, claimed: int) -> bytes:
    try:
        _check_claim(frame, expect, claimed)
        codec.decode(frame, expect)
    except PayloadError as error:
        raise _refusal(error, expect) from None
    return frame


def _check_claim(frame: Bytes, expect: Header, claimed: int) -> None:
    inside = codec.read_checksum(frame)
    if inside != claimed:
        raise RefusedError(
            Reason.CHECKSUM,
            f"{expect.sender}: checksum is {inside:016x}, the header says {claimed:016x}",
            expect.round,
        )


def _refusal(error: PayloadError, expect: Header) -> RefusedError:
    if isinstance(error, RefusedError):
        return error
    reason = Reason.CHECKSUM if "checksum" in str(error) else Reason.CONTENT
    return RefusedError(reason, str(error), expect.round)


class _Buffers:
    """Memory for large payloads, used again: the system clears what it hands out.

    A buffer is free once what was handed out is gone, views of it included: each of them keeps
    the array alive whose memory it shows, and a weak reference says when that ends. At most two
    are kept, as many as an edge holds at once.
    """

    def __init__(self) -> None:
        self._kept: list[tuple[NDArray[np.uint8], weakref.ref[NDArray[np.uint8]]]] = []

    def take(self, total: int, body: int) -> memoryview:
        """Memory for a frame of `total` bytes whose last `body` begin at a cache line."""
        for at, (raw, lent) in enumerate(self._kept):
            if lent() is None and len(raw) >= total + _LINE:
                del self._kept[at]
                return self._lend(raw, total, body)
        if len(self._kept) == 2:
            self._kept = [kept for kept in self._kept if kept[1]() is not None][:1]
        return self._lend(np.empty(total + _LINE + _SLACK, np.uint8), total, body)

    def _lend(self, raw: NDArray[np.uint8], total: int, body: int) -> memoryview:
        offset = -(raw.ctypes.data + total - body) % _LINE
        lent = raw[offset : offset + total]
        self._kept.append((raw, weakref.ref(lent)))
        return lent.data


_LINE = 64
_SLACK = 256  # headers grow with the round's digits


def _why(found: pb.Header, expect: Header) -> pb.Refusal.Reason:
    if found.run != expect.run:
        return Reason.AGREEMENT
    if found.vertex != expect.vertex:
        return Reason.IDENTITY
    return Reason.SIZE
