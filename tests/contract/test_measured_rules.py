"""Rules that measure whole vectors, and rules that are not linear: the same in every runtime.

The yardstick is the law once more, written out with NumPy for all agents at once.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from support.apps import flat, numpy_app, quadratic, quadratic_step, start_arrays
from support.grid import LocalGrid
from support.rules import Bounded, Clipped

from flower_dhb import ConfigError, HeavyBall, ServerlessStrategy, Topology, consensus_mod, simulate
from flower_dhb.agent import mixing
from flower_dhb.agent.mixing import combine
from flower_dhb.algorithms import algorithm_from_config, measurement, register
from flower_dhb.algorithms.measurement import inner_products, measured
from flower_dhb.engine import engine as engine_module
from flower_dhb.engine.engine import Engine
from flower_dhb.engine.problem import Analytic
from flower_dhb.types import State

# Irregular: degrees 4, 2, 3, 2, 2, 1, 2.
GRAPH = Topology.from_edges([(0, 1), (1, 2), (2, 3), (3, 0), (0, 4), (4, 5), (0, 6), (2, 6)])
N, D, ROUNDS, RATE = 7, 5, 10, 0.05


def law(rule: Bounded, start: np.ndarray, step, rounds: int) -> np.ndarray:
    """Every round in turn, each agent's gain by itself."""
    x, d = np.tile(start, (N, 1)), np.zeros((N, len(start)))
    w = GRAPH.mixing_matrix
    for k in range(1, rounds + 1):
        z = step(x, k)
        sent = z.copy()
        for i in range(N):
            length = np.linalg.norm(d[i])
            if length:
                sent[i] += min(1.0, rule.bound * np.linalg.norm(z[i] - x[i]) / length) * d[i]
        x, d = w @ sent, w @ sent - x
    return x


def pull(x: np.ndarray, _round: int) -> np.ndarray:
    curvature, center = quadratic(N, D)
    return quadratic_step(x, curvature, center, RATE)


@pytest.mark.parametrize("width", [1, 2, 10**6])
@pytest.mark.thorough
def test_a_rule_with_norms_gives_the_same_numbers_in_every_runtime(width, monkeypatch):
    """However the vectors are cut into blocks: a norm is the whole vector's."""
    monkeypatch.setattr(mixing, "BLOCK", width)
    monkeypatch.setattr(engine_module, "CHUNK", width * N)
    monkeypatch.setattr(measurement, "_BLOCK", 3)
    rule = Bounded(bound=0.7)
    record, start = start_arrays(D)
    expected = law(rule, start, pull, ROUNDS)
    assert np.abs(expected - law(replace(rule, bound=10.0), start, pull, ROUNDS)).max() > 0.01

    trajectory = simulate(rule, GRAPH, start, pull, ROUNDS)
    np.testing.assert_allclose(trajectory[-1], expected, rtol=0, atol=1e-13)
    problem = Analytic(start, lambda x, k: x - pull(x, k), n_agents=N)
    engine = Engine(problem, GRAPH, rule, learning_rate=1.0)
    engine.run(ROUNDS)
    np.testing.assert_allclose(engine.parameters.numpy(), expected, rtol=0, atol=1e-13)
    grid = LocalGrid(numpy_app(N, D, rate=RATE, mods=[consensus_mod]), N)
    result = ServerlessStrategy(GRAPH, rule, collect_models=True).start(grid, record, ROUNDS)
    found = np.stack([flat(result.models[vertex]) for vertex in range(N)])
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-13)


def test_a_rule_that_is_not_linear_is_never_replaced_by_scaled_additions():
    """Steps of 100 against a bound of 5; small samples would not have shown the bend."""
    rule = Clipped(bound=5.0)
    x, z = np.zeros(3), np.array([100.0, -100.0, 1.0])
    new = combine(rule, rule.start(x), z, 0, {0: 1.0}, {})
    np.testing.assert_array_equal(new.parameters, [5.0, -5.0, 1.0])
    assert not Clipped.linear


@pytest.mark.parametrize("library", [np.array, torch.tensor])
def test_inner_products_of_whole_vectors_in_any_blocks(library, monkeypatch):
    rule = Bounded()
    x, z, d = (np.arange(12.0).reshape(2, 6) ** p for p in (1.0, 1.5, 0.5))
    state = State(library(x), {"displacement": library(d)})
    for block in (1, 4, 10**6):
        monkeypatch.setattr(measurement, "_BLOCK", block)
        found = inner_products(rule, state, library(z))
        step, moved = (found[pair] for pair in rule.products)
        np.testing.assert_allclose(step, ((z - x) ** 2).sum(1, keepdims=True), rtol=1e-14)
        np.testing.assert_allclose(moved, [[0 + 1 + 2 + 3 + 4 + 5], [6 + 7 + 8 + 9 + 10 + 11]])
        one = State(library(x[1]), {"displacement": library(d[1])})
        alone = inner_products(rule, one, library(z[1]))
        assert alone[rule.products[1]] == pytest.approx(51.0, rel=1e-14)


def test_sums_of_float32_vectors_are_taken_in_float64():
    """2^24 + 1 is no float32: added one by one to 2^24, ones would be lost."""
    rule = Bounded()
    d = np.ones(5000, np.float32)
    d[0] = 4096.0
    state = State(np.zeros(5000, np.float32), {"displacement": d})
    products = inner_products(rule, state, np.zeros(5000, np.float32))
    assert products[rule.products[1]] == 4096.0**2 + 4999


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_measured_numbers_keep_the_dtype_of_the_vectors(dtype):
    rule = Bounded()
    x = np.ones((3, 4), dtype)
    for library in (np.asarray, torch.from_numpy):
        state = State(library(x), {"displacement": library(x)})
        stack = measured(rule, state, library(2 * x))
        assert stack.measured["gain"].shape == (3, 1)
        assert rule.outgoing(stack, library(2 * x))["parameters"].dtype == library(x).dtype
    alone = measured(rule, State(x[0], {"displacement": x[0]}), 2 * x[0])
    assert alone.measured == {"gain": 0.5}
    assert rule.outgoing(alone, 2 * x[0])["parameters"].dtype == dtype


def test_a_rule_without_measurements_keeps_its_state_as_it_is():
    state = HeavyBall().start(np.zeros(3))
    assert measured(HeavyBall(), state, np.ones(3)) is state


# --- rules of one's own ---------------------------------------------------------------------


def test_a_rule_that_agents_could_not_build_is_refused_where_it_is_given():
    class Mine(HeavyBall):
        pass

    with pytest.raises(ConfigError, match=r"cannot find the rule .*Mine of .*module:Rule; or put"):
        ServerlessStrategy(Topology.ring(4), Mine())


def test_registering_makes_a_rule_known_by_its_name():
    assert algorithm_from_config({"name": "bounded", "bound": 0.25}) == Bounded(bound=0.25)
    assert register(Bounded) is Bounded  # a module that is imported again changes nothing


def test_what_cannot_be_registered():
    with pytest.raises(ConfigError, match="name 'dmsgd' is taken"):

        @register
        class Other(HeavyBall):
            name = "dmsgd"

    with pytest.raises(ConfigError, match="subclass of Algorithm"):
        register(int)  # type: ignore[type-var]
    nameless = type("Nameless", (HeavyBall,), {"name": "a:b"})
    with pytest.raises(ConfigError, match="without a colon"):
        register(nameless)
