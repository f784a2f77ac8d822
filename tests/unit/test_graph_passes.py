"""Passes over traced steps: fewer operations, the same numbers, and nothing drawn twice at once."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from flower_dhb.engine.graph_passes import (
    apply_updates,
    call_directly,
    fold_constants,
    fuse_bias,
    is_random,
    simplify,
)

CPU = torch.device("cpu")


def numbers(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def operations(module):
    names = [node.name for node in module.graph.nodes if node.op == "call_function"]
    return [
        name.partition("_default")[0].partition("__tensor")[0].rstrip("_0123456789")
        for name in names
    ]


def passed(function, inputs, *passes):
    """The traced function after the passes, whose outputs are still the function's own."""
    module = make_fx(function)(*inputs)
    before = function(*inputs)
    for one in passes:
        one(module)
    module.recompile()
    for found, expected in zip(module(*inputs), before, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-14, atol=1e-14)
        assert found.dtype == expected.dtype
        assert found.shape == expected.shape
    return module


# --- simplify ---------------------------------------------------------------------------------


X = numbers(2, 3, 4)

IDENTITIES = {
    "detach": lambda x: [x.exp().detach()],
    "view to its own shape": lambda x: [x.exp().view(2, 3, 4)],
    "expand to its own shape": lambda x: [x.exp().expand(2, 3, 4)],
    "times one": lambda x: [torch.ops.aten.mul.Scalar(x.exp(), 1)],
    "two swaps": lambda x: [x.exp().transpose(1, 2).transpose(1, 2)],
    "two swaps of the first": lambda x: [x.exp().transpose(0, 1).transpose(0, 1)],
    "not used": lambda x: [x.exp(), x.sin()][:1],
    "twice the same": lambda x: [x.exp() * 1.0, x.exp() * 1.0][:1],
}


@pytest.mark.parametrize("case", IDENTITIES)
def test_what_changes_nothing_goes(case):
    module = passed(IDENTITIES[case], [X], simplify)
    assert operations(module) in (["exp"], ["exp", "mul"])


OTHERS = {
    "view": (lambda x: [x.view(6, 4).exp()], ["view", "exp"]),
    "expand": (lambda x: [x[:, :, :1].expand(2, 3, 4).exp()], ["slice", "expand", "exp"]),
    "times two": (lambda x: [torch.ops.aten.mul.Scalar(x, 2)], ["mul"]),
    "other swaps": (
        lambda x: [x.transpose(1, 2).transpose(0, 1).exp()],
        ["transpose", "transpose", "exp"],
    ),
    "times 1 and times 1.0": (lambda x: [x * 1, x * 1.0], ["mul", "mul"]),
    "other arguments": (lambda x: [x.sum(0), x.sum(1)], ["sum", "sum"]),
    "other keywords": (
        lambda x: [x.add(x, alpha=2), x.add(x, alpha=3)],
        ["add", "add"],
    ),
}


@pytest.mark.parametrize("case", OTHERS)
def test_what_changes_something_stays(case):
    function, expected = OTHERS[case]
    assert operations(passed(function, [X], simplify)) == expected


def test_a_chain_goes_completely():
    """What is left after one pass may itself change nothing, or be there twice."""

    def chain(x):
        a = x.exp().transpose(1, 2).detach().transpose(1, 2).view(2, 3, 4)
        b = x.exp().view(2, 3, 4).detach()
        return [a.sin() + b.sin()]

    assert operations(passed(chain, [X], simplify)) == ["exp", "sin", "add"]


def test_another_dtype_is_another_value():
    def function(x):
        return [torch.ops.aten.mul.Scalar(x.to(torch.int64), 1.0)]

    module = passed(function, [X * 10], simplify)
    assert operations(module)[-1] == "mul"


def test_two_draws_are_not_one_and_writing_twice_is_not_once():
    def draws(x):
        return [torch.rand_like(x), torch.rand_like(x)]

    module = make_fx(draws)(X)
    simplify(module)
    assert operations(module) == ["rand_like", "rand_like"]
    assert is_random(module.graph)
    assert not is_random(make_fx(IDENTITIES["detach"])(X).graph)

    def writes(x):
        y = x.clone()
        y.add_(1.0)
        y.add_(1.0)
        return [y]

    torch.testing.assert_close(passed(writes, [X], simplify)(X)[0], X + 2)


