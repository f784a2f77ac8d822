"""A rule of one's own is tried on a few numbers before any run depends on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flower_dhb.algorithms.base import Algorithm
from flower_dhb.algorithms.measurement import measured
from flower_dhb.errors import ConfigError
from flower_dhb.types import Payload, State

__all__ = ["try_out"]

_N, _D = 3, 5
_ROUNDS = (0, 1, 7)  # a rule may look at them
_WEIGHTS = np.array([[0.5, 0.3, 0.2], [0.3, 0.7, 0.0], [0.2, 0.0, 0.8]])

Floats = NDArray[np.float64]


def try_out(rule: Algorithm) -> None:
    """Refuse a rule that does not keep to what it declares, or that is not elementwise.

    Raises ConfigError that says which method of the rule does what it must not.
    """
    _names("vectors", rule, rule.vectors, at_least_one=True)
    _names("memory", rule, rule.memory)
    for k in _ROUNDS:
        state, trained = _drawn(rule, seed=k, round=k)
        whole = _round(rule, state, trained)
        _check_elementwise(rule, state, trained, whole)
        if rule.linear:
            _check_linear(rule, state, trained)
        _check_dtype(rule, state, trained)


def _drawn(rule: Algorithm, seed: int, round: int) -> tuple[State, Floats]:
    rng = np.random.default_rng(seed)
    memory = {
        # A scalar of push-sum, say, is what the rule itself begins with.
        name: _as_at_the_start(rule, name) if name in rule.scalars else rng.normal(size=(_N, _D))
        for name in rule.memory
    }
    return State(rng.normal(size=(_N, _D)), memory, round=round), rng.normal(size=(_N, _D))


def _as_at_the_start(rule: Algorithm, name: str) -> Any:
    return rule.start(np.zeros((_N, _D))).memory[name]


def _round(rule: Algorithm, state: State, trained: Any) -> State:
    """A round of three agents, with every promise of names and shapes checked.

    A state that has been measured is taken as it is.
    """
    try:
        start = rule.start(state.parameters)
        if not state.measured:
            state = measured(rule, state, trained)
        payload = rule.outgoing(state, trained)
        mixed: Payload = {k: _WEIGHTS.astype(trained.dtype) @ v for k, v in payload.items()}
        new = rule.combine(state, trained, mixed)
    except Exception as error:
        raise ConfigError(
            f"{_who(rule)} failed in a round that was tried: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(new, State):
        raise ConfigError(f"{_who(rule)}: combine must return a State, got {type(new).__name__}")
    _same(rule, "start", "memory", start.memory, rule.memory)
    _same(rule, "outgoing", "vectors", payload, (*rule.vectors, *rule.scalars))
    _same(rule, "combine", "memory", new.memory, rule.memory)
    for where, vectors in (("outgoing", payload), ("combine", _parts(new))):
        for name, vector in vectors.items():
            shape = (_N, 1) if name in rule.scalars else trained.shape
            if np.shape(vector) != shape:
                raise ConfigError(
                    f"{_who(rule)}: '{name}' of {where} has the shape {np.shape(vector)}, expected "
                    f"{shape}, that of the parameters"
                )
    return new


def _cut(vector: Any) -> Any:
    return vector[:, 1:4]


def _check_elementwise(rule: Algorithm, state: State, trained: Floats, whole: State) -> None:
    """A part of the vectors gives that part of the outputs; what is measured is of all."""
    numbers = measured(rule, state, trained).measured
    memory = {m: v if m in rule.scalars else _cut(v) for m, v in state.memory.items()}
    piece = State(_cut(state.parameters), memory, numbers, state.round)
    part = _parts(_round(rule, piece, _cut(trained)))
    for name, vector in _parts(whole).items():
        if name not in rule.scalars and not np.allclose(part[name], _cut(vector), 1e-9, 1e-9):
            raise ConfigError(
                f"{_who(rule)} is not elementwise: '{name}' of one parameter depends on others. "
                "What it needs of whole vectors it declares in 'products'"
            )


def _check_linear(rule: Algorithm, state: State, trained: Floats) -> None:
    """A sum of inputs gives the sum of outputs; the measured numbers are those of the first."""
    other, more = _drawn(rule, seed=11, round=state.round)
    numbers = measured(rule, state, trained).measured

    def result(at: State, z: Floats) -> Mapping[str, Any]:
        at = replace(at, measured=numbers)
        sent = rule.outgoing(at, z)
        return _parts(rule.combine(at, z, {k: _WEIGHTS @ v for k, v in sent.items()}))

    memory = {name: state.memory[name] + other.memory[name] for name in rule.memory}
    both = replace(state, parameters=state.parameters + other.parameters, memory=memory)
    one, two, sums = result(state, trained), result(other, more), result(both, trained + more)
    for name, vector in sums.items():
        if not np.allclose(vector, one[name] + two[name], rtol=1e-7, atol=1e-7):
            raise ConfigError(
                f"{_who(rule)} declares linear = True, but '{name}' is no linear function of "
                "state, trained parameters and payloads: leave 'linear' out"
            )


def _check_dtype(rule: Algorithm, state: State, trained: Floats) -> None:
    memory = {name: vector.astype(np.float32) for name, vector in state.memory.items()}
    single = State(state.parameters.astype(np.float32), memory, round=state.round)
    for name, vector in _parts(_round(rule, single, trained.astype(np.float32))).items():
        if vector.dtype != np.float32:
            raise ConfigError(
                f"{_who(rule)}: '{name}' of float32 parameters is {vector.dtype}; compute with "
                "Python's numbers, which leave a vector's dtype as it is"
            )


def _parts(state: State) -> dict[str, Any]:
    return {"parameters": state.parameters, **state.memory}


def _names(what: str, rule: Algorithm, names: object, *, at_least_one: bool = False) -> None:
    is_tuple = isinstance(names, tuple) and all(isinstance(name, str) for name in names)
    if not is_tuple or (at_least_one and not names):
        raise ConfigError(f"{_who(rule)}: '{what}' must be a tuple of names, got {names!r}")


def _same(rule: Algorithm, where: str, what: str, found: object, names: tuple[str, ...]) -> None:
    if not isinstance(found, Mapping) or set(found) != set(names):
        has = sorted(found) if isinstance(found, Mapping) else found
        raise ConfigError(f"{_who(rule)}: '{what}' names {list(names)}, but {where} gives {has!r}")


def _who(rule: Algorithm) -> str:
    return f"the rule {type(rule).__name__}"
