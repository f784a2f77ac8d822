"""Payloads that no honest neighbor can have sent are missing ones; others are clipped."""

import json
from dataclasses import astuple, replace

import numpy as np
import pytest

from flower_dhb import DSGD, HeavyBall, Node, Topology
from flower_dhb.agent import screening
from flower_dhb.agent.screening import (
    Lengths,
    Own,
    Screen,
    Strike,
    bound,
    clip_factors,
    clipped,
    struck,
)
from flower_dhb.algorithms import (
    Centralized,
    ExactDiffusion,
    GradientTracking,
    PushSum,
    algorithm_from_config,
    method,
)
from flower_dhb.errors import ConfigError, StateError
from flower_dhb.flower.store import load_snapshot, snapshot_vectors
from flower_dhb.types import Layout

START = np.arange(1.0, 5.0)  # of length sqrt(30)
WEIGHTS = {0: 0.4, 1: 0.3, 2: 0.3}
LAYOUT = Layout.of({"w": START})
SCALED = {"scale-10": 10.0, "1e30": 1e30, "beyond float": 1e200}


def node(rule=None, start=START):
    return Node.start(0, rule or DSGD(), WEIGHTS, LAYOUT, {"w": start})


def a_round(one, k, *payloads, step=0.1):
    """One round in which neighbors 1, 2, … send these; None sends nothing."""
    one.adapt(k, {"w": one.arrays()["w"] - step})
    for j, payload in enumerate(payloads, 1):
        if payload is not None:
            one.offer(j, k, {"parameters": payload})
    return one.combine()


# --- the bound --------------------------------------------------------------------------


def test_the_bound_of_a_worked_example():
    known = {"path": 6.0, "step": 0.1, "length": 3.0, "start": 2.0, "spread": 1.0}
    assert bound(4.0, round=7, rounds=7, **known) == 4 * 5  # no further than 3 + 2 from the start
    assert bound(4.0, round=7, rounds=7, **known | {"step": 0.5}) == 4 * 7.5  # 15 steps
    assert bound(4.0, round=7, rounds=7, **known | {"spread": 9.0}) == 4 * 9
    assert bound(4.0, round=30, rounds=3, **known) == 4 * 50  # ten times as far, had it been there
    still = {"path": 1e-3, "step": 1e-5, "length": 3.0, "start": 3.0, "spread": 0.0}
    assert bound(4.0, round=1, rounds=1, **still) == 3.0  # what is as near as 0 is not absurd
    nothing = still | {"path": 0.0, "step": 0.0}
    assert bound(4.0, round=1, rounds=1, **nothing) == np.inf  # nothing is known
    assert bound(4.0, round=1, rounds=1, **still | {"length": np.inf, "path": np.inf}) == np.inf
    stacked = {name: np.array([value, value]) for name, value in known.items()}
    assert bound(4.0, round=7, rounds=7, **stacked).tolist() == [20.0, 20.0]


def test_distances_are_of_all_vectors_and_beyond_float_infinite():
    mine = {"parameters": np.array([1.0, 2.0]), "tracker": np.array([0.0, 0.0])}
    theirs = {"parameters": np.array([4.0, 2.0]), "tracker": np.array([0.0, 4.0])}
    names = ("parameters", "tracker")
    lengths = Lengths.of(names, mine, np.array([1.0, 0.0]), np.array([1.0, 3.0]))
    assert astuple(lengths) == (2.0, 3.0, pytest.approx(np.sqrt(5.0)))
    own = Own(names, mine, lengths)
    assert own.distance(theirs) == 5.0
    assert own.distance({"parameters": np.full(2, 1e200), "tracker": np.zeros(2)}) == np.inf
    small = np.zeros(3, np.float32)
    assert screening.distance([small], [np.full(3, 1e30, np.float32)]) == np.inf
    assert screening.distance([small], [np.full(3, -3e38, np.float32)]) == np.inf


