"""The same body for one agent and for all, for NumPy and torch, for float32 and float64."""

import numpy as np
import pytest
import torch
from naive import FORMS

from flower_dhb import DSGD, ConfigError, HeavyBall, Topology, simulate
from flower_dhb.agent.mixing import combine, weighted_sum
from flower_dhb.algorithms import (
    CDMSGD,
    DecentLaM,
    ExactDiffusion,
    GASLoC,
    GlobalUpdateTracking,
    MomentumTracking,
    MoTEF,
    NoLoCo,
    QuasiGlobal,
)
from flower_dhb.types import State

RULES = [
    *(HeavyBall(momentum_mixing=0.3, form=form, order=order) for form, order in FORMS),
    HeavyBall(momentum_mixing=0.3, payload="separate"),
    HeavyBall(momentum_mixing=0.3, form="tracking", payload="separate"),
    # What a grid search hands in: float64 scalars must not widen float32 vectors.
    HeavyBall(momentum=np.float64(0.9), momentum_mixing=np.float64(0.3)),
    CDMSGD(momentum=np.float64(0.9)),
    QuasiGlobal(momentum=np.float64(0.9), nesterov=np.True_),
    DecentLaM(momentum=np.float32(0.9)),
    MomentumTracking(momentum=np.float64(0.9)),
    ExactDiffusion(momentum=np.float64(0.9)),
    GASLoC(momentum=np.float64(0.9), momentum_mixing=np.float32(0.3)),
    NoLoCo(outer_rate=np.float64(0.5), consensus_rate=np.float64(0.7)),
    GlobalUpdateTracking(tracking=np.float64(0.2)),
    MoTEF(momentum=np.float64(0.9), consensus_rate=np.float64(0.5)),
    DSGD(),
    DSGD(order="combine-then-adapt"),
]
N, D = 4, 6


def draw(algorithm, dtype):
    rng = np.random.default_rng(3)

    def vectors(names):
        return {name: rng.normal(size=(N, D)).astype(dtype) for name in names}

    x, z = vectors(["x", "z"]).values()
    return State(x, vectors(algorithm.memory), round=3), z, vectors(algorithm.vectors)


def convert(state, trained, mixed, function):
    def each(vectors):
        return {name: function(vector) for name, vector in vectors.items()}

    converted = State(function(state.parameters), each(state.memory), round=state.round)
    return converted, function(trained), each(mixed)


def results(algorithm, state, trained, mixed):
    """Everything that a rule returns, by name."""
    new = algorithm.combine(state, trained, mixed)
    return {
        **{f"sent {k}": v for k, v in algorithm.outgoing(state, trained).items()},
        **{f"kept {k}": v for k, v in new.memory.items()},
        "parameters": new.parameters,
    }


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("algorithm", RULES, ids=str)
def test_torch_and_numpy_agree_to_the_bit_and_stay_in_dtype(algorithm, dtype):
    inputs = draw(algorithm, dtype)
    numpy = results(algorithm, *inputs)
    tensors = results(algorithm, *convert(*inputs, torch.from_numpy))
    assert numpy.keys() == tensors.keys()
    for name, array in numpy.items():
        assert array.dtype == dtype
        assert tensors[name].dtype == getattr(torch, dtype)
        np.testing.assert_array_equal(tensors[name].numpy(), array, name)


@pytest.mark.parametrize("algorithm", RULES, ids=str)
def test_one_agent_is_a_row_of_all(algorithm):
    inputs = draw(algorithm, "float64")
    everyone = results(algorithm, *inputs)
    for i in range(N):
        alone = results(algorithm, *convert(*inputs, lambda array, i=i: array[i]))
        for name, vector in alone.items():
            assert vector.shape == (D,)
            np.testing.assert_array_equal(vector, everyone[name][i], name)


