"""The default rule: against its law written out agent by agent, and at its limits."""

from __future__ import annotations

import re
from math import sqrt
from pathlib import Path

import numpy as np
import pytest
import torch

from flower_dhb import SafeguardedHeavyBall, ServerlessStrategy, Topology, simulate
from flower_dhb.algorithms import Algorithm, default_algorithm
from flower_dhb.algorithms.measurement import inner_products, measured
from flower_dhb.types import State

# Irregular: degrees 4, 2, 3, 2, 2, 1, 2.
GRAPH = Topology.from_edges([(0, 1), (1, 2), (2, 3), (3, 0), (0, 4), (4, 5), (0, 6), (2, 6)])
N, D, ROUNDS = 7, 5, 30
RULE = SafeguardedHeavyBall()


def local_step(x, k):
    """Pulled to a target of one's own, each coordinate at its pace, and shaken a little."""
    rng = np.random.default_rng(0)
    targets, pace = rng.normal(size=(N, D)), np.geomspace(0.02, 0.9, D)
    return x + pace * (targets - x) + 0.02 * np.random.default_rng(k).normal(size=(N, D))


def length(vector):
    return sqrt(sum(float(v) ** 2 for v in vector))


def gain_by_hand(momentum, step, displacement):
    """How much of the last displacement one agent adds, from the geometry."""
    if length(step) == 0.0:
        return 0.0
    direction = [v / length(step) for v in step]
    along = sum(a * b for a, b in zip(displacement, direction, strict=True))
    kept = max(along, 0.0)
    unconfirmed = length([v - kept * e for v, e in zip(displacement, direction, strict=True)])
    return momentum if momentum * unconfirmed <= length(step) else length(step) / unconfirmed


def along(step, direction):
    """How far the step goes in a direction, 0 if it goes the other way."""
    product = sum(a * b for a, b in zip(step, direction, strict=True))
    return max(product, 0.0) / length(direction) if product else 0.0


def added_by_hand(momentum, x, z, d, c):
    """What one agent adds to its local step."""
    step = [a - b for a, b in zip(z, x, strict=True)]
    if length(step) == 0.0:
        return np.zeros(len(x))
    parts = gain_by_hand(momentum, step, d) * np.asarray(d), momentum * np.asarray(c)
    m = parts[0] + parts[1]
    reach = 0.05 * length([v for v, s in zip(x, step, strict=True) if s])
    reach += min(length(parts[0]), along(step, d))
    reach += min(length(parts[1]), along(step, [-v for v in c]))
    return m if length(m) <= reach else m * reach / length(m)


def by_hand(start, rounds, momentum=0.9, missing=None):
    """Every agent in turn, with loops; also where each was and what it added."""
    x = np.array(start)
    d, c = np.zeros((N, D)), np.zeros((N, D))
    history = []
    for k in range(1, rounds + 1):
        w, z = GRAPH.with_missing((missing or {}).get(k, ())), local_step(x, k)
        m = np.array([added_by_hand(momentum, x[i], z[i], d[i], c[i]) for i in range(N)])
        new = np.zeros((N, D))
        for i in range(N):
            for j in range(N):
                new[i] += w[i, j] * (z[j] + 0.5 * m[j])
            new[i] += 0.5 * m[i]
        gains = np.array([gain_by_hand(momentum, z[i] - x[i], d[i]) for i in range(N)])
        full = gains[:, None] * d + momentum * c
        history.append((x, z, m, gains, full))
        d, c, x = new - x, new - z - m, new
    return x, c, history


START = np.random.default_rng(1).normal(size=(N, D))
MISSING = {2: [(0, 1)], 3: [(0, 1), (4, 5)], 9: [(0, 6), (2, 6)]}


