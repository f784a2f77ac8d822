"""The largest stable step sizes: they hold just inside and fail just outside."""

import numpy as np
import pytest
from naive import FORMS, law

from flower_dhb import ConfigError, HeavyBall, Topology
from flower_dhb.algorithms import GASLoC, GlobalUpdateTracking, NoLoCo
from flower_dhb.topology.planning import mode_matrices

# Eigenvalues of both signs, on regular and irregular graphs.
GRAPHS = {
    "torus": Topology.torus(4, 4),  # smallest eigenvalue 1 - 8/5 = -0.6
    "star": Topology.star(6, "laplacian"),  # (1 - 5) / (1 + 5) = -0.71...
    "random": Topology.erdos_renyi(8, 0.4, seed=3),
    "random, lazy": Topology.erdos_renyi(8, 0.4, seed=3, weights="lazy"),
}
BETA = 0.9
QUADRATIC_FORMS = [case for case in FORMS if case[0] != "tracking"]
INSIDE, OUTSIDE = 0.99, 1.01


def radius(form, order, matrix, omega, step, beta=BETA):
    """Spectral radius of one round of the law on `curvature x^2 / 2`, `step` = a * curvature.

    The round is linear in the pair (x, x of the round before), or (x, v) in the buffer
    forms; its matrix is written out here from the law.
    """
    n = len(matrix)
    mixing = (1 - omega) * np.eye(n) + omega * matrix
    own, zero = np.eye(n), np.zeros((n, n))
    if form == "displacement":
        trained = matrix * (1 - step) if order == "adapt-then-combine" else matrix - step * own
        companion = np.block([[trained + beta * mixing, -beta * mixing], [own, zero]])
    elif order == "combine-then-adapt":  # (x, v): v+ = b Pt v - step x, x+ = W x + v+
        companion = np.block([[matrix - step * own, beta * mixing], [-step * own, beta * mixing]])
    else:  # x+ = W (x + v+)
        companion = np.block(
            [[matrix * (1 - step), beta * matrix @ mixing], [-step * own, beta * mixing]]
        )
    return np.abs(np.linalg.eigvals(companion)).max()


def accepted(form, order, omega, graph):
    """Whether some step size is stable: known by theory, not by the code under test."""
    lowest = np.linalg.eigvalsh(GRAPHS[graph].mixing_matrix)[0]
    return form == "buffer" or 1 + lowest + 2 * BETA * (1 - omega + omega * lowest) > 0


CASES = [
    pytest.param(form, order, omega, graph, id=f"{form}, {order}, {omega}, {graph}")
    for form, order in QUADRATIC_FORMS
    for omega in (0.0, 0.3, 0.5, 1.0)
    for graph in GRAPHS
    if accepted(form, order, omega, graph)
]


@pytest.mark.parametrize(("form", "order", "omega", "graph"), CASES)
def test_limit_holds_just_inside_and_fails_just_outside(form, order, omega, graph):
    topology = GRAPHS[graph]
    algorithm = HeavyBall(momentum=BETA, momentum_mixing=omega, form=form, order=order)
    limit = algorithm.stability_limit(topology.eigenvalues)
    matrix = np.array(topology.mixing_matrix)
    assert radius(form, order, matrix, omega, INSIDE * limit) < 1.0
    assert radius(form, order, matrix, omega, OUTSIDE * limit) > 1.0
    # Not only near the limit: no smaller step size fails.
    assert all(radius(form, order, matrix, omega, f * limit) < 1 for f in (0.001, 0.1, 0.5))


@pytest.mark.parametrize(("form", "order"), QUADRATIC_FORMS)
def test_a_run_shrinks_just_inside_and_grows_just_outside(form, order):
    """The same by running the law's own code, each column with its own step size."""
    topology = GRAPHS["random, lazy"]
    algorithm = HeavyBall(momentum=BETA, form=form, order=order)
    limit = algorithm.stability_limit(topology.eigenvalues)
    steps = np.array([0.5, INSIDE, OUTSIDE]) * limit
    state = algorithm.start(np.random.default_rng(1).normal(size=(8, 3)))
    for _ in range(600):
        z = state.parameters * (1 - steps)
        payload = algorithm.outgoing(state, z)
        mixed = {name: topology.mixing_matrix @ vector for name, vector in payload.items()}
        state = algorithm.combine(state, z, mixed)
    size = np.abs(state.parameters).max(axis=0)
    assert size[0] < 1e-3
    assert size[1] < 0.1
    assert size[2] > 10


