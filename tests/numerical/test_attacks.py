"""Agents that lie: what the engine makes of them, and what screening and clipping hold up."""

import numpy as np
import pytest
import torch

from flower_dhb import DSGD, Node, Topology
from flower_dhb.algorithms import method
from flower_dhb.compare.tasks import make_task
from flower_dhb.engine.attacks import ATTACKS, Attack
from flower_dhb.engine.engine import Engine
from flower_dhb.engine.problem import Analytic
from flower_dhb.errors import ConfigError
from flower_dhb.types import Layout

pytestmark = pytest.mark.thorough

GRAPH = Topology.parse("random-regular:16:4:1")
LIAR = 15
HONEST = list(range(15))
TASK = make_task("digits-mlp")


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def trained(kind, rule, rounds=25):
    """Digits, equal data: mean accuracy of the honest agents, and the engine."""
    problem = TASK.problem(16, "iid", 0)
    attack = Attack(kind=kind, vertices=(LIAR,)) if kind else None
    engine = Engine(problem, GRAPH, method(rule), learning_rate=0.2, attack=attack)
    engine.run(rounds)
    return TASK.scores(engine, "test").agents[HONEST], engine


@pytest.fixture(scope="module")
def without():
    return trained("cut-out", "dmsgd")[0]


@pytest.mark.parametrize("kind", ["scale-10", "scale-100", "scale-1e30"])
def test_gross_lies_are_as_if_the_liar_were_cut_out(kind, without):
    found, engine = trained(kind, "dmsgd")
    np.testing.assert_array_equal(found, without)
    assert {pair[1] for pair in engine.screened} == {LIAR}
    assert {pair[0] for pair in engine.screened} == set(GRAPH.neighbors(LIAR))
    assert trained(kind, "dmsgd:screening=off", 10)[0].mean() < without.mean() - 0.2


@pytest.mark.parametrize("kind", [kind for kind in ATTACKS if kind != "cut-out"])
def test_clipping_holds_up_every_lie_where_data_are_equal(kind, without):
    """Within two points, as is measured at length in docs/benchmarks.md; five in so few rounds."""
    found, engine = trained(kind, "dmsgd:clipping=on:screening=off")
    assert engine.screened == {}
    assert found.mean() > without.mean() - 0.05


def test_honest_runs_are_the_same_to_the_bit():
    runs = [trained("", rule, 10)[1] for rule in ("dmsgd", "dmsgd:screening=off")]
    assert runs[0].screened == {}
    torch.testing.assert_close(runs[0].parameters, runs[1].parameters, rtol=0, atol=0)
    endless = trained("", "dmsgd:clipping=1e300", 10)[1]
    torch.testing.assert_close(endless.parameters, runs[0].parameters, rtol=0, atol=0)


# --- engine and nodes --------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sign-flip", "scale-100", "ascent", "old-model", "cut-out"])
@pytest.mark.parametrize("settings", ["", ":clipping=on", ":clipping=0.3"])
@pytest.mark.parametrize("name", ["dmsgd", "cdsgd", "dmsgd-buffer"])
def test_nodes_and_engine_hold_up_the_same(name, settings, kind):
    rule = method(name + settings)
    graph = Topology.erdos_renyi(7, 0.5, seed=2)
    start = np.random.default_rng(1).normal(size=12)
    goals = np.random.default_rng(2).normal(size=(7, 12))
    problem = Analytic(start, lambda x, _k: x - goals, n_agents=7)
    engine = Engine(
        problem, graph, rule, learning_rate=0.1, attack=Attack(kind=kind, vertices=(2,), since=3)
    )
    layout = Layout.of({"w": start})
    nodes = []
    for i in range(7):
        row = {int(j): graph.row(i)[j] for j in (i, *graph.neighbors(i))}
        mine = method(name) if i == 2 else rule  # a liar does not clip
        nodes.append(Node.start(i, mine, row, layout, {"w": start}))
    kept = {}
    for k in range(1, 9):
        payloads = []
        for i, node in enumerate(nodes):
            x = node.arrays()["w"]
            up = i == 2 and k >= 3 and kind == "ascent"
            payloads.append(node.adapt(k, {"w": x - (-0.1 if up else 0.1) * (x - goals[i])}))
        lie = payloads[2]
        if k >= 3:
            scale = {"sign-flip": -1.0, "scale-100": 100.0}.get(kind, 1.0)
            lie = {n: scale * v for n, v in lie.items()}
            kept = kept or lie
            lie = kept if kind == "old-model" else lie
        for i, node in enumerate(nodes):
            for j in graph.neighbors(i):
                if kind == "cut-out" and 2 in (i, j):
                    continue
                # Where an edge counts at neither end, the liar does not hear either.
                node.offer(j, k, lie if j == 2 else payloads[j])
        for i, node in enumerate(nodes):
            if i != 2:
                node.combine()
        refused = [j for j in graph.neighbors(2) if 2 in nodes[j].screened]
        nodes[2].combine([j for j in graph.neighbors(2) if j not in refused], screen=False)
        engine.step()
        found = np.stack([node.parameters for node in nodes])
        np.testing.assert_allclose(found, engine.parameters.numpy(), rtol=1e-9, atol=1e-11)