@pytest.mark.parametrize("missing", [None, MISSING])
@pytest.mark.parametrize("momentum", [0.9, 0.7])
def test_it_is_the_law_written_out(momentum, missing):
    rule = SafeguardedHeavyBall(momentum=momentum)
    found = simulate(rule, GRAPH, START, local_step, ROUNDS, missing=missing)[-1]
    expected, _, history = by_hand(START, ROUNDS, momentum, missing)
    # Thirty rounds of rounding of numbers near 1.
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)
    gains = np.array([gains for *_, gains, _ in history[1:]])
    bounded = gains < momentum
    assert 0.01 < bounded.mean() < 0.99  # it saw both kinds of rounds
    assert gains.std(axis=1).max() > 0.02  # and agents that differ
    shortened = np.array([np.abs(full - m).max(axis=1) > 1e-9 for *_, m, _, full in history[1:]])
    assert 0.05 < shortened.mean() < 0.95


@pytest.mark.parametrize("missing", [None, MISSING])
def test_the_average_moves_by_the_steps_and_by_the_mean_of_what_is_added(missing):
    x = simulate(RULE, GRAPH, START, local_step, ROUNDS, missing=missing)
    _, correction, history = by_hand(START, ROUNDS, missing=missing)
    for k, (before, z, m, *_) in enumerate(history):
        moved = (z - before + m).mean(axis=0)
        np.testing.assert_allclose((x[k + 1] - x[k]).mean(axis=0), moved, rtol=0, atol=1e-12)
    np.testing.assert_allclose(correction.sum(axis=0), 0.0, atol=1e-12)
    assert np.abs(correction).max() > 0.01


# --- the momentum of one agent --------------------------------------------------------------

CASES = {
    # 0.9 * 4 is longer than 3: of the displacement, 4 stands at right angles to the step.
    "at right angles": ([3, 0], [0, 4], 0.75),
    "short enough": ([3, 0], [0, 3], 0.9),
    "just short enough": ([9, 0], [0, 10], 0.9),
    "what the step confirms is free": ([3, 0], [70, 4], 0.75),
    "all confirmed": ([1, 0], [1000, 0], 0.9),
    "against the step, all of it counts": ([3, 0], [-3, 4], 0.6),
    "straight against the step": ([3, 0], [-6, 0], 0.5),
    "no step": ([0, 0], [1, 2], 0.0),
    "the first round": ([1, 2], [0, 0], 0.9),
    "nothing at all": ([0, 0], [0, 0], 0.0),
}


def gain(step, displacement, rule=RULE, dtype=np.float64, scale=1.0):
    """Of parameters so long that nothing is out of reach."""
    x = np.full(len(step), 2.0, dtype) * dtype(scale)
    d = np.asarray(displacement, dtype) * dtype(scale)
    z = x + np.asarray(step, dtype) * dtype(scale)
    state = State(x, {"displacement": d, "correction": np.zeros_like(d)})
    products = dict(inner_products(rule, state, z))
    products["moving", "moving"] = np.asarray(1e200)
    return float(rule.measure(products)["momentum"])


@pytest.mark.parametrize("case", CASES)
def test_momentum_of_an_agent(case):
    step, displacement, expected = CASES[case]
    assert gain(step, displacement) == pytest.approx(expected, abs=1e-15)


# Step, displacement, correction, and what is added, of the parameters (36, 48): their reach
# is 3 if both move, 1.8 if the first moves alone, 2.4 if the second does.
ADDED = {
    "within reach": ([0, 3], [2.4, 0], [0, 0], [2.16, 0]),
    "out of reach": ([0, 27], [24, 0], [0, 0], [2.4, 0]),
    "the step confirms the displacement": ([6, 27], [24, 0], [0, 0], [9, 0]),
    "the step goes against it": ([-6, 27], [24, 0], [0, 0], [3, 0]),
    "the last mixing, out of reach": ([0, 27], [0, 0], [24, 0], [2.4, 0]),
    "mixing that the step undoes": ([-6, 27], [0, 0], [24, 0], [9, 0]),
    "mixing that the step repeats": ([6, 27], [0, 0], [24, 0], [3, 0]),
    "a trace is confirmed as a trace": ([-15, 27], [24, 0], [0.01, 0], [3.009, 0]),
    "a long step confirms what there is": ([15, 27], [3.6, 0], [0, 0], [3.24, 0]),
    "both, at right angles": ([12, 0], [0, 24], [18, 0], [9.72 / sqrt(45.16), 7.2 / sqrt(45.16)]),
    "both, and they cancel": ([0, 3], [3, 0], [-3, 0], [0, 0]),
    "no step": ([0, 0], [24, 0], [24, 0], [0, 0]),
}


