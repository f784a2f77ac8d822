"""Parts of the kernel: sums in vertex order, shares of statistics, and rules at their edges."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest

from flower_dhb.agent.mixing import BLOCK, _plan, combine, convex, convex_rows, weighted_sum
from flower_dhb.algorithms import DSGD, Algorithm, method
from flower_dhb.algorithms.measurement import measured
from flower_dhb.types import State


@dataclass(frozen=True, kw_only=True)
class Swapping(Algorithm):
    """Linear, and unkind to whoever writes in place: each output needs the other's input."""

    name: ClassVar[str] = "swapping"
    linear: ClassVar[bool] = True

    @property
    def vectors(self):
        return ("a", "b")

    @property
    def memory(self):
        return ("first", "second", "nothing")

    def outgoing(self, state, trained):
        return {"a": trained, "b": state.memory["first"] - state.parameters}

    def combine(self, state, trained, mixed):
        first, second = state.memory["first"], state.memory["second"]
        return State(
            second + 2.0 * mixed["b"],
            {
                "first": state.parameters - trained,
                "second": first + mixed["a"] - 0.5 * second,
                "nothing": 0.0 * first,
            },
        )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", [5, BLOCK + 3])
def test_outputs_may_need_each_others_inputs_and_may_be_zero(dtype, size):
    rule = Swapping()
    rng = np.random.default_rng(2)

    def vector():
        return rng.normal(size=size).astype(dtype)

    state = State(vector(), {m: vector() for m in rule.memory})
    trained = vector()
    payloads = {0: {"a": vector(), "b": vector()}, 7: {"a": vector(), "b": vector()}}
    weights = {3: 0.5, 0: 0.75, 7: -0.25}
    own = rule.outgoing(state, trained)
    mixed = {v: 0.5 * own[v] + 0.75 * payloads[0][v] - 0.25 * payloads[7][v] for v in rule.vectors}
    expected = rule.combine(state, trained, mixed)
    for out in (None, state):
        found = combine(rule, state, trained, 3, weights, payloads, out=out)
        assert found.parameters.dtype == dtype
        atol = 2e-6 if dtype == np.float32 else 1e-14
        np.testing.assert_allclose(found.parameters, expected.parameters, rtol=0, atol=atol)
        for m in rule.memory:
            np.testing.assert_allclose(found.memory[m], expected.memory[m], rtol=0, atol=atol)
        assert not found.memory["nothing"].any()


def test_the_order_of_arrival_changes_no_bit():
    rng = np.random.default_rng(0)
    vectors = {j: rng.normal(size=50).astype(np.float32) for j in (4, 0, 9, 2)}
    weights = {4: 0.1, 0: 0.3, 9: 0.25, 2: 0.35}
    backwards = dict(reversed(vectors.items()))
    found = weighted_sum(weights, vectors)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, weighted_sum(weights, backwards))
    payloads = {j: {"parameters": v} for j, v in vectors.items() if j != 4}
    turned = dict(reversed(payloads.items()))
    state = State(np.zeros(50, np.float32), {})
    first, second = (
        combine(DSGD(), state, vectors[4], 4, weights, p).parameters for p in (payloads, turned)
    )
    np.testing.assert_array_equal(first, second)
    np.testing.assert_allclose(first, found, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [0, 1, BLOCK, BLOCK + 1])
def test_a_weighted_sum_by_hand(size):
    vectors = {j: np.full(size, 10.0**j) for j in range(3)}
    found = weighted_sum({0: 0.5, 1: -1.0, 2: 2.0}, vectors)
    np.testing.assert_allclose(found, np.full(size, 190.5))


def test_weights_of_statistics_are_shares():
    plain = {0: 0.25, 3: 0.75}
    assert convex(plain) == plain
    assert convex({0: 1.0, 1: 0.0}) == {0: 1.0, 1: 0.0}
    # Absolute weights 0.6, 0.9 and 0.5 of 2.
    found = convex({0: 0.6, 1: 0.9, 2: -0.5})
    assert found == pytest.approx({0: 0.3, 1: 0.45, 2: 0.25})


def test_rows_of_statistics_are_shares():
    matrix = np.array([[0.6, 0.9, -0.5], [0.9, 0.1, 0.0], [0.25, 0.0, 0.5]])
    found = convex_rows(matrix)
    np.testing.assert_allclose(found, [[0.3, 0.45, 0.25], [0.9, 0.1, 0.0], [1 / 3, 0.0, 2 / 3]])
    doubly = np.array([[0.5, 0.5], [0.5, 0.5]])
    np.testing.assert_array_equal(convex_rows(doubly), doubly)


@dataclass(frozen=True, kw_only=True)
class Growing(Algorithm):
    """Linear in every round, and another one in each: `x+ = k W z`."""

    linear: ClassVar[bool] = True

    vectors = ("parameters",)
    memory = ()

    def outgoing(self, state, trained):
        return {"parameters": (state.round + 1) * trained}

    def combine(self, state, trained, mixed):
        return State(mixed["parameters"], {})


def test_a_plan_is_of_one_round_where_the_rule_looks_at_it_and_of_all_where_it_does_not():
    ones = np.ones(3)
    for k in (0, 4, 1, 4):
        new = combine(Growing(), State(ones, {}, round=k), ones, 0, {0: 1.0}, {})
        np.testing.assert_array_equal(new.parameters, (k + 1) * ones)
        assert new.round == k + 1
    _plan.cache_clear()
    rules = [method(n) for n in ("dmsgd", "safeguarded", "dmsgd-gt", "noloco")]
    for rule, k in itertools.product(rules, range(5)):
        state = State(ones, dict.fromkeys(rule.memory, ones), round=k)
        combine(rule, measured(rule, state, 2 * ones), 2 * ones, 0, {0: 1.0}, {})
    assert _plan.cache_info().misses == len(rules)
