"""Agreement without training: how fast, and that nothing is lost on the way."""

import numpy as np
import pytest
from naive import FORMS, pull

from flower_dhb import DSGD, ConfigError, HeavyBall, Topology, simulate

# Second largest absolute eigenvalues in closed form. Metropolis on a ring is 1/3 everywhere,
# a circulant matrix: 1/3 + 2/3 cos(2 pi k / n). On a star of n it is I - L / n, and the
# Laplacian of a star has eigenvalues 0, 1 and n. Best constant weights on a star of n:
# a = 2 / (n + 1), so |1 - a| = |1 - a n| = (n - 1) / (n + 1).
GRAPHS = {
    "ring": (Topology.ring(9), 1 / 3 + 2 / 3 * np.cos(2 * np.pi / 9)),
    "star": (Topology.star(7), 6 / 7),
    "star, best constant": (Topology.star(7, "laplacian"), 6 / 8),
    "random": (Topology.erdos_renyi(8, 0.4, seed=3), None),
}


def spread(x):
    return np.linalg.norm(x - x.mean(axis=-2, keepdims=True), axis=(-2, -1))


def untrained(x, _):
    return x


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("order", ["adapt-then-combine", "combine-then-adapt"])
def test_disagreement_contracts_at_the_second_eigenvalue(graph, order):
    topology, second = GRAPHS[graph]
    n = topology.n_agents
    if second is None:  # the norm of W without its constant mode, by singular values
        second = np.linalg.norm(topology.mixing_matrix - np.full((n, n), 1 / n), ord=2)
    start = np.random.default_rng(0).normal(size=(n, 2))
    distance = spread(simulate(DSGD(order=order), topology, start, untrained, rounds=60))
    # 1e-9 leaves room for the rounding of means of numbers that have become small.
    assert (distance[1:] <= distance[:-1] * second + 1e-9).all()
    # The next smaller absolute eigenvalue is at most 0.65 of the second, so after 40 rounds
    # its share of the squared distance is below 1e-14; rounding is 1e-16 of 1e-5.
    assert distance[41] / distance[40] == pytest.approx(second, rel=1e-9)


@pytest.mark.parametrize("graph", GRAPHS)
def test_spectral_gap_is_what_the_second_eigenvalue_leaves(graph):
    topology, second = GRAPHS[graph]
    if second is None:
        magnitudes = np.sort(np.abs(np.linalg.eigvals(topology.mixing_matrix)))
        second = magnitudes[-2]
    assert topology.second_eigenvalue == pytest.approx(second, abs=1e-14)
    assert topology.spectral_gap == pytest.approx(1 - second, abs=1e-14)


@pytest.mark.parametrize(("form", "order"), FORMS)
def test_agents_end_at_the_average_of_where_they_began(form, order):
    topology = Topology.erdos_renyi(8, 0.4, seed=3)
    start = np.random.default_rng(0).normal(size=(8, 2))
    end = simulate(HeavyBall(form=form, order=order), topology, start, untrained, rounds=1500)[-1]
    # Rounding of 1500 rounds of numbers near 1; disagreement itself is below 1e-20 by then.
    np.testing.assert_allclose(end, np.tile(start.mean(axis=0), (8, 1)), atol=1e-12)


# --- edges that fail -------------------------------------------------------------------

FAILED = {
    1: [(0, 1)],
    2: [(0, 1), (0, 3), (0, 6), (0, 7)],  # agent 0 alone
    3: [(1, 4), (7, 4)],
    4: [(5, 2)],
}


def states(algorithm, rounds=6):
    """State after each round on the random graph while edges fail, with steps `s`."""
    topology = Topology.erdos_renyi(8, 0.4, seed=3)
    step = pull(8, 3)
    state = algorithm.start(np.random.default_rng(5).normal(size=(8, 3)))
    for k in range(1, rounds + 1):
        z = step(state.parameters, k)
        w = topology.with_missing(FAILED.get(k, []))
        mixed = {name: w @ vector for name, vector in algorithm.outgoing(state, z).items()}
        new = algorithm.combine(state, z, mixed)
        yield state, z - state.parameters, new
        state = new


MOMENTUM = {"displacement": "displacement", "tracking": "displacement", "buffer": "momentum"}


