"""The bridge between our nouns and Flower's records.

Two messages cross Flower: an `Instruction` from the relay to an agent, and the agent's
`Answer`. Payloads travel as codec frames, one Flower `Array` each, because every array
entry costs Flower objects and requests.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from io import BytesIO
from typing import Any, Literal, TypeAlias, TypeVar

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from numpy.typing import NDArray

from flower_dhb import codec
from flower_dhb.algorithms import Algorithm, algorithm_from_config
from flower_dhb.errors import FlowerDhbError, PayloadError, StateError
from flower_dhb.node import STATISTICS_VECTOR
from flower_dhb.types import Layout, NDArrays, dtype_name

__all__ = [
    "START_VERTEX",
    "Answer",
    "Ask",
    "Instruction",
    "Question",
    "array_record",
    "failure_text",
    "frame_array",
    "named_arrays",
    "npy_array",
    "read_request",
    "records_of",
    "start_frame",
]

PROTOCOL = "flower_dhb"
PROTOCOL_VERSION = 1
_COMMON = "flower_dhb.common"
_PAYLOADS, _REJOIN = "flower_dhb.payloads", "flower_dhb.rejoin"
_START, _LOCAL = "flower_dhb.start", "flower_dhb.local"
_PAYLOAD, _PARAMETERS = "flower_dhb.payload", "flower_dhb.parameters"

START_VERTEX = -1  # sender of the initial vectors, which belong to no agent

_NUMPY = "numpy.ndarray"  # Flower's name for the .npy format
_FRAME = "flower_dhb.frame"

_Weights: TypeAlias = tuple[tuple[int, float], ...]

R = TypeVar("R", ArrayRecord, ConfigRecord, MetricRecord)

Ask = Literal["vertex", "train", "evaluate", "report"]


@dataclass(frozen=True)
class Question:
    """The relay asks a node which vertex it is, in a `train` message: any app takes those."""

    def to_records(self) -> RecordDict:
        """As the content of a message."""
        return _records({"ask": "vertex"})


@dataclass(frozen=True, kw_only=True)
class Instruction:
    """What the relay asks of an agent, with everything the agent needs for it.

    ask: `train`, `evaluate`, or `report` (only send your parameters). round: the round
    to train, or the one evaluated. state_round: the round that the agent's parameters
    are of once it has combined. payloads: frames of that round, by neighbor. rejoin: the
    newest (round, frame) of each neighbor, for an agent that has lost its state. start:
    initial vectors as a frame, before round 1 only. local: initial values of the arrays
    that stay with the agent. report: whether the answer shall hold the parameters.
    """

    ask: Ask
    run: str
    round: int
    vertex: int
    state_round: int
    weights: Mapping[int, float]
    algorithm: Algorithm
    layout: Layout
    payloads: Mapping[int, Array] = field(default_factory=dict)
    rejoin: Mapping[int, tuple[int, Array]] = field(default_factory=dict)
    start: Array | None = None
    local: Mapping[str, Array] = field(default_factory=dict)
    report: bool = False
    arrays_key: str = "arrays"
    config_key: str = "config"

    def to_records(self, config: ConfigRecord | None = None) -> RecordDict:
        """As the content of a message, with the user's own config beside it."""
        document = {
            "ask": self.ask,
            "run": self.run,
            "round": self.round,
            "vertex": self.vertex,
            "state_round": self.state_round,
            "rejoin_rounds": {str(j): r for j, (r, _) in self.rejoin.items()},
            "report": self.report,
            "arrays_key": self.arrays_key,
            "config_key": self.config_key,
        }
        records = _records(document)
        weights = tuple(sorted(self.weights.items()))
        records[_COMMON] = ConfigRecord({"json": _write(weights, self.algorithm, self.layout)})
        if config is not None:
            records[self.config_key] = config
        if self.payloads:
            records[_PAYLOADS] = _record({str(j): a for j, a in self.payloads.items()})
        if self.rejoin:
            records[_REJOIN] = _record({str(j): a for j, (_, a) in self.rejoin.items()})
        if self.start is not None:
            records[_START] = _record({"start": self.start})
        if self.local:
            records[_LOCAL] = _record(dict(self.local))
        return records

    @classmethod
    def of(cls, document: Mapping[str, Any], records: RecordDict) -> Instruction:
        """Inverse of `to_records`."""
        rounds = document["rejoin_rounds"]
        start = _arrays(records, _START).get("start")
        weights, algorithm, layout = _read(str(records_of(records, ConfigRecord)[_COMMON]["json"]))
        return cls(
            ask=document["ask"],
            run=document["run"],
            round=document["round"],
            vertex=document["vertex"],
            state_round=document["state_round"],
            weights=dict(weights),
            algorithm=algorithm,
            layout=layout,
            payloads={int(j): a for j, a in _arrays(records, _PAYLOADS).items()},
            rejoin={int(j): (rounds[j], a) for j, a in _arrays(records, _REJOIN).items()},
            start=start,
            local=_arrays(records, _LOCAL),
            report=document["report"],
            arrays_key=document["arrays_key"],
            config_key=document["config_key"],
        )


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What an agent answers.

    failure: why there is no payload, empty if all went well. state_round: round of its
    combined parameters, -1 if it could not combine or keep its state. rejoined: it had
    lost its state. refused: payloads that it did not accept, a text each. payload: frame
    of the trained round. parameters: frame of its parameters, if asked for. metrics: the
    app's own.
    """

    ask: Ask
    vertex: int
    round: int = 0
    state_round: int = 0
    failure: str = ""
    rejoined: bool = False
    refused: tuple[str, ...] = ()
    payload: Array | None = None
    parameters: Array | None = None
    metrics: RecordDict = field(default_factory=RecordDict)

    def to_records(self) -> RecordDict:
        """As the content of a reply; the app's metrics keep their keys."""
        document = {
            "ask": self.ask,
            "vertex": self.vertex,
            "round": self.round,
            "state_round": self.state_round,
            "failure": self.failure,
            "rejoined": self.rejoined,
            "refused": list(self.refused),
        }
        records = _records(document)
        for key, record in self.metrics.items():
            records[key] = record
        if self.payload is not None:
            records[_PAYLOAD] = _record({"payload": self.payload})
        if self.parameters is not None:
            records[_PARAMETERS] = _record({"parameters": self.parameters})
        return records

    @property
    def app_metrics(self) -> dict[str, Any]:
        """All metric records in one mapping."""
        merged: dict[str, Any] = {}
        for record in records_of(self.metrics, MetricRecord).values():
            merged |= dict(record.items())
        return merged

    @classmethod
    def from_records(cls, records: RecordDict) -> Answer | None:
        """Read a reply's content; None if no agent of ours wrote it."""
        document = _document(records)
        if document is None:
            return None
        metrics = RecordDict(dict(records_of(records, MetricRecord)))
        return cls(
            ask=document["ask"],
            vertex=document["vertex"],
            round=document["round"],
            state_round=document["state_round"],
            failure=document["failure"],
            rejoined=document["rejoined"],
            refused=tuple(document["refused"]),
            payload=_arrays(records, _PAYLOAD).get("payload"),
            parameters=_arrays(records, _PARAMETERS).get("parameters"),
            metrics=metrics,
        )


