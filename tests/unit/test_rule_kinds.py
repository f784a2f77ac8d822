"""A rule meets only graphs of its kind, wherever the two are brought together."""

from __future__ import annotations

import numpy as np
import pytest

from flower_dhb import ConfigError, GraphError, HeavyBall, ServerlessStrategy, Topology, simulate
from flower_dhb.algorithms import Centralized, ExactDiffusion, PushSum, check_relayed
from flower_dhb.engine.engine import Engine
from flower_dhb.engine.problem import Analytic
from flower_dhb.topology.directed import DirectedTopology

RING, ONE_WAY = Topology.ring(4), DirectedTopology([(0, 1), (1, 2), (2, 3), (3, 0), (0, 2)])
COMPLETE = Topology.complete(4, "uniform")
START = np.array([[1.0], [2.0], [4.0], [9.0]])


def stay(x: np.ndarray, _round: int) -> np.ndarray:
    return x


def in_engine(rule, graph):
    engine = Engine(Analytic(START, lambda x, _: 0 * x), graph, rule)
    engine.run(1)
    return engine.parameters.numpy()


def in_reference(rule, graph):
    return simulate(rule, graph, START, stay, 1)[-1]


@pytest.mark.parametrize("run", [in_engine, in_reference])
@pytest.mark.parametrize("rule", [HeavyBall(), ExactDiffusion()], ids=lambda r: r.name)
def test_one_way_links_are_for_push_sum_alone(run, rule):
    with pytest.raises(GraphError, match=rf"'{rule.name}' needs an undirected graph"):
        run(rule, ONE_WAY)


@pytest.mark.parametrize("run", [in_engine, in_reference])
def test_push_sum_takes_both_kinds(run):
    """Vertex 0 has two receivers and keeps a third; its push weight is 1/3 + 1/2 (from 3)."""
    found = run(PushSum(), ONE_WAY)
    assert found[0, 0] == pytest.approx((1 / 3 + 9 / 2) / (1 / 3 + 1 / 2))
    # Metropolis on a ring: thirds, and push weights stay 1.
    np.testing.assert_allclose(run(PushSum(), RING)[:, 0], [4, 7 / 3, 5, 14 / 3], rtol=1e-12)


def test_a_server_needs_a_complete_graph_with_equal_weights():
    np.testing.assert_allclose(in_reference(Centralized(), COMPLETE), np.full((4, 1), 4.0))
    for graph in (RING, Topology.complete(4, np.full((4, 4), 0.2) + 0.2 * np.eye(4))):
        with pytest.raises(GraphError, match="averages over all agents"):
            in_reference(Centralized(), graph)
    # The engine gives it a graph of its own, as the upper bound of comparisons.
    np.testing.assert_allclose(in_engine(Centralized(), RING), np.full((4, 1), 4.0))


@pytest.mark.parametrize("rule", [PushSum(), Centralized()], ids=lambda r: r.name)
def test_relays_refuse_rules_of_the_engine(rule):
    with pytest.raises(ConfigError, match=rf"'{rule.name}' is made for .*'flower-dhb compare'"):
        ServerlessStrategy(COMPLETE, rule)
    with pytest.raises(ConfigError, match="is made for"):
        check_relayed(rule)


@pytest.mark.parametrize("rule", [None, 3, HeavyBall], ids=str)
def test_what_is_no_rule_is_refused(rule):
    with pytest.raises(ConfigError, match="must be a rule such as HeavyBall"):
        check_relayed(rule)


@pytest.mark.parametrize("mixing", [0.0, 0.5, 0.51, 0.9, 1.0])
@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.99])
def test_the_spectrum_is_asked_for_only_where_it_can_matter(mixing, momentum):
    """At mixing 0.5 and below the condition holds on every graph, so none is decomposed."""

    class Bare:
        name, directed = "bare", False
        asked = False

        @property
        def smallest_eigenvalue(self):
            Bare.asked = True
            return -1.0 + 1e-9

    rule = HeavyBall(momentum=momentum, momentum_mixing=mixing)
    u = -1.0 + 1e-9
    stable = 1 + u + 2 * momentum * (1 - mixing + mixing * u) > 0
    if stable:
        rule.check(Bare())
    else:
        with pytest.raises(ConfigError, match="diverges for every step size"):
            rule.check(Bare())
    assert Bare.asked == (mixing > 0.5)
