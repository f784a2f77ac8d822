"""The operator's policy: what an update becomes, what leaves a node, and what is no policy."""

from __future__ import annotations

import re
from functools import partial

import numpy as np
import pytest

from flower_dhb import ConfigError, HeavyBall, PayloadError
from flower_dhb.agent.node import Node
from flower_dhb.agent.policy import Policy
from flower_dhb.flower.noise import gaussian
from flower_dhb.types import Layout

LAYOUT = Layout.of({"w": np.zeros(3, np.float32)})
WITH_STATISTICS = Layout.of(
    {
        "w": np.zeros(2, np.float32),
        "bn.running_mean": np.zeros(2, np.float32),
        "bn.running_var": np.ones(2, np.float32),
    }
)
NOTHING = np.zeros(0, np.float32)


def bounded(policy, before, trained, draw=gaussian):
    x, z = (np.array(vector, np.float32) for vector in (before, trained))
    return policy.bounded(LAYOUT, (x, NOTHING), (z, NOTHING), draw)[0]


def test_a_long_update_is_shortened_to_the_norm_and_keeps_its_direction():
    found = bounded(Policy(clip=1.0), [1, 1, 1], [1 + 3, 1, 1 - 4])
    np.testing.assert_allclose(found, [1.6, 1, 0.2], rtol=1e-6)  # float32


def test_what_is_short_enough_comes_back_to_the_bit():
    z = np.array([0.1, 0.2, 0.3], np.float32)
    for x in (z, np.zeros(3, np.float32)):  # an app that does nothing among them
        found, _ = Policy(clip=1.0).bounded(LAYOUT, (x, NOTHING), (z, NOTHING), gaussian)
        assert found is z


def test_noise_is_added_after_clipping_in_units_of_the_norm():
    policy = Policy(clip=2.0, noise=0.25)
    found = bounded(policy, [0, 0, 0], [6, 0, 8], draw=lambda n: np.arange(n, dtype=float))
    np.testing.assert_allclose(found, [1.2, 0.5, 1.6 + 2 * 0.5], rtol=1e-6)  # float32


def test_statistics_count_and_are_noised_and_a_variance_stays_above_zero():
    before = (np.zeros(2, np.float32), np.array([0, 0, 1, 1], np.float32))
    trained = (np.array([3, 0], np.float32), np.array([0, 4, 1, 1], np.float32))
    policy = Policy(clip=1.0, noise=2.0)
    z, s = policy.bounded(WITH_STATISTICS, before, trained, lambda n: -np.ones(n))
    np.testing.assert_allclose(z, [0.6 - 2, -2], rtol=1e-6)  # float32
    np.testing.assert_allclose(s, [-2, 0.8 - 2, 0, 0], rtol=1e-6)  # float32
    layout = Layout.of({"0": np.zeros(2), "1": np.ones(2)}, [1])
    one = np.ones(2)
    with pytest.raises(PayloadError, match="array '1' has a number for its name"):
        policy.bounded(layout, (one, one), (one, one), gaussian)
    Policy(clip=1.0).bounded(
        layout, (one, one), (one, 9 * one), gaussian
    )  # a mean of two needs no name


def test_an_update_beyond_all_numbers_is_refused():
    layout = Layout.of({"w": np.zeros(2)})
    far = np.full(2, 1e300)
    with pytest.raises(PayloadError, match="too long to be clipped"):
        Policy(clip=1.0).bounded(layout, (-far, np.zeros(0)), (far, np.zeros(0)), gaussian)


def test_the_noise_is_normal_new_each_time_and_never_from_a_seed():
    np.random.seed(3)  # what an app may do
    a = gaussian(200_001)
    np.random.seed(3)
    b = gaussian(200_001)
    assert a.shape == (200_001,)
    assert not np.any(a == b)
    # Five standard errors of mean, variance and fourth moment of so many normal values.
    error = 5 / np.sqrt(len(a))
    assert abs(a.mean()) < error
    assert abs(a.var() - 1) < error * np.sqrt(2)
    assert abs(np.mean(a**4) - 3) < error * np.sqrt(96)
    assert abs(np.corrcoef(a, b)[0, 1]) < error
    assert abs(np.corrcoef(a[:100_000], a[100_001:200_001])[0, 1]) < 2 * error


