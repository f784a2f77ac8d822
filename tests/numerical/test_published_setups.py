"""Set-ups that BlueFog publishes: `pytorch_optimization.py`, `pytorch_average_consensus.py`.

Ring, weights 1/3; every agent draws its data from torch's generator seeded with a multiple
of its rank; full gradients in float64; the error is that of agent 0. The optimum is found
by Newton's method, independently of all rules.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from flower_dhb.algorithms import Algorithm, HeavyBall, method
from flower_dhb.algorithms.gradient_tracking import GradientTracking
from flower_dhb.engine.reference import simulate
from flower_dhb.topology.graph import Topology
from flower_dhb.topology.planning import averaging_rate, best_averaging_momentum

AGENTS, SAMPLES, SIZE, STEP, ROUNDS, PENALTY = 8, 20, 5, 0.1, 1000, 0.01
LOGISTIC, LINEAR = "logistic", "linear"


def data(task: str) -> tuple[np.ndarray, np.ndarray]:
    """Features (agents, samples, size) and targets (agents, samples)."""
    features, targets = [], []
    with torch.random.fork_rng(devices=[]):
        for rank in range(AGENTS):
            torch.manual_seed(123417 * rank)
            a = torch.randn(SAMPLES, SIZE).double()
            w = torch.randn(SIZE, 1).double()
            if task == LOGISTIC:
                chance = 1 / (1 + torch.exp(a @ w))
                y = 2.0 * (torch.rand(SAMPLES, 1).double() < chance).double() - 1.0
            else:
                y = a @ w + (0.1 * torch.randn(SAMPLES, 1)).double()
            features.append(a.numpy())
            targets.append(y.numpy()[:, 0])
    return np.stack(features), np.stack(targets)


def gradients(task: str, a: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Each agent's gradient of the published losses: (agents, size).

    Logistic: mean log(1 + exp(-y a'x)) + rho |x| / 2, the norm not squared, its
    gradient 0 at 0. Linear: |A x - y| / 2, the norm not squared either.
    """
    fit = np.einsum("ima,ia->im", a, x)
    if task == LINEAR:
        rest = fit - y
        return np.einsum("ima,im->ia", a, rest) / (2 * np.linalg.norm(rest, axis=1)[:, None])
    pull = -y / (1 + np.exp(y * fit))
    norm = np.linalg.norm(x, axis=1, keepdims=True)
    unit = np.divide(x, norm, out=np.zeros_like(x), where=norm > 0)
    return np.einsum("ima,im->ia", a, pull) / SAMPLES + 0.5 * PENALTY * unit


def optimum(task: str, a: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Root of the mean gradient by Newton's method, its Jacobian by central differences."""
    x = np.full(SIZE, 0.1)

    def mean_gradient(x: np.ndarray) -> np.ndarray:
        return gradients(task, a, y, np.broadcast_to(x, (AGENTS, SIZE))).mean(axis=0)

    for _ in range(60):
        shift = 1e-6 * np.eye(SIZE)
        jacobian = np.stack([mean_gradient(x + s) - mean_gradient(x - s) for s in shift], 1) / 2e-6
        x = x - np.linalg.solve(jacobian, mean_gradient(x))
    assert np.abs(mean_gradient(x)).max() < 1e-15
    return x


def errors(rule: Algorithm, task: str) -> np.ndarray:
    """Distance of agent 0 from the optimum after every round."""
    a, y = data(task)
    best = optimum(task, a, y)
    x = simulate(
        rule,
        Topology.ring(AGENTS),
        np.zeros(SIZE),
        lambda x, _k: x - STEP * gradients(task, a, y, x),
        ROUNDS,
    )
    return np.linalg.norm(x[:, 0] - best, axis=1)


def first_below(values: np.ndarray, bound: float) -> int:
    assert values.min() < bound
    return int(np.argmax(values < bound))


def test_logistic_regression_floors() -> None:
    diffusion = errors(method("dsgd"), LOGISTIC)[-1]
    assert diffusion == pytest.approx(8.2e-2, rel=0.01)
    # The theory says: the same fixed point, whatever the momentum.
    assert errors(HeavyBall(), LOGISTIC)[-1] == pytest.approx(diffusion, rel=1e-5)


def test_logistic_regression_tracking_beats_gradient_tracking() -> None:
    published = errors(GradientTracking(order="combine-then-adapt"), LOGISTIC)
    assert published[-1] < 3e-8
    ours = errors(HeavyBall(form="tracking"), LOGISTIC)
    assert first_below(ours, 1e-8) <= 350
    for bound in (1e-4, 1e-6, 3e-8):
        assert first_below(ours, bound) <= 0.4 * first_below(published, bound)


def test_linear_regression_floors() -> None:
    diffusion = errors(method("dsgd"), LINEAR)[-1]
    assert diffusion == pytest.approx(3.0e-1, rel=0.01)
    assert errors(HeavyBall(), LINEAR)[-1] == pytest.approx(diffusion, rel=1e-5)
    assert errors(HeavyBall(form="tracking"), LINEAR)[-1] < 1e-12


def consensus_errors(momentum: float) -> np.ndarray:
    values = []
    with torch.random.fork_rng(devices=[]):
        for rank in range(16):
            torch.manual_seed(2020 * rank)
            values.append(torch.randn(1000, dtype=torch.float64).numpy())
    start = np.stack(values)
    mean = start.mean(axis=0)
    rule = HeavyBall(momentum=momentum, momentum_mixing=0.5)
    x = simulate(rule, Topology.ring(16), start, lambda x, _k: x, 100)
    return np.linalg.norm(x[:, 0] - mean, axis=1) / np.linalg.norm(mean)


def test_average_consensus() -> None:
    assert consensus_errors(0.0)[-1] == pytest.approx(7.6e-3, rel=0.02)
    assert consensus_errors(0.7)[-1] < 1e-8


def test_the_planner_names_a_momentum_as_good() -> None:
    eigenvalues = Topology.ring(16).eigenvalues
    best, rate = best_averaging_momentum(eigenvalues, 0.5)
    assert rate <= averaging_rate(eigenvalues, 0.7, 0.5)
    assert consensus_errors(best)[-1] < 1e-8
