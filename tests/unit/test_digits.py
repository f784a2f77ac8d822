"""The digits: always the same three parts, and models whose weights come from their seed."""

import numpy as np
import pytest
import torch

from flower_dhb import ConfigError
from flower_dhb.problems.digits import MODELS, load_digits, make_model


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
    assert sum(p.numel() for p in model.parameters()) == parameters
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
