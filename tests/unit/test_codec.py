"""Frames: what goes in comes out, and nothing but that is accepted."""

import json
import struct

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from flower_dhb import PayloadError
from flower_dhb.agent.codec import (
    VERSION,
    Header,
    VectorSpec,
    all_finite,
    decode,
    encode,
    encode_parts,
    read_header,
)

PAYLOAD = {
    "folded": np.array([1.5, -2.0, 3.25], np.float32),
    "statistics": np.array([0.5, 1e300], np.float64),
}
WHERE = {"run": "r1", "round": 7, "vertex": 3}
EXPECT = Header.of(PAYLOAD, **WHERE)
FRAME = encode(PAYLOAD, **WHERE)

# The prefix as documented: magic, version, two bytes of padding, header length, checksum.
PREFIX = struct.Struct("<4sHxxIQ")
HEADER_END = PREFIX.size + PREFIX.unpack_from(FRAME)[2]


def frame(header, vectors=b"", *, magic=b"DHB\x00", version=VERSION, checksum=None, length=None):
    """A frame built by hand, right unless told otherwise."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    right = xxhash.xxh3_64_intdigest(text + vectors)
    checksum = right if checksum is None else checksum
    length = len(text) if length is None else length
    return PREFIX.pack(magic, version, length, checksum) + text + vectors


HEADER = {
    "run": "r1",
    "round": 7,
    "vertex": 3,
    "vectors": [["folded", "float32", 3], ["statistics", "float64", 2]],
}
VECTORS = struct.pack("<3f2d", 1.5, -2.0, 3.25, 0.5, 1e300)


def test_a_frame_is_laid_out_as_documented():
    assert frame(HEADER, VECTORS) == FRAME


def test_round_trip_keeps_names_dtypes_values_and_order():
    found = decode(FRAME, EXPECT)
    assert list(found) == list(PAYLOAD)
    for name, vector in PAYLOAD.items():
        assert found[name].dtype == vector.dtype
        np.testing.assert_array_equal(found[name], vector)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_any_buffer_decodes_to_views_that_cannot_be_written_to(kind):
    found = decode(kind(FRAME), EXPECT)
    with pytest.raises(ValueError, match="read-only"):
        found["folded"][0] = 0.0


def test_parts_are_the_frame_and_share_the_vectors_memory():
    vector = np.arange(4.0)
    parts = encode_parts({"folded": vector}, **WHERE)
    assert b"".join(parts) == encode({"folded": vector}, **WHERE)
    assert np.shares_memory(np.frombuffer(parts[1]), vector)


@pytest.mark.parametrize(
    "vector",
    [
        np.zeros(0, np.float32),
        np.arange(10.0)[::3],
        np.arange(3, dtype=">f4"),
        np.array([-0.0, np.finfo(np.float64).tiny, np.finfo(np.float64).max]),
    ],
    ids=["empty", "strided", "big-endian", "extreme"],
)
def test_unusual_vectors_survive(vector):
    expect = Header.of({"v": vector}, **WHERE)
    found = decode(encode({"v": vector}, **WHERE), expect)["v"]
    np.testing.assert_array_equal(found, vector)
    np.testing.assert_array_equal(np.signbit(found), np.signbit(vector))


def test_header_tells_what_is_inside():
    assert read_header(FRAME) == EXPECT
    assert EXPECT.vectors == (
        VectorSpec("folded", "float32", 3),
        VectorSpec("statistics", "float64", 2),
    )
    assert EXPECT.n_bytes == 3 * 4 + 2 * 8


@pytest.mark.parametrize(
    ("vector", "message"),
    [
        (np.zeros((2, 2)), r"'v' is float64\[2, 2\]; a payload carries flat vectors"),
        (np.float64(1.0), r"'v' is float64\[\]"),
        (np.zeros(2, np.float16), r"'v' is float16\[2\].*float32 or float64"),
        (np.zeros(2, np.int64), r"'v' is int64\[2\]"),
        (np.zeros(2, np.complex128), r"'v' is complex128\[2\]"),
        (np.array([None]), r"'v' is object\[1\]"),
    ],
)
def test_what_a_payload_cannot_carry(vector, message):
    with pytest.raises(PayloadError, match=message):
        encode({"v": vector}, **WHERE)


def test_a_header_that_no_receiver_would_accept_is_not_sent():
    with pytest.raises(PayloadError, match=r"header of \d+ bytes, at most 4096"):
        encode(PAYLOAD, run="r" * 5000, round=1, vertex=0)


# --- frames that are refused -----------------------------------------------------------


def with_header(**changes):
    return frame(HEADER | changes, VECTORS)


NAN = struct.pack("<3f2d", 1.5, float("nan"), 3.25, 0.5, 1e300)
INFINITE = struct.pack("<3f2d", 1.5, 2.0, 3.25, float("-inf"), 1e300)
REFUSED = {
    "nothing": (b"", "0 bytes are too short for a payload"),
    "magic": (frame(HEADER, VECTORS, magic=b"PK\x03\x04"), "not a payload of this package"),
    "pickle": (b"\x80\x04\x95" + bytes(40), "not a payload of this package"),
    "version": (
        frame(HEADER, VECTORS, version=2),
        "payload version 2, expected 1; all agents must run the same version of flower_dhb",
    ),
    "run": (with_header(run="r2"), "payload is of run 'r2', expected 'r1'"),
    "round": (with_header(round=6), "payload is of round 6, expected 7"),
    "vertex": (with_header(vertex=2), "payload is of vertex 2, expected 3"),
    "other vectors": (
        with_header(vectors=[["parameters", "float32", 3], ["statistics", "float64", 2]]),
        r"holds vectors \['parameters', 'statistics'\], expected \['folded', 'statistics'\]; "
        "all agents must run the same algorithm",
    ),
    "fewer vectors": (
        with_header(vectors=[["folded", "float32", 3]]),
        r"holds vectors \['folded'\]",
    ),
    "size": (
        with_header(vectors=[["folded", "float32", 4], ["statistics", "float64", 2]]),
        r"'folded' is float32\[4\], expected float32\[3\]; all agents must run the same model",
    ),
    "dtype": (
        with_header(vectors=[["folded", "float64", 3], ["statistics", "float64", 2]]),
        r"'folded' is float64\[3\], expected float32\[3\]",
    ),
    "too long": (frame(HEADER, VECTORS + b"\0"), "payload has 29 bytes of vectors, expected 28"),
    "too short": (frame(HEADER, VECTORS[:-1]), "payload has 27 bytes of vectors, expected 28"),
    "checksum": (frame(HEADER, VECTORS, checksum=5), "the header says 0000000000000005; .*damaged"),
    "NaN": (frame(HEADER, NAN), "'folded' holds NaN or infinite values"),
    "infinite": (frame(HEADER, INFINITE), "'statistics' holds NaN or infinite values"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_name_round_sender_and_reason(case):
    bad, message = REFUSED[case]
    with pytest.raises(PayloadError, match=f"^round 7, neighbor 3: .*{message}"):
        decode(bad, EXPECT)


HEADER_BOMBS = {
    "length beyond the frame": frame(HEADER, VECTORS, length=2**32 - 1),
    "length beyond the limit": frame(b" " * 5000 + json.dumps(HEADER).encode(), VECTORS),
    "not UTF-8": frame(b"\xff\xfe{}"),
    "not JSON": frame(b"{"),
    "empty": frame(b""),
    "deep": frame(b"[" * 4096),
    "a list": frame([HEADER]),
    "a number": frame(7),
    "a text": frame("run"),
    "null": frame(b"null"),
    "no vectors": frame({k: v for k, v in HEADER.items() if k != "vectors"}),
    "run is a list": with_header(run=["r1"]),
    "round is a float": with_header(round=7.0),
    "round is true": with_header(round=True),
    "round is NaN": frame(json.dumps(HEADER | {"round": float("nan")}).encode(), VECTORS),
    "round of 4000 digits": frame(b'{"round": ' + b"9" * 4000 + b"}"),
    "vertex is text": with_header(vertex="3"),
    "vectors are a number": with_header(vectors=3),
    "vectors are an object": with_header(vectors={"abc": 1}),
    "vectors are texts": with_header(vectors=["abc"]),
    "vector of two fields": with_header(vectors=[["folded", "float32"]]),
    "vector name is a list": with_header(vectors=[[["folded"], "float32", 3]]),
    "object dtype": with_header(vectors=[["folded", "O", 3]]),
    "dtype is a list": with_header(vectors=[["folded", ["float32"], 3]]),
    "negative size": with_header(vectors=[["folded", "float32", -3]]),
    "size is true": with_header(vectors=[["folded", "float32", True]]),
    "size is a float": with_header(vectors=[["folded", "float32", 3.0]]),
}


@pytest.mark.parametrize("case", HEADER_BOMBS)
def test_headers_that_are_none(case):
    with pytest.raises(PayloadError, match=r"header"):
        read_header(HEADER_BOMBS[case])
    with pytest.raises(PayloadError, match=r"^round 7, neighbor 3: .*header"):
        decode(HEADER_BOMBS[case], EXPECT)


def test_a_claimed_size_allocates_nothing():
    with pytest.raises(PayloadError, match=r"'folded' is float32\[1000000000000000\]"):
        decode(with_header(vectors=[["folded", "float32", 10**15], HEADER["vectors"][1]]), EXPECT)


def is_refused(frame):
    try:
        decode(frame, EXPECT)
    except PayloadError:
        return True
    return False


def test_a_truncated_frame_is_refused():
    assert not is_refused(FRAME)
    assert [length for length in range(len(FRAME)) if not is_refused(FRAME[:length])] == []


def test_a_flipped_bit_anywhere_is_noticed():
    taken = []
    for at in range(len(FRAME)):
        damaged = bytearray(FRAME)
        damaged[at] ^= 0x10
        if not is_refused(damaged):
            taken.append(at)
    assert taken == []


# Seeded, so that a run repeats; no deadline, because the machine may be busy.
FUZZ = settings(max_examples=200, deadline=None, derandomize=True, database=None)


@FUZZ
@given(st.binary(max_size=300))
def test_arbitrary_bytes_are_refused(data):
    with pytest.raises(PayloadError):
        decode(data, EXPECT)


@FUZZ
@given(st.binary(max_size=100), st.binary(max_size=40))
def test_arbitrary_headers_are_refused_even_with_the_right_checksum(header, vectors):
    with pytest.raises(PayloadError):
        decode(frame(header, vectors), EXPECT)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda children: (
        st.lists(children, max_size=4)
        | st.dictionaries(
            st.sampled_from(["run", "round", "vertex", "vectors", "x"]), children, max_size=5
        )
    ),
    max_leaves=8,
)


@FUZZ
@given(st.sampled_from(["run", "round", "vertex", "vectors"]), JSON)
@pytest.mark.thorough
def test_a_header_with_an_arbitrary_value_is_refused_unless_it_is_the_right_one(key, value):
    document = HEADER | {key: value}
    if document == HEADER and type(value) is type(HEADER[key]):
        assert decode(frame(document, VECTORS), EXPECT)
    else:
        with pytest.raises(PayloadError):
            decode(frame(document, VECTORS), EXPECT)


@FUZZ
@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=30))
@pytest.mark.thorough
def test_every_finite_vector_survives(values):
    payload = {"v": np.array(values, np.float32)}
    expect = Header.of(payload, **WHERE)
    np.testing.assert_array_equal(decode(encode(payload, **WHERE), expect)["v"], payload["v"])


@pytest.mark.parametrize("size", [1, 2**16 - 1, 2**16, 2**16 + 1])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_found_at_either_end(size, bad):
    vector = np.zeros(size, np.float32)
    assert all_finite(vector)
    for at in (0, size - 1):
        damaged = vector.copy()
        damaged[at] = bad
        assert not all_finite(damaged)