@pytest.mark.parametrize("case", ADDED)
def test_what_an_agent_adds(case):
    step, d, c, expected = (np.asarray(v, float) for v in ADDED[case])
    x = np.array([36.0, 48.0])
    state = measured(RULE, State(x, {"displacement": d, "correction": c}), x + step)
    added = state.measured["momentum"] * d + state.measured["correction"] * c
    np.testing.assert_allclose(added, expected, rtol=0, atol=1e-13)
    np.testing.assert_allclose(added, added_by_hand(0.9, x, x + step, d, c), rtol=0, atol=1e-13)


@pytest.mark.parametrize("scale", [2.0**-60, 2.0**-30, 2.0**30, 2.0**60])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_it_does_not_depend_on_the_scale_of_the_parameters(scale, dtype):
    """Powers of two, so to the last bit; their squares are far out of float32's range."""
    step, displacement = [3.0, 0.5, -1.0], [1.0, 4.0, 2.0]
    here = gain(step, displacement, dtype=dtype)
    assert 0.1 < here < 0.9
    assert gain(step, displacement, dtype=dtype, scale=scale) == here


def test_it_does_not_depend_on_parameters_that_never_change():
    """Frozen layers, as under adapters: as many and as large as they may be."""
    step, displacement = [3.0, 0.5, -1.0], [1.0, 4.0, 2.0]
    frozen = np.zeros(1000)
    alone = gain(step, displacement)
    assert gain(np.concatenate([step, frozen]), np.concatenate([displacement, frozen])) == alone

    def beside(x, k):
        z = local_step(x[:, :D], k)
        return np.concatenate([z, x[:, D:]], axis=1)

    start = np.concatenate([START, np.full((N, 3), 1e6)], axis=1)
    wide = simulate(RULE, GRAPH, start, beside, ROUNDS)[-1]
    narrow = simulate(RULE, GRAPH, START, local_step, ROUNDS)[-1]
    np.testing.assert_allclose(wide[:, :D], narrow, rtol=0, atol=1e-12)
    np.testing.assert_allclose(wide[:, D:], 1e6, rtol=1e-14)


def test_momentum_beyond_what_the_step_confirms_is_never_longer_than_the_step():
    rng = np.random.default_rng(2)
    for _ in range(200):
        step, displacement = rng.normal(size=4), rng.normal(size=4) * rng.choice([0.1, 1, 10])
        g = gain(step, displacement)
        assert 0.0 < g <= 0.9
        along = max(step @ displacement, 0.0) / (step @ step)
        assert g * length(displacement - along * step) <= length(step) * (1 + 1e-12)
        assert g == pytest.approx(gain_by_hand(0.9, step, displacement), rel=1e-12)


def test_parallel_vectors_leave_nothing_unconfirmed():
    """Rounding must not make a square of less than nothing, nor a bound of it."""
    rng = np.random.default_rng(3)
    for factor in rng.uniform(1.0, 1e6, size=200):
        step = rng.normal(size=6).astype(np.float32)
        assert gain(step, factor * step.astype(np.float64)) == 0.9


def test_a_stack_of_agents_measures_what_each_measures_alone():
    rng = np.random.default_rng(5)
    x, z, d = rng.normal(size=(3, N, D))
    stack = measured(RULE, State(x, {"displacement": d, "correction": -d}), z)
    tensors = {"displacement": torch.from_numpy(d), "correction": torch.from_numpy(-d)}
    found = measured(RULE, State(torch.from_numpy(x), tensors), torch.from_numpy(z))
    for i in range(N):
        one = measured(RULE, State(x[i], {"displacement": d[i], "correction": -d[i]}), z[i])
        for name, value in one.measured.items():
            assert stack.measured[name][i, 0] == pytest.approx(value, rel=1e-13)
            assert found.measured[name][i, 0] == pytest.approx(value, rel=1e-13)