def test_companion_matrices_are_of_the_law():
    """The yardstick itself: powers of its radius bound a run of the naive law."""
    matrix = np.array(GRAPHS["random"].mixing_matrix)
    start = np.random.default_rng(1).normal(size=(8, 1))
    for form, order in QUADRATIC_FORMS:
        run = law(
            form,
            order,
            beta=0.5,
            omega=0.3,
            matrices=[matrix] * 400,
            start=start,
            local_step=lambda x, _: 0.9 * x,
        )
        sizes = np.linalg.norm(run[:, :, 0], axis=1)
        rate = (sizes[300] / sizes[200]) ** 0.01
        # Complex pairs make the size oscillate about its trend.
        assert rate == pytest.approx(radius(form, order, matrix, 0.3, 0.1, 0.5), rel=0.02)


# Limits by hand for momentum 1/2 and momentum mixing 1/4, mode by mode. With u = 1, -1/2 and
# 1/4: nu = 3/4 + u/4 = 1, 5/8 and 13/16, and 2 b nu = nu, b nu = 1/2, 5/16 and 13/32.
BY_HAND = [
    # (1 + u + nu) / u = 3; (1 - u) / |u| = 3; (5/4 + 13/16) / (1/4) = 8.25
    ("displacement", "adapt-then-combine", [3.0, 3.0, 8.25]),
    # 1 + u + nu
    ("displacement", "combine-then-adapt", [3.0, 1.125, 2.0625]),
    # (1 + u) (1 + b nu)
    ("buffer", "combine-then-adapt", [3.0, 0.65625, 1.7578125]),
    # (1 + u) (1 + b nu) / u; (1 - u) (1 - b nu) / |u| = 3 * 11/16; 5 * 45/32
    ("buffer", "adapt-then-combine", [3.0, 2.0625, 7.03125]),
]


@pytest.mark.parametrize(("form", "order", "limits"), BY_HAND)
def test_limit_of_each_mode_by_hand(form, order, limits):
    algorithm = HeavyBall(momentum=0.5, momentum_mixing=0.25, form=form, order=order)
    for u, limit in zip([1.0, -0.5, 0.25], limits, strict=True):
        assert algorithm.stability_limit(np.array([u])) == limit
    assert algorithm.stability_limit(np.array([-0.5, 0.25, 1.0])) == min(limits)


def test_a_mode_of_eigenvalue_zero_has_no_limit_once_mixing_follows_training():
    assert HeavyBall().stability_limit(np.array([0.0, 1.0])) == pytest.approx(3.8, rel=1e-15)
    buffer = HeavyBall(form="buffer", momentum=0.5)
    assert buffer.stability_limit(np.array([0.0, 1.0])) == 3.0


# --- no step size at all ---------------------------------------------------------------

BALANCED = Topology.bipartite(4, 4)


@pytest.mark.parametrize("topology", [GRAPHS["torus"], BALANCED, GRAPHS["star"]], ids=repr)
@pytest.mark.parametrize(("form", "order"), [case for case in FORMS if case[0] != "buffer"])
def test_displacement_that_mixes_all_momentum_is_refused(topology, form, order):
    algorithm = HeavyBall(momentum_mixing=1.0, form=form, order=order)
    with pytest.raises(ConfigError, match=r"diverges for every step size") as refusal:
        algorithm.check(topology)
    lowest = np.linalg.eigvalsh(topology.mixing_matrix)[0]
    message = str(refusal.value)
    assert f"smallest eigenvalue of its mixing matrix is {lowest:.4g}" in message
    assert "momentum_mixing <= 0.5" in message
    assert "lazy weights (I + W) / 2 (weights='lazy')" in message


def test_the_refused_case_does_diverge_without_any_training():
    matrix = np.array(GRAPHS["torus"].mixing_matrix)
    assert radius("displacement", "adapt-then-combine", matrix, 1.0, 0.0) > 1.1
    refused = HeavyBall(momentum_mixing=1.0)
    assert refused.stability_limit(GRAPHS["torus"].eigenvalues) == 0.0


@pytest.mark.parametrize("omega", [0.0, 0.25, 0.5])
@pytest.mark.parametrize("topology", [GRAPHS["torus"], BALANCED, GRAPHS["star"]], ids=repr)
def test_remedy_half_mixing_is_accepted(topology, omega):
    algorithm = HeavyBall(momentum_mixing=omega, momentum=0.99)
    algorithm.check(topology)
    matrix = np.array(topology.mixing_matrix)
    limit = algorithm.stability_limit(topology.eigenvalues)
    assert radius("displacement", "adapt-then-combine", matrix, omega, limit / 2, 0.99) < 1.0


