"""Payloads on the wire: what is cut into chunks, what is refused, and whose memory it is."""

import gc
import tracemalloc

import numpy as np
import pytest

from flower_dhb.agent import codec
from flower_dhb.agent.codec import Header, VectorSpec
from flower_dhb.errors import PayloadError
from flower_dhb.peer.protocol.messages import Offer
from flower_dhb.peer.wire import relay_pb2 as pb
from flower_dhb.peer.wire.frames import (
    CHUNK_BYTES,
    MESSAGE_LIMIT_BYTES,
    WHOLE_BYTES,
    Assembler,
    Outgoing,
    RefusedError,
    chunk_frame,
    header_of,
    parse,
    relabel,
)

LARGE = WHOLE_BYTES // 4  # float32 elements: with a header, just too many to travel whole


def frame(size=4, *, round=5, vertex=1, run="r", value=1.0, name="folded"):
    vector = np.full(size, value, np.float32)
    return codec.encode({name: vector}, run=run, round=round, vertex=vertex)


def frame_of_bytes(total):
    """A frame of exactly so many bytes."""
    short = len(frame(0, run=""))
    size, rest = divmod(total - short, 4)
    digits = len(str(size)) - 1  # the size stands in the header, too
    size, rest = divmod(total - short - digits, 4)
    made = frame(size, run="r" * rest)
    assert len(made) == total
    return made


def two_vectors(size, round=5, value=1.0):
    payload = {"parameters": np.full(size, value, np.float32), "momentum": np.arange(size) + value}
    return codec.encode(payload, run="r", round=round, vertex=1)


def header(made, **changes):
    """The header that announces a frame, with some of its fields changed."""
    message = pb.Frame.FromString(next(Outgoing.of(made).pieces())).header
    for field, value in changes.items():
        setattr(message, field, value)
    return message


def assembler(made):
    """One that expects frames like this one."""
    return Assembler("r", 1, codec.read_header(made).vectors)


def receive(there, made, *, message=None, step=100_000, hold=None):
    """Let an assembler take a frame in chunks. Returns the payload, None if it is not complete."""
    message = header(made) if message is None else message
    whole = there.begin(message, there.check(message))
    assert whole is None
    for begin in range(0, len(made), step):
        whole = there.chunk(memoryview(made)[begin : begin + step])
        assert (whole is not None) == (begin + step >= len(made))
    return whole


def reason(call, *arguments):
    """Why something is refused, and of which round that is said."""
    with pytest.raises(RefusedError) as error:
        call(*arguments)
    return error.value.kind, error.value.round


# --- out ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("total", "chunks"),
    [
        (WHOLE_BYTES - 1, 0),
        (WHOLE_BYTES, 0),
        (WHOLE_BYTES + 1, 1),
        (CHUNK_BYTES - 1, 1),
        (CHUNK_BYTES, 1),
        (CHUNK_BYTES + 1, 2),
        (2 * CHUNK_BYTES, 2),
        (2 * CHUNK_BYTES + 1, 3),
    ],
)
def test_a_payload_travels_whole_or_in_chunks_of_the_size_that_the_link_carries(total, chunks):
    assert (WHOLE_BYTES, CHUNK_BYTES) == (2**18, 2**20)  # as measured best (docs/benchmarks.md)
    assert MESSAGE_LIMIT_BYTES == 2**20 + 2**16
    made = frame_of_bytes(total)
    first, *rest = Outgoing.of(made).pieces(Offer(7, 1, ack=4))
    message = pb.Frame.FromString(first).header
    assert len(rest) == chunks
    assert message.whole == (b"" if chunks else made)
    assert b"".join(parse(piece) for piece in rest) == (made if chunks else b"")
    assert all(len(piece) <= MESSAGE_LIMIT_BYTES for piece in (first, *rest))
    if chunks:
        assert {len(parse(piece)) for piece in rest[:-1]} <= {CHUNK_BYTES}


