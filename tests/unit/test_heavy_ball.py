"""Settings of the rules: defaults, what they send, and combinations that do not exist."""

import numpy as np
import pytest

from flower_dhb import DSGD, ConfigError, HeavyBall, algorithm_from_config


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, (0.9, 0.5, "displacement", "adapt-then-combine", "folded")),
        (
            {"order": "combine-then-adapt"},
            (0.9, 0.5, "displacement", "combine-then-adapt", "folded"),
        ),
        ({"form": "buffer"}, (0.9, 1.0, "buffer", "adapt-then-combine", "separate")),
        (
            {"form": "buffer", "order": "combine-then-adapt"},
            (0.9, 0.5, "buffer", "combine-then-adapt", "separate"),
        ),
        ({"form": "tracking"}, (0.9, 0.5, "tracking", "adapt-then-combine", "folded")),
        (
            {"form": "buffer", "momentum_mixing": 0},
            (0.9, 0.0, "buffer", "adapt-then-combine", "separate"),
        ),
    ],
)
def test_defaults(settings, expected):
    rule = HeavyBall(**settings)
    assert (rule.momentum, rule.momentum_mixing, rule.form, rule.order, rule.payload) == expected


@pytest.mark.parametrize(
    ("rule", "vectors"),
    [
        (HeavyBall(), ("folded",)),
        (HeavyBall(payload="separate"), ("parameters", "momentum")),
        (HeavyBall(form="tracking"), ("folded", "tracker")),
        (HeavyBall(form="tracking", payload="separate"), ("parameters", "momentum", "tracker")),
        (HeavyBall(form="buffer"), ("parameters", "momentum")),
        # A momentum that no neighbor would use stays at home.
        (HeavyBall(form="buffer", momentum_mixing=0), ("parameters",)),
        (HeavyBall(form="buffer", momentum=0), ("parameters",)),
        (DSGD(), ("parameters",)),
    ],
    ids=str,
)
def test_what_a_payload_carries(rule, vectors):
    assert rule.vectors == vectors


def test_the_folded_payload_is_parameters_plus_the_mixed_part_of_the_momentum():
    """z = (8, 2), d = (16, -32), momentum 1/2, momentum mixing 1/4: z + d / 8."""
    rule = HeavyBall(momentum=0.5, momentum_mixing=0.25)
    state = rule.start(np.zeros(2))
    state.memory["displacement"][:] = [16, -32]
    np.testing.assert_array_equal(rule.outgoing(state, np.array([8.0, 2.0]))["folded"], [10, -2])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"momentum": 1}, r"momentum must be a number in \[0, 1\), got 1"),
        ({"momentum": float("nan")}, r"momentum must be a number in \[0, 1\), got nan"),
        ({"momentum": "0.9"}, "momentum must be a number"),
        ({"momentum": None}, "momentum must be a number"),
        ({"momentum_mixing": -0.1}, r"momentum_mixing must be a number in \[0, 1\], got -0.1"),
        ({"momentum_mixing": False}, "momentum_mixing must be a number"),
        ({"form": "polyak"}, "form must be one of displacement, buffer, tracking; got 'polyak'"),
        ({"order": ""}, "order must be one of"),
        ({"payload": "zip"}, "payload must be one of folded, separate; got 'zip'"),
        ({"form": "buffer", "payload": "folded"}, "use payload='separate' or form='displacement'"),
        ({"form": "tracking", "order": "combine-then-adapt"}, "'tracking' is adapt-then-combine"),
    ],
)
def test_settings_that_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        HeavyBall(**settings)


def test_dsgd_knows_two_orders():
    with pytest.raises(ConfigError, match="order must be one of adapt-then-combine, combine"):
        DSGD(order="both")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"name": "dmsdg"}, "unknown algorithm 'dmsdg', did you mean 'dmsgd'"),
        ({}, "unknown algorithm 'None'"),
        ({"name": "dsgd", "momentum": 0.9}, "unknown setting of dsgd 'momentum'"),
        ({"name": "dmsgd", "momentun": 0.9}, "did you mean 'momentum'"),
        ({"name": "dmsgd", "momentum": 2}, "momentum must be a number in"),
    ],
)
def test_configs_that_name_no_rule(config, message):
    with pytest.raises(ConfigError, match=message):
        algorithm_from_config(config)


def test_a_config_may_leave_settings_out():
    assert algorithm_from_config({"name": "dmsgd", "form": "buffer"}) == HeavyBall(form="buffer")