@pytest.mark.parametrize("size", [3, screening._BLOCK, 2 * screening._BLOCK + 5])
def test_blocks_of_a_distance_leave_nothing_out(size):
    a, b = np.random.default_rng(size).normal(size=(2, size)).astype(np.float32)
    found = screening.distance([a], [b])
    assert found == pytest.approx(np.linalg.norm(a.astype(float) - b), rel=1e-5)
    assert found == screening.distance([b], [a])  # the same bits at both ends of an edge
    assert screening.norm([a]) == pytest.approx(np.linalg.norm(a.astype(float)), rel=1e-5)


# --- a node -----------------------------------------------------------------------------


@pytest.mark.parametrize("factor", SCALED.values(), ids=SCALED)
@pytest.mark.parametrize("rule", ["dsgd", "cdsgd", "dmsgd"])
def test_a_screened_payload_is_a_missing_one_to_the_bit(rule, factor):
    rule = method(rule)
    name = rule.vectors[0]
    runs = []
    for liar in (True, False):
        one = node(rule)
        for k in (1, 2):
            one.adapt(k, {"w": one.arrays()["w"] - 0.1})
            one.offer(1, k, {name: START - 0.2 * k})
            if liar:
                one.offer(2, k, {name: START * factor})
            assert one.combine() == (2,)
            assert list(one.screened) == ([2] if liar else [])
        runs.append(one.parameters)
    np.testing.assert_array_equal(*runs)


def test_who_was_screened_and_why_is_said():
    one = node()
    a_round(one, 1, START, START * 100)
    assert one.screened == {
        2: "round 1, neighbor 2: its payload is 542 away from this agent's own, at most 12 is "
        "believed"
    }
    a_round(one, 2, START, START)
    assert one.screened == {}


@pytest.mark.parametrize("vector", ["parameters", "tracker"])
def test_no_vector_of_a_payload_is_left_out(vector):
    one = node(GradientTracking())
    one.adapt(1, {"w": START - 0.1})
    lie = {name: one.payload()[name].copy() for name in ("parameters", "tracker")}
    lie[vector][2] = 1e9
    one.offer(1, 1, lie)
    assert one.combine() == (1, 2)
    assert list(one.screened) == [1]


def test_running_statistics_differ_as_data_do_but_not_by_orders_of_magnitude():
    layout = Layout.of({"w": START, "bn.running_var": np.ones(2)})
    for value, believed in ((5e3, True), (1e8, False)):
        one = Node.start(0, DSGD(), WEIGHTS, layout, {"w": START, "bn.running_var": np.ones(2)})
        one.adapt(1, one.arrays())
        one.offer(1, 1, {"parameters": START, "statistics": np.full(2, value)})
        assert one.combine() == ((2,) if believed else (1, 2))


def test_without_screening_everything_finite_is_believed():
    one = node(DSGD(screening="off"))
    assert a_round(one, 1, START * 1e30, None) == (2,)
    assert one.parameters[0] == pytest.approx(0.3e30)
    assert one.snapshot.screen == Screen()


def test_who_checked_before_the_node_has_its_way():
    one = node()
    one.adapt(1, {"w": START - 0.1})
    one.offer(1, 1, {"parameters": START * 1e30})
    assert one.combine(screen=False) == (2,)


def test_an_agent_that_has_nothing_to_measure_by_believes():
    """Without data, the neighbors' first steps are all that it knows."""
    for start in (np.zeros(4), 1e-3 * START):
        one = node(start=start)
        assert a_round(one, 1, np.ones(4), np.ones(4), step=0.0) == ()
        assert a_round(one, 2, np.full(4, 2.0), np.full(4, 1e9), step=0.0) == (2,)


def test_a_larger_factor_is_more_generous():
    for factor, missing in ((4.0, (2,)), (40.0, ())):
        assert a_round(node(DSGD(screening=factor)), 1, START, START * 10) == missing


# --- quarantine -------------------------------------------------------------------------


