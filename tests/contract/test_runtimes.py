"""One rule, the same numbers: engine, `simulate` and the Flower runtime, on an irregular graph."""

from __future__ import annotations

import numpy as np
import pytest
from support.apps import flat, numpy_app, quadratic, quadratic_step, start_arrays
from support.grid import LocalGrid

from flower_dhb import ServerlessStrategy, Topology, consensus_mod, simulate
from flower_dhb.algorithms import method, relayed_methods
from flower_dhb.engine.engine import Engine
from flower_dhb.engine.problem import Analytic

pytestmark = pytest.mark.thorough

N, D, ROUNDS, RATE = 7, 5, 8, 0.05
IRREGULAR = Topology.from_edges([(0, 1), (1, 2), (2, 3), (3, 0), (0, 4), (4, 5), (0, 6), (2, 6)])
NEIGHBOR = [n for n in relayed_methods() if type(method(n)).__module__.startswith("flower_dhb.")]

# All compute in float64; they differ in the order of a sum of at most five terms.
TOLERANCE = 1e-13


@pytest.mark.parametrize("name", NEIGHBOR)
def test_every_neighbor_rule_is_the_same_in_all_runtimes(name: str) -> None:
    rule = method(name)
    curvature, center = quadratic(N, D)
    record, start = start_arrays(D)

    def step(x: np.ndarray, _round: int) -> np.ndarray:
        return quadratic_step(x, curvature, center, RATE)

    expected = simulate(rule, IRREGULAR, start, step, ROUNDS)[-1]
    # The engine's own step size is 1: the gradient is what the step takes away.
    problem = Analytic(start, lambda x, k: x - step(x, k), n_agents=N)
    engine = Engine(problem, IRREGULAR, rule, learning_rate=1.0)
    engine.run(ROUNDS)
    np.testing.assert_allclose(engine.parameters.numpy(), expected, rtol=0, atol=TOLERANCE)

    grid = LocalGrid(numpy_app(N, D, rate=RATE, mods=[consensus_mod]), N)
    strategy = ServerlessStrategy(IRREGULAR, rule, collect_models=True)
    result = strategy.start(grid, record, ROUNDS)
    found = np.stack([flat(result.models[vertex]) for vertex in range(N)])
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)