@pytest.mark.parametrize("algorithm", RULES, ids=str)
@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_start_is_zero_memory_in_the_parameters_own_kind(algorithm, library):
    x = np.ones((N, D), np.float32)
    state = algorithm.start(x if library == "numpy" else torch.from_numpy(x))
    for vector in state.memory.values():
        assert type(vector) is type(state.parameters)
        assert vector.dtype == state.parameters.dtype
        assert tuple(vector.shape) == (N, D)
        assert not vector.any()


# --- other numbers than float32 and float64 -------------------------------------------------


@pytest.mark.parametrize("dtype", [">f4", ">f8", np.longdouble, np.float16, np.float32])
def test_neighbors_count_in_every_dtype(dtype):
    """BLAS adds in place to two dtypes only; to others it would add to a copy."""
    own, near = np.array([1.0, 2.0]).astype(dtype), np.array([3.0, 6.0]).astype(dtype)
    total = weighted_sum({0: 0.25, 1: 0.75}, {0: own, 1: near})
    np.testing.assert_array_equal(total.astype(float), [2.5, 5.0])
    rule = DSGD()
    new = combine(rule, rule.start(own), own, 0, {0: 0.25, 1: 0.75}, {1: {"parameters": near}})
    np.testing.assert_array_equal(new.parameters.astype(float), [2.5, 5.0])


@pytest.mark.parametrize(
    ("dtype", "computed"),
    [(">f4", "f4"), (np.float16, "f4"), (np.int8, "f8"), (">i4", "f8"), (np.longdouble, "g")],
)
def test_simulate_computes_in_a_dtype_of_this_machine(dtype, computed):
    start = np.array([[0, 4], [2, 8], [4, 0]]).astype(dtype)
    found = simulate(DSGD(), Topology.path(3), start, lambda x, _: x, 1)
    assert found.dtype == np.dtype(computed)
    assert found.dtype.isnative
    # Metropolis on a path of 3: rows (2/3, 1/3, 0), (1/3, 1/3, 1/3), (0, 1/3, 2/3).
    expected = np.array([[2, 16], [6, 12], [10, 8]]) / 3
    np.testing.assert_allclose(found[1].astype(float), expected, rtol=1e-6)


@pytest.mark.parametrize("start", [np.ones(3) * 1j, np.array(["a"]), np.array([True, False])])
def test_simulate_refuses_what_is_no_real_number(start):
    with pytest.raises(ConfigError, match="start must hold real numbers"):
        simulate(DSGD(), Topology.path(3), start, lambda x, _: x, 1)


@pytest.mark.parametrize("rounds", [-1, 1.5, True, "3", float("nan")])
def test_simulate_counts_rounds_in_whole_numbers(rounds):
    with pytest.raises(ConfigError, match="rounds must be an integer"):
        simulate(DSGD(), Topology.path(3), np.zeros(2), lambda x, _: x, rounds)


def test_simulate_says_what_is_not_rectangular():
    with pytest.raises(ConfigError, match="no rectangular array"):
        simulate(DSGD(), Topology.path(2), [[1.0], [1.0, 2.0]], lambda x, _: x, 1)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", [1, 9, 31, 33, 63, 65, 127, 2410])
def test_an_element_has_one_value_wherever_it_lies(size, dtype):
    """Two runtimes may flatten a model in two orders; both must give the same bits."""
    rng = np.random.default_rng(size)
    vectors = {j: rng.normal(size=size).astype(dtype) for j in range(3)}
    weights = {0: 1 / 3, 1: 0.1, 2: 1 - 1 / 3 - 0.1}
    here = weighted_sum(weights, vectors)
    order = rng.permutation(size)
    there = weighted_sum(weights, {j: v[order] for j, v in vectors.items()})
    np.testing.assert_array_equal(there, here[order])
    expected = sum(weights[j] * vectors[j].astype(np.float64) for j in range(3))
    np.testing.assert_allclose(here, expected, rtol=0, atol=1e-6)  # numbers of a few units
