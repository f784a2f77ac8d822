"""Run config: what is read, and that each bad value is refused with its key."""

import re

import pytest

from flower_dhb import DSGD, ConfigError, GraphError, HeavyBall, RunConfig
from flower_dhb.algorithms import ExactDiffusion
from flower_dhb.runs.config import get_choice, get_number


def test_an_empty_run_config_is_all_defaults():
    config = RunConfig.of({})
    assert config.topology.name == "ring:16"
    assert config.algorithm == HeavyBall(momentum=0.9, momentum_mixing=0.5)
    assert (config.rounds, config.seed, config.round_timeout_s) == (100, 0, 300.0)
    assert (config.evaluate_every, config.observe_average, config.name) == (1, False, "run")


def test_every_key_is_read():
    config = RunConfig.of(
        {
            "topology": "star:5",
            "weights": "lazy",
            "algorithm": "dmsgd",
            "momentum": 0.5,
            "momentum-mixing": 1,
            "form": "buffer",
            "order": "combine-then-adapt",
            "payload": "separate",
            "rounds": 7,
            "seed": 3,
            "round-timeout-s": 0,
            "evaluate-every": 0,
            "observe-average": True,
            "name": "trial",
            "learning-rate": "the app's own keys are left alone",
        }
    )
    assert config.topology.name == "star:5"
    assert config.topology.row(1)[0] == pytest.approx(0.1)  # half of Metropolis' 1/5
    assert config.algorithm == HeavyBall(
        momentum=0.5,
        momentum_mixing=1.0,
        form="buffer",
        order="combine-then-adapt",
        payload="separate",
    )
    assert (config.rounds, config.seed, config.round_timeout_s) == (7, 3, 0.0)
    assert (config.evaluate_every, config.observe_average, config.name) == (0, True, "trial")


def test_auto_is_the_forms_own_default():
    values = dict.fromkeys(["momentum", "momentum-mixing", "order", "payload"], "auto")
    assert RunConfig.of(values | {"form": "buffer"}).algorithm == HeavyBall(form="buffer")


def test_a_setting_that_the_rule_lacks_is_refused_with_those_it_has():
    values = {"algorithm": "dsgd", "order": "combine-then-adapt", "momentum": "auto"}
    assert RunConfig.of(values).algorithm == DSGD(order="combine-then-adapt")
    with pytest.raises(ConfigError, match=r"'dsgd' has no setting 'momentum', got 0\.9.*: order"):
        RunConfig.of(values | {"momentum": 0.9})
    with pytest.raises(ConfigError, match="'dmsgd' has no setting 'lazy'"):
        RunConfig.of({"algorithm": "dmsgd", "lazy": True})


def test_a_key_of_the_app_is_left_alone_where_no_rule_is_named():
    assert RunConfig.of({"lazy": "yes", "nesterov": 3}).algorithm == HeavyBall()


def test_a_rule_is_written_as_in_comparisons():
    values = {"algorithm": "dmsgd-gt:momentum=0.8", "momentum-mixing": 0.25}
    expected = HeavyBall(form="tracking", momentum=0.8, momentum_mixing=0.25)
    assert RunConfig.of(values).algorithm == expected
    hb = RunConfig.of({"algorithm": "exact-diffusion-hb", "lazy": False}).algorithm
    assert hb == ExactDiffusion(momentum=0.9, lazy=False)
    assert RunConfig.of({"algorithm": "exact-diffusion"}).algorithm.momentum == 0.0


@pytest.mark.parametrize(
    ("name", "reason"), [("sgp", "one-way links"), ("centralized", "a server's average")]
)
def test_rules_of_the_engine_alone_are_refused(name, reason):
    with pytest.raises(ConfigError, match=f"'{name}' is made for {reason}.*compare"):
        RunConfig.of({"algorithm": name})


