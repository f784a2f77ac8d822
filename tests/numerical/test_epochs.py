"""Rules that conserve something: which ones they are, and what a restart makes of their sum."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from flower_dhb.algorithms import METHODS, Algorithm, method
from flower_dhb.topology.graph import Topology
from flower_dhb.types import State, Vector

Floats = NDArray[np.float64]

# Other tests register rules of their own.
NAMES = sorted(
    n for n in METHODS if type(method(n)).__module__.startswith("flower_dhb.") and method(n).relayed
)
VARIANTS = ["dmsgd-gt:payload=separate", "dsgt:order=combine-then-adapt"]
CONSERVING = [n for n in [*NAMES, *VARIANTS] if method(n).conserved]
GRAPH = Topology.from_edges([(0, 1), (0, 2), (0, 3), (1, 2), (3, 4)])
N = GRAPH.n_agents
# Whatever a rule measures may be any number: it makes no sum of its own.
MEASURED = {"momentum": 0.8, "correction": 0.6}

# An agent's correction, as the page on the algorithms defines it.
CORRECTION = {
    "dmsgd": lambda memory: memory["mixed_tracker"] - memory["last_step"],
    "dsgt": lambda memory: memory["mixed_tracker"] - memory["last_step"],
    "momentum-tracking": lambda memory: memory["mixed_tracker"] - memory["momentum"],
    "exact-diffusion": lambda memory: memory["correction"],
    "motef": lambda memory: memory["mixed_tracker"] - memory["momentum"],
}


def one_round(rule: Algorithm, state: State, step: Vector, weights: Floats) -> State:
    """A round in which each agent's local step is given."""
    state = State(state.parameters, state.memory, MEASURED, round=7)
    trained = state.parameters + step
    payload = rule.outgoing(state, trained)
    return rule.combine(state, trained, {name: weights @ v for name, v in payload.items()})


def round_matrix(rule: Algorithm) -> Floats:
    """A round on quadratics as a matrix, on all agents' parameters and memory, one number each."""
    curvature = np.array([0.06, 0.14, 0.08, 0.12, 0.1])  # no two alike
    names = ("parameters", *rule.memory)
    columns = []
    for unit in np.eye(len(names) * N):
        parts = dict(zip(names, unit.reshape(-1, N, 1), strict=True))
        state = State(parts["parameters"], {m: parts[m] for m in rule.memory})
        step = -curvature[:, None] * state.parameters
        new = one_round(rule, state, step, GRAPH.mixing_matrix)
        columns.append(np.concatenate([new.parameters, *(new.memory[m] for m in rule.memory)]))
    return np.hstack(columns)


@pytest.mark.parametrize("name", [*NAMES, *VARIANTS])
def test_what_a_rule_declares_is_what_no_round_forgets(name: str) -> None:
    """A sum that every round keeps is a left eigenvector with eigenvalue 1, found or not.

    All other eigenvalues of a stable rule are smaller in size: what they belong to fades.
    """
    rule = method(name)
    matrix = round_matrix(rule)
    values, vectors = np.linalg.eig(matrix.T)
    kept = np.abs(values - 1.0) < 1e-9
    assert np.abs(values[~kept]).max() < 0.999
    assert kept.sum() == (1 if rule.conserved else 0)
    if not rule.conserved:
        return
    # After a restart that sum is what it is at the start: zero, whatever was there before.
    (functional,) = vectors.real[:, kept].T
    rng = np.random.default_rng(3)
    state = State(rng.normal(size=(N, 1)), {m: rng.normal(size=(N, 1)) for m in rule.memory})
    flat = lambda s: np.concatenate([s.parameters, *(s.memory[m] for m in rule.memory)]).ravel()  # noqa: E731
    assert abs(functional @ flat(state)) > 1e-3
    assert abs(functional @ flat(rule.restart(state))) < 1e-12


