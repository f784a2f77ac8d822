"""The digits: always the same three parts, and models whose weights come from their seed."""

import numpy as np
import pytest
import torch

from flower_dhb import ConfigError
from flower_dhb.problems.digits import load_digits
from flower_dhb.problems.models import MODELS, make_model, n_parameters


def test_three_disjoint_parts_hold_all_digits():
    digits = load_digits()
    parts = [digits.train_x, digits.validation_x, digits.test_x]
    labels = torch.cat([digits.train_y, digits.validation_y, digits.test_y])
    assert [len(part) for part in parts] == [1200, 237, 360]
    # scikit-learn's own counts of the digits 0 to 9
    assert np.bincount(labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    # The set holds no image twice, so a repeated one would mean overlapping parts.
    assert len(torch.unique(torch.cat(parts), dim=0)) == 1797


def test_images_are_flat_and_standardized_by_the_training_pixels():
    digits = load_digits()
    assert digits.train_x.shape == (1200, 64)
    assert digits.train_x.dtype == torch.float32
    # float32 means of 76,800 pixels near 1; other parts differ by chance, not by their own scale.
    assert digits.train_x.mean() == pytest.approx(0, abs=1e-5)
    assert digits.train_x.std() == pytest.approx(1, abs=1e-5)
    assert 1e-4 < abs(digits.test_x.mean()) < 0.1


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("logistic", 64 * 10 + 10),
        ("mlp", 64 * 32 + 32 + 32 * 10 + 10),
        ("cnn", (9 * 8 + 8) + (8 * 9 * 16 + 16) + (256 * 10 + 10)),
    ],
)
def test_models_have_the_documented_size_and_ten_outputs(name, parameters):
    model = make_model(name, seed=0)
    assert sum(p.numel() for p in model.parameters()) == parameters == n_parameters(name)
    assert model(load_digits().train_x[:5]).shape == (5, 10)


@pytest.mark.parametrize("name", MODELS)
def test_weights_come_from_the_seed_alone(name):
    def weights(seed):
        return torch.nn.utils.parameters_to_vector(make_model(name, seed).parameters())

    before = torch.random.get_rng_state()
    first = weights(1)
    torch.testing.assert_close(torch.random.get_rng_state(), before, rtol=0, atol=0)
    torch.rand(3)
    assert torch.equal(weights(1), first)
    assert not torch.equal(weights(2), first)


def test_unknown_model():
    with pytest.raises(ConfigError, match="unknown model 'mpl', did you mean 'mlp'"):
        make_model("mpl", seed=0)
    with pytest.raises(ConfigError, match="unknown model 'mpl', did you mean 'mlp'"):
        n_parameters("mpl")


def test_the_division_is_fixed_and_pixels_stay_with_their_labels():
    """The same three parts in every release: results are compared across them."""
    from sklearn import datasets

    images, labels = datasets.load_digits(return_X_y=True)
    order = np.random.default_rng(2021).permutation(1797)
    digits = load_digits()
    train = images[order[:1200]] / 16
    mean, deviation = train.mean(), train.std(ddof=1)
    for begin, end, x, y in (
        (0, 1200, digits.train_x, digits.train_y),
        (1200, 1437, digits.validation_x, digits.validation_y),
        (1437, 1797, digits.test_x, digits.test_y),
    ):
        expected = (images[order[begin:end]] / 16 - mean) / deviation
        np.testing.assert_allclose(x.numpy(), expected, atol=1e-5)  # float32 mean and deviation
        np.testing.assert_array_equal(y.numpy(), labels[order[begin:end]])
        assert y.dtype == torch.int64


def test_models_compute_what_their_names_say():
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
    arrays = {name: list(make_model(name, 5).parameters()) for name in MODELS}
    weight, bias = arrays["logistic"]
    torch.testing.assert_close(make_model("logistic", 5)(x), x @ weight.T + bias)
    first, shift, last, end = arrays["mlp"]
    hidden = (x @ first.T + shift).clamp(min=0)
    torch.testing.assert_close(make_model("mlp", 5)(x), hidden @ last.T + end)
    k1, b1, k2, b2, out, b3 = arrays["cnn"]
    images = torch.nn.functional.conv2d(x.view(3, 1, 8, 8), k1, b1, padding=1).clamp(min=0)
    small = images.view(3, 8, 4, 2, 4, 2).amax(dim=(3, 5))
    deep = torch.nn.functional.conv2d(small, k2, b2, padding=1).clamp(min=0)
    torch.testing.assert_close(make_model("cnn", 5)(x), deep.flatten(1) @ out.T + b3)


def test_the_digits_are_read_once():
    assert load_digits() is load_digits()