def read_request(records: RecordDict) -> Question | Instruction | None:
    """What a message asks of an agent; None if it is not one of ours.

    Raises StateError if it is of another version of this protocol.
    """
    document = _document(records)
    if document is None:
        return None
    return Question() if document["ask"] == "vertex" else Instruction.of(document, records)


def records_of(records: RecordDict, kind: type[R]) -> dict[str, R]:
    """The records of one kind, by key.

    Flower's own `array_records` and the like return views that refer to themselves: they keep
    all arrays in memory until Python looks for cycles.
    """
    return {key: record for key, record in records.items() if isinstance(record, kind)}


# --- arrays -------------------------------------------------------------------------


def array_record(arrays: Mapping[str, NDArray[Any]]) -> ArrayRecord:
    """Named arrays as Flower hands them to apps, in the .npy format."""
    return _record({name: npy_array(array) for name, array in arrays.items()})


def named_arrays(record: Mapping[str, Array]) -> NDArrays:
    """Arrays of a record by name, read-only views where the format allows.

    Raises PayloadError for an array that is not in Flower's .npy format.
    """
    return {name: _from_npy(name, array) for name, array in record.items()}


def frame_array(frame: bytes) -> Array:
    """A codec frame as one Flower array."""
    return Array("uint8", (len(frame),), _FRAME, frame)


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
        count = math.prod(shape)
        flat = np.frombuffer(array.data, dtype, count, start) if count else np.empty(0, dtype)
        return flat.reshape(shape, order="F" if fortran else "C")
    except (ValueError, struct.error) as error:
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


def _record(arrays: dict[str, Array]) -> ArrayRecord:
    record = ArrayRecord()
    for name, array in arrays.items():
        record[name] = array
    return record


def _arrays(records: RecordDict, key: str) -> dict[str, Array]:
    record = records.get(key)
    return dict(record.items()) if isinstance(record, ArrayRecord) else {}


# What stays the same from message to message is written and read once. The texts of
# large models are long, so only a few are kept.


@lru_cache(maxsize=64)
def _write(weights: _Weights, algorithm: Algorithm, layout: Layout) -> str:
    document = {
        "weights": weights,
        "algorithm": algorithm.to_config(),
        "layout": layout.to_config(),
    }
    return json.dumps(document)


@lru_cache(maxsize=64)
def _read(text: str) -> tuple[_Weights, Algorithm, Layout]:
    document = json.loads(text)
    weights = tuple((int(j), float(w)) for j, w in document["weights"])
    algorithm = algorithm_from_config(document["algorithm"])
    return weights, algorithm, Layout.from_config(document["layout"])


def _records(document: dict[str, Any]) -> RecordDict:
    text = json.dumps({"version": PROTOCOL_VERSION, **document})
    return RecordDict({PROTOCOL: ConfigRecord({"json": text})})


def _document(records: RecordDict) -> dict[str, Any] | None:
    record = records.get(PROTOCOL)
    if not isinstance(record, ConfigRecord) or "json" not in record:
        return None
    document: dict[str, Any] = json.loads(str(record["json"]))
    if document.get("version") != PROTOCOL_VERSION:
        raise StateError(
            f"message is of protocol version {document.get('version')}, expected "
            f"{PROTOCOL_VERSION}; relay and agents must run the same version of flower_dhb"
        )
    return document


def failure_text(error: BaseException) -> str:
    """One line for the history; our own errors speak for themselves."""
    if isinstance(error, FlowerDhbError):
        return str(error)
    return f"{type(error).__name__}: {error}"
