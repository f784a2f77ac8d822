"""The same body for one agent and for all, for NumPy and torch, for float32 and float64."""

import numpy as np
import pytest
import torch
from naive import FORMS

from flower_dhb import DSGD, HeavyBall
from flower_dhb.types import State

RULES = [
    *(HeavyBall(momentum_mixing=0.3, form=form, order=order) for form, order in FORMS),
    HeavyBall(momentum_mixing=0.3, payload="separate"),
    HeavyBall(momentum_mixing=0.3, form="tracking", payload="separate"),
    # What a grid search hands in: float64 scalars must not widen float32 vectors.
    HeavyBall(momentum=np.float64(0.9), momentum_mixing=np.float64(0.3)),
    DSGD(),
    DSGD(order="combine-then-adapt"),
]
N, D = 4, 6


def draw(algorithm, dtype):
    rng = np.random.default_rng(3)

    def vectors(names):
        return {name: rng.normal(size=(N, D)).astype(dtype) for name in names}

    x, z = vectors(["x", "z"]).values()
    return State(x, vectors(algorithm.memory)), z, vectors(algorithm.vectors)


def convert(state, trained, mixed, function):
    def each(vectors):
        return {name: function(vector) for name, vector in vectors.items()}

    return State(function(state.parameters), each(state.memory)), function(trained), each(mixed)


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
