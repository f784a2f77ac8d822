"""The built-in problems: gradients against their functions, optima, and what their settings say."""

import numpy as np
import pytest

from flower_dhb import ConfigError
from flower_dhb.problems.averaging import Averaging
from flower_dhb.problems.logistic import LogisticRegression
from flower_dhb.problems.quadratic import Quadratic
from flower_dhb.problems.splits import split

STEP = 1e-5  # central differences: errors of STEP^2 and of rounding / STEP, both about 1e-10


def slope(function, x):
    """Gradient of a function by central differences."""
    unit = np.eye(len(x)) * STEP
    return np.array([(function(x + e) - function(x - e)) / (2 * STEP) for e in unit])


# --- quadratics ------------------------------------------------------------------------------


def quadratic(**settings):
    return Quadratic.random(4, 6, **({"condition": 20.0, "curvature_spread": 0.5} | settings))


def test_the_gradient_of_a_quadratic_is_the_slope_of_its_function():
    q = quadratic(seed=1)
    x = np.random.default_rng(0).normal(size=(4, 6))
    found = q.gradient(x)
    for i in range(4):

        def value(point, i=i):
            return (point - q.centers[i]) @ q.curvature[i] @ (point - q.centers[i]) / 2

        np.testing.assert_allclose(found[i], slope(value, x[i]), atol=1e-8)
    np.testing.assert_array_equal(q.local_step(0.3)(x, 7), x - 0.3 * found)


def test_the_mean_of_the_quadratics_has_the_curvatures_asked_for():
    q = quadratic(seed=2)
    np.testing.assert_allclose(q.curvature, q.curvature.transpose(0, 2, 1), atol=1e-14)
    found = np.linalg.eigvalsh(q.curvature.mean(axis=0))
    # Ratios are equal from the smallest to the largest.
    np.testing.assert_allclose(found, 20.0 ** (np.arange(6) / 5 - 1), atol=1e-14)
    basis = np.linalg.eigh(q.curvature.mean(axis=0))[1]
    own = np.einsum("ab,iac,cb->ib", basis, q.curvature, basis) / found
    # The agent farthest from the mean is off by the spread, in every direction.
    np.testing.assert_allclose(np.abs(own - 1).max(axis=0), 0.5, atol=1e-12)
    largest = max(np.linalg.eigvalsh(one)[-1] for one in q.curvature)
    assert q.largest_curvature == pytest.approx(largest, rel=1e-14)
    assert q.largest_curvature > 1.2


def test_without_spread_all_agents_have_one_curvature_and_a_single_agent_has_it_too():
    q = quadratic(curvature_spread=0.0)
    np.testing.assert_array_equal(q.curvature, np.broadcast_to(q.curvature[0], (4, 6, 6)))
    assert q.largest_curvature == pytest.approx(1.0, abs=1e-14)
    alone = Quadratic.random(1, 3, curvature_spread=0.9)
    np.testing.assert_allclose(np.linalg.eigvalsh(alone.curvature[0])[[0, -1]], [0.1, 1.0])


def test_the_optimum_of_the_quadratics_has_no_slope():
    q = quadratic(seed=3)
    everywhere = np.broadcast_to(q.optimum(), (4, 6))
    np.testing.assert_allclose(q.gradient(everywhere).mean(axis=0), 0.0, atol=1e-13)
    assert np.abs(q.gradient(everywhere)).max() > 0.1  # each agent alone would go on
    np.testing.assert_array_equal(q.start, np.zeros(6))
    assert q.n_agents == 4


def test_heterogeneity_is_how_far_the_minimizers_are_apart():
    same, some, far = (quadratic(heterogeneity=h).centers for h in (0.0, 1.0, 5.0))
    np.testing.assert_array_equal(same, np.broadcast_to(same[0], (4, 6)))
    np.testing.assert_allclose(far - same, 5 * (some - same), atol=1e-13)
    # Standard normal in 24 numbers: the deviation is within 4 standard errors of 1.
    assert 0.4 < (some - same).std() < 1.6


def test_quadratics_are_drawn_as_documented():
    rng = np.random.default_rng([3, 4, 6])
    basis = np.linalg.qr(rng.standard_normal((6, 6)))[0]
    noise = rng.standard_normal((4, 6))
    noise -= noise.mean(axis=0)
    common = rng.standard_normal(6)
    q = quadratic(seed=3, heterogeneity=0.7)
    np.testing.assert_array_equal(q.centers, common + 0.7 * rng.standard_normal((4, 6)))
    scale = 20.0 ** (np.arange(6) / 5 - 1) * (1 + 0.5 * noise / np.abs(noise).max(axis=0))
    for i in range(4):
        np.testing.assert_allclose(q.curvature[i], basis @ np.diag(scale[i]) @ basis.T, atol=1e-14)


