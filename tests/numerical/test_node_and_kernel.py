"""A node and the blocked kernel give what the reference driver gives, row by row."""

from dataclasses import dataclass

import numpy as np
import pytest
from naive import FORMS, pull

from flower_dhb import DSGD, HeavyBall, Node, Topology, simulate
from flower_dhb.agent import mixing
from flower_dhb.types import Layout, State

RULES = [
    *(HeavyBall(momentum_mixing=0.3, form=form, order=order) for form, order in FORMS),
    HeavyBall(momentum_mixing=0.3, payload="separate"),
    HeavyBall(form="tracking", payload="separate"),
    HeavyBall(form="buffer", momentum_mixing=0.0),
    DSGD(),
    DSGD(order="combine-then-adapt"),
]
RANDOM = Topology.erdos_renyi(8, 0.4, seed=3)
BLOCK = 8


def weights_of(topology, vertex):
    row = topology.row(vertex)
    return {j: row[j] for j in sorted([vertex, *topology.neighbors(vertex)])}


def nodes_run(algorithm, topology, start, step, rounds, missing=None, seed=0):
    """The trajectory of real nodes that hand each other payloads in a random order."""
    layout = Layout.of({"w": start[0]})
    nodes = [
        Node.start(i, algorithm, weights_of(topology, i), layout, {"w": x})
        for i, x in enumerate(start)
    ]
    rng = np.random.default_rng(seed)
    trajectory = [start]
    for k in range(1, rounds + 1):
        x = np.stack([node.arrays()["w"] for node in nodes])
        z = step(x, k)
        payloads = [node.adapt(k, {"w": z[i]}) for i, node in enumerate(nodes)]
        failed = {frozenset(edge) for edge in (missing or {}).get(k, [])}
        for i, node in enumerate(nodes):
            for j in rng.permutation(node.neighbors):
                if frozenset((i, int(j))) not in failed:
                    node.offer(int(j), k, payloads[j])
            node.combine()
        trajectory.append(np.stack([node.parameters for node in nodes]))
    return np.array(trajectory)


@pytest.mark.parametrize("missing", [None, {1: [(0, 1)], 3: [(2, 5), (5, 6)]}], ids=["all", "gaps"])
@pytest.mark.parametrize("algorithm", RULES, ids=str)
def test_nodes_follow_the_reference_driver(algorithm, missing, monkeypatch):
    monkeypatch.setattr(mixing, "BLOCK", BLOCK)
    d = 2 * BLOCK + 3
    start = np.random.default_rng(2).normal(size=(8, d))
    expected = simulate(algorithm, RANDOM, start, pull(8, d), 8, missing)
    found = nodes_run(algorithm, RANDOM, start, pull(8, d), 8, missing)
    # The driver's matrix product adds in another order: rounding, eight rounds of it.
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("algorithm", RULES, ids=str)
def test_arrival_order_changes_no_bit(algorithm):
    start = np.random.default_rng(2).normal(size=(8, 5)).astype(np.float32)
    runs = [
        nodes_run(algorithm, RANDOM, start, lambda x, k: x * np.float32(0.9), 4, seed=seed)
        for seed in (0, 1)
    ]
    np.testing.assert_array_equal(runs[0], runs[1])


def random_round(algorithm, size, dtype):
    """A state, trained parameters, weights and payloads for vertex 2 with neighbors 0, 5, 7."""
    rng = np.random.default_rng(size)

    def draw():
        return rng.normal(size=size).astype(dtype)

    state = State(draw(), {name: draw() for name in algorithm.memory})
    weights = {5: 0.3, 0: 0.15, 2: 0.65, 7: -0.1}
    payloads = {j: {name: draw() for name in algorithm.vectors} for j in (7, 0, 5)}
    return state, draw(), weights, payloads


SIZES = [1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, 2 * BLOCK + 1]


def by_the_rule(algorithm, state, trained, weights, payloads):
    """`algorithm.combine` of the weighted sums, vertex by vertex."""
    everyone = {**payloads, 2: algorithm.outgoing(state, trained)}
    mixed = {
        name: sum(weights[j] * everyone[j][name] for j in sorted(weights))
        for name in algorithm.vectors
    }
    return algorithm.combine(state, trained, mixed)


