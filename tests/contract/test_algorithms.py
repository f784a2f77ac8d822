"""What every rule keeps to, whatever it computes. A new rule is one more line in RULES."""

import itertools
import json

import numpy as np
import pytest

from flower_dhb import DSGD, HeavyBall, Topology, algorithm_from_config, simulate
from flower_dhb.algorithms import ALGORITHMS, GASLoC, QuasiGlobal, method, relayed_methods
from flower_dhb.algorithms.measurement import measured
from flower_dhb.types import State

FORMS = [
    {"form": "displacement", "order": "adapt-then-combine", "payload": "folded"},
    {"form": "displacement", "order": "adapt-then-combine", "payload": "separate"},
    {"form": "displacement", "order": "combine-then-adapt", "payload": "folded"},
    {"form": "displacement", "order": "combine-then-adapt", "payload": "separate"},
    {"form": "buffer", "order": "adapt-then-combine"},
    {"form": "buffer", "order": "combine-then-adapt"},
    {"form": "tracking", "payload": "folded"},
    {"form": "tracking", "payload": "separate"},
]

RULES = [
    HeavyBall(),
    *(
        HeavyBall(momentum=0.8, momentum_mixing=w, **form)
        for form, w in itertools.product(FORMS, (0.0, 0.3, 1.0))
    ),
    DSGD(),
    DSGD(order="combine-then-adapt"),
    *(method(name) for name in relayed_methods() if name != "qg"),
    method("gasloc:momentum-mixing=0.5"),
    method("noloco:outer-rate=0.5:consensus-rate=0.9"),
    method("gut:tracking=0.3"),
    method("motef:consensus-rate=0.5"),
    QuasiGlobal(momentum=0.5),  # with 0.9 it is slower than the rounds below allow for
]

# Rules and their version without momentum, with the update that both must make:
# `adapt-then-combine` is x+ = W z, `combine-then-adapt` is x+ = W x + z - x.
WITHOUT_MOMENTUM = [
    *(HeavyBall(momentum=0.0, **form) for form in FORMS if form["form"] != "tracking"),
    DSGD(),
    DSGD(order="combine-then-adapt"),
]

GRAPH = Topology.erdos_renyi(8, 0.4, seed=3)
D = 3
TARGETS = np.random.default_rng(11).normal(size=(8, D))

every_rule = pytest.mark.parametrize("algorithm", RULES, ids=str)


def towards(targets, rate=0.1):
    return lambda x, _: x + rate * (targets - x)


def test_every_registered_rule_is_held_to_this_contract():
    assert {type(rule) for rule in RULES} == {
        r for r in ALGORITHMS.values() if r().relayed and r.__module__.startswith("flower_dhb.")
    }


@every_rule
def test_agents_at_a_common_minimum_stay_there(algorithm):
    start = np.array([0.5, -2.0, 3.0])
    found = simulate(algorithm, GRAPH, start, towards(start), rounds=20)
    # Rows of W sum to 1 within a unit in the last place, once a round.
    np.testing.assert_allclose(found, np.broadcast_to(start, found.shape), rtol=1e-14)


@every_rule
def test_agents_with_equal_data_reach_their_minimum(algorithm):
    target = np.array([0.5, -2.0, 3.0])
    end = simulate(algorithm, GRAPH, np.zeros(D), towards(target, 0.05), rounds=300)[-1]
    # The slowest rule shrinks the error by 0.95 a round: 0.95^300 is 2e-7.
    np.testing.assert_allclose(end, np.tile(target, (8, 1)), rtol=1e-5)


@every_rule
@pytest.mark.parametrize("missing", [None, {k: [(0, 1), (5, 6)] for k in (1, 2, 5)}])
def test_mixing_alone_keeps_the_network_average(algorithm, missing):
    start = np.random.default_rng(1).normal(size=(8, D))
    average = start.mean(axis=0)
    found = simulate(algorithm, GRAPH, start, lambda x, _: x, rounds=20, missing=missing)
    # Twenty rounds of rounding of numbers near 1.
    np.testing.assert_allclose(found.mean(axis=1), np.tile(average, (21, 1)), atol=1e-14)


@every_rule
def test_the_first_round_moves_the_average_by_the_average_local_step(algorithm):
    """Whatever a rule remembers later, it begins as plain averaged training.

    Nesterov's flavor looks ahead: its first step is 1 + momentum times as long. Outer rates
    multiply it.
    """
    looks_ahead = getattr(algorithm, "nesterov", False) or isinstance(algorithm, GASLoC)
    gain = 1.0 + algorithm.momentum if looks_ahead else 1.0
    gain *= getattr(algorithm, "outer_rate", 1.0)
    start = np.random.default_rng(1).normal(size=(8, D))
    step = towards(TARGETS, 0.1 * gain)
    first = simulate(algorithm, GRAPH, start, towards(TARGETS), rounds=1)[1]
    np.testing.assert_allclose(first.mean(axis=0), step(start, 1).mean(axis=0), atol=1e-15)