def test_the_third_absurd_payload_in_a_row_begins_a_quarantine_that_doubles():
    strike = Strike()
    strike = struck(struck(strike, 5), 6)
    assert (strike.count, strike.until) == (2, 0)
    strike = struck(strike, 7)
    assert (strike.term, strike.until) == (8, 15)
    strike = struck(strike, 16)  # its next chance
    assert (strike.term, strike.until) == (16, 32)
    for k in (33, 100, 300, 600, 2000, 3000):
        strike = struck(strike, k)
    assert strike.until == 3512


def test_in_quarantine_nothing_is_used_and_then_there_is_another_chance():
    one = node()
    heard = []
    for k in range(1, 40):
        good = k == 12  # the first that is looked at again
        a_round(one, k, START, START if good else START * 1e3)
        heard.append(2 not in one.screened)
        if k == 4:
            assert one.snapshot.screen.quarantined(5) == (2,)
            assert "in quarantine, looked at again in round 12" in a_text(one, 5)
        if k == 15:  # forgiven in round 12, and three more since
            assert one.snapshot.screen.strikes[2] == Strike(3, 8, 23)
    assert [k for k, h in enumerate(heard, 1) if h] == [12]
    assert one.snapshot.screen.strikes[2] == Strike(4, 16, 40)


def a_text(one, k):
    payload, names = {"parameters": START}, ("parameters",)
    own = Own(names, payload, Lengths.of(names, payload, START))
    return one.snapshot.screen.verdict(4.0, k, own, 2, {"parameters": START}, 0.0)[1]


def test_a_payload_that_did_not_come_is_no_strike_and_no_pardon():
    one = node()
    for k, sent in enumerate([START * 1e3, None, START * 1e3, None, START * 1e3], 1):
        a_round(one, k, START, sent)
    assert one.snapshot.screen.quarantined(6) == (2,)


# --- what is remembered ------------------------------------------------------------------


def test_what_screening_remembers_survives_a_restart():
    one = node()
    a_round(one, 1, START, START * 1e9)
    document, arrays = snapshot_vectors(one.snapshot, one.algorithm, "run")
    document = json.loads(json.dumps(document))
    again = load_snapshot(document, arrays, algorithm=DSGD(), layout=LAYOUT, run="run")
    assert again.screen == one.snapshot.screen
    assert again.screen.strikes == {2: Strike(1)}
    assert again.screen.rounds == 1
    for damaged in ({"rounds": 1}, {**document["screen"], "path": "far"}, None):
        broken = {**document, "screen": damaged}
        with pytest.raises(StateError):
            load_snapshot(broken, arrays, algorithm=DSGD(), layout=LAYOUT, run="run")


def test_an_agent_without_its_state_does_not_begin_from_a_lie():
    payloads = {1: {"parameters": START}, 2: {"parameters": START * 1e30}}
    again = Node.rejoin(0, DSGD(), WEIGHTS, LAYOUT, {}, 7, payloads)
    np.testing.assert_array_equal(again.parameters, START)
    believing = Node.rejoin(0, DSGD(screening="off"), WEIGHTS, LAYOUT, {}, 7, payloads)
    assert believing.parameters[0] > 1e29
    alone = Node.rejoin(0, DSGD(), WEIGHTS, LAYOUT, {}, 7, {2: payloads[2]})
    assert alone.parameters[0] == 1e30  # nothing to measure it by


# --- clipping ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["dmsgd", "dmsgd-buffer", "dsgd", "cdsgd", "cdmsgd", "safeguarded"]
)
def test_an_endless_radius_is_the_plain_rule_to_the_bit(name):
    rng = np.random.default_rng(3)
    draws = rng.normal(size=(4, 2, len(method(name).vectors), 4))
    found = []
    for rule in (method(name), replace(method(name), clipping=1e300)):
        one = node(rule)
        for k, sent in enumerate(draws, 1):
            one.adapt(k, {"w": 0.9 * one.arrays()["w"]})
            for j, vectors in enumerate(sent, 1):
                one.offer(j, k, dict(zip(rule.vectors, vectors, strict=True)))
            one.combine()
        found.append(one.parameters)
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize(("radius", "expected"), [(1.0, 1.0), (2.0, 2.0), (9.0, 5.0)])
def test_a_payload_pulls_no_further_than_the_radius(radius, expected):
    """`x + w clip(5, radius)` with the weight 0.3."""
    one = node(DSGD(clipping=radius))
    far = START + np.array([3.0, 4.0, 0.0, 0.0])
    a_round(one, 1, far, None, step=0.0)
    pulled = np.array([0.6, 0.8, 0.0, 0.0]) * 0.3 * expected
    np.testing.assert_allclose(one.parameters, START + pulled, rtol=1e-12)