# --- stability and bias -----------------------------------------------------------------------


def radius(a, momentum, u, correction=0.9, rule=RULE):
    """Spectral radius of a round on two agents: eigenvalues 1 and u, curvature a, gain fixed."""
    w = np.array([[1 + u, 1 - u], [1 - u, 1 + u]]) / 2

    def round_(vector):
        x, d, c = vector.reshape(3, 2, 1)
        numbers = {"momentum": momentum, "correction": correction}
        state = State(x, {"displacement": d, "correction": c}, numbers)
        z = (1 - a) * x
        sent = rule.outgoing(state, z)
        new = rule.combine(state, z, {name: w @ v for name, v in sent.items()})
        parts = (new.parameters, new.memory["displacement"], new.memory["correction"])
        return np.concatenate([part.ravel() for part in parts])

    # Corrections sum to zero: of their two directions one cannot arise.
    basis = np.column_stack([np.eye(6)[:, :4], np.array([0, 0, 0, 0, 1, -1]) / sqrt(2)])
    matrix = basis.T @ np.column_stack([round_(column) for column in basis.T])
    return np.abs(np.linalg.eigvals(matrix)).max()


@pytest.mark.parametrize("u", [-0.99, -0.6, -1 / 3, 0.0, 0.5, 0.99])
@pytest.mark.parametrize("momentum", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("correction", [0.0, 0.5, 0.9])
def test_stable_on_every_graph_where_gradient_descent_is(u, momentum, correction):
    """Whatever is added of either part: docs/algorithm.md derives the limits."""
    for a in (0.001, 0.1, 1.0, 1.9, 1.99):
        assert radius(a, momentum, u, correction) < 1.0
    assert radius(2.0 * (1.0 + momentum) + 0.01, momentum, u, correction) > 1.0


@pytest.mark.thorough
def test_different_data_leave_about_half_of_the_bias_of_d_psgd():
    """At rest `(I - W) x = (W - b / (1 + b) (I + W) / 2) s`, with b = 0.9."""
    targets = np.random.default_rng(4).normal(size=(N, 2))
    x = simulate(RULE, GRAPH, np.zeros(2), lambda x, _: x + 0.05 * (targets - x), 3000)[-1]
    w, step = GRAPH.mixing_matrix, 0.05 * (targets - x)
    left = (np.eye(N) - w) @ x
    right = (w - 0.9 / 1.9 * (np.eye(N) + w) / 2) @ step
    np.testing.assert_allclose(left, right, rtol=0, atol=1e-12)
    assert np.abs(left).max() > 1e-3


# --- where it is used -------------------------------------------------------------------------


def test_it_is_what_a_strategy_takes_when_no_rule_is_given():
    assert default_algorithm() == SafeguardedHeavyBall(momentum=0.9)
    assert ServerlessStrategy(Topology.ring(3)).algorithm == SafeguardedHeavyBall()


def test_it_sends_one_vector_and_remembers_two():
    assert RULE.vectors == ("folded",)
    assert RULE.memory == ("displacement", "correction")
    assert RULE.to_config() == {"name": "safeguarded", "momentum": 0.9}


def test_the_page_on_rules_builds_what_it_names():
    page = (Path(__file__).parents[2] / "docs" / "which-rule.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    built: list[Algorithm] = []
    names = {"built": lambda *given: built.append(ServerlessStrategy(*given).algorithm)}
    exec(block.replace("ServerlessStrategy(topology", "built(topology"), names)  # noqa: S102
    assert [rule.to_config().get("momentum", 0.0) for rule in built] == [0.9, 0.9, 0.5, 0.0]
    assert [rule.name for rule in built] == ["safeguarded", "dmsgd", "dmsgd", "dsgd"]