@every_rule
def test_an_isolated_agent_trains_on_alone(algorithm):
    """All of agent 2's edges fail: nothing of the others reaches it, or it them."""
    edges = [(2, j) for j in GRAPH.neighbors(2)]
    start = np.random.default_rng(1).normal(size=(8, D))
    other = TARGETS.copy()
    other[2] += 10.0

    def run(targets):
        return simulate(
            algorithm, GRAPH, start, towards(targets), 6, missing=dict.fromkeys(range(1, 7), edges)
        )

    found, changed = run(TARGETS), run(other)
    alone = simulate(algorithm, Topology.complete(1), start[2:3], towards(TARGETS[2:3]), 6)
    np.testing.assert_allclose(found[:, 2], alone[:, 0], rtol=1e-13)
    rest = [i for i in range(8) if i != 2]
    np.testing.assert_array_equal(found[:, rest], changed[:, rest])


@pytest.mark.parametrize("algorithm", WITHOUT_MOMENTUM, ids=str)
def test_without_momentum_a_rule_is_decentralized_sgd(algorithm):
    w, step = np.array(GRAPH.mixing_matrix), towards(TARGETS)
    x = np.random.default_rng(1).normal(size=(8, D))
    found = simulate(algorithm, GRAPH, x, step, rounds=15)
    for k in range(15):
        np.testing.assert_allclose(found[k], x, atol=1e-13)
        z = step(x, k)
        x = w @ x + z - x if algorithm.shares_before_training else w @ z


@every_rule
def test_on_a_complete_graph_equal_agents_are_one_agent(algorithm):
    start, step = np.array([0.5, -2.0, 3.0]), towards(TARGETS[0])
    together = simulate(algorithm, Topology.complete(5), start, step, rounds=30)
    alone = simulate(algorithm, Topology.complete(1), start, step, rounds=30)
    np.testing.assert_allclose(together, np.broadcast_to(alone, together.shape), rtol=1e-12)


@every_rule
def test_declared_vectors_and_memory_are_those_produced(algorithm):
    state = measured(algorithm, algorithm.start(np.zeros(D)), np.ones(D))
    assert tuple(state.memory) == algorithm.memory
    payload = algorithm.outgoing(state, np.ones(D))
    assert set(payload) == set(algorithm.vectors)
    new = algorithm.combine(state, np.ones(D), payload)
    assert set(new.memory) == set(algorithm.memory)
    assert {v.shape for v in (*payload.values(), *new.memory.values(), new.parameters)} == {(D,)}


def random_inputs(algorithm):
    rng = np.random.default_rng(4)
    memory = {name: rng.normal(size=(8, D)) for name in algorithm.memory}
    mixed = {name: rng.normal(size=(8, D)) for name in algorithm.vectors}
    state, trained = State(rng.normal(size=(8, D)), memory), rng.normal(size=(8, D))
    return measured(algorithm, state, trained), trained, mixed


@every_rule
def test_a_rule_is_pure(algorithm):
    """Inputs that cannot be written to are enough, and the same inputs give the same result."""
    state, trained, mixed = random_inputs(algorithm)
    for array in (state.parameters, trained, *state.memory.values(), *mixed.values()):
        array.setflags(write=False)
    sent = [algorithm.outgoing(state, trained) for _ in range(2)]
    new = [algorithm.combine(state, trained, mixed) for _ in range(2)]
    for name in algorithm.vectors:
        np.testing.assert_array_equal(sent[0][name], sent[1][name])
    np.testing.assert_array_equal(new[0].parameters, new[1].parameters)


@every_rule
def test_sharing_before_training_means_that_training_does_not_matter(algorithm):
    state, trained, _ = random_inputs(algorithm)
    first, second = (algorithm.outgoing(state, z) for z in (trained, trained + 1.0))
    same = all(np.array_equal(first[name], second[name]) for name in algorithm.vectors)
    assert same is algorithm.shares_before_training


@every_rule
def test_a_rule_is_linear(algorithm):
    """Doubling all inputs doubles all outputs, exactly: no constant, no threshold.

    Of a rule that measures this asks more: that its numbers do not depend on the scale.
    """
    state, trained, mixed = random_inputs(algorithm)

    def double(vectors):
        return {name: 2.0 * vector for name, vector in vectors.items()}

    new = algorithm.combine(state, trained, mixed)
    larger = State(2.0 * state.parameters, double(state.memory))
    larger = measured(algorithm, larger, 2.0 * trained)
    twice = algorithm.combine(larger, 2.0 * trained, double(mixed))
    np.testing.assert_array_equal(twice.parameters, 2.0 * new.parameters)
    for name in algorithm.memory:
        np.testing.assert_array_equal(twice.memory[name], 2.0 * new.memory[name])


@every_rule
def test_config_round_trip_through_json(algorithm):
    config = json.loads(json.dumps(algorithm.to_config()))
    assert algorithm_from_config(config) == algorithm


@every_rule
def test_rules_are_values(algorithm):
    twin = algorithm_from_config(algorithm.to_config())
    assert hash(twin) == hash(algorithm)
    with pytest.raises(AttributeError):
        algorithm.order = "combine-then-adapt"
