"""Frames at their limits: sizes, dtypes, padding, and the check of a frame as it arrives."""

import json
import struct

import numpy as np
import pytest
import xxhash

from flower_dhb import PayloadError
from flower_dhb.agent.codec import (
    VERSION,
    Header,
    VectorSpec,
    Verifier,
    all_finite,
    checksum,
    decode,
    encode,
    encode_parts,
    read_checksum,
    read_header,
)

WHERE = {"run": "r1", "round": 7, "vertex": 3}
PREFIX_BYTES = 20
BLOCK = 2**16  # elements that are looked at together


def expected(payload):
    return Header.of(payload, **WHERE)


def raw(text, vectors=b"", *, claimed=None):
    """A frame around a header's text, with the right checksum unless told otherwise."""
    right = xxhash.xxh3_64_intdigest(text + vectors) if claimed is None else claimed
    return struct.pack("<4sHxxIQ", b"DHB\x00", VERSION, len(text), right) + text + vectors


# --- the prefix ---------------------------------------------------------------------------


@pytest.mark.parametrize("at", [6, 7])
@pytest.mark.parametrize("bit", range(8))
def test_padding_that_is_not_zero_is_refused(at, bit):
    """No checksum covers it; a later version may give it a meaning."""
    payload = {"v": np.ones(2)}
    damaged = bytearray(encode(payload, **WHERE))
    assert damaged[at] == 0
    damaged[at] ^= 1 << bit
    with pytest.raises(PayloadError, match="neighbor 3: not a payload of this package"):
        decode(damaged, expected(payload))
    with pytest.raises(PayloadError, match="not a payload of this package"):
        read_header(damaged)


@pytest.mark.parametrize("version", [0, 2, 256, 65535])
def test_another_version_is_named_before_anything_else_of_the_frame_is_read(version):
    frame = struct.pack("<4sHxxIQ", b"DHB\x00", version, 2**32 - 1, 0)
    with pytest.raises(PayloadError, match=f"payload version {version}, expected 1; all agents"):
        read_header(frame)


def test_a_prefix_and_nothing_else():
    frame = raw(b"", claimed=77)
    assert len(frame) == PREFIX_BYTES
    assert read_checksum(frame) == 77
    with pytest.raises(PayloadError, match="payload: unreadable header"):
        read_header(frame)
    for read in (read_checksum, read_header):
        with pytest.raises(PayloadError, match="19 bytes are too short for a payload"):
            read(frame[:-1])


def test_a_header_that_ends_with_its_frame_is_read():
    payload = {"v": np.zeros(0, np.float32)}
    frame = encode(payload, **WHERE)
    assert read_header(frame) == expected(payload)
    with pytest.raises(PayloadError, match=r"header of \d+ bytes does not fit its frame"):
        read_header(frame[:-1])


def test_the_longest_header_is_carried_both_ways():
    """4096 bytes are, 4097 are not, whoever makes them."""
    payload = {"v": np.ones(1)}
    short = len(encode_parts(payload, **{**WHERE, "run": ""})[0]) - PREFIX_BYTES
    run = "r" * (4096 - short)
    frame = encode(payload, **{**WHERE, "run": run})
    assert read_header(frame).run == run
    with pytest.raises(PayloadError, match="round 7, neighbor 3: header of 4097 bytes, at most"):
        encode(payload, **{**WHERE, "run": run + "r"})
    text = json.dumps(
        {"run": run + "r", "round": 7, "vertex": 3, "vectors": [["v", "float64", 1]]}
    ).encode()
    assert len(text) == 4097
    with pytest.raises(PayloadError, match="header of 4097 bytes does not fit"):
        read_header(raw(text, bytes(8)))


@pytest.mark.parametrize(
    "changes",
    [
        {"vertex": True},
        {"vertex": 3.0},
        {"run": 1},
        {"vectors": [[3, "float64", 1]]},
        {"vectors": [["v", "float16", 1]]},
        {"vectors": [["v", ">f8", 1]]},
        {"vectors": [["v", "float64", -1]]},
    ],
)
def test_a_header_of_other_kinds_of_values_is_none(changes):
    document = {"run": "r1", "round": 7, "vertex": 3, "vectors": [["v", "float64", 1]]} | changes
    with pytest.raises(PayloadError, match="unreadable header"):
        read_header(raw(json.dumps(document).encode(), bytes(8)))


