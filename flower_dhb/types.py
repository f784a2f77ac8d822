"""The nouns that all layers share: State, Payload, and the Layout of a model's arrays."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property, lru_cache
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from flower_dhb.errors import ConfigError, PayloadError

__all__ = [
    "STATISTICS",
    "Encryption",
    "Entry",
    "Layout",
    "NDArrays",
    "Payload",
    "State",
    "Statistics",
    "Vector",
    "dtype_name",
    "unnamed_statistics",
]

# For whom payloads are: whoever carries them, or the neighbors alone.
Encryption = Literal["none", "neighbors"]

# A NumPy array or a torch tensor: `(d,)` for one agent, `(n, d)` for all of them.
# Rules use only elementwise arithmetic, which both libraries spell alike.
Vector: TypeAlias = Any

# What an agent shares in one round: named vectors.
Payload: TypeAlias = Mapping[str, Vector]

NDArrays: TypeAlias = dict[str, NDArray[Any]]

# Names of arrays that hold running statistics, as torch and Keras spell them.
STATISTICS = ("*running_mean", "*running_var", "*moving_mean", "*moving_variance")

# Which arrays hold running statistics: shell-style patterns of their names and indices
# of their places, or a function that is asked for each floating-point array.
Statistics: TypeAlias = Sequence[str | int] | Callable[[str, NDArray[Any]], bool]


@lru_cache(maxsize=64)
def dtype_name(dtype: np.dtype[Any]) -> str:
    """`dtype.name`, which NumPy composes anew each time it is asked."""
    return dtype.name


Kind = Literal["parameter", "statistic", "local"]


@dataclass(frozen=True)
class State:
    """One agent's (or all agents') parameters and what its rule remembers.

    parameters: `(d,)` or `(n, d)`, the `x(k)` of the law. memory: vectors of the same
    shape, by name; which ones there are is the rule's business. measured: numbers that
    the rule has taken of the whole vectors in this round (`algorithms.measurement`), a
    float for one agent, `(n, 1)` for all of them; empty for most rules. round: how many
    rounds it has been through, so that `outgoing` and `combine` are those of round
    `round + 1`. The runtime says it: what a rule returns need not.
    """

    parameters: Vector
    memory: Mapping[str, Vector]
    measured: Mapping[str, Any] = field(default_factory=dict)
    round: int = 0


@dataclass(frozen=True)
class Entry:
    """One array of a model: its name, shape, dtype, and what the law does with it."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    kind: Kind

    @cached_property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Layout:
    """How a model's named arrays lie in flat vectors.

    Floating-point arrays are parameters, unless their name marks them as running
    statistics; integer and boolean arrays stay local (`docs/algorithm.md`, "What is
    not a parameter"). Parameters are concatenated in the order of the arrays, in their
    common dtype and at least float32, so that half-precision models lose nothing in
    the consensus arithmetic.
    """

    entries: tuple[Entry, ...]

    @classmethod
    def of(cls, arrays: Mapping[str, NDArray[Any]], statistics: Statistics = STATISTICS) -> Layout:
        """Layout of `arrays`, of which `statistics` says which are running statistics.

        statistics: name patterns (`"*running_mean"`) and indices of arrays (`3` is the
        fourth), or a callable `(name, array) -> bool`.

        Raises ConfigError if there is no parameter, if a dtype is neither real nor integer,
        or if a pattern other than the default ones, or an index, meets no array.
        """
        chosen = _statistics(arrays, statistics)
        entries = tuple(
            Entry(name, array.shape, array.dtype, _kind(name, array.dtype, chosen))
            for name, array in arrays.items()
        )
        if not any(entry.kind == "parameter" and entry.size for entry in entries):
            raise ConfigError(
                f"no floating-point parameters among {len(entries)} arrays "
                f"{[e.name for e in entries][:5]}; there is nothing to agree on{_bytes(entries)}"
            )
        return cls(entries)

    @cached_property
    def dtype(self) -> np.dtype[Any]:
        """Dtype of the parameter vector."""
        return self._dtype("parameter")

    @cached_property
    def size(self) -> int:
        """Length `d` of the parameter vector."""
        return self._size("parameter")

    @cached_property
    def statistics_size(self) -> int:
        """Length of the vector of running statistics, 0 for most models."""
        return self._size("statistic")

    @cached_property
    def statistics_dtype(self) -> np.dtype[Any]:
        """Dtype of the vector of running statistics."""
        return self._dtype("statistic")

    def empty_statistics(self) -> NDArray[Any]:
        """Vector of running statistics of a model that has none."""
        return np.zeros(0, self.statistics_dtype)

    def flatten(self, arrays: Mapping[str, NDArray[Any]]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Copy `arrays` into (parameters, statistics), two flat vectors.

        Raises PayloadError that names the first array which is missing, unknown, of
        another shape or dtype, or not finite.
        """
        self._check(arrays)
        parameters = np.empty(self.size, self.dtype)
        statistics = np.empty(self.statistics_size, self.statistics_dtype)
        self._pack(arrays, "parameter", parameters)
        self._pack(arrays, "statistic", statistics)
        return parameters, statistics

    def unflatten(
        self,
        parameters: NDArray[Any],
        statistics: NDArray[Any],
        local: Mapping[str, NDArray[Any]],
    ) -> NDArrays:
        """Inverse of `flatten`: named arrays in the model's own shapes and dtypes.

        They are copies: an app that trains in place must not change the agent's state.
        """
        vectors = {"parameter": parameters, "statistic": statistics}
        at = {"parameter": 0, "statistic": 0}
        arrays: NDArrays = {}
        for entry in self.entries:
            if entry.kind == "local":
                arrays[entry.name] = local[entry.name].copy()
                continue
            start, stop = at[entry.kind], at[entry.kind] + entry.size
            piece = vectors[entry.kind][start:stop].astype(entry.dtype)
            arrays[entry.name] = piece.reshape(entry.shape)
            at[entry.kind] = stop
        return arrays

    def local(self, arrays: Mapping[str, NDArray[Any]]) -> NDArrays:
        """Copies of the arrays that never leave the agent."""
        return {e.name: arrays[e.name].copy() for e in self.entries if e.kind == "local"}

    def to_config(self) -> list[list[Any]]:
        """Plain lists, for JSON: `[name, shape, dtype, kind]` per array."""
        return [[e.name, list(e.shape), e.dtype.str, e.kind] for e in self.entries]

    @classmethod
    def from_config(cls, config: list[list[Any]]) -> Layout:
        """Inverse of `to_config`."""
        return cls(
            tuple(
                Entry(name, tuple(shape), np.dtype(dtype), kind)
                for name, shape, dtype, kind in config
            )
        )

    def _check(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        expected, found = {e.name for e in self.entries}, set(arrays)
        if expected != found:
            missing, unknown = sorted(expected - found), sorted(found - expected)
            raise PayloadError(
                f"arrays differ from the agent's model: missing {missing}, unknown {unknown}; "
                "all agents must run the same model"
            )
        for e in self.entries:
            array = arrays[e.name]
            if array.shape != e.shape or array.dtype != e.dtype:
                raise PayloadError(
                    f"'{e.name}' is {array.dtype}{list(array.shape)}, expected "
                    f"{e.dtype}{list(e.shape)}; all agents must run the same model"
                )
            if e.kind != "local" and not np.isfinite(array).all():
                bad = int(array.size - np.count_nonzero(np.isfinite(array)))
                raise PayloadError(
                    f"'{e.name}' holds {bad} values that are not finite (NaN or infinite); "
                    "a smaller learning rate is the usual remedy"
                )

    def _size(self, kind: Kind) -> int:
        return sum(e.size for e in self.entries if e.kind == kind)

    def _dtype(self, kind: Kind) -> np.dtype[Any]:
        dtypes = [e.dtype for e in self.entries if e.kind == kind]
        return np.result_type(np.float32, *dtypes)

    def _pack(self, arrays: Mapping[str, NDArray[Any]], kind: Kind, vector: NDArray[Any]) -> None:
        at = 0
        for e in self.entries:
            if e.kind == kind:
                vector[at : at + e.size] = arrays[e.name].reshape(-1)
                at += e.size


def _bytes(entries: Sequence[Entry]) -> str:
    """A word about models that are sent as bytes, if these look like one."""
    if not any(e.dtype == np.uint8 and len(e.shape) == 1 for e in entries):
        return ""
    return (
        ". An array of bytes is a serialized model, as XGBoost's tree ensembles are sent: trees "
        "cannot be averaged with a neighbor's. Keep Flower's own strategy for such an app "
        "(FedXgbBagging, FedXgbCyclic), or send a model whose parameters are floating-point arrays"
    )


def _kind(name: str, dtype: np.dtype[Any], statistics: set[str]) -> Kind:
    if dtype.kind in "iub":
        return "local"
    if dtype.kind != "f" or dtype.itemsize > 8:  # a long double differs from machine to machine
        raise ConfigError(
            f"array '{name}' is {dtype}; only real floating-point arrays of 16, 32 or 64 bits, "
            "integer and boolean arrays are supported"
        )
    return "statistic" if name in statistics else "parameter"


def _statistics(arrays: Mapping[str, NDArray[Any]], statistics: Statistics) -> set[str]:
    """Names of the arrays that are running statistics."""
    names = list(arrays)
    if callable(statistics):
        return {
            name
            for name, array in arrays.items()
            if array.dtype.kind == "f" and _says(statistics, name, array)
        }
    if isinstance(statistics, str) or not isinstance(statistics, Sequence):
        raise ConfigError(
            "statistics must be a sequence of name patterns and indices, or a callable "
            f"(name, array) -> bool; got {statistics!r}"
        )
    chosen: set[str] = set()
    for item in statistics:
        if isinstance(item, str):
            found = {name for name in names if fnmatchcase(name, item)}
            if not found and item not in STATISTICS:
                raise ConfigError(
                    f"statistics: no array matches '{item}'; the {len(names)} arrays are "
                    f"{_some(names)}. Correct the pattern, or name the array by its index"
                )
            chosen |= found
        else:
            chosen.add(names[_index(item, arrays)])
    return chosen


def _says(asked: Callable[[str, NDArray[Any]], bool], name: str, array: NDArray[Any]) -> bool:
    answer = asked(name, array)
    if not isinstance(answer, bool | np.bool_):
        raise ConfigError(f"statistics must answer True or False, got {answer!r} for '{name}'")
    return bool(answer)


def _index(item: object, arrays: Mapping[str, NDArray[Any]]) -> int:
    names = list(arrays)
    if isinstance(item, bool) or not isinstance(item, int | np.integer):
        raise ConfigError(f"statistics must be name patterns and indices, got {item!r} among them")
    if not 0 <= item < len(names):
        raise ConfigError(
            f"statistics: there is no array {item}; the model's {len(names)} arrays have the "
            f"indices 0 to {len(names) - 1}"
        )
    dtype = arrays[names[item]].dtype
    if dtype.kind != "f":
        raise ConfigError(
            f"statistics: array {item} ('{names[item]}') is {dtype}; only floating-point arrays "
            "can be running statistics, all others stay with the agent. Is the index right?"
        )
    return int(item)


def _some(names: Sequence[str]) -> str:
    return ", ".join(f"'{name}'" for name in names[:8]) + (", …" if len(names) > 8 else "")


def unnamed_statistics(arrays: Mapping[str, NDArray[Any]]) -> list[int] | None:
    """Where running statistics may lie in a model whose arrays have numbers for names.

    None if the arrays have names of their own. Keras keeps a batch normalization as
    `gamma`, `beta`, `moving_mean`, `moving_variance`: vectors of one length in a row, of
    which the last two are statistics. Returns the indices of these last two of every such
    row, which a layer normalization (`gamma`, `beta`) resembles.
    """
    if not all(name.isdecimal() for name in arrays):
        return None
    rows: list[list[int]] = []
    last: tuple[int, ...] = ()
    for i, array in enumerate(arrays.values()):
        vector = array.ndim == 1 and array.dtype.kind == "f"
        if vector and rows and array.shape == last:
            rows[-1].append(i)
        elif vector:
            rows.append([i])
        last = array.shape if vector else ()
    return [i for row in rows if len(row) > 1 for i in row[-2:]]