# --- constants ----------------------------------------------------------------------------------


def test_what_depends_on_no_input_is_computed_once():
    def function(x):
        fixed = torch.zeros_like(x.exp()) + torch.full((2, 1, 1), 3.0, dtype=x.dtype)
        return [x * (fixed + torch.ones_like(x.sin()) * 2).cos()]

    module = passed(function, [X], lambda module: fold_constants(module, CPU))
    assert operations(module) == ["mul"]
    expected = torch.full((2, 3, 4), 5.0, dtype=torch.float64).cos()
    (constant,) = [b for name, b in module.named_buffers() if name.startswith("constant_")]
    torch.testing.assert_close(constant, expected)
    # Only the shape of x entered: it holds for all other values too.
    torch.testing.assert_close(module(X + 1)[0], (X + 1) * expected)


def test_a_constant_that_is_also_an_output_is_kept():
    module = passed(lambda x: [torch.ones_like(x), torch.ones_like(x) * 2 + x], [X], fold)
    assert operations(module) == ["add"]


def fold(module):
    fold_constants(module, CPU)


def test_random_numbers_are_no_constants():
    def draws(x):
        return [x + torch.rand_like(torch.ones_like(x))]

    module = make_fx(draws)(X)
    fold(module)
    module.recompile()
    torch.manual_seed(0)
    first = module(X)[0]
    assert not torch.equal(module(X)[0], first)


# --- bias -----------------------------------------------------------------------------------------

A, B, BIAS = numbers(2, 3, 4, seed=1), numbers(2, 4, 5, seed=2), numbers(2, 1, 5, seed=3)


@pytest.mark.parametrize(
    "function", [lambda a, b, c: [c + a.bmm(b)], lambda a, b, c: [a.bmm(b) + c]]
)
def test_a_bias_joins_its_product(function):
    assert operations(passed(function, [A, B, BIAS], fuse_bias)) == ["baddbmm"]


def test_a_product_that_is_used_elsewhere_stays():
    def function(a, b, c):
        product = a.bmm(b)
        return [c + product, product.exp()]

    assert operations(passed(function, [A, B, BIAS], fuse_bias)) == ["bmm", "add", "exp"]


@pytest.mark.parametrize(
    ("function", "bias"),
    [
        (lambda a, b, c: [c + a.bmm(b)], numbers(7, 1, 1, 1)),  # the sum is larger than the product
        (lambda a, b, c: [torch.add(c, a.bmm(b), alpha=2)], BIAS),
        (lambda a, b, c: [c + a.bmm(b)], BIAS.float()),
        (lambda a, b, c: [c + a.bmm(b).exp()], BIAS),
        (lambda a, b, c: [a.bmm(b) + 1.5], BIAS),
        (lambda a, b, c: [a.bmm(b) - c], BIAS),
    ],
)
def test_sums_that_are_no_bias_stay(function, bias):
    assert "baddbmm" not in operations(passed(function, [A, B, bias], fuse_bias))


def test_one_of_two_products_takes_the_other_as_its_bias():
    module = passed(lambda a, b, c: [a.bmm(b) + (a + 1).bmm(b)], [A, B, BIAS], fuse_bias)
    assert sorted(operations(module)) == ["add", "baddbmm", "bmm"]


# --- updates --------------------------------------------------------------------------------------


def updated(function, parameters, others, step=-0.5):
    """The module with its updates, run on copies; checked against gradients applied by hand."""
    inputs = [*parameters, *others]
    module = make_fx(function)(*inputs)
    results = function(*inputs)
    gradients, rest = results[: len(parameters)], results[len(parameters) :]
    apply_updates(module, len(parameters))
    call_directly(module)
    module.recompile()
    own = copy.deepcopy(parameters)
    found = module(*own, *others, step)
    for new, old, gradient in zip(own, parameters, gradients, strict=True):
        expected = old if gradient is None else old + step * gradient
        torch.testing.assert_close(new, expected, rtol=1e-13, atol=1e-13)
    for one, expected in zip(found, rest, strict=True):
        torch.testing.assert_close(one, expected, rtol=1e-13, atol=1e-13)
    return module


W = numbers(2, 4, 5, seed=4)