def test_remedy_lazy_weights_is_accepted():
    algorithm = HeavyBall(momentum_mixing=1.0)
    lazy = Topology.torus(4, 4, weights="lazy")
    algorithm.check(lazy)
    limit = algorithm.stability_limit(lazy.eigenvalues)
    matrix = np.array(lazy.mixing_matrix)
    assert radius("displacement", "adapt-then-combine", matrix, 1.0, limit / 2) < 1.0


def with_smallest(eigenvalue):
    """Two agents: the eigenvalues of [[1 - a, a], [a, 1 - a]] are 1 and 1 - 2 a."""
    a = (1 - eigenvalue) / 2
    return Topology.from_edges([(0, 1)], np.array([[1 - a, a], [a, 1 - a]]))


def test_refusal_begins_where_the_law_says():
    """With momentum 9/10 and full mixing: at an eigenvalue of -1 / (1 + 2 * 0.9) = -1 / 2.8."""
    algorithm = HeavyBall(momentum_mixing=1.0)
    algorithm.check(with_smallest(-1 / 2.8 + 1e-9))
    with pytest.raises(ConfigError):
        algorithm.check(with_smallest(-1 / 2.8 - 1e-9))


@pytest.mark.parametrize("order", ["adapt-then-combine", "combine-then-adapt"])
def test_buffer_forms_are_never_refused(order):
    algorithm = HeavyBall(form="buffer", order=order, momentum=0.99, momentum_mixing=1.0)
    algorithm.check(BALANCED)
    assert algorithm.stability_limit(BALANCED.eigenvalues) > 0.0


def test_tracking_has_no_closed_form_limit():
    with pytest.raises(ConfigError, match="no closed-form stability limit"):
        HeavyBall(form="tracking").stability_limit(np.array([0.5, 1.0]))


# --- conditions that no step size heals, of the other rules ------------------------------------


def grows(rule, u, curvature=1e-9):
    """Whether disagreement along an eigenvalue `u` grows, almost without steps."""
    (matrix,) = mode_matrices(rule, np.array([u]), np.array([curvature]))
    return np.abs(np.linalg.eigvals(matrix)).max() > 1.0


@pytest.mark.parametrize("t", [0.05, 0.2, 0.5, 0.9])
def test_update_tracking_is_stable_above_its_bound_and_not_below(t):
    rule, bound = GlobalUpdateTracking(tracking=t), -1 / (1 + 2 * t)
    assert not grows(rule, bound + 1e-3)
    assert grows(rule, bound - 1e-3)
    rule.check_spectrum(Lowest(bound + 1e-3))
    with pytest.raises(ConfigError, match=r"above -0\.\d+; the smallest is"):
        rule.check_spectrum(Lowest(bound - 1e-3))


@pytest.mark.parametrize(("rate", "momentum"), [(1.2, 0.1), (1.5, 0.4), (3.0, 0.9)])
def test_noloco_is_stable_below_its_consensus_rate_and_not_above(rate, momentum):
    rule = NoLoCo(consensus_rate=rate, momentum=momentum)
    bound = 1 - 2 * (1 + momentum) / rate  # where c (1 - u) = 2 (1 + b)
    assert not grows(rule, bound + 1e-3)
    assert grows(rule, bound - 1e-3)
    rule.check_spectrum(Lowest(bound + 1e-3))
    with pytest.raises(ConfigError, match=r"noloco with consensus_rate .* diverges"):
        rule.check_spectrum(Lowest(bound - 1e-3))


@pytest.mark.parametrize("omega", [0.7, 1.0])
def test_gasloc_has_the_bound_of_the_displacement_form(omega):
    rule = GASLoC(momentum_mixing=omega)
    bound = -(1 + 2 * BETA * (1 - omega)) / (1 + 2 * BETA * omega)
    assert not grows(rule, bound + 1e-3)
    assert grows(rule, bound - 1e-3)
    rule.check_spectrum(Lowest(bound + 1e-3))
    with pytest.raises(ConfigError, match=r"gasloc with momentum 0\.9 and momentum_mixing"):
        rule.check_spectrum(Lowest(bound - 1e-3))
    GASLoC().check_spectrum(None)  # the paper's: no spectrum is asked for


class Lowest:
    """A graph of which only the smallest eigenvalue is known."""

    def __init__(self, smallest_eigenvalue):
        self.smallest_eigenvalue = smallest_eigenvalue
