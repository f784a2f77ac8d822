"""Messages as a broken or hostile sender might make them: seeded, one change at a time."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

RAW = "<<raw>>"  # stands for text that is no JSON value of Python's own

VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 2, 7, 2**31, 2**53 + 1, 2**70, 0.5, float("nan"), float("inf"), "",
    "3", "vertex", "train", "finish", "\x00", "x" * 30_000, [], [1], [[1]], [[1, 2]], [["1", 2]],
    [[0, "a"]], [[0, 1, 2]], [None], ["a"], {}, {"1": 1}, {"name": "dsgd"}, {"name": ["dsgd"]},
    {"name": "heavy-ball", "momentum": "x"}, [["w", [1], "float32", "parameter"]],
    [["w", ["a"], "float32", "parameter"]], [["w", [-1], "<f8", "parameter"]],
    [["w", [2], "O", "local"]], [["w", [2**60], "<f8", "parameter"]], [[None, 3, 4, 5]],
]  # fmt: skip
RAW_VALUES = ["1e999", "9" * 5000, "[" * 100_000, "{", "-", "nul", "NaN", "-Infinity", "{'a': 1}"]

OTHERS: list[Callable[[], Any]] = [
    lambda: ArrayRecord([np.zeros(2)]),
    lambda: ArrayRecord(),
    lambda: MetricRecord({"a": 1.0}),
    lambda: MetricRecord({"num-examples": 2**2000}),
    lambda: ConfigRecord({"json": 5}),
    lambda: ConfigRecord({"json": b"{}"}),
    lambda: ConfigRecord({"json": ["{}"]}),
    lambda: ConfigRecord({"json": "[]"}),
    lambda: ConfigRecord({"json": "null"}),
    lambda: ConfigRecord({"json": "x" * (2**22 + 1)}),
    lambda: ConfigRecord({}),
]


def mutated(records: RecordDict, rng: np.random.Generator) -> RecordDict:
    """A copy with one thing changed."""
    records = copy.deepcopy(records)
    keys = list(records)
    if not keys:
        return records
    # Documents hold most of what can be wrong.
    documents = [key for key in keys if _parsed(records[key])]
    choices: list[Callable[[], None]] = [lambda: _record(records, str(rng.choice(keys)), rng)]
    arrays = [k for k in keys if isinstance(records[k], ArrayRecord) and len(records[k])]
    if documents:
        choices += 3 * [lambda: _document(records, str(rng.choice(documents)), rng)]
    if arrays:
        choices.append(lambda: _array(records, str(rng.choice(arrays)), rng))
    choices[int(rng.integers(len(choices)))]()
    return records


def _parsed(record: object) -> dict[str, Any]:
    """A record's document, empty if an earlier change has left none."""
    try:
        document = json.loads(record["json"])  # type: ignore[index]
    except (KeyError, TypeError, ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


def _document(records: RecordDict, key: str, rng: np.random.Generator) -> None:
    text, document = str(records[key]["json"]), _parsed(records[key])
    name = str(rng.choice(list(document)))
    how = int(rng.integers(5))
    if how == 0:
        del document[name]
    elif how in (1, 2):
        document[name] = VALUES[int(rng.integers(len(VALUES)))]
    elif how == 3:
        document[name] = RAW
    changed = json.dumps(document).replace(
        f'"{RAW}"', RAW_VALUES[int(rng.integers(len(RAW_VALUES)))]
    )
    if how == 4:
        at = int(rng.integers(len(text)))
        changed = text[:at] + chr(int(rng.integers(32, 1000))) + text[at + int(rng.integers(2)) :]
    records[key] = ConfigRecord({"json": changed})


def _record(records: RecordDict, key: str, rng: np.random.Generator) -> None:
    at = int(rng.integers(len(OTHERS) + 1))
    if at == len(OTHERS):
        del records[key]
    else:
        records[key] = OTHERS[at]()


def _array(records: RecordDict, key: str, rng: np.random.Generator) -> None:
    record = records[key]
    assert isinstance(record, ArrayRecord)
    name = str(rng.choice(list(record)))
    array = record[name]
    data = bytearray(array.data)
    how = int(rng.integers(6)) if data else 4
    if how == 0:
        record[name] = Array("uint8", (len(data),), "numpy.ndarray", bytes(data))
    elif how == 1:
        record[name] = Array(array.dtype, array.shape, array.stype, bytes(data[: len(data) // 2]))
    elif how == 2:
        data[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
        record[name] = Array(array.dtype, array.shape, array.stype, bytes(data))
    elif how == 3:
        record[name] = Array(array.dtype, array.shape, array.stype, b"")
    elif how == 4:
        record[name] = Array(np.zeros(3))
    else:
        record[str(rng.choice(["x", "-1", "99", "²"]))] = record.pop(name)
    records[key] = record