def test_gradients_are_added_where_the_parameters_lie():
    module = updated(lambda w, x: [w * 2 + x.sum(), w.sum()], [W], [X])
    assert operations(module) == ["mul", "sum", "add", "sum", "add"]


def test_a_parameter_is_read_by_all_who_need_it_before_it_changes():
    """Through views too: the second gradient reads the first parameter."""

    def function(v, w, x):
        return [v.exp(), w * v.transpose(1, 2).transpose(1, 2), v.view(2, 20).sum(1), x + v]

    updated(function, [W, numbers(2, 4, 5, seed=5)], [numbers(2, 4, 5, seed=6)])


@pytest.mark.parametrize(
    ("function", "shape"),
    [
        (lambda w, a, b: [a.transpose(1, 2).bmm(b)], (2, 4, 5)),
        (lambda w, a, b: [b.transpose(1, 2).bmm(a).transpose(1, 2)], (2, 4, 5)),
        (lambda w, a, b: [b.transpose(1, 2).bmm(a)], (2, 5, 4)),
        (lambda w, a, b: [a.transpose(1, 2).bmm(b).transpose(2, 1)], (2, 5, 4)),
        (lambda w, a, b: [a.transpose(1, 2).bmm(b).transpose(1, 2).transpose(1, 2)], (2, 4, 5)),
    ],
)
def test_a_product_adds_straight_into_its_weight(function, shape):
    module = updated(function, [numbers(*shape)], [A, numbers(2, 3, 5, seed=7)])
    # The product is not stored: one fused operation instead of a product and a sum.
    assert [name for name in operations(module) if name in ("bmm", "add")] == []
    assert any(name.startswith("baddbmm") for name in operations(module))


@pytest.mark.parametrize(
    "function",
    [
        lambda w, a, b: [a.transpose(1, 2).bmm(b), a.transpose(1, 2).bmm(b).sum()],
        lambda w, a, b: [w * a.transpose(1, 2).bmm(b)],
        lambda w, a, b: [(a.transpose(1, 2).bmm(b) * 2).transpose(0, 1).transpose(0, 1)],
        lambda w, a, b: [a.transpose(1, 2).bmm(b).transpose(0, 2).transpose(0, 2)],
    ],
)
def test_gradients_that_are_more_than_a_product(function):
    updated(function, [W], [A, numbers(2, 3, 5, seed=7)])


def test_a_product_that_is_an_output_too_is_not_lost():
    def function(w, a, b):
        product = a.transpose(1, 2).bmm(b)
        return [product, product]

    updated(function, [W], [A, numbers(2, 3, 5, seed=7)])


def test_a_product_of_the_parameter_itself_uses_the_old_one():
    updated(lambda w, a: [w.bmm(a), w.sum(2)], [numbers(2, 4, 4)], [numbers(2, 4, 4, seed=1)])


PARAMETERS = {
    "each other's factors": lambda u, v, x: [x.bmm(v.transpose(1, 2)), u.transpose(1, 2).bmm(x)],
    "each other": lambda u, v, x: [v, u],
    "a view of each other": lambda u, v, x: [v.transpose(1, 2).transpose(1, 2), u.view(2, 4, 4)],
    "each other swapped": lambda u, v, x: [v.transpose(1, 2), u.transpose(1, 2)],
    "itself": lambda u, v, x: [u, v.transpose(1, 2)],
    "a factor of itself": lambda u, v, x: [u.bmm(x), x.bmm(v)],
}


@pytest.mark.parametrize("case", PARAMETERS)
def test_gradients_made_of_parameters_are_made_of_the_old_ones(case):
    """In a factorization u v the gradient of u is a product with v: no update may come between."""
    updated(
        PARAMETERS[case], [numbers(2, 4, 4), numbers(2, 4, 4, seed=1)], [numbers(2, 4, 4, seed=2)]
    )


def test_call_directly_keeps_every_number():
    def function(a, b, c):
        scores = torch.log_softmax(c + a.bmm(b), dim=-1)
        return [scores.relu().transpose(1, 2).unsqueeze(0).clone().sum([0]) * 2, scores]

    module = passed(function, [A, B, BIAS], call_directly)
    left = [node.target for node in module.graph.nodes if node.op == "call_function"]
    assert torch.bmm in left
    assert torch.ops.aten.bmm.default not in left