def test_agents_that_start_apart_come_together_before_they_screen():
    start = np.arange(5.0)[:, None] ** 4
    engine = Engine(Analytic(start, lambda x, _k: 0 * x), Topology.ring(5), DSGD())
    engine.run(30)
    assert engine.screened == {}
    assert engine.consensus_distance() < 1.0


# --- attacks -----------------------------------------------------------------------------


def small(kind, since=1, seed=0, vertices=(3,)):
    attack = Attack(kind=kind, vertices=vertices, since=since, seed=seed)
    problem = Analytic(np.ones(6), lambda x, _k: x, n_agents=4)
    rule = DSGD(screening="off")
    return Engine(problem, Topology.ring(4), rule, learning_rate=0.1, attack=attack)


@pytest.mark.parametrize(
    ("kind", "sent"),
    [("sign-flip", -0.9), ("scale-10", 9.0), ("scale-100", 90.0), ("scale-1e30", 9e29)],
)
def test_what_a_liar_sends_reaches_its_neighbors_and_not_itself(kind, sent):
    engine = small(kind)
    engine.step()
    x = engine.parameters[:, 0].numpy()
    np.testing.assert_allclose(x, [0.6 + sent / 3, 0.9, 0.6 + sent / 3, 0.9], rtol=1e-12)


def test_gradient_ascent_an_old_model_and_a_late_beginning():
    engine = small("ascent", since=2)
    engine.step()
    np.testing.assert_allclose(engine.parameters[:, 0], 0.9)
    engine.step()
    np.testing.assert_allclose(engine.parameters[3, 0], (0.99 + 2 * 0.81) / 3)
    engine = small("old-model")
    engine.run(2)
    np.testing.assert_allclose(engine.parameters[0, 0], (0.81 * 2 + 0.9) / 3)
    np.testing.assert_allclose(
        engine.parameters[3, 0], 0.81 * 2 / 3 + engine.parameters[3, 1] / 3, atol=0.1
    )


def test_noise_is_drawn_from_seed_agent_and_round():
    runs = []
    for seed in (0, 0, 1):
        engine = small("noise", seed=seed)
        engine.run(2)
        runs.append(engine.parameters.clone())
    assert torch.equal(runs[0], runs[1])
    assert not torch.allclose(runs[0], runs[2])


def test_what_is_said_of_all_agents_is_of_the_honest_ones():
    engine = small("scale-100")
    engine.step()
    honest = engine.parameters[:3]
    torch.testing.assert_close(engine.average().parameters[0], honest.mean(0))
    spread = float((honest - honest.mean(0)).square().sum(1).mean().sqrt())
    assert engine.consensus_distance() == pytest.approx(spread)


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"kind": "scale-1", "vertices": (0,)}, "attack"),
        ({"kind": "noise", "vertices": ()}, "different agents"),
        ({"kind": "noise", "vertices": (1, 1)}, "different agents"),
        ({"kind": "noise", "vertices": (-1,)}, "vertices of the graph"),
        ({"kind": "noise", "vertices": (0,), "since": 0}, "at least 1"),
    ],
)
def test_attacks_that_cannot_be_are_refused(given, why):
    with pytest.raises(ConfigError, match=why):
        Attack(**given)


def test_a_graph_needs_somebody_honest():
    for vertices in ((4,), (0, 1, 2, 3)):
        with pytest.raises(ConfigError, match="at least one must be honest"):
            small("noise", vertices=vertices)
