"""Arrays as Flower carries them: an app's in the .npy format, payloads as codec frames."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from functools import lru_cache
from io import BytesIO
from tokenize import TokenError
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord
from numpy.typing import NDArray

from flower_dhb.agent import codec
from flower_dhb.agent.node import STATISTICS_VECTOR
from flower_dhb.errors import PayloadError
from flower_dhb.types import Layout, NDArrays, dtype_name

__all__ = [
    "START_VERTEX",
    "array_record",
    "carried",
    "frame_array",
    "frame_of",
    "named_arrays",
    "npy_array",
    "record_of",
    "start_frame",
]

START_VERTEX = -1  # sender of the initial vectors, which belong to no agent

_NUMPY = "numpy.ndarray"  # Flower's name for the .npy format
_FRAME = "flower_dhb.frame"

# What NumPy's reader of headers raises on bytes of any kind.
_UNREADABLE = (
    ValueError,
    TypeError,
    SyntaxError,
    OverflowError,
    MemoryError,
    RecursionError,
    TokenError,
    struct.error,
)


def array_record(arrays: Mapping[str, NDArray[Any]]) -> ArrayRecord:
    """Named arrays as Flower hands them to apps, in the .npy format."""
    return record_of({name: npy_array(array) for name, array in arrays.items()})


def named_arrays(record: Mapping[str, Array]) -> NDArrays:
    """Arrays of a record by name, read-only views where the format allows.

    Values of the other byte order are turned, which changes no value. Raises PayloadError
    for an array that is not in Flower's .npy format.
    """
    return {name: _from_npy(name, array) for name, array in record.items()}


def record_of(arrays: Mapping[str, Array]) -> ArrayRecord:
    """Flower's arrays as one record."""
    record = ArrayRecord()
    for name, array in arrays.items():
        record[name] = array
    return record


class _Carried(Array):
    """An array whose bytes Flower's simulation moves between its processes with few copies.

    Ray copies what lies inside a message or a context as bytes three times on its way, and what
    is an array of NumPy's once. For Flower it is an `Array`, whose name it writes down.
    """

    __qualname__ = "Array"

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """Hand the bytes over as an array where buffers may lie outside of the stream."""
        apart = protocol >= 5 and len(self.data) > 0
        data = np.frombuffer(self.data, np.uint8) if apart else self.data
        return carried, (self.dtype, self.shape, self.stype, data)


def carried(
    dtype: str, shape: tuple[int, ...], stype: str, data: bytes | NDArray[np.uint8]
) -> Array:
    """Serialized values as an array of Flower's that is cheap to move in its simulation."""
    return _Carried(dtype, shape, stype, data if isinstance(data, bytes) else data.tobytes())


def frame_array(frame: bytes) -> Array:
    """A codec frame as one Flower array."""
    return carried("uint8", (len(frame),), _FRAME, frame)


def frame_of(array: Array) -> bytes:
    """Inverse of `frame_array`. Raises PayloadError for an array that is something else."""
    if array.stype != _FRAME:
        raise PayloadError(f"a payload is serialized as '{array.stype}', expected '{_FRAME}'")
    return array.data


def start_frame(layout: Layout, arrays: Mapping[str, NDArray[Any]], run: str) -> Array:
    """The initial vectors as one frame; their sender is nobody."""
    parameters, statistics = layout.flatten(arrays)
    vectors = {"parameters": parameters}
    if layout.statistics_size:
        vectors[STATISTICS_VECTOR] = statistics
    return frame_array(codec.encode(vectors, run=run, round=0, vertex=START_VERTEX))


def npy_array(array: NDArray[Any]) -> Array:
    """One array as Flower stores it: what np.save writes, without its intermediate copies."""
    array = np.asarray(array, order="C")
    head = _npy_head(array.dtype.str, tuple(array.shape))
    data = b"".join((head, array.reshape(-1).view(np.uint8).data))
    return Array(dtype_name(array.dtype), tuple(array.shape), _NUMPY, data)


def _from_npy(name: str, array: Array) -> NDArray[Any]:
    if array.stype != _NUMPY:
        raise PayloadError(f"'{name}' is serialized as '{array.stype}', expected '{_NUMPY}'")
    try:
        start = _npy_start(array.data)
        shape, fortran, dtype = _read_npy_head(bytes(array.data[:start]))
        if min(shape, default=0) < 0:  # NumPy would make something of it
            raise ValueError(f"its shape is {list(shape)}")
        count = math.prod(shape)
        flat = np.frombuffer(array.data, dtype, count, start) if count else np.empty(0, dtype)
        if not dtype.isnative:
            flat = flat.astype(dtype.newbyteorder("="))
        return flat.reshape(shape, order="F" if fortran else "C")
    except _UNREADABLE as error:
        raise PayloadError(f"'{name}' is not a readable array: {error}") from None


def _npy_start(data: bytes) -> int:
    """Where the values begin: magic, version, the header's length, the header."""
    wide = data[6:7] != b"\x01"
    (length,) = struct.unpack_from("<I" if wide else "<H", data, 8)
    return int(length) + (12 if wide else 10)


# A model's arrays have the same few headers in every round.


@lru_cache(maxsize=4096)
def _npy_head(dtype: str, shape: tuple[int, ...]) -> bytes:
    stream = BytesIO()
    np.lib.format.write_array_header_1_0(
        stream, {"descr": dtype, "fortran_order": False, "shape": shape}
    )
    return stream.getvalue()


@lru_cache(maxsize=4096)
def _read_npy_head(head: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    stream = BytesIO(head)
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(stream)
    return np.lib.format.read_array_header_2_0(stream)
