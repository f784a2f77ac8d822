"""What the law becomes in its limits."""

import numpy as np
import pytest
from naive import FORMS, pull

from flower_dhb import DSGD, HeavyBall, Topology, simulate

RANDOM = Topology.erdos_renyi(8, 0.4, seed=3)
W = np.array(RANDOM.mixing_matrix)
START = np.random.default_rng(5).normal(size=(8, 3))
STEP = pull(8, 3)
ROUNDS = 40

# Sums in another order, over 40 rounds of a contracting recursion of numbers near 1.
CLOSE = {"rtol": 1e-12, "atol": 1e-12}

ADAPT_FIRST = [(form, order) for form, order in FORMS if order == "adapt-then-combine"]


def iterate(update, start, rounds=ROUNDS):
    trajectory = [start]
    for k in range(1, rounds + 1):
        trajectory.append(update(trajectory[-1], k))
    return np.array(trajectory)


def decentralized_sgd(order):
    if order == "adapt-then-combine":
        return iterate(lambda x, k: W @ STEP(x, k), START)
    return iterate(lambda x, k: W @ x + STEP(x, k) - x, START)


@pytest.mark.parametrize(("form", "order"), [case for case in FORMS if case[0] != "tracking"])
def test_without_momentum_every_form_is_decentralized_sgd(form, order):
    found = simulate(HeavyBall(momentum=0, form=form, order=order), RANDOM, START, STEP, ROUNDS)
    np.testing.assert_allclose(found, decentralized_sgd(order), **CLOSE)


@pytest.mark.parametrize("order", ["adapt-then-combine", "combine-then-adapt"])
def test_dsgd_is_decentralized_sgd(order):
    found = simulate(DSGD(order=order), RANDOM, START, STEP, ROUNDS)
    np.testing.assert_allclose(found, decentralized_sgd(order), **CLOSE)


def test_without_momentum_tracking_is_gradient_tracking():
    """x+ = W (x + y), y+ = W y + s+ - s with y = s at first (Di Lorenzo & Scutari 2016)."""
    x, y, last = START, None, None
    expected = [x]
    for k in range(1, ROUNDS + 1):
        s = STEP(x, k) - x
        y = s if y is None else W @ y + s - last
        x, last = W @ (x + y), s
        expected.append(x)
    found = simulate(HeavyBall(momentum=0, form="tracking"), RANDOM, START, STEP, ROUNDS)
    np.testing.assert_allclose(found, expected, **CLOSE)


def test_displacement_without_momentum_mixing_is_decentlam():
    """DecentLaM: g~ = (x - W (x - a g)) / a, m+ = b m + g~, x+ = x - a m+.

    Yuan et al., "DecentLaM: Decentralized momentum SGD for large-batch deep training",
    ICCV 2021.
    """
    a, b = 0.05, 0.9
    x, m = START, np.zeros_like(START)
    expected = [x]
    for k in range(1, ROUNDS + 1):
        gradient = (x - STEP(x, k)) / a
        corrected = (x - W @ (x - a * gradient)) / a
        m = b * m + corrected
        x = x - a * m
        expected.append(x)
    found = simulate(HeavyBall(momentum=b, momentum_mixing=0), RANDOM, START, STEP, ROUNDS)
    np.testing.assert_allclose(found, expected, **CLOSE)


@pytest.mark.parametrize("omega", [0.0, 0.4, 1.0])
@pytest.mark.parametrize(("form", "order"), ADAPT_FIRST)
def test_complete_graph_is_centralized_heavy_ball(form, order, omega):
    """x+ = x - a mean(g_i(x)) + b (x - x_previous), on every agent."""
    topology = Topology.complete(6)
    step = pull(6, 3)
    start = np.array([0.3, -1.0, 2.0])
    x = previous = start
    expected = [x]
    for k in range(1, ROUNDS + 1):
        mean_step = np.mean(step(np.tile(x, (6, 1)), k) - x, axis=0)
        x, previous = x + mean_step + 0.9 * (x - previous), x
        expected.append(x)
    algorithm = HeavyBall(momentum=0.9, momentum_mixing=omega, form=form, order=order)
    found = simulate(algorithm, topology, start, step, ROUNDS)
    np.testing.assert_allclose(found, np.array(expected)[:, None].repeat(6, axis=1), **CLOSE)


@pytest.mark.parametrize("omega", [0.2, 0.9])
@pytest.mark.parametrize(("form", "order"), [case for case in FORMS if case[0] != "buffer"])
def test_folded_is_separate(form, order, omega):
    folded, separate = (
        simulate(
            HeavyBall(momentum_mixing=omega, form=form, order=order, payload=payload),
            RANDOM,
            START,
            STEP,
            ROUNDS,
        )
        for payload in ("folded", "separate")
    )
    np.testing.assert_allclose(folded, separate, **CLOSE)


@pytest.mark.parametrize("omega", [0.0, 0.4, 1.0])
@pytest.mark.parametrize(("form", "order"), FORMS)
def test_the_average_moves_as_centralized_heavy_ball(form, order, omega):
    """mean x+ = mean x + mean s + b (mean x - mean x_previous), whatever the data."""
    steps = []

    def recorded(x, k):
        z = STEP(x, k)
        steps.append((z - x).mean(axis=0))
        return z

    algorithm = HeavyBall(momentum=0.7, momentum_mixing=omega, form=form, order=order)
    found = simulate(algorithm, RANDOM, START, recorded, ROUNDS).mean(axis=1)
    mean = previous = START.mean(axis=0)
    expected = [mean]
    for step in steps:
        mean, previous = mean + step + 0.7 * (mean - previous), mean
        expected.append(mean)
    np.testing.assert_allclose(found, expected, **CLOSE)
