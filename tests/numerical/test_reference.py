"""The plain driver: what it takes as a start, which edges fail when, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest

from flower_dhb.algorithms import DSGD, HeavyBall
from flower_dhb.engine.reference import missing_in, simulate
from flower_dhb.errors import ConfigError
from flower_dhb.topology.graph import Topology

PATH = Topology.path(3)  # Metropolis: 1/3 an edge, 2/3 at the ends, 1/3 in the middle
W = PATH.mixing_matrix


def stay(x, k):
    return x


def test_integers_become_float64_and_halves_are_kept():
    found = simulate(DSGD(), PATH, np.array([[3], [0], [0]]), lambda x, k: x + 0.5, 1)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found[1].ravel(), [2.5, 1.5, 0.5])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_trajectory_begins_with_the_start_in_its_own_dtype(dtype):
    start = np.array([[1.0, 2.0], [0.0, 4.0], [5.0, 0.0]], dtype)
    found = simulate(DSGD(), PATH, start, stay, 2)
    assert found.dtype == dtype
    assert found.shape == (3, 3, 2)
    np.testing.assert_array_equal(found[0], start)
    np.testing.assert_allclose(found[2], W @ W @ start, rtol=1e-6)
    assert simulate(DSGD(), PATH, start, stay, 0).shape == (1, 3, 2)


def test_one_vector_is_everybodys_start_and_is_not_written_to():
    start = np.array([1.0, 2.0])

    def grow(x, k):
        x += k  # an app that trains in place
        return x

    found = simulate(HeavyBall(momentum=0.0), PATH, start, grow, 2)
    assert start.tolist() == [1.0, 2.0]
    np.testing.assert_allclose(found[:, 1], [[1.0, 2.0], [2.0, 3.0], [4.0, 5.0]])


def test_training_in_place_does_not_reach_the_state_before():
    """x+ = W x + (z - x) needs the old x beside the trained one."""
    rule = DSGD(order="combine-then-adapt")

    def grow(x, k):
        x += 1.0
        return x

    found = simulate(rule, PATH, np.array([[3.0], [0.0], [0.0]]), grow, 1)
    np.testing.assert_allclose(found[1].ravel(), [3.0, 2.0, 1.0])


EDGE = [(0, 1)]


@pytest.mark.parametrize(
    "missing",
    [{2: EDGE}, lambda k: EDGE if k == 2 else (), [[], EDGE], ((), ((1, 0), (0, 1)), ())],
    ids=["mapping", "function", "list", "tuple"],
)
def test_edges_fail_in_their_round_alone(missing):
    start = np.array([[9.0], [0.0], [3.0]])
    cut = PATH.with_missing(EDGE)
    found = simulate(DSGD(), PATH, start, stay, 4, missing=missing)
    np.testing.assert_allclose(found[4], W @ W @ cut @ W @ start, atol=1e-14)


def test_rounds_beyond_a_sequence_are_whole():
    assert [missing_in([EDGE], k) for k in (1, 2, 3)] == [EDGE, (), ()]
    assert missing_in(None, 1) == ()
    assert [missing_in({2: EDGE}, k) for k in (1, 2)] == [(), EDGE]
    assert missing_in([], 1) == ()


@pytest.mark.parametrize(
    ("start", "rounds", "step", "message"),
    [
        (np.zeros((2, 3)), 1, stay, r"start must be \(3, d\), one row an agent.*\(2, 3\)"),
        (np.zeros((3, 2, 1)), 1, stay, r"start must be \(3, d\).*\(3, 2, 1\)"),
        (np.zeros(2), 1.5, stay, "rounds must be an integer of at least 0, got 1.5"),
        (np.zeros(2), True, stay, "rounds must be an integer"),
        (np.zeros((3, 2), complex), 1, stay, "start must hold real numbers, got dtype complex"),
        (np.zeros(2), -1, stay, "rounds must be an integer of at least 0, got -1"),
        (
            np.zeros(2),
            2,
            lambda x, k: x[:, :k],
            r"round 1: local_step returned shape \(3, 1\), expected \(3, 2\)",
        ),
    ],
)
def test_what_does_not_fit_is_refused(start, rounds, step, message):
    with pytest.raises(ConfigError, match=message):
        simulate(DSGD(), PATH, start, step, rounds)
