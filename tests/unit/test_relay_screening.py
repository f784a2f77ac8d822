"""An agent that lies in a Flower run: named, put in quarantine, and nobody goes with it."""

import numpy as np
import pytest
from flwr.app import ArrayRecord
from support.apps import numpy_app, start_arrays
from support.grid import LocalGrid

from flower_dhb import DSGD, HeavyBall, ServerlessStrategy, Topology, consensus_mod

N, D, ROUNDS, LIAR = 6, 4, 14, 3
GRAPH = Topology.from_edges([(0, 1), (0, 2), (0, 3), (3, 4), (4, 5), (5, 0)])


def liar(message, context, call_next):
    """From round 3 on, agent 3 has 10^30 for its parameters."""
    reply = call_next(message, context)
    k = message.content.config_records["config"]["server-round"]
    if context.node_config["partition-id"] == LIAR and k >= 3 and "arrays" in reply.content:
        arrays = reply.content.array_records["arrays"].to_numpy_ndarrays()
        reply.content["arrays"] = ArrayRecord([np.full_like(a, 1e30) for a in arrays])
    return reply


def run(rule, mods):
    strategy = ServerlessStrategy(GRAPH, rule, collect_models=True, evaluate_every=0)
    grid = LocalGrid(numpy_app(N, D, mods=mods), N)
    result = strategy.start(grid, start_arrays(D)[0], ROUNDS)
    models = {v: [a.numpy() for a in m.values()] for v, m in result.models.items()}
    return result, {v: np.concatenate([a.ravel() for a in m]) for v, m in models.items()}


@pytest.mark.parametrize(
    "rule", [HeavyBall(momentum=0.5), HeavyBall(form="tracking", momentum=0.3)], ids=["plain", "gt"]
)
@pytest.mark.thorough
def test_an_agent_that_lies_takes_nobody_with_it_and_is_named(rule):
    result, models = run(rule, [consensus_mod, liar])
    honest = [v for v in range(N) if v != LIAR]
    assert np.abs(np.stack([models[v] for v in honest])).max() < 10.0
    told = {
        (record.round, vertex)
        for record in result.history
        for vertex, text in record.events
        if f"neighbor {LIAR}: its payload is" in text and "away from this agent's own" in text
    }
    # Told with the answer to the next round. Where it spoiled a sum, a new epoch began, in which
    # for a round its edges did not count.
    rounds = (4, 6, 8) if rule.conserved else (4, 5, 6)
    assert told == {(k, v) for k in rounds for v in GRAPH.neighbors(LIAR)}
    if rule.conserved:
        return
    # From then on the relay carries nothing over these edges, in either direction.
    edges = [record.bytes_sent for record in result.history]
    assert len(set(edges[:5])) == 1
    assert edges[6] == pytest.approx(edges[0] * 4 / 6)


def test_without_screening_all_are_lost():
    _, models = run(DSGD(screening="off"), [consensus_mod, liar])
    assert min(np.abs(model).max() for model in models.values()) > 1e20


@pytest.mark.thorough
def test_nobody_is_screened_where_all_are_honest():
    runs = [run(HeavyBall(momentum=0.5, screening=s), [consensus_mod])[1] for s in ("on", "off")]
    for v in range(N):
        np.testing.assert_array_equal(runs[0][v], runs[1][v])
