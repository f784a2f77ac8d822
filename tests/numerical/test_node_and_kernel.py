"""A node and the blocked kernel give what the reference driver gives, row by row."""

import numpy as np
import pytest
from naive import FORMS, pull

from flower_dhb import DSGD, HeavyBall, Node, Topology, mixing, simulate
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


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("algorithm", RULES, ids=str)
def test_kernel_sums_in_vertex_order_to_the_bit(algorithm, size, monkeypatch):
    monkeypatch.setattr(mixing, "BLOCK", BLOCK)
    state, trained, weights, payloads = random_round(algorithm, size, np.float32)
    everyone = {**payloads, 2: algorithm.outgoing(state, trained)}
    mixed = {
        name: (
            (everyone[0][name] * np.float32(0.15) + everyone[2][name] * np.float32(0.65))
            + everyone[5][name] * np.float32(0.3)
        )
        + everyone[7][name] * np.float32(-0.1)
        for name in algorithm.vectors
    }
    expected = algorithm.combine(state, trained, mixed)
    found = mixing.combine(algorithm, state, trained, 2, weights, payloads)
    np.testing.assert_array_equal(found.parameters, expected.parameters)
    assert set(found.memory) == set(expected.memory)
    for name in found.memory:
        np.testing.assert_array_equal(found.memory[name], expected.memory[name])


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
