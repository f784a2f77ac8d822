"""The law with agents that are out, alone or back: what the relay's runs are held against."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from flower_dhb import Algorithm, Topology
from flower_dhb.algorithms.measurement import measured
from flower_dhb.types import State

Vertices = Mapping[int, Collection[int]]
Floats = NDArray[np.float64]


def trajectory(
    rule: Algorithm,
    topology: Topology,
    start: Floats,
    step: Callable[[Floats, int], Floats],
    rounds: int,
    *,
    frozen: Vertices | None = None,
    alone: Vertices | None = None,
    back: Vertices | None = None,
) -> Floats:
    """Parameters `(rounds + 1, n, d)`, by the definition and one agent's row at a time.

    frozen: agents by round that neither train nor take part. alone: agents by round that
    train, but none of whose edges counts. back: agents by round that begin it anew from
    the newest payloads of their neighbors, weighted by absolute mixing weights; where the rule
    conserves something, they open an epoch, which all others join in the next round.
    """
    n = topology.n_agents
    frozen, alone, back = frozen or {}, alone or {}, back or {}
    state = rule.start(np.tile(start, (n, 1)))
    newest: dict[int, Floats] = {}
    epoch, known = [0] * n, 0
    found = [state.parameters]
    for k in range(1, rounds + 1):
        for i in {*range(n)} - {*frozen.get(k, ())}:
            if epoch[i] < known:
                state, epoch[i] = _with_row(state, i, rule.restart(state)), known
        for i in back.get(k, ()):
            state = _begun_again(rule, topology, state, i, newest)
            epoch[i] = known + 1 if rule.conserved else known
        known = max(epoch)
        away = {*frozen.get(k, ()), *alone.get(k, ())}
        edges = [e for e in topology.edges if away & set(e) or epoch[e[0]] != epoch[e[1]]]
        trained = step(state.parameters, k)
        state = measured(rule, replace(state, round=k - 1), trained)
        payload = rule.outgoing(state, trained)
        mixed = {name: topology.with_missing(edges) @ v for name, v in payload.items()}
        new = rule.combine(state, trained, mixed)
        for i in frozen.get(k, ()):
            new.parameters[i] = state.parameters[i]
            for name, vector in new.memory.items():
                vector[i] = state.memory[name][i]
        newest |= {i: payload[rule.vectors[0]][i] for i in range(n) if i not in away}
        state = new
        found.append(state.parameters)
    return np.stack(found)


def _begun_again(
    rule: Algorithm, topology: Topology, state: State, i: int, newest: Mapping[int, Floats]
) -> State:
    row = np.abs(topology.row(i))
    neighbors = [j for j in topology.neighbors(i) if j in newest]
    average = sum(row[j] * newest[j] for j in neighbors) / sum(row[j] for j in neighbors)
    parameters = state.parameters.copy()
    parameters[i] = average
    return _with_row(State(parameters, state.memory), i, rule.start(parameters))


def _with_row(state: State, i: int, other: State) -> State:
    """The state with one agent's memory from another state."""
    memory = {name: vector.copy() for name, vector in state.memory.items()}
    for name, vector in memory.items():
        vector[i] = other.memory[name][i]
    return State(state.parameters, memory)