NAN = float("nan")
BAD_VALUES = [
    ({"topology": "rign:16"}, "run config: unknown topology 'rign', did you mean 'ring'?"),
    ({"topology": "ring:2"}, "run config: ring needs at least 3, got 2"),
    ({"topology": 16}, "run config: 'topology' must be a text, got 16"),
    ({"topology": "one-per:8"}, "run config: unknown topology 'one-per', did you mean 'one-peer'?"),
    (
        {"topology": "one-peer-exponental:16"},
        "run config: unknown topology 'one-peer-exponental', did you mean 'one-peer-exponential'?",
    ),
    ({"topology": "bas:6:2"}, "run config: unknown topology 'bas', did you mean 'base'?"),
    ({"topology": "base:6"}, "run config: topology 'base:6' is not of the form base:N:K"),
    ({"share-every": 0}, "run config: 'share-every' must be at least 1, got 0"),
    ({"share-every": "4"}, "run config: 'share-every' must be an integer, got '4'"),
    (
        {"share-every": 20_000},
        "run config: ring:16, shared every 20000 rounds: at most 10,000 graphs take turns",
    ),
    ({"compression": 3}, "run config: 'compression' must be a text, got 3"),
    ({"compression": "int9"}, "run config: unknown compression 'int9', did you mean 'int8'?"),
    ({"compression": "topk"}, "run config: compression 'topk' is not of the form topk:SHARE"),
    (
        {"compression": "topk:0.1@2"},
        "run config: compression 'topk:0.1@2': its rate must be in (0, 1], got 2",
    ),
    ({"weights": "metropolos"}, "run config: unknown weights 'metropolos', did you mean"),
    ({"weights": 1}, "run config: 'weights' must be a text, got 1"),
    ({"algorithm": "dmsdg"}, "run config: unknown algorithm 'dmsdg', did you mean 'dmsgd'"),
    ({"algorithm": None}, "run config: 'algorithm' must be a text, got None"),
    ({"momentum": 1}, "run config: momentum must be a number in [0, 1), got 1"),
    ({"momentum": 1.0}, "run config: momentum must be a number in [0, 1), got 1.0"),
    ({"momentum": -0.1}, "run config: momentum must be a number in [0, 1), got -0.1"),
    ({"momentum": NAN}, "run config: momentum must be a number in [0, 1), got nan"),
    ({"momentum": "0.9"}, "run config: momentum must be a number in [0, 1), got '0.9'"),
    ({"momentum": True}, "run config: momentum must be a number in [0, 1), got True"),
    ({"momentum-mixing": 1.5}, "run config: momentum_mixing must be a number in [0, 1], got 1.5"),
    ({"momentum-mixing": NAN}, "run config: momentum_mixing must be a number in [0, 1], got nan"),
    ({"momentum-mixing": "half"}, "run config: momentum_mixing must be a number in [0, 1]"),
    ({"form": "bufer"}, "run config: form must be one of displacement, buffer, tracking; got"),
    ({"order": "atc"}, "run config: order must be one of adapt-then-combine, combine-then-adapt"),
    ({"payload": "both"}, "run config: payload must be one of folded, separate; got 'both'"),
    (
        {"form": "buffer", "payload": "folded"},
        "run config: form 'buffer' has no folded payload: its update needs the neighbors' momentum",
    ),
    (
        {"form": "tracking", "order": "combine-then-adapt"},
        "run config: form 'tracking' is adapt-then-combine only",
    ),
    ({"rounds": 0}, "run config: 'rounds' must be at least 1, got 0"),
    ({"rounds": 1.5}, "run config: 'rounds' must be an integer, got 1.5"),
    ({"rounds": "10"}, "run config: 'rounds' must be an integer, got '10'"),
    ({"rounds": True}, "run config: 'rounds' must be an integer, got True"),
    ({"seed": -1}, "run config: 'seed' must be at least 0, got -1"),
    ({"round-timeout-s": -1}, "run config: 'round-timeout-s' must be at least 0, got -1"),
    ({"round-timeout-s": NAN}, "run config: 'round-timeout-s' must be at least 0, got nan"),
    (
        {"round-timeout-s": float("inf")},
        "run config: 'round-timeout-s' must be at least 0, got inf",
    ),
    ({"round-timeout-s": "60"}, "run config: 'round-timeout-s' must be a number, got '60'"),
    ({"round-timeout-s": True}, "run config: 'round-timeout-s' must be a number, got True"),
    ({"evaluate-every": -1}, "run config: 'evaluate-every' must be at least 0, got -1"),
    ({"observe-average": 1}, "run config: 'observe-average' must be true or false, got 1"),
    ({"observe-average": "no"}, "run config: 'observe-average' must be true or false, got 'no'"),
    ({"name": 5}, "run config: 'name' must be a text, got 5"),
]


@pytest.mark.parametrize(("values", "message"), BAD_VALUES, ids=lambda v: str(v)[:40])
def test_a_bad_value_is_refused_with_its_key(values, message):
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}"):
        RunConfig.of(values)


def test_a_bad_topology_is_a_graph_error():
    with pytest.raises(GraphError):
        RunConfig.of({"topology": "rign:16"})


def test_a_rule_that_diverges_on_the_graph_is_refused_with_the_graphs_name():
    with pytest.raises(
        ConfigError, match=r"diverges for every step size.*lazy.*\[topology = 'torus:4x4'\]"
    ):
        RunConfig.of({"topology": "torus:4x4", "momentum-mixing": 1.0})
    for remedy in ({"momentum-mixing": 0.5}, {"weights": "lazy", "momentum-mixing": 1.0}):
        assert RunConfig.of({"topology": "torus:4x4"} | remedy).topology.n_agents == 16


def test_a_run_config_is_frozen():
    with pytest.raises(AttributeError):
        RunConfig.of({}).rounds = 5


# --- what apps read their own keys with -----------------------------------------------------


@pytest.mark.parametrize("value", [0.5, 2])
def test_numbers_within_their_bounds_are_floats(value):
    found = get_number({"lr": value}, "lr", 1.0, above=0.0, most=2.0)
    assert (found, type(found)) == (value, float)


def test_an_absent_number_takes_its_default():
    assert get_number({}, "lr", 0.25) == 0.25


@pytest.mark.parametrize(
    ("value", "bounds", "message"),
    [
        (0.0, {"above": 0.0}, "'lr' must be above 0, got 0.0"),
        (3.0, {"above": 0.0, "most": 2.0}, "'lr' must be above 0 and at most 2, got 3.0"),
        (NAN, {}, "'lr' must be finite, got nan"),
        (NAN, {"most": 1.0}, "'lr' must be at most 1, got nan"),
        (float("-inf"), {"most": 1.0}, "'lr' must be at most 1, got -inf"),
    ],
)
def test_numbers_outside_their_bounds(value, bounds, message):
    with pytest.raises(ConfigError, match=message):
        get_number({"lr": value}, "lr", 1.0, **bounds)


def test_choices_offer_the_nearest_match():
    with pytest.raises(ConfigError, match="unknown model 'mpl', did you mean 'mlp'"):
        get_choice({"model": "mpl"}, "model", "cnn", ["cnn", "mlp"])
