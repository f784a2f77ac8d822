"""Graphs that take turns: whether a rule diverges is a matter of the whole sequence."""

from __future__ import annotations

import numpy as np
import pytest

from flower_dhb import ConfigError, Topology
from flower_dhb.algorithms import method
from flower_dhb.engine import reference
from flower_dhb.engine.engine import check_rule
from flower_dhb.topology import planning
from flower_dhb.topology.planning import period_growth
from flower_dhb.topology.turns import Turns, parse_graph

GROWING = [("dmsgd", "one-peer:16"), ("gut", "turns:ring:8+star:8"), ("decentlam", "one-peer:16")]
SHRINKING = [
    ("dmsgd:momentum=0.5", "one-peer:16"),
    ("dmsgd", "turns:ring:8+star:8"),
    ("exact-diffusion", "one-peer:8"),
]


@pytest.mark.parametrize(("name", "spec"), GROWING + SHRINKING)
def test_growth_is_what_a_run_without_steps_shows(
    name: str, spec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reference, "check_rule_on", lambda *_: None)  # let it diverge
    rule, turns = method(name), parse_graph(spec)
    period, rounds = len(turns.graphs), 40 * len(turns.graphs)
    start = np.random.default_rng(1).normal(size=(turns.n_agents, 3))
    x = reference.simulate(rule, turns, start, lambda x, _: x, rounds)[::period]
    apart = np.linalg.norm((x - x.mean(axis=1, keepdims=True)).reshape(len(x), -1), axis=1)
    observed = (apart[-1] / apart[20]) ** (1 / (len(apart) - 21))
    growth = period_growth(rule, turns)
    # Modes that turn in circles and, where it shrinks fast, rounding make the way uneven.
    assert observed == pytest.approx(growth, rel=0.1)
    assert (growth > 1.0) == ((name, spec) in GROWING)


@pytest.mark.parametrize(("name", "spec"), GROWING)
def test_a_rule_that_diverges_on_a_sequence_is_refused_with_the_remedies(
    name: str, spec: str
) -> None:
    with pytest.raises(ConfigError, match=r"for every step size: .* grows .* Remedies: lazy"):
        check_rule(method(name), parse_graph(spec))
    for graph in parse_graph(spec).graphs:
        method(name).check(graph)  # each of them alone would do


def test_a_graph_that_would_not_do_alone_may_have_its_turn() -> None:
    rule, torus = method("dmsgd:momentum-mixing=1"), Topology.torus(4, 4)
    with pytest.raises(ConfigError, match="on this graph"):
        check_rule(rule, torus)
    turns = Turns([torus, Topology.complete(16)])
    check_rule(rule, turns)
    x = reference.simulate(rule, turns, np.arange(16.0).reshape(-1, 1), lambda x, _: x, 60)
    assert np.ptp(x[-1]) < 1e-3 * np.ptp(x[0])


@pytest.mark.parametrize(("name", "spec"), [GROWING[0], SHRINKING[1]])
def test_many_agents_are_followed_instead(
    name: str, spec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rule, turns = method(name), parse_graph(spec)
    exact = period_growth(rule, turns)
    monkeypatch.setattr(planning, "_EXACT", 0)
    period_growth.cache_clear()
    followed = period_growth(rule, turns)
    period_growth.cache_clear()
    assert followed == pytest.approx(exact, rel=0.02)