def test_by_itself_an_agent_takes_its_typical_distance():
    assert clip_factors({1: 2.0, 2: 8.0, 3: 4.0}, None) == {1: 1.0, 2: 0.5, 3: 1.0}
    assert clip_factors({1: 2.0, 2: 8.0}, None) == {1: 1.0, 2: 0.25}
    assert clip_factors({1: 0.0, 2: 8.0}, None) == {1: 1.0, 2: 0.0}
    assert clip_factors({}, None) == {}
    weights = clipped({0: 0.4, 1: 0.3, 2: 0.3}, 0, {1: 1.0, 2: 0.25})
    assert weights == pytest.approx({0: 0.625, 1: 0.3, 2: 0.075})
    assert clipped(WEIGHTS, 0, {1: 1.0, 2: 1.0}) == WEIGHTS


def test_a_fixed_radius_keeps_the_average_of_all_agents():
    topology = Topology.erdos_renyi(8, 0.4, seed=3)
    start = np.random.default_rng(0).normal(size=(8, 5))
    rule = DSGD(clipping=1.5, screening="off")
    layout = Layout.of({"w": start[0]})
    nodes = []
    for i in range(8):
        row = {int(j): topology.row(i)[j] for j in (i, *topology.neighbors(i))}
        nodes.append(Node.start(i, rule, row, layout, {"w": start[i]}))
    payloads = [one.adapt(1, one.arrays()) for one in nodes]
    for i, one in enumerate(nodes):
        for j in topology.neighbors(i):
            one.offer(j, 1, payloads[j])
        one.combine()
    after = np.stack([one.parameters for one in nodes])
    assert not np.allclose(after, topology.mixing_matrix @ start)  # something was clipped
    np.testing.assert_allclose(after.mean(0), start.mean(0), atol=1e-15)


# --- settings ---------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["of", 0.0, -1.0, float("nan"), float("inf"), None])
@pytest.mark.parametrize("setting", ["clipping", "screening"])
def test_bad_settings_are_refused(setting, value):
    with pytest.raises(ConfigError, match=f"^{setting} must be 'on', 'off' or a number above 0"):
        DSGD(**{setting: value})


def test_flags_and_texts_mean_the_same():
    assert DSGD(clipping=True, screening=False) == DSGD(clipping="on", screening="off")
    assert method("dsgd:clipping=on:screening=12") == DSGD(clipping="on", screening=12.0)
    assert DSGD().to_config() == {"name": "dsgd", "order": "adapt-then-combine"}
    for rule in (HeavyBall(clipping=2), HeavyBall(screening="off"), HeavyBall(screening=8)):
        assert algorithm_from_config(json.loads(json.dumps(rule.to_config()))) == rule


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (GradientTracking, "never forgotten"),
        (lambda **kw: HeavyBall(form="tracking", **kw), "never forgotten"),
        (ExactDiffusion, "never forgotten"),
        (PushSum, "push weights"),
        (Centralized, "server"),
    ],
)
def test_clipping_is_refused_where_it_would_break_the_rule(make, why):
    with pytest.raises(ConfigError, match=f"clipping cannot be had with .*{why}"):
        make(clipping="on")
    assert make().clips is False


@pytest.mark.parametrize("make", [PushSum, Centralized])
def test_rules_without_two_ends_do_not_screen(make):
    assert make().screening_factor is None
    with pytest.raises(ConfigError, match="does not screen"):
        make(screening=5.0)