@pytest.mark.parametrize("name", [*NAMES, *VARIANTS])
def test_a_restart_is_the_start_of_what_is_conserved_and_of_nothing_else(name: str) -> None:
    rule = method(name)
    assert set(rule.conserved) <= set(rule.memory)
    rng = np.random.default_rng(1)
    state = State(rng.normal(size=(N, 3)), {m: rng.normal(size=(N, 3)) for m in rule.memory})
    new = rule.restart(state)
    assert tuple(new.memory) == tuple(state.memory)
    assert new.parameters is state.parameters
    for m, vector in new.memory.items():
        np.testing.assert_array_equal(
            vector, 0.0 * vector if m in rule.conserved else state.memory[m]
        )
    # One agent alone, and torch, in their own dtypes.
    alone = rule.restart(
        State(
            state.parameters[2].astype(np.float32),
            {m: v[2].astype(np.float32) for m, v in state.memory.items()},
        )
    )
    tensors = rule.restart(
        State(torch.tensor(state.parameters), {m: torch.tensor(v) for m, v in state.memory.items()})
    )
    for m, vector in new.memory.items():
        assert alone.memory[m].dtype == np.float32
        np.testing.assert_array_equal(alone.memory[m], vector[2].astype(np.float32))
        np.testing.assert_array_equal(tensors.memory[m].numpy(), vector)


# Weights, momentum and steps are small binary fractions here, so float64 is exact.
EXACT_GRAPH = Topology.from_edges(
    [(0, 1), (0, 2), (1, 3)],
    np.array(
        [
            [0.5, 0.25, 0.25, 0.0],
            [0.25, 0.5, 0.0, 0.25],
            [0.25, 0.0, 0.75, 0.0],
            [0.0, 0.25, 0.0, 0.75],
        ]
    ),
)
EXACT_RULES = [
    "dmsgd-gt:momentum=0.5",
    "dsgt",
    "dsgt:order=combine-then-adapt",
    "momentum-tracking:momentum=0.5",
    "motef:momentum=0.5",
    "motef:momentum=0.5:consensus-rate=0.5",
    "exact-diffusion",
    "exact-diffusion:momentum=0.5",
    "exact-diffusion:lazy=false",
]


@pytest.mark.parametrize("name", EXACT_RULES)
def test_the_sum_of_the_corrections_is_exactly_zero_from_a_restart_on(name: str) -> None:
    """Agents join one after the other, edges between epochs and a failed one count nowhere."""
    rule = method(name)
    rng = np.random.default_rng(0)
    draw = lambda: rng.integers(-8, 9, size=(4, 2)).astype(float)  # noqa: E731
    correction = CORRECTION[rule.name]
    state = State(draw(), {m: draw() for m in rule.memory})  # the sum is lost
    assert correction(state.memory).sum(0).any()
    joins = {1: {2}, 3: {0, 1}, 4: {3}}
    epoch = np.zeros(4, int)
    for k in range(1, 7):
        restarted = rule.restart(state)
        for i in joins.get(k, ()):
            epoch[i] = 1
            for m, vector in state.memory.items():
                vector[i] = restarted.memory[m][i]
        missing = [e for e in EXACT_GRAPH.edges if epoch[e[0]] != epoch[e[1]]]
        weights = EXACT_GRAPH.with_missing([*missing, *([(0, 1)] if k == 5 else [])])
        state = one_round(rule, state, draw(), weights)
        members = epoch == 1
        assert not correction(state.memory)[members].sum(0).any()
        assert k < 3 or correction(state.memory)[members].any()


@pytest.mark.parametrize("name", EXACT_RULES)
def test_an_edge_between_epochs_would_carry_the_error_on(name: str) -> None:
    """Why it must not count: one member whose correction mixes with one that is not zero."""
    rule = method(name)
    rng = np.random.default_rng(0)
    draw = lambda: rng.integers(-8, 9, size=(4, 2)).astype(float)  # noqa: E731
    state = State(draw(), {m: draw() for m in rule.memory})
    restarted = rule.restart(state)
    for m, vector in state.memory.items():
        vector[2] = restarted.memory[m][2]
    state = one_round(rule, state, draw(), EXACT_GRAPH.mixing_matrix)
    assert CORRECTION[rule.name](state.memory)[2].any()
