"""What holds when a user says nothing: a default that changes is a change that users notice."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pkgutil

import numpy as np
import pytest

import flower_dhb
from flower_dhb.algorithms import ALGORITHMS, DSGD, Algorithm, PushSum
from flower_dhb.errors import ConfigError

DEFAULTS = {
    "algorithms.CDMSGD": "momentum=0.9, nesterov=False",
    "algorithms.Centralized": "momentum=0.9",
    "algorithms.DecentLaM": "momentum=0.9",
    "algorithms.DSGD": "order='adapt-then-combine'",
    "algorithms.DiLoCo": "outer_rate=0.7, momentum=0.9",
    "algorithms.ExactDiffusion": "momentum=0.0, lazy=True",
    "algorithms.GASLoC": "outer_rate=0.7, momentum=0.9, momentum_mixing=0.0",
    "algorithms.GlobalUpdateTracking": "tracking=0.9",
    "algorithms.GradientTracking": "order='adapt-then-combine'",
    "algorithms.HeavyBall": (
        "momentum=0.9, momentum_mixing=None, form='displacement', order='adapt-then-combine', "
        "payload=None"
    ),
    "algorithms.MoTEF": "momentum=0.9, consensus_rate=1.0",
    "algorithms.MomentumTracking": "momentum=0.9",
    "algorithms.NoLoCo": "outer_rate=0.7, momentum=0.5, consensus_rate=None",
    "algorithms.QuasiGlobal": "momentum=0.9, nesterov=False",
    "compare.runs.Run": ("compression='none', failures=0.0, attack='', attackers=1, attack_from=1"),
    "runs.config.RunConfig": (
        "rounds=100, share_every=1, seed=0, round_timeout_s=300.0, evaluate_every=1, "
        "transport='relay', "
        "observe_average=False, encryption='none', compression='none', bind_nodes=False, name='run'"
    ),
    "engine.engine.Engine": (
        "learning_rate=0.1, schedule='constant', rounds=None, missing=None, mixing='auto', "
        "device='cpu', compression='none', attack=None"
    ),
    "engine.mixer.Mixer": "kind='auto'",
    "engine.mixer.prefers_sparse": "device='cpu'",
    "problems.averaging.Averaging.random": "size=1000, seed=0",
    "problems.averaging.Averaging.local_step": "learning_rate=0.0",
    "problems.logistic.LogisticRegression.breast_cancer": "how='iid', penalty=0.01, seed=0",
    "problems.logistic.LogisticRegression.synthetic": (
        "samples=50, size=10, heterogeneity=1.0, penalty=0.01, seed=0"
    ),
    "problems.quadratic.Quadratic.random": (
        "size=10, condition=10.0, heterogeneity=1.0, curvature_spread=0.0, seed=0"
    ),
    "topology.weights.lazy": "weights='metropolis'",
}

# Records that grow while something goes on; everything else is a value.
GROW = {
    *("Agents", "RoundRecord", "Session", "ServerlessResult", "Health"),
    *("Attackers", "Guards"),
    *("AnalyticTask", "Bench", "Edge", "PeerStatus", "Round", "RunLog", "Transport", "Watch"),
    *("Group", "Owed", "Replay", "Spans"),
}


def found(name: str) -> object:
    """What a dotted name below the package stands for."""
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            value: object = importlib.import_module("flower_dhb." + ".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for part in parts[cut:]:
            value = getattr(value, part)
        return value
    raise AssertionError(name)


@pytest.mark.parametrize("name", DEFAULTS)
def test_defaults(name: str) -> None:
    parameters = inspect.signature(found(name)).parameters.values()  # type: ignore[arg-type]
    said = [f"{p.name}={p.default!r}" for p in parameters if p.default is not p.empty]
    expected = DEFAULTS[name]
    if name.startswith("algorithms."):  # every rule has these two
        expected = f"clipping='off', screening='on', {expected}"
    assert ", ".join(said) == expected


RULES = [rule for rule in ALGORITHMS.values() if rule.__module__.startswith("flower_dhb.")]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_settings_of_a_rule_are_named_and_so_are_wrong_ones(rule: type[Algorithm]) -> None:
    wrong = {"momentum": 1.0, "nesterov": 1, "lazy": "no", "order": "first", "form": "x"}
    for setting in inspect.signature(rule).parameters:
        if setting in wrong:
            with pytest.raises(ConfigError, match=f"^{setting} must be .*got"):
                rule(**{setting: wrong[setting]})  # type: ignore[call-arg]
        with pytest.raises(TypeError, match="positional"):
            rule(0.5)  # type: ignore[call-arg]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_numpys_numbers_and_texts_become_pythons(rule: type[Algorithm]) -> None:
    """A NumPy float would lift float32 vectors to its own precision."""
    settings = inspect.signature(rule).parameters
    given = {
        "momentum": np.float64(0.5),
        "order": np.str_("adapt-then-combine"),
        "lazy": np.bool_(True),
    }
    made = rule(**{name: value for name, value in given.items() if name in settings})
    for name in set(given) & set(settings):
        assert type(getattr(made, name)) in (float, str, bool)


def test_names_of_rules_are_what_configs_checkpoints_and_messages_say() -> None:
    names = {
        *("cdmsgd", "centralized", "decentlam", "dsgd", "exact-diffusion", "dsgt", "dmsgd"),
        *("momentum-tracking", "sgp", "qg", "gasloc", "noloco", "diloco", "gut", "motef"),
    }
    found = {name: rule for name, rule in ALGORITHMS.items() if rule in RULES}
    assert names <= set(found)
    assert all(rule.name == name for name, rule in found.items())
    others = {name for name, rule in found.items() if rule.graph != "undirected"}
    assert others == {"centralized", "diloco", "sgp"}
    assert PushSum().preserves_average is False
    assert DSGD().preserves_average is True


def dataclasses_of_the_package():
    for info in pkgutil.walk_packages(flower_dhb.__path__, "flower_dhb."):
        if info.name.endswith(("__main__", "relay_pb2")):
            continue
        module = importlib.import_module(info.name)
        for value in vars(module).values():
            named = isinstance(value, type) and value.__module__ == info.name
            if named and dataclasses.is_dataclass(value):
                yield value


def test_configurations_messages_and_results_are_values() -> None:
    """Nobody changes a rule, a topology's plan or a payload's header that another one holds."""
    grow = {c.__name__ for c in dataclasses_of_the_package() if not c.__dataclass_params__.frozen}
    public = {name for name in grow if not name.startswith("_")}
    assert public <= GROW, f"not frozen: {sorted(public - GROW)}"
