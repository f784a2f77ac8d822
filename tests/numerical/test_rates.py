"""Prediction equals observation: rates and fixed points of every linear rule on quadratics.

The iteration matrices are written out here from each paper's law, not from the code.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from flower_dhb.algorithms import Algorithm, GlobalUpdateTracking, HeavyBall, method
from flower_dhb.engine.reference import simulate
from flower_dhb.problems.quadratic import Quadratic
from flower_dhb.topology.graph import Topology
from flower_dhb.topology.planning import (
    averaging_rate,
    best_averaging_momentum,
    rate,
    stability_limit,
)

GRAPHS = [Topology.ring(8), Topology.star(6), Topology.erdos_renyi(8, 0.5, seed=1)]
# A momentum at which the slowest mode does not oscillate: with more, every mode's radius is
# close to the root of the momentum, and a wrong law would go unnoticed.
SIZE, BETA, STEP = 3, 0.5, 0.1
OUTER = 0.7  # outer rate
TRACKED = 0.3  # scaling of GUT
CENTRAL = ("centralized", "diloco")
TRACKING = ("dmsgd-gt", "dsgt", "momentum-tracking", "exact-diffusion", "motef")

Matrix = np.ndarray


def problem_on(graph: Topology) -> Quadratic:
    return Quadratic.random(
        graph.n_agents, SIZE, condition=4.0, heterogeneity=1.0, curvature_spread=0.3, seed=2
    )


class Law:
    """Blocks over all agents and coordinates: W, its momentum mixing, and a * Hessian."""

    def __init__(self, graph: Topology, problem: Quadratic, step: float) -> None:
        n = graph.n_agents
        self.eye = np.eye(n * SIZE)
        self.zero = np.zeros_like(self.eye)
        self.w = np.kron(graph.mixing_matrix, np.eye(SIZE))
        self.h = np.zeros_like(self.eye)
        for i in range(n):
            part = slice(i * SIZE, (i + 1) * SIZE)
            self.h[part, part] = step * problem.curvature[i]
        self.mean_h = step * problem.curvature.mean(axis=0)

    def pt(self, mixing: float) -> Matrix:
        return (1.0 - mixing) * self.eye + mixing * self.w


def _displacement(m: Law, first: Matrix, mixing: float) -> Matrix:
    p = BETA * m.pt(mixing)
    return np.block([[first + p, -p], [m.eye, m.zero]])


def _tracking(m: Law, beta: float, mixing: float) -> Matrix:
    p = beta * m.pt(mixing)
    return np.block(
        [
            [m.w @ (m.eye - m.h) + p, m.w @ m.h - p, m.w @ m.w],
            [m.eye, m.zero, m.zero],
            [-m.h, m.h, m.w],
        ]
    )


def _buffer_cta(m: Law, mixing: float) -> Matrix:
    p = BETA * m.pt(mixing)
    return np.block([[m.w - m.h, p], [-m.h, p]])


def _nesterov(m: Law) -> Matrix:
    b = BETA * m.eye
    return np.block([[m.w - (1 + BETA) * m.h, BETA * b], [-m.h, b]])


def _quasi_global(m: Law) -> Matrix:
    first = m.w @ (m.eye - m.h)
    kept = 1.0 - BETA
    return np.block(
        [[first, BETA * m.w], [kept * (first - m.eye), BETA * m.eye + kept * BETA * m.w]]
    )


def _momentum_tracking(m: Law) -> Matrix:
    back = (BETA - 1.0) * m.eye
    return np.block(
        [
            [m.w @ (m.eye - m.h), m.w @ back, m.w @ m.w],
            [-m.h, BETA * m.eye, m.zero],
            [-m.h, back, m.w],
        ]
    )


def _exact_diffusion(m: Law) -> Matrix:
    a = 0.5 * (m.eye + m.w)
    return np.block([[a @ (2 * m.eye - m.h), -a], [m.eye - m.h, m.zero]])


def _exact_diffusion_heavy_ball(m: Law) -> Matrix:
    a, b = 0.5 * (m.eye + m.w), BETA * m.eye
    return np.block(
        [
            [a @ (2 * m.eye - m.h), -a, BETA * a],
            [m.eye - m.h, m.zero, b],
            [-m.h, m.zero, b],
        ]
    )


def _gossip_nesterov(m: Law) -> Matrix:
    stepped = m.eye - OUTER * m.h
    return np.block([[(m.w + BETA * m.eye) @ stepped, -BETA * stepped], [m.eye, m.zero]])


def _gossip_outer(m: Law) -> Matrix:
    first = (1 + BETA - OUTER) * m.eye + OUTER * m.w @ (m.eye - m.h)
    return np.block([[first, -BETA * m.eye], [m.eye, m.zero]])


def _update_tracking(m: Law) -> Matrix:
    z = m.eye - m.h
    return np.block([[m.w @ (z + TRACKED * m.eye), -TRACKED * m.w @ z], [m.eye, m.zero]])


def _smoothed_tracking(m: Law) -> Matrix:
    taken, back = -(1.0 - BETA) * m.h, (BETA - 1.0) * m.eye
    return np.block(
        [
            [m.w + taken, back, m.eye],
            [taken, BETA * m.eye, m.zero],
            [m.w @ taken, m.w @ back, m.w],
        ]
    )


def _outer_nesterov(m: Law) -> Matrix:
    stepped = np.eye(SIZE) - OUTER * m.mean_h
    return np.block([[(1 + BETA) * stepped, -BETA * stepped], [np.eye(SIZE), 0 * stepped]])


def _centralized(m: Law) -> Matrix:
    eye = np.eye(SIZE)
    return np.block([[(1 + BETA) * eye - m.mean_h, -BETA * eye], [eye, 0 * eye]])


# Rule: its iteration matrix, and whether it keeps a sum over agents fixed that no run
# changes: an eigenvalue 1 for each coordinate, which is not part of the rate.
LAWS: dict[str, tuple[Callable[[Law], Matrix], bool]] = {
    "dsgd": (lambda m: m.w @ (m.eye - m.h), False),
    "sgp": (lambda m: m.w @ (m.eye - m.h), False),  # equal push weights: W is symmetric
    "cdsgd": (lambda m: m.w - m.h, False),
    "dmsgd": (lambda m: _displacement(m, m.w @ (m.eye - m.h), 0.5), False),
    "dmsgd-cta": (lambda m: _displacement(m, m.w - m.h, 0.5), False),
    "decentlam": (lambda m: _displacement(m, m.w @ (m.eye - m.h), 0.0), False),
    "dmsgd-buffer-cta": (lambda m: _buffer_cta(m, 0.5), False),
    "dmsgd-buffer": (
        lambda m: np.block([[m.w @ (m.eye - m.h), BETA * m.w @ m.w], [-m.h, BETA * m.w]]),
        False,
    ),
    "cdmsgd": (lambda m: _buffer_cta(m, 0.0), False),
    "cdmsgd-nesterov": (_nesterov, False),
    "qg": (_quasi_global, False),
    "dmsgd-gt": (lambda m: _tracking(m, BETA, 0.5), True),
    "dsgt": (lambda m: _tracking(m, 0.0, 0.0), True),
    "momentum-tracking": (_momentum_tracking, True),
    "exact-diffusion": (_exact_diffusion, True),
    "exact-diffusion-hb": (_exact_diffusion_heavy_ball, True),
    "gasloc": (_gossip_nesterov, False),
    "noloco": (_gossip_outer, False),
    "gut": (_update_tracking, False),
    "motef": (_smoothed_tracking, True),
    "centralized": (_centralized, False),
    "diloco": (_outer_nesterov, False),
}


def predicted_rate(matrix: Matrix, keeps_a_sum: bool) -> float:
    values = np.linalg.eigvals(matrix)
    if keeps_a_sum:
        values = np.delete(values, np.argsort(np.abs(values - 1.0))[:SIZE])
    return float(np.abs(values).max())


def observed_rate(trajectory: Matrix) -> float:
    """Slope of the logarithm of successive differences, late in their decay."""
    moves = np.linalg.norm(np.diff(trajectory, axis=0).reshape(len(trajectory) - 1, -1), axis=1)
    small = np.flatnonzero(moves < 1e-11 * np.abs(trajectory).max())  # rounding is at 1e-16
    last = int(small[0]) if len(small) else len(moves)
    window = np.arange(last // 2, last)
    return float(np.exp(np.polyfit(window, np.log(moves[window]), 1)[0]))


def rule_of(name: str) -> Algorithm:
    """The method with the momentum of this file, where it has one."""
    rule = method(name)
    if name == "gut":
        return GlobalUpdateTracking(tracking=TRACKED)
    return replace(rule, momentum=BETA) if rule.to_config().get("momentum") else rule  # type: ignore[call-arg]


@cache
def prediction_and_run(name: str, graph: Topology) -> tuple[float, Matrix]:
    """The predicted rate, and a trajectory in which everything falls by 17 digits at that rate."""
    problem = problem_on(graph)
    build, keeps_a_sum = LAWS[name]
    predicted = predicted_rate(build(Law(graph, problem, STEP)), keeps_a_sum)
    rounds = int(40.0 / (1.0 - predicted))
    on = Topology.complete(graph.n_agents, "uniform") if name in CENTRAL else graph
    x = simulate(rule_of(name), on, problem.start, problem.local_step(STEP), rounds)
    return predicted, x


@pytest.mark.parametrize("graph", GRAPHS, ids=lambda g: g.name)
@pytest.mark.parametrize("name", LAWS)
@pytest.mark.thorough
def test_observed_rate_is_the_spectral_radius(name: str, graph: Topology) -> None:
    predicted, x = prediction_and_run(name, graph)
    assert predicted < 1.0
    assert observed_rate(x) == pytest.approx(predicted, abs=5e-4)  # three digits


@pytest.mark.parametrize("graph", GRAPHS, ids=lambda g: g.name)
@pytest.mark.parametrize("name", LAWS)
def test_fixed_point_bias_has_its_formula(name: str, graph: Topology) -> None:
    """x* solves (I - A) x = A' a H c with the rule's own A, A'; exact rules reach the optimum."""
    problem = problem_on(graph)
    m = Law(graph, problem, STEP)
    push = m.h @ problem.centers.reshape(-1)
    if rule_of(name).exact:
        expected = np.tile(problem.optimum(), graph.n_agents)
    elif name == "gasloc":  # D-PSGD with steps multiplied by the outer rate
        grow = OUTER * m.h
        expected = np.linalg.solve(m.eye - m.w @ (m.eye - grow), OUTER * m.w @ push)
    elif name in ("dsgd", "sgp", "dmsgd", "decentlam", "qg", "noloco"):  # momentum at rest is zero
        expected = np.linalg.solve(m.eye - m.w @ (m.eye - m.h), m.w @ push)
    elif name == "gut":  # the bias of D-PSGD with steps that are 1 - t as long
        left = 1.0 - TRACKED
        expected = np.linalg.solve(m.eye - m.w @ (m.eye - left * m.h), left * m.w @ push)
    elif name in ("cdsgd", "dmsgd-cta"):
        expected = np.linalg.solve(m.eye - m.w + m.h, push)
    elif name in ("cdmsgd", "cdmsgd-nesterov"):  # the step grows by 1 / (1 - b), the bias too
        expected = np.linalg.solve((1 - BETA) * (m.eye - m.w) + m.h, push)
    elif name == "dmsgd-buffer-cta":
        expected = np.linalg.solve((m.eye - BETA * m.pt(0.5)) @ (m.eye - m.w) + m.h, push)
    else:  # buffer, adapt-then-combine: (I - W) x = W v, v = (I - b W)^-1 (push - h x)
        grow = m.w @ np.linalg.inv(m.eye - BETA * m.w)
        expected = np.linalg.solve(m.eye - m.w + grow @ m.h, grow @ push)
    _, x = prediction_and_run(name, graph)
    np.testing.assert_allclose(x[-1].reshape(-1), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("graph", GRAPHS, ids=lambda g: g.name)
@pytest.mark.parametrize("name", LAWS)
@pytest.mark.thorough
def test_planner_predicts_what_is_observed(name: str, graph: Topology) -> None:
    """With one curvature for all agents the planner's modes are the whole truth."""
    problem = Quadratic.random(graph.n_agents, SIZE, condition=4.0, seed=2)
    rule = rule_of(name)
    curvatures = STEP * np.linalg.eigvalsh(problem.curvature[0])
    # Push weights multiply the parameters; on a symmetric matrix they stay at 1.
    rule = method("dsgd") if name == "sgp" else rule
    on = Topology.complete(graph.n_agents, "uniform") if name in CENTRAL else graph
    predicted = rate(rule, on.eigenvalues, curvatures)
    if name in CENTRAL:  # agents never differ, so only the mean's modes are run
        predicted = rate(rule, np.ones(1), curvatures)
    x = simulate(rule, on, problem.start, problem.local_step(STEP), int(28 / (1 - predicted)))
    assert observed_rate(x) == pytest.approx(predicted, abs=5e-4)


@pytest.mark.parametrize("name", [*TRACKING, "qg", "gasloc", "noloco", "gut"])
def test_stability_limit_separates_convergence_from_divergence(name: str) -> None:
    graph, rule = Topology.ring(8), rule_of(name)
    limit = stability_limit(rule, graph.eigenvalues)
    assert 0.0 < limit < 8.0
    for factor, grows in ((0.97, False), (1.03, True)):
        problem = Quadratic.random(8, 1, condition=1.0, seed=2)
        x = simulate(rule, graph, problem.start, problem.local_step(factor * limit), 600)
        late, later = (
            np.abs(np.diff(x[-200:-100], axis=0)).max(),
            np.abs(np.diff(x[-100:], axis=0)).max(),
        )
        assert (later > late) == grows


@pytest.mark.parametrize("form", ["displacement", "buffer"])
@pytest.mark.parametrize("order", ["adapt-then-combine", "combine-then-adapt"])
def test_closed_form_limits_agree_with_the_spectral_radius(form: str, order: str) -> None:
    rule = HeavyBall(form=form, order=order, momentum=0.8)
    for graph in GRAPHS:
        limit = stability_limit(rule, graph.eigenvalues)
        assert rate(rule, graph.eigenvalues, 0.999 * limit) < 1.0
        assert rate(rule, graph.eigenvalues, 1.001 * limit) > 1.0


def test_averaging_rate_by_hand() -> None:
    # Path of 3 with Metropolis weights: eigenvalues 0, 2/3, 1. Without momentum 2/3;
    # at b = 0.3, w = 0: t^2 - (2/3 + 0.3) t + 0.3, real part 0.4833, product 0.3.
    graph = Topology.path(3)
    assert averaging_rate(graph.eigenvalues, 0.0, 0.5) == pytest.approx(2.0 / 3.0)
    assert averaging_rate(graph.eigenvalues, 0.3, 0.0) == pytest.approx(np.sqrt(0.3))


def test_best_averaging_momentum_is_observed_to_be_best() -> None:
    graph = Topology.ring(16)
    best, fastest = best_averaging_momentum(graph.eigenvalues, 0.5)
    values = np.random.default_rng(0).standard_normal((16, 3))

    def left_after(momentum: float) -> float:
        x = simulate(HeavyBall(momentum=momentum), graph, values, lambda x, _k: x, 120)
        return float(np.abs(x[-1] - values.mean(axis=0)).max())

    assert left_after(best) < min(left_after(best - 0.1), left_after(best + 0.1))
    x = simulate(HeavyBall(momentum=0.6), graph, values, lambda x, _k: x, 160)
    assert observed_rate(x) == pytest.approx(averaging_rate(graph.eigenvalues, 0.6, 0.5), abs=5e-4)
    assert fastest < graph.second_eigenvalue
