"""The Flower runtime gives the numbers of `simulate`, on an irregular graph of seven agents.

Messages, mod and strategy are the real ones; only Ray is left out (the integration
tests have it).
"""

from __future__ import annotations

import numpy as np
import pytest
from support.apps import flat, numpy_app, quadratic, quadratic_step, start_arrays
from support.grid import LocalGrid

from flower_dhb import (
    DSGD,
    Algorithm,
    HeavyBall,
    ServerlessStrategy,
    Topology,
    consensus_mod,
    decentralize,
    simulate,
)

pytestmark = pytest.mark.thorough

N, D, ROUNDS, RATE = 7, 5, 8, 0.05
IRREGULAR = Topology.from_edges([(0, 1), (1, 2), (2, 3), (3, 0), (0, 4), (4, 5), (0, 6), (2, 6)])

RULES = [
    HeavyBall(),
    HeavyBall(payload="separate"),
    HeavyBall(momentum_mixing=0.0),
    HeavyBall(order="combine-then-adapt"),
    HeavyBall(form="buffer"),
    HeavyBall(form="buffer", order="combine-then-adapt", momentum_mixing=0.0),
    HeavyBall(form="tracking"),
    HeavyBall(form="tracking", payload="separate"),
    DSGD(),
    DSGD(order="combine-then-adapt"),
]

# Both sides compute in float64; they differ in the order of a sum of at most five terms.
TOLERANCE = 1e-13


def expected(rule: Algorithm) -> np.ndarray:
    curvature, center = quadratic(N, D)
    _, start = start_arrays(D)
    step = lambda x, _: quadratic_step(x, curvature, center, RATE)  # noqa: E731
    return simulate(rule, IRREGULAR, start, step, ROUNDS)


def run(rule: Algorithm, *, evaluate_every: int = 1, wrap: bool = False):
    app = numpy_app(N, D, rate=RATE, mods=None if wrap else [consensus_mod])
    grid = LocalGrid(decentralize(app) if wrap else app, N)
    strategy = ServerlessStrategy(
        IRREGULAR, rule, evaluate_every=evaluate_every, collect_models=True, average=True
    )
    return grid, strategy.start(grid, start_arrays(D)[0], ROUNDS)


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_every_rule_gives_the_parameters_of_simulate(rule: Algorithm) -> None:
    _, result = run(rule)
    final = np.stack([flat(result.models[i]) for i in range(N)])
    np.testing.assert_allclose(final, expected(rule)[-1], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("evaluate_every", [0, 1, 5])
def test_evaluating_does_not_change_the_trajectory(evaluate_every: int) -> None:
    _, result = run(HeavyBall(), evaluate_every=evaluate_every)
    final = np.stack([flat(result.models[i]) for i in range(N)])
    np.testing.assert_allclose(final, expected(HeavyBall())[-1], rtol=0, atol=TOLERANCE)


def test_a_wrapped_app_is_the_same_agent() -> None:
    _, with_mod = run(HeavyBall())
    _, wrapped = run(HeavyBall(), wrap=True)
    for vertex in range(N):
        assert np.array_equal(flat(with_mod.models[vertex]), flat(wrapped.models[vertex]))


def test_history_repeats_to_the_bit() -> None:
    histories = []
    for _ in range(2):
        _, result = run(HeavyBall())
        histories.append([{**r.to_dict(), "seconds": 0, "profile": {}} for r in result.history])
    assert histories[0] == histories[1]


def test_average_model_and_consensus_distance_are_those_of_the_trajectory() -> None:
    _, result = run(HeavyBall())
    trajectory = expected(HeavyBall())
    np.testing.assert_allclose(flat(result.arrays), trajectory[-1].mean(axis=0), atol=TOLERANCE)
    for record in result.history:
        x = trajectory[record.round]
        distance = np.sqrt(np.mean(np.sum((x - x.mean(axis=0)) ** 2, axis=1)))
        assert record.consensus_distance == pytest.approx(distance, rel=1e-10)
        way = np.sqrt(np.mean(np.sum((x - trajectory[0]) ** 2, axis=1)))
        assert record.distance_from_start == pytest.approx(way, rel=1e-10)


def test_metrics_are_weighted_as_fedavg_weights_them() -> None:
    _, result = run(HeavyBall())
    metrics = result.evaluate_metrics_clientapp[3]
    weights = np.arange(1, N + 1)
    assert metrics["vertex"] == pytest.approx(np.average(np.arange(N), weights=weights))
    assert set(metrics) == {"vertex", "norm"}, "the app's own names, and nothing else"
    vertex = result.history[2].evaluate_summary["vertex"]
    assert (vertex.worst, vertex.best) == (0.0, N - 1.0)
    losses = [float(result.history[2].train[i]["train_loss"]) for i in range(N)]  # type: ignore[arg-type]
    trained = result.train_metrics_clientapp[3]
    assert trained["train_loss"] == pytest.approx(np.average(losses, weights=weights))
    assert set(trained) == {"train_loss"}
    loss = result.history[2].train_summary["train_loss"]
    assert (loss.worst, loss.best) == (max(losses), min(losses))


def test_bytes_are_counted_over_edges() -> None:
    grid, result = run(DSGD())
    frame = dict.fromkeys(range(N), 0)
    for vertex, reply in grid.replies:
        payload = reply.content.array_records.get("flower_dhb.payload")
        if payload is not None:
            frame[vertex] = len(payload["payload"].data)
    sent = {v: frame[v] * len(IRREGULAR.neighbors(v)) for v in range(N)}
    assert result.history[-1].bytes_by_agent == sent
    assert result.history[-1].bytes_sent == sum(sent.values())