def test_quadratics_depend_on_seed_agents_and_size_alone():
    assert np.array_equal(quadratic(seed=1).centers, quadratic(seed=1).centers)
    drawn = [quadratic(seed=1), quadratic(seed=2), Quadratic.random(3, 6), Quadratic.random(4, 5)]
    assert len({round(float(q.centers[0, 0]), 9) for q in drawn}) == 4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"condition": 0.99}, "condition must be at least 1, got 0.99"),
        ({"condition": float("nan")}, "condition must be at least 1"),
        ({"heterogeneity": -0.1}, "heterogeneity must be at least 0, got -0.1"),
        ({"heterogeneity": float("nan")}, "heterogeneity must be at least 0"),
        ({"curvature_spread": 1.0}, r"curvature_spread must be in \[0, 1\), got 1.0"),
        ({"curvature_spread": -0.1}, r"curvature_spread must be in \[0, 1\)"),
        ({"curvature_spread": float("nan")}, r"curvature_spread must be in \[0, 1\)"),
    ],
)
def test_quadratics_that_cannot_be(settings, message):
    with pytest.raises(ConfigError, match=message):
        quadratic(**settings)


@pytest.mark.parametrize("build", [Quadratic.random, Averaging.random])
@pytest.mark.parametrize(("n", "size"), [(0, 3), (3, 0)])
def test_a_problem_of_nothing(build, n, size):
    with pytest.raises(ConfigError, match=f"at least 1 agent and size 1, got {n} and {size}"):
        build(n, size)


def test_one_agent_with_one_number_is_a_problem():
    assert Quadratic.random(1, 1, condition=1.0, heterogeneity=0.0).optimum().shape == (1,)
    assert Averaging.random(1, 1).start.shape == (1, 1)


# --- logistic regression -----------------------------------------------------------------------


def objective(problem, i, x):
    """Agent i's function as its docstring writes it."""
    margins = problem.labels[i] * (problem.features[i] @ x)
    return np.log1p(np.exp(-margins)).mean() + problem.penalty * (x @ x) / 2


def logistic(**settings):
    return LogisticRegression.synthetic(3, 20, 4, **({"penalty": 0.05, "seed": 1} | settings))


def test_the_gradient_of_logistic_regression_is_the_slope_of_its_function():
    problem = logistic()
    x = np.random.default_rng(2).normal(size=(3, 4))
    found = problem.gradient(x)
    for i in range(3):
        expected = slope(lambda point, i=i: objective(problem, i, point), x[i])
        np.testing.assert_allclose(found[i], expected, atol=1e-8)
    np.testing.assert_array_equal(problem.local_step(0.2)(x, 1), x - 0.2 * found)


def test_the_optimum_counts_every_agent_the_same_whatever_its_samples():
    full = logistic()
    problem = LogisticRegression(
        [full.features[0][:5], *full.features[1:]], [full.labels[0][:5], *full.labels[1:]], 0.05
    )
    best = problem.optimum()
    slopes = problem.gradient(np.broadcast_to(best, (3, 4)))
    np.testing.assert_allclose(slopes.mean(axis=0), 0.0, atol=1e-14)

    def total(x):
        return sum(objective(problem, i, x) for i in range(3))

    rng = np.random.default_rng(0)
    assert all(total(best + 0.1 * rng.normal(size=4)) > total(best) for _ in range(20))
    np.testing.assert_array_equal(problem.start, np.zeros(4))
    assert problem.n_agents == 3


def test_no_curvature_is_above_the_bound_and_at_zero_it_is_reached():
    problem = logistic()
    hessians = [
        np.stack(
            [slope(lambda p, i=i, k=k: gradient(problem, i, p)[k], np.zeros(4)) for k in range(4)]
        )
        for i in range(3)
    ]
    largest = max(np.linalg.eigvalsh((h + h.T) / 2)[-1] for h in hessians)
    assert problem.largest_curvature == pytest.approx(largest, abs=1e-8)


def gradient(problem, i, point):
    return problem.gradient(np.broadcast_to(point, (3, 4)))[i]