# --- dtypes and sizes ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "dtype", ["float16", "longdouble", "complex64", "complex128", "int32", "int64", "uint8", "bool"]
)
def test_dtypes_that_are_not_carried_are_refused_by_name(dtype):
    vector = np.ones(2, dtype)
    with pytest.raises(PayloadError, match=rf"'v' is {vector.dtype.name}\[2\]; .*float32 or float"):
        Header.of({"w": np.ones(2), "v": vector}, **WHERE)
    with pytest.raises(PayloadError, match="a payload carries flat vectors"):
        encode({"v": vector}, **WHERE)


@pytest.mark.parametrize(
    "vector",
    [np.ones((2, 3)), np.ones((2, 3), order="F"), np.ones((3, 1)), np.ones((1, 0)), np.array(1.0)],
    ids=["C", "Fortran", "column", "empty", "scalar"],
)
def test_only_flat_vectors_are_carried(vector):
    with pytest.raises(PayloadError, match="'v' is float64"):
        encode({"v": vector}, **WHERE)


FORTRAN = np.asfortranarray(np.arange(12.0).reshape(3, 4))


@pytest.mark.parametrize(
    "vector",
    [
        np.array([1.0, -2.5, 3e38], ">f4"),
        np.array([1.0, -2.5, 1e300], ">f8"),
        np.arange(9.0, dtype=np.float32)[::-2],
        FORTRAN[1],
        FORTRAN.ravel(order="K")[::5],
        np.frombuffer(b"\0" + np.arange(3.0).tobytes(), np.float64, offset=1),
    ],
    ids=[">f4", ">f8", "backwards", "row of Fortran", "every fifth", "unaligned"],
)
def test_the_bytes_are_little_endian_and_in_order_whatever_the_vector_was(vector):
    frame = encode({"v": vector}, **WHERE)
    native = "float32" if vector.itemsize == 4 else "float64"
    values = list(map(float, vector))
    form = f"<{len(values)}{'f' if native == 'float32' else 'd'}"
    assert frame.endswith(b"]]}" + struct.pack(form, *values))
    assert read_header(frame).vectors == (VectorSpec("v", native, len(values)),)
    found = decode(frame, expected({"v": vector}))["v"]
    assert found.dtype == np.dtype(native)
    assert list(map(float, found)) == values


@pytest.mark.parametrize("sizes", [(0, 0), (0, 3), (3, 0), (1, 1), (BLOCK - 1, BLOCK + 1)])
def test_vectors_of_any_size_lie_one_after_the_other(sizes):
    rng = np.random.default_rng(1)
    payload = {
        "a": rng.standard_normal(sizes[0]).astype(np.float32),
        "b": rng.standard_normal(sizes[1]),
    }
    frame = encode(payload, **WHERE)
    assert len(frame) - expected(payload).n_bytes == len(encode_parts(payload, **WHERE)[0])
    assert frame.endswith(payload["a"].tobytes() + payload["b"].tobytes())
    found = decode(frame, expected(payload))
    for name, vector in payload.items():
        np.testing.assert_array_equal(found[name], vector)


@pytest.mark.parametrize("at", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK - 1, 2 * BLOCK])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_found_wherever_it_is(at, bad):
    vector = np.zeros(2 * BLOCK + 1, np.float32)
    vector[at] = bad
    assert not all_finite(vector)


def test_the_checksum_is_of_the_buffers_one_after_the_other():
    assert checksum(b"ab", memoryview(b"c")) == checksum(b"abc") == xxhash.xxh3_64_intdigest(b"abc")
    assert checksum() == xxhash.xxh3_64_intdigest(b"")
    assert checksum(b"c", b"ab") != checksum(b"abc")


# --- a frame that is checked while it arrives ---------------------------------------------

# Finite values whose bytes, read from elsewhere or as another dtype, would be NaN.
TRAPS = {
    "a": np.array([0x3F8_07FC0] * 3, np.uint32).view(np.float32),
    "b": np.array([0x3FF0_0000_7FC0_0000] * 3, np.uint64).view(np.float64),
    "c": np.array([0x3F8_07FC0, 0x7F7F_FFFF], np.uint32).view(np.float32),
}