def assert_same(found, expected, **tolerance):
    np.testing.assert_allclose(found.parameters, expected.parameters, **tolerance)
    assert set(found.memory) == set(expected.memory)
    for name in found.memory:
        np.testing.assert_allclose(found.memory[name], expected.memory[name], **tolerance)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("algorithm", RULES, ids=str)
def test_kernel_is_the_rule_applied_to_weighted_sums(algorithm, size, monkeypatch):
    monkeypatch.setattr(mixing, "BLOCK", BLOCK)
    state, trained, weights, payloads = random_round(algorithm, size, np.float64)
    found = mixing.combine(algorithm, state, trained, 2, weights, payloads)
    expected = by_the_rule(algorithm, state, trained, weights, payloads)
    # The kernel adds up a rule's terms in another order: a few roundings of numbers near 1.
    assert_same(found, expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("algorithm", RULES, ids=str)
def test_kernel_gives_the_same_bits_whatever_arrived_first(algorithm, monkeypatch):
    monkeypatch.setattr(mixing, "BLOCK", BLOCK)
    state, trained, weights, payloads = random_round(algorithm, 2 * BLOCK + 1, np.float32)
    found = mixing.combine(algorithm, state, trained, 2, weights, payloads)
    backwards = dict(reversed(payloads.items()))
    again = mixing.combine(algorithm, state, trained, 2, weights, backwards)
    assert_same(found, again, rtol=0, atol=0)
    assert found.parameters.dtype == np.float32


@dataclass(frozen=True, kw_only=True)
class Clipped(DSGD):
    """A rule that is not linear: parameters never leave [-1, 1]."""

    def combine(self, state, trained, mixed):
        return State(np.clip(mixed["parameters"], -1.0, 1.0), {})


@dataclass(frozen=True, kw_only=True)
class Shifted(DSGD):
    """A rule with a constant term, which is not linear either."""

    def combine(self, state, trained, mixed):
        return State(mixed["parameters"] + 0.25, {})


@pytest.mark.parametrize("algorithm", [Clipped(), Shifted()], ids=str)
def test_kernel_calls_a_rule_that_is_not_linear(algorithm, monkeypatch):
    monkeypatch.setattr(mixing, "BLOCK", BLOCK)
    state, trained, weights, payloads = random_round(algorithm, 2 * BLOCK + 1, np.float64)
    found = mixing.combine(algorithm, state, trained, 2, weights, payloads)
    expected = by_the_rule(algorithm, state, trained, weights, payloads)
    assert_same(found, expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("algorithm", RULES, ids=str)
def test_kernel_may_write_over_the_state_it_reads(algorithm, monkeypatch):
    monkeypatch.setattr(mixing, "BLOCK", BLOCK)
    state, trained, weights, payloads = random_round(algorithm, 2 * BLOCK + 3, np.float64)
    expected = mixing.combine(algorithm, state, trained, 2, weights, payloads)
    found = mixing.combine(algorithm, state, trained, 2, weights, payloads, out=state)
    assert found is state
    np.testing.assert_array_equal(state.parameters, expected.parameters)
    for name in state.memory:
        np.testing.assert_array_equal(state.memory[name], expected.memory[name])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("algorithm", RULES, ids=str)
def test_kernel_stays_in_dtype_whatever_the_weights_are(algorithm, dtype):
    state, trained, weights, payloads = random_round(algorithm, 5, dtype)
    plain = mixing.combine(algorithm, state, trained, 2, weights, payloads)
    wide = {j: np.float64(w) for j, w in weights.items()}
    same = mixing.combine(algorithm, state, trained, 2, wide, payloads)
    assert plain.parameters.dtype == dtype
    assert all(vector.dtype == dtype for vector in plain.memory.values())
    np.testing.assert_array_equal(plain.parameters, same.parameters)


def test_weighted_sum_by_hand():
    vectors = {3: np.array([1.0, 2.0]), 1: np.array([10.0, 20.0])}
    np.testing.assert_array_equal(
        mixing.weighted_sum({1: 0.25, 3: 0.5}, vectors), np.array([3.0, 6.0])
    )