@pytest.mark.parametrize("omega", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(("form", "order"), FORMS)
def test_missing_edges_keep_the_average_of_parameters_and_momentum(form, order, omega):
    algorithm = HeavyBall(momentum=0.8, momentum_mixing=omega, form=form, order=order)
    name = MOMENTUM[form]
    for old, s, new in states(algorithm):
        momentum = 0.8 * old.memory[name].mean(axis=0) + s.mean(axis=0)
        # One round: a few units in the last place of numbers near 1.
        np.testing.assert_allclose(new.memory[name].mean(axis=0), momentum, atol=1e-14)
        expected = old.parameters.mean(axis=0) + momentum
        np.testing.assert_allclose(new.parameters.mean(axis=0), expected, atol=1e-14)


@pytest.mark.parametrize("payload", ["folded", "separate"])
def test_the_trackers_sum_stays_the_sum_of_local_steps(payload):
    algorithm = HeavyBall(form="tracking", payload=payload)
    for old, s, new in states(algorithm):
        tracker = algorithm.outgoing(old, old.parameters + s)["tracker"]
        np.testing.assert_allclose(tracker.sum(axis=0), s.sum(axis=0), atol=1e-13)
        np.testing.assert_allclose(
            new.memory["mixed_tracker"].sum(axis=0), s.sum(axis=0), atol=1e-13
        )


def test_tracking_removes_the_bias_that_different_data_cause():
    """Agents with different minima agree on the minimum of the sum; plain DSGD does not."""
    topology = Topology.star(6)
    target = np.arange(6.0)[:, None] ** 2
    curvature = np.array([[1.0], [2], [1], [3], [1], [1]])
    best = (curvature * target).sum() / curvature.sum()

    def local_step(x, _):
        return x - 0.02 * curvature * (x - target)

    def error(algorithm):
        end = simulate(algorithm, topology, np.zeros(1), local_step, rounds=1500)[-1]
        return np.abs(end - best).max()

    # At rest to rounding, of numbers near 10.
    assert error(HeavyBall(momentum=0.5, form="tracking")) < 1e-11
    assert error(DSGD()) > 0.1


def test_missing_may_be_a_mapping_a_function_or_a_sequence():
    topology, step = Topology.star(4), pull(4, 2)
    by_round = {2: [(0, 1)], 3: [(0, 2), (3, 0)]}
    variants = [by_round, lambda k: by_round.get(k, []), [[], [(0, 1)], [(0, 2), (0, 3)]]]
    runs = [simulate(HeavyBall(), topology, np.zeros(2), step, 5, missing=m) for m in variants]
    np.testing.assert_array_equal(runs[0], runs[1])
    np.testing.assert_array_equal(runs[0], runs[2])
    undisturbed = simulate(HeavyBall(), topology, np.zeros(2), step, 5)
    np.testing.assert_array_equal(runs[0][1], undisturbed[1])
    assert (runs[0][2] != undisturbed[2]).any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"start": np.zeros((3, 2))}, r"start must be \(4, d\).*got shape \(3, 2\)"),
        ({"start": np.zeros((4, 2, 1))}, r"start must be \(4, d\).*got shape \(4, 2, 1\)"),
        ({"rounds": -1}, "rounds must be an integer of at least 0, got -1"),
        ({"local_step": lambda x, k: x[:, :1]}, r"round 1: local_step returned shape \(4, 1\)"),
        ({"missing": {1: [(1, 2)]}}, "there is no edge between 1 and 2"),
        ({"missing": {1: [(0, 4)]}}, "no vertex 4; vertices are 0 … 3"),
        ({"missing": {1: [(-1, 0)]}}, "no vertex -1"),
    ],
)
def test_simulate_refuses(change, message):
    arguments = {"start": np.zeros((4, 2)), "local_step": untrained, "rounds": 2}
    with pytest.raises(ConfigError, match=message):
        simulate(HeavyBall(), Topology.star(4), **(arguments | change))


def test_simulate_refuses_a_rule_that_diverges_on_the_graph():
    with pytest.raises(ConfigError, match="diverges for every step size"):
        simulate(HeavyBall(momentum_mixing=1.0), Topology.torus(4, 4), np.zeros(2), untrained, 1)


def test_simulate_hands_out_rounds_from_one_and_a_copy_it_may_spoil():
    rounds = []

    def spoil(x, k):
        rounds.append(k)
        z = x + 1.0
        x[:] = np.nan
        return z

    start = np.zeros((3, 1))
    found = simulate(DSGD(), Topology.path(3), start, spoil, rounds=3)
    assert rounds == [1, 2, 3]
    # Rows of thirds sum to 1 up to a unit in the last place.
    np.testing.assert_allclose(found, np.tile(np.arange(4.0)[:, None, None], (1, 3, 1)), rtol=1e-15)
    np.testing.assert_array_equal(start, 0.0)
