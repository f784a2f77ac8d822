"""The plain reference driver: the law, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from flower_dhb.agent.compression import Compression, Compressor
from flower_dhb.algorithms.base import Algorithm
from flower_dhb.algorithms.measurement import measured
from flower_dhb.algorithms.registry import require_rule
from flower_dhb.engine.publics import Publics, check_compression
from flower_dhb.errors import ConfigError
from flower_dhb.topology.graph import Topology
from flower_dhb.topology.planning import check_rule_on
from flower_dhb.topology.turns import AnyGraph
from flower_dhb.types import Layout

__all__ = ["Edges", "Missing", "missing_in", "simulate"]

Edges: TypeAlias = Iterable[tuple[int, int]]
Missing: TypeAlias = Callable[[int], Edges] | Mapping[int, Edges] | Sequence[Edges]


def simulate(
    algorithm: Algorithm,
    topology: AnyGraph,
    start: NDArray[Any],
    local_step: Callable[[NDArray[Any], int], NDArray[Any]],
    rounds: int,
    missing: Missing | None = None,
    compression: Compression | str = "none",
) -> NDArray[Any]:
    """Run a rule on a graph and return every agent's parameters after every round.

    Parameters
    ----------
    topology : Topology, DirectedTopology or Turns
        The graph; of graphs that take turns, each round uses the next one.
    start : (n, d)
        Initial parameters, one row an agent; `(d,)` gives all agents the same. Integers
        are computed with in float64, half precision in float32.
    local_step : callable
        `local_step(x, round) -> z` maps the parameters `(n, d)` before the round to
        the locally trained ones. Rounds count from 1.
    rounds : int
        Number of rounds.
    missing : optional
        The edges that fail, per round: a mapping by round, a function of the round, or
        a sequence whose first entry is round 1. Their weight returns to both ends.
    compression : Compression or str
        Of payloads, which are those of a model of one array: `none`, `int8`, `topk:0.1`, …

    Returns
    -------
    (rounds + 1, n, d), in the dtype that was computed with; entry k is the state after
    round k.

    Raises
    ------
    ConfigError
        If shapes or dtypes do not fit, or the rule diverges on this graph for every step
        size. GraphError if the rule needs another kind of graph.
    """
    if isinstance(rounds, bool) or not isinstance(rounds, int | np.integer) or not rounds >= 0:
        raise ConfigError(f"rounds must be an integer of at least 0, got {rounds!r}")
    x = _numbers(start)
    n = topology.n_agents
    if x.ndim == 1:
        x = np.broadcast_to(x, (n, len(x)))
    if x.ndim != 2 or len(x) != n:
        raise ConfigError(f"start must be ({n}, d), one row an agent; got shape {x.shape}")
    require_rule(algorithm)
    check_rule_on(algorithm, topology)

    compression = check_compression(Compression.parse(compression), algorithm, topology)

    state = algorithm.start(x.copy())
    publics = None
    if compression.on:
        layout = Layout.of({"parameters": x[0]})
        compressor = Compressor.of(compression, algorithm.vectors, layout)
        ready = measured(algorithm, state, x)
        publics = Publics(compressor, algorithm.outgoing(ready, x))
    trajectory = np.empty((rounds + 1, *x.shape), x.dtype)
    trajectory[0] = x
    for k in range(1, rounds + 1):
        trained = np.asarray(local_step(state.parameters.copy(), k), dtype=x.dtype)
        if trained.shape != x.shape:
            raise ConfigError(
                f"round {k}: local_step returned shape {trained.shape}, expected {x.shape}"
            )
        state = measured(algorithm, state, trained)
        weights = topology.at(k).with_missing(missing_in(missing, k)).astype(x.dtype)
        payload = algorithm.outgoing(state, trained)
        if publics is None:
            mixed = {name: weights @ vector for name, vector in payload.items()}
        else:
            known = publics.publish(k, payload, cast(Topology, topology.at(k)))
            mixed = publics.mix(payload, known, weights.__matmul__)
        state = replace(algorithm.combine(state, trained, mixed), round=k)
        trajectory[k] = state.parameters
    return trajectory


def _numbers(start: NDArray[Any]) -> NDArray[Any]:
    """The start in a dtype of this machine that can be computed with."""
    try:
        x = np.asarray(start)
    except ValueError as error:
        raise ConfigError(f"start is no rectangular array: {error}") from None
    if x.dtype.kind in "iu":
        return x.astype(np.float64)
    if x.dtype.kind != "f":
        raise ConfigError(f"start must hold real numbers, got dtype {x.dtype}")
    return x.astype(np.result_type(np.float32, x.dtype.newbyteorder("=")))


def missing_in(missing: Missing | None, k: int) -> Edges:
    """Edges that fail in round k, which counts from 1."""
    if missing is None:
        return ()
    if callable(missing):
        return missing(k)
    if isinstance(missing, Mapping):
        return missing.get(k, ())
    return missing[k - 1] if k <= len(missing) else ()