def test_the_header_says_what_the_payload_is():
    made = two_vectors(3, round=9)
    message = pb.Frame.FromString(next(Outgoing.of(made).pieces(Offer(7, 1, ack=8)))).header
    assert (message.run, message.round, message.vertex, message.ack) == ("r", 9, 1, 8)
    assert [(v.name, v.dtype, v.size) for v in message.vectors] == [
        ("parameters", "float32", 3),
        ("momentum", "float64", 3),
    ]
    assert message.total_bytes == len(made)
    assert message.checksum == codec.read_checksum(made)
    assert header(made).ack == 0
    assert header_of(message) == codec.read_header(made)


@pytest.mark.parametrize("size", [1, 127, 128, 129, 16383, 16384, 2**21 - 1, 2**21])
def test_a_chunk_is_what_protobuf_would_write_and_is_read_without_a_copy(size):
    data = np.arange(size, dtype=np.uint8).tobytes()
    raw = chunk_frame(data)
    assert raw == pb.Frame(chunk=data).SerializeToString()
    view = parse(raw)
    assert view == data
    assert np.shares_memory(np.frombuffer(view, np.uint8), np.frombuffer(raw, np.uint8))


def test_a_chunk_in_another_spelling_is_read_by_protobuf():
    """A length written longer than need be, and a second field that comes last and wins."""
    assert parse(b"\x1a\x83\x00abc") == b"abc"
    ack = pb.Frame(ack=pb.Ack(round=3)).SerializeToString()
    assert parse(chunk_frame(b"abc") + ack).ack.round == 3
    assert parse(ack + chunk_frame(b"abc")) == b"abc"
    assert parse(b"").WhichOneof("kind") is None


@pytest.mark.parametrize(
    "message",
    [
        pb.Frame(hello=pb.Hello(round=3)),
        pb.Frame(header=pb.Header(round=3)),
        pb.Frame(ack=pb.Ack(round=3)),
        pb.Frame(release=pb.Release(round=3)),
        pb.Frame(refusal=pb.Refusal(round=3)),
        pb.Frame(goodbye=pb.Goodbye(text="3")),
        pb.Frame(heartbeat=pb.Heartbeat()),
    ],
    ids=lambda message: message.WhichOneof("kind"),
)
def test_every_other_frame_is_what_was_sent(message):
    assert parse(message.SerializeToString()) == message


@pytest.mark.parametrize("raw", [b"\x1a", b"\x1a\x80", b"\x1a\x04abc", b"\x1a\x02abc", b"\xff\xff"])
def test_what_is_no_frame_is_malformed(raw):
    assert reason(parse, raw) == ("malformed", 0)


def test_a_header_lists_at_most_sixteen_vectors_and_short_names():
    def listed(n, **fields):
        vectors = [pb.Vector(name=f"v{i}", dtype="float32", size=i) for i in range(n)]
        return pb.Header(run="r" * 200, round=6, vertex=2, vectors=vectors, **fields)

    found = header_of(listed(16))
    assert found.vectors == tuple(VectorSpec(f"v{i}", "float32", i) for i in range(16))
    assert (found.run, found.round, found.vertex) == ("r" * 128, 6, 2)
    assert reason(header_of, listed(17)) == ("size", 6)
    long = pb.Header(vectors=[pb.Vector(name="n" * 65, dtype="d" * 17)])
    assert header_of(long).vectors == (VectorSpec("n" * 64, "d" * 16, 0),)


def test_relabel_changes_the_round_and_nothing_else():
    made = two_vectors(3, round=5, value=2.0)
    assert relabel(made, 8) == two_vectors(3, round=8, value=2.0)


# --- in: what is refused before any memory is taken ---------------------------------------

OVERHEAD = 4096 + 64  # a codec frame's prefix and header take less