def arriving(payload, step, spoil=None):
    """Feed a frame to a Verifier `step` bytes at a time. Returns the vectors.

    spoil: called with the frame before it arrives. Only bytes that have arrived are there.
    """
    frame = bytearray(encode(payload, **WHERE))
    if spoil is not None:
        spoil(frame)
    place = bytearray(b"\xff" * len(frame))
    verifier = Verifier(memoryview(place), expected(payload))
    for begin in range(0, len(frame), step):
        end = min(begin + step, len(frame))
        place[begin:end] = frame[begin:end]
        try:
            verifier.advance(end)
        except PayloadError as error:
            raise Found(end, str(error)) from None
    return verifier.finish()


class Found(Exception):  # noqa: N818
    """When a value that is not finite was found: after how many bytes."""

    def __init__(self, end, text):
        super().__init__(text)
        self.end, self.text = end, text


STEPS = [1, 3, 4, 5, 7, 8, 13, 10**6]


@pytest.mark.parametrize("step", STEPS)
def test_vectors_that_arrive_piece_by_piece_are_what_was_sent(step):
    found = arriving(TRAPS, step)
    assert list(found) == ["a", "b", "c"]
    for name, vector in TRAPS.items():
        assert found[name].dtype == vector.dtype
        np.testing.assert_array_equal(found[name], vector)
        assert not found[name].flags.writeable


@pytest.mark.parametrize("step", STEPS)
def test_a_bad_value_is_found_as_soon_as_it_is_there_and_named(step):
    total = len(encode(TRAPS, **WHERE))
    begin = total - expected(TRAPS).n_bytes
    for name, vector in TRAPS.items():
        for i in range(len(vector)):
            payload = {k: v.copy() for k, v in TRAPS.items()}
            payload[name][i] = np.nan
            there = begin + (i + 1) * vector.itemsize
            with pytest.raises(Found) as found:
                arriving(payload, step)
            assert found.value.text == (
                f"round 7, neighbor 3: '{name}' holds NaN or infinite values"
            )
            assert found.value.end == min(-(-there // step) * step, total)
        begin += vector.nbytes


@pytest.mark.parametrize("step", [5, 8, 10**6])
def test_a_flipped_bit_anywhere_in_a_frame_that_arrives_in_pieces_is_noticed(step):
    payload = {"a": np.ones(3, np.float32), "b": np.ones(2)}
    for at in range(len(encode(payload, **WHERE))):

        def flip(frame, at=at):
            frame[at] ^= 0x01

        with pytest.raises(PayloadError, match="round 7, neighbor 3: "):
            arriving(payload, step, flip)


def test_damage_is_told_with_both_checksums():
    payload = {"v": np.array([2.0])}
    frame = encode(payload, **WHERE)
    right = read_checksum(frame)

    def flip(damaged):
        damaged[-1] ^= 0x01

    damaged = bytearray(frame)
    flip(damaged)
    actual = xxhash.xxh3_64_intdigest(bytes(damaged[PREFIX_BYTES:]))
    text = f"checksum is {actual:016x}, the header says {right:016x}; the payload was damaged"
    with pytest.raises(PayloadError, match=text):
        decode(damaged, expected(payload))
    with pytest.raises(PayloadError, match=text):
        arriving(payload, 8, flip)


def test_other_vectors_than_expected_are_refused_at_the_end():
    """A sender may fill the right number of bytes with other vectors."""
    payload = {"w": np.ones(2)}
    frame = bytearray(encode(payload, **WHERE))
    verifier = Verifier(memoryview(frame), expected({"v": np.ones(2)}))
    verifier.advance(len(frame))
    with pytest.raises(PayloadError, match=r"holds vectors \['w'\], expected \['v'\]"):
        verifier.finish()


def test_what_a_verifier_has_found_good_is_not_looked_at_again():
    payload = {"v": np.array([np.nan])}
    frame = encode(payload, **WHERE)
    assert np.isnan(decode(frame, expected(payload), verified=True)["v"][0])
    damaged = frame[:-8] + b"\x01" + frame[-7:]  # NaN still
    assert np.isnan(decode(damaged, expected(payload), verified=True)["v"][0])
    with pytest.raises(PayloadError, match="NaN"):
        decode(frame, expected(payload))