def test_a_node_keeps_and_sends_the_bounded_update_alone():
    arrays = {"w": np.zeros(2)}
    node = Node.start(0, HeavyBall(), {0: 0.5, 1: 0.5}, Layout.of(arrays), arrays)
    bound = partial(Policy(clip=5.0).bounded, draw=gaussian)
    payload = node.adapt(1, {"w": np.array([30.0, 40.0])}, bound)
    np.testing.assert_allclose(payload["folded"], [3, 4])
    node.combine()
    np.testing.assert_allclose(node.parameters, [3, 4])
    with pytest.raises(PayloadError, match="round 2, agent 0: 'w' holds"):
        node.adapt(2, {"w": np.array([np.nan, 0.0])}, bound)


# --- how it is written ---------------------------------------------------------------------

DIGEST = "0f" * 32


def test_a_table_and_a_node_config_say_the_same():
    table = {
        "clip": 1,
        "noise": 0.5,
        "payload-bytes": 1000,
        "metrics": ["num-examples", "loss"],
        "apps": [DIGEST],
        "installation": False,
    }
    flat = {
        "vertex": 3,
        "policy-clip": 1,
        "policy-noise": 0.5,
        "policy-payload-bytes": 1000,
        "policy-metrics": "num-examples, loss",
        "policy-apps": DIGEST,
        "policy-installation": False,
    }
    policy = Policy.of_table(table)
    assert policy == Policy.of_node_config(flat)
    assert policy.on
    assert str(policy) == (
        "clip 1; noise 0.5; payloads of at most 1000 bytes; metrics num-examples, loss; "
        "1 allowed app; no installation"
    )
    none = Policy.of_node_config({"vertex": 3, "policy-metrics": ""})
    assert (none.lets_out("loss"), str(none)) == (False, "metrics none")
    assert Policy.of_node_config({"vertex": 3}) == Policy()
    assert (Policy().on, str(Policy())) == (False, "")


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ([], "[policy] must be a table, got []"),
        ({"clipping": 1.0}, "unknown key of [policy] 'clipping', did you mean 'clip'?"),
        *(({"clip": bad}, "clip must be a number, above 0") for bad in (0, -1, "1", True, np.nan)),
        *(({"clip": 1, "noise": bad}, "noise must be a number, 0 or more") for bad in (-1, np.inf)),
        ({"noise": 1.0}, "noise is measured in units of clip"),
        *(({"payload-bytes": bad}, "payload-bytes must be an integer") for bad in (0, 1.5, True)),
        ({"metrics": "loss"}, "metrics must be a list of texts, got 'loss'"),
        ({"metrics": [1]}, "metrics must be a list of texts"),
        ({"apps": ["abc"]}, "apps are SHA-256 digests of 64 hexadecimal digits, got 'abc'"),
        ({"installation": "no"}, "installation must be true or false, got 'no'"),
    ],
)
def test_what_is_no_policy_is_refused_where_it_is_read(table, told):
    with pytest.raises(ConfigError, match=re.escape(told)):
        Policy.of_table(table)


def test_a_key_of_the_node_config_that_nobody_reads_is_refused():
    with pytest.raises(ConfigError, match="'policy-clipp', did you mean 'policy-clip'"):
        Policy.of_node_config({"policy-clipp": 1.0})
    with pytest.raises(ConfigError, match="policy-apps must be a text"):
        Policy.of_node_config({"policy-apps": 3})


def test_limits_say_what_was_found():
    policy = Policy(payload_bytes=10, apps=(DIGEST,))
    policy.check_payload(10, "a payload")
    with pytest.raises(PayloadError, match="a payload has 11 bytes, and this node's policy lets"):
        policy.check_payload(11, "a payload")
    policy.check_app(DIGEST)
    with pytest.raises(ConfigError, match="does not allow the app with the digest abc"):
        policy.check_app("abc")
    Policy().check_app("abc")