@pytest.mark.parametrize("size", [4, LARGE])
@pytest.mark.parametrize("total", [0, "vectors", "too much", 2**40, 2**63])
def test_a_claim_of_other_sizes_is_refused(size, total):
    made = frame(size)
    total = {"vectors": 4 * size, "too much": 4 * size + OVERHEAD + 1}.get(total, total)
    message = header(made, total_bytes=total)
    with pytest.raises(RefusedError, match=f"neighbor 1: header announces {total} bytes") as error:
        assembler(made).check(message)
    assert (error.value.kind, error.value.round) == ("size", 5)


@pytest.mark.parametrize("extra", [1, OVERHEAD])
def test_the_smallest_and_the_largest_claim_that_can_be_true(extra):
    made = frame(LARGE)
    expect = assembler(made).check(header(made, total_bytes=4 * LARGE + extra))
    assert expect == Header("r", 5, 1, codec.read_header(made).vectors)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"run": "other"}, "agreement"),
        ({"vertex": 2}, "identity"),
        ({"name": "momentum"}, "size"),
    ],
)
@pytest.mark.parametrize("size", [4, LARGE])
def test_what_a_header_says_must_be_what_is_expected(size, changes, why):
    there = assembler(frame(size))
    assert reason(there.check, header(frame(size, **changes))) == (why, 5)


def test_a_header_of_other_lengths_or_too_many_vectors_is_refused():
    made = frame(4)
    there = assembler(made)
    message = header(made)
    message.vectors[0].size = 5
    assert reason(there.check, message) == ("size", 5)
    message.vectors.extend([pb.Vector()] * 17)
    with pytest.raises(RefusedError, match="header lists 18 vectors") as error:
        there.check(message)
    assert error.value.kind == "size"


# --- in: payloads that travel whole -------------------------------------------------------


def test_a_whole_payload_is_returned_at_once():
    made = frame()
    there = assembler(made)
    message = header(made)
    assert there.begin(message, there.check(message)) == made


@pytest.mark.parametrize(
    ("spoiled", "claims_it", "why"),
    [
        (lambda made: made[:-1], True, "size"),
        (lambda made: made[:-1] + b"\x01", False, "checksum"),
        (lambda made: frame(value=2.0), False, "checksum"),
        (lambda made: frame(round=6), True, "content"),
        (lambda made: frame(value=np.nan), True, "content"),
    ],
    ids=["short", "bit", "claim", "round inside", "NaN"],
)
def test_a_whole_payload_that_is_not_what_it_claims(spoiled, claims_it, why):
    made = frame()
    there = assembler(made)
    body = spoiled(made)
    message = header(made, whole=body)
    if claims_it:
        message.checksum = codec.read_checksum(body)
    expect = there.check(message)
    assert reason(there.begin, message, expect) == (why, 5)
    assert there.begin(header(made), expect) == made  # and the next one is taken


# --- in: payloads in chunks ---------------------------------------------------------------