def test_labels_follow_the_agents_weights_and_heterogeneity_sets_them_apart():
    """With 2,000 samples an agent's own fit points along its true weights."""

    def directions(heterogeneity):
        problem = LogisticRegression.synthetic(
            3, 2000, 4, heterogeneity=heterogeneity, penalty=1e-4, seed=4
        )
        fits = [
            LogisticRegression([a], [y], 1e-4).optimum()
            for a, y in zip(problem.features, problem.labels, strict=True)
        ]
        return np.array([fit / np.linalg.norm(fit) for fit in fits])

    together, apart = directions(0.0), directions(20.0)
    assert (together @ together.T).min() > 0.97
    assert (apart @ apart.T).min() < 0.8
    # The common weights themselves, drawn before anything else.
    common = np.random.default_rng([4, 3, 2000, 4]).standard_normal(4)
    assert (together @ common / np.linalg.norm(common)).min() > 0.97


def test_synthetic_data_are_gaussian_and_depend_on_the_seed():
    problem = logistic()
    assert [a.shape for a in problem.features] == [(20, 4)] * 3
    assert {float(v) for y in problem.labels for v in y} == {-1.0, 1.0}
    assert not np.array_equal(problem.features[0], problem.features[1])
    assert np.array_equal(problem.features[2], logistic().features[2])
    for other in (logistic(seed=2), LogisticRegression.synthetic(4, 20, 4, seed=1)):
        assert not np.array_equal(problem.features[0], other.features[0])


def test_synthetic_data_are_drawn_as_documented():
    """Once more in the same order: the common weights, then features, weights, labels of each."""
    rng = np.random.default_rng([5, 2, 6, 3])
    common = rng.standard_normal(3)
    problem = LogisticRegression.synthetic(2, 6, 3, heterogeneity=0.7, seed=5)
    for a, y in zip(problem.features, problem.labels, strict=True):
        expected = rng.standard_normal((6, 3))
        chance = 1 / (1 + np.exp(-expected @ (common + 0.7 * rng.standard_normal(3))))
        np.testing.assert_array_equal(a, expected)
        np.testing.assert_array_equal(y, np.where(rng.random(6) < chance, 1.0, -1.0))


def test_newton_goes_on_while_any_coordinate_moves():
    """A feature that is always zero is at its optimum from the start; the others are not."""
    full = logistic()
    features = [np.column_stack([a[:, :2], np.zeros(20)]) for a in full.features]
    problem = LogisticRegression(features, full.labels, 0.05)
    best = problem.optimum()
    assert best[2] == 0.0
    slopes = problem.gradient(np.broadcast_to(best, (3, 3)))
    np.testing.assert_allclose(slopes.mean(axis=0), 0.0, atol=1e-14)


def test_breast_cancer_is_standardized_labelled_and_split():
    from sklearn.datasets import load_breast_cancer

    raw, target = load_breast_cancer(return_X_y=True)
    problem = LogisticRegression.breast_cancer(5, "dirichlet:0.5", seed=3)
    assert problem.penalty == 0.01
    for a, y, part in zip(
        problem.features, problem.labels, split(target, 5, "dirichlet:0.5", 3), strict=True
    ):
        expected = (raw[part] - raw.mean(axis=0)) / raw.std(axis=0)
        np.testing.assert_allclose(a[:, :-1], expected, atol=1e-12)
        np.testing.assert_array_equal(a[:, -1], 1.0)
        np.testing.assert_array_equal(y, 2.0 * target[part] - 1.0)
    assert sum(map(len, problem.labels)) == 569
    by_class = LogisticRegression.breast_cancer(2, "classes:1")
    assert sorted(float(y.mean()) for y in by_class.labels) == [-1.0, 1.0]


@pytest.mark.parametrize("penalty", [0.0, -1.0, float("nan")])
def test_a_penalty_is_above_zero(penalty):
    with pytest.raises(ConfigError, match="penalty must be above 0, got"):
        logistic(penalty=penalty)


# --- averaging -----------------------------------------------------------------------------------


def test_averaging_trains_nothing_and_its_optimum_is_the_mean():
    problem = Averaging.random(3, 5, seed=2)
    expected = np.random.default_rng([2, 3]).standard_normal((3, 5))
    np.testing.assert_array_equal(problem.start, expected)
    np.testing.assert_array_equal(problem.optimum(), expected.mean(axis=0))
    np.testing.assert_array_equal(problem.gradient(expected), np.zeros((3, 5)))
    np.testing.assert_array_equal(problem.local_step(0.5)(expected, 1), expected)
    assert problem.n_agents == 3
    assert Averaging.random(3).start.shape == (3, 1000)
    assert not np.array_equal(Averaging.random(3, 5, seed=1).start, expected)