@pytest.mark.parametrize("step", [1000, WHOLE_BYTES, WHOLE_BYTES + 1, 300_000, CHUNK_BYTES])
def test_chunks_of_any_size_make_the_payload(step):
    made = two_vectors(LARGE // 2, value=3.0)
    there = assembler(made)
    found = receive(there, made, step=step)
    assert found == made
    vectors = codec.decode(found, codec.read_header(made))
    np.testing.assert_array_equal(vectors["momentum"], np.arange(LARGE // 2) + 3.0)


def test_the_vectors_begin_at_a_cache_line():
    for size in (LARGE, LARGE + 1, LARGE + 7):
        made = frame(size)
        found = receive(assembler(made), made)
        vector = codec.decode(found, codec.read_header(made))["folded"]
        assert vector.ctypes.data % 64 == 0


def fed(made, spoiled, *, claims=None, step=100_000):
    """Feed a spoiled body under the header of a good payload: why it was refused, and when."""
    there = assembler(made)
    message = header(made)
    if claims is not None:
        message.checksum = claims
    there.begin(message, there.check(message))
    for begin in range(0, len(spoiled), step):
        try:
            assert there.chunk(memoryview(spoiled)[begin : begin + step]) is None
        except RefusedError as error:
            return there, error, begin + step
    raise AssertionError("it was taken")


@pytest.mark.parametrize("at", [6, 30, 100, 200_000, WHOLE_BYTES - 1, WHOLE_BYTES + 50, -1])
@pytest.mark.parametrize("bit", [0x01, 0x40])
def test_a_flipped_bit_in_any_chunk_is_noticed(at, bit):
    made = frame(LARGE)
    spoiled = bytearray(made)
    spoiled[at] ^= bit
    _, error, _ = fed(made, spoiled)
    assert error.kind in ("checksum", "content")
    assert error.round == 5


def test_the_checksum_in_the_header_must_be_the_one_inside():
    made = frame(LARGE)
    right = codec.read_checksum(made)
    _, error, _ = fed(made, made, claims=right ^ 1)
    assert error.kind == "checksum"
    assert str(error) == (
        f"round 5, neighbor 1: checksum is {right:016x}, the header says {right ^ 1:016x}"
    )
    # Both claim the same, and neither is that of the bytes.
    spoiled = bytearray(made)
    spoiled[-1] ^= 1
    _, error, _ = fed(made, spoiled)
    assert error.kind == "checksum"
    assert "the payload was damaged" in str(error)


def test_a_header_inside_that_says_otherwise():
    made = frame(LARGE)
    other = frame(LARGE, round=6)
    _, error, _ = fed(made, other, claims=codec.read_checksum(other))
    assert error.kind == "content"
    assert "payload is of round 6, expected 5" in str(error)


def test_a_bad_value_is_refused_with_its_chunk_and_the_rest_is_passed_over():
    made = frame(LARGE)
    vector = np.ones(LARGE, np.float32)
    vector[LARGE // 2] = np.inf
    spoiled = codec.encode({"folded": vector}, run="r", round=5, vertex=1)
    there, error, end = fed(made, spoiled, claims=codec.read_checksum(spoiled), step=1000)
    assert error.kind == "content"
    assert 0 <= end - (len(spoiled) - 4 * LARGE + 4 * (LARGE // 2)) <= 1004
    rest = len(spoiled) - end
    assert there.chunk(memoryview(spoiled)[: rest - 1]) is None
    assert there.chunk(memoryview(spoiled)[:1]) is None
    assert reason(there.chunk, memoryview(b"x")) == ("malformed", 0)
    assert receive(there, made) == made


def test_the_chunks_of_a_refused_header_are_passed_over_and_no_more():
    made = frame(LARGE)
    there = assembler(made)
    assert reason(there.check, header(frame(LARGE, run="other")))[0] == "agreement"
    total = header(frame(LARGE, run="other")).total_bytes
    data = memoryview(bytes(total))
    assert there.chunk(data[: total - 10]) is None
    assert there.chunk(data[:10]) is None
    assert reason(there.chunk, data[:1]) == ("malformed", 0)


def test_too_long_a_chunk_after_a_refused_header_ends_the_indulgence():
    made = frame(LARGE)
    there = assembler(made)
    assert reason(there.check, header(made, run="other"))[0] == "agreement"
    data = memoryview(bytes(len(made) + 1))
    assert reason(there.chunk, data)[0] == "malformed"
    assert reason(there.chunk, data[:1])[0] == "malformed"


def test_a_refused_payload_that_came_whole_has_no_chunks_to_pass_over():
    made = frame()
    there = assembler(made)
    assert reason(there.check, header(made, run="other"))[0] == "agreement"
    assert reason(there.chunk, memoryview(b"x"))[0] == "malformed"


def test_a_chunk_without_a_header():
    there = assembler(frame(LARGE))
    with pytest.raises(RefusedError, match="neighbor 1: a chunk without a payload"):
        there.chunk(memoryview(b"x"))
    made = frame(LARGE)
    assert receive(there, made) == made
    assert reason(there.chunk, memoryview(b"x"))[0] == "malformed"  # it was complete


@pytest.mark.parametrize("extra", [1, 1000])
def test_more_bytes_than_announced_are_refused_and_the_payload_is_dropped(extra):
    made = frame(LARGE)
    there = assembler(made)
    there.begin(header(made), there.check(header(made)))
    assert there.chunk(memoryview(made)[:-1]) is None
    text = f"chunk of {1 + extra} bytes at {len(made) - 1}, the header announced {len(made)} in all"
    with pytest.raises(RefusedError, match=text) as error:
        there.chunk(memoryview(bytes(1 + extra)))
    assert (error.value.kind, error.value.round) == ("size", 5)
    assert reason(there.chunk, memoryview(made)[-1:])[0] == "malformed"
    assert receive(there, made) == made


def test_an_empty_chunk_is_refused():
    made = frame(LARGE)
    there = assembler(made)
    there.begin(header(made), there.check(header(made)))
    assert reason(there.chunk, memoryview(b"")) == ("size", 5)
    assert reason(there.chunk, memoryview(b"")) == ("malformed", 0)


def test_a_new_header_abandons_the_payload_that_is_under_way():
    old, new = frame(LARGE, round=5), frame(LARGE, round=6, value=2.0)
    there = assembler(old)
    there.begin(header(old), there.check(header(old)))
    assert there.chunk(memoryview(old)[:1000]) is None
    assert receive(there, new) == new
    there.begin(header(old), there.check(header(old)))
    there.drop()
    assert reason(there.chunk, memoryview(old)[:1000])[0] == "malformed"


# --- memory -------------------------------------------------------------------------------


def address(view):
    return np.frombuffer(view, np.uint8).ctypes.data


def test_a_payload_that_is_held_is_not_overwritten_by_the_next():
    made = [frame(LARGE, round=k, value=float(k)) for k in range(1, 6)]
    there = assembler(made[0])
    held = []
    for one in made:
        held.append(receive(there, one))
        assert [bytes(h) for h in held] == made[: len(held)]


def test_a_view_keeps_its_memory_too():
    first, second = frame(LARGE, value=1.0), frame(LARGE, value=2.0)
    there = assembler(first)
    vector = codec.decode(receive(there, first), codec.read_header(first))["folded"]
    gc.collect()
    for _ in range(3):
        receive(there, second)
    assert set(vector) == {1.0}


def test_memory_is_used_again_once_nobody_holds_it():
    """Two buffers, in turn, however long the run is and however its round's digits grow."""
    there = assembler(frame(LARGE))
    seen, last = set(), None
    for k in range(5, 25):
        made = frame(LARGE, round=k)
        now = receive(there, made)
        assert bytes(now) == made
        if last is not None:
            assert address(now) // 4096 != address(last) // 4096
        seen.add(address(memoryview(now)[-4:]))
        last = now
    assert len(seen) == 2


def test_no_more_than_two_buffers_are_kept_however_many_were_held():
    made = frame(LARGE)
    there = assembler(made)
    tracemalloc.start()
    try:
        held = [receive(there, made) for _ in range(6)]
        assert tracemalloc.get_traced_memory()[0] > 6 * len(made)
        held.clear()
        for _ in range(3):
            receive(there, made)
        assert len(made) < tracemalloc.get_traced_memory()[0] < 2.5 * len(made)
    finally:
        tracemalloc.stop()


def test_a_buffer_that_is_too_small_is_not_used_again():
    there = assembler(frame(LARGE))
    buffers = there._buffers
    small = address(buffers.take(1000, 900))
    for total in (1000, 1256, 2000):
        view = buffers.take(total, 900)
        assert len(view) == total
        view[:] = b"\x01" * total
        assert (address(view) - small in range(64)) == (total == 1000 or total <= 1256)
        del view


def test_what_refuses_is_an_error_of_payloads():
    error = RefusedError(pb.Refusal.AHEAD, "x")
    assert isinstance(error, PayloadError)
    assert (error.kind, error.round) == ("ahead", 0)
