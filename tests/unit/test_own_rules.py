"""A rule of one's own: found by its place, its name or a package's; tried; refused with words."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from support.apps import flat, numpy_app, quadratic, quadratic_step, start_arrays
from support.grid import LocalGrid

from flower_dhb import ConfigError, HeavyBall, ServerlessStrategy, Topology, consensus_mod, simulate
from flower_dhb.algorithms import (
    METHODS,
    Algorithm,
    algorithm_from_config,
    known_names,
    method,
    register,
)
from flower_dhb.algorithms.registry import check_relayed, rule_class
from flower_dhb.algorithms.trial import try_out
from flower_dhb.compare.settings import Comparison
from flower_dhb.engine.engine import Engine
from flower_dhb.engine.problem import Analytic
from flower_dhb.peer.device.code import digest_of_folder
from flower_dhb.peer.device.settings import PeerSettings
from flower_dhb.runs.config import RunConfig, known_keys
from flower_dhb.types import State

APP = Path(__file__).parents[1] / "support" / "peer_app"
N, D, ROUNDS, RATE = 7, 5, 9, 0.05
GRAPH = Topology.from_edges([(0, 1), (1, 2), (2, 3), (3, 0), (0, 4), (4, 5), (0, 6), (2, 6)])

MODULE = """
from dataclasses import dataclass
from typing import ClassVar

from flower_dhb.algorithms import DSGD, Algorithm
from flower_dhb.types import State

number = 3


@dataclass(frozen=True, kw_only=True)
class Shrinking(Algorithm):
    share: float = 0.5
    times: int = 2

    name: ClassVar[str] = "shrinking"

    vectors = ("parameters",)
    memory = ()

    def outgoing(self, state, trained):
        step = trained - state.parameters
        return {"parameters": state.parameters + self.share**self.times * step}

    def combine(self, state, trained, mixed):
        return State(mixed["parameters"], {})
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """The name of a new module in a folder of its own, which nobody has imported."""
    name = f"rules_of_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    yield name
    sys.modules.pop(name, None)


# --- the same numbers everywhere ------------------------------------------------------------


def test_a_rule_of_the_apps_own_is_the_same_in_all_runtimes(monkeypatch):
    """It looks at the round and at norms; peers have it in test_peers_same_numbers."""
    monkeypatch.syspath_prepend(APP)
    rule = method("own_rules:Warming:strength=0.8:warmup=2")
    record, start = start_arrays(D)
    step = lambda x, k: quadratic_step(x, *quadratic(N, D), RATE)  # noqa: E731
    # The law once more: each agent's gain by itself.
    x, d, expected = np.tile(start, (N, 1)), np.zeros((N, D)), []
    for k in range(1, ROUNDS + 1):
        z = step(x, k)
        most = np.linalg.norm(z - x, axis=1) / np.where(d.any(1), np.linalg.norm(d, axis=1), 1)
        gain = np.minimum(0.8 * k / (k + 2), most)[:, None]
        x, d = GRAPH.mixing_matrix @ (z + gain * d), x
        d = x - d
        expected.append(x)
    found = simulate(rule, GRAPH, start, step, ROUNDS)
    np.testing.assert_allclose(found[1:], expected, rtol=0, atol=1e-13)
    problem = Analytic(start, lambda x, k: x - step(x, k), n_agents=N)
    engine = Engine(problem, GRAPH, rule, learning_rate=1.0)
    engine.run(ROUNDS)
    np.testing.assert_allclose(engine.parameters.numpy(), expected[-1], rtol=0, atol=1e-13)
    grid = LocalGrid(numpy_app(N, D, rate=RATE, mods=[consensus_mod]), N)
    result = ServerlessStrategy(GRAPH, rule, collect_models=True).start(grid, record, ROUNDS)
    models = np.stack([flat(result.models[vertex]) for vertex in range(N)])
    np.testing.assert_allclose(models, expected[-1], rtol=0, atol=1e-13)


# --- by its place ---------------------------------------------------------------------------


def test_a_rule_is_found_where_its_text_says(module, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rule = method(f"{module}:Shrinking:share=0.25:times=3")
    assert (rule.share, rule.times, type(rule.times)) == (0.25, 3, int)
    config = json.loads(json.dumps(rule.to_config()))
    assert config["name"] == f"{module}:Shrinking"
    assert algorithm_from_config(config) == rule
    check_relayed(rule, GRAPH)
    assert f"{module}:Shrinking" not in known_names()  # nothing was registered


def test_run_config_peers_and_comparisons_take_it_from_the_apps_folder(module, tmp_path):
    values = {"topology": "ring:4", "algorithm": f"{module}:Shrinking", "share": 0.125}
    assert {"share", "times"} <= known_keys(values, str(tmp_path))
    rule = RunConfig.of(values, str(tmp_path)).algorithm
    assert rule == rule_class(f"{module}:Shrinking")(share=0.125)  # type: ignore[call-arg]
    with pytest.raises(ConfigError, match=r"'Shrinking|has no setting 'momentum', got 0.5"):
        RunConfig.of({**values, "momentum": 0.5}, str(tmp_path))
    assert peer(tmp_path, rule.to_config()).algorithm == rule
    comparison = Comparison(
        problem="averaging",
        topologies=["ring:4"],
        splits=[""],
        methods=[f"{module}:Shrinking:share=0.5"],
    )
    (compared,) = comparison.rules.values()
    assert compared.to_config()["name"] == f"{module}:Shrinking"


def peer(folder, config, **changes):
    base = {
        "mesh": "m", "run": "r", "vertex": 0, "rounds": 2, "graph": "g", "app": ".",
        "client-app": "m:app", "start": "s", "state-dir": "state", "own-weight": 0.5,
        "neighbors": [{"vertex": 1, "weight": 0.5, "address": "127.0.0.1:2"}],
        "plaintext": True, "algorithm": config,
    }  # fmt: skip
    return PeerSettings.of(base | changes, folder)


def test_a_devices_policy_comes_before_the_code_of_a_rule(module, tmp_path):
    config = {"name": f"{module}:Shrinking"}
    with pytest.raises(ConfigError, match="policy does not allow the app"):
        peer(tmp_path, config, policy={"apps": ["0" * 64]})
    assert module not in sys.modules
    allowed = {"apps": [digest_of_folder(tmp_path)]}
    assert peer(tmp_path, config, policy=allowed).algorithm.name == "shrinking"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no_such_module_here:Rule", "there is no module 'no_such_module_here' in the current dir"),
        ("{module}:Growing", "has no 'Growing'"),
        ("{module}:number", "is no rule: it must be a subclass of Algorithm"),
        (
            "{module}:Shrinking:shade=1",
            "unknown setting of shrinking 'shade', did you mean 'share'",
        ),
        ("{module}:Shrinking:share", "'share' is not of the form setting=value"),
        ("{module}:", "unknown algorithm"),
        ("dmsgd-gtt:Rule", "did you mean 'dmsgd-gt'"),
    ],
)
def test_what_cannot_be_found_is_said(text, message, module, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=message):
        method(text.format(module=module))


def test_a_module_that_fails_is_named_with_its_error(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "failing_rules.py").write_text("1 / 0")
    with pytest.raises(ConfigError, match=r"'failing_rules' cannot be imported: ZeroDivisionError"):
        method("failing_rules:Rule")


# --- what a message may have imported -------------------------------------------------------


def test_a_message_has_nothing_imported_but_the_apps_own(module, tmp_path, monkeypatch):
    for name in ("antigravity:geohash", "json.tool:main", "pip:main", f"{module}:Shrinking"):
        before = set(sys.modules)
        with pytest.raises(
            ConfigError, match="a message names it, but this agent's app has no mod"
        ):
            algorithm_from_config({"name": name}, from_message=True)
        assert set(sys.modules) == before
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])  # as Flower does for an app
    found = algorithm_from_config({"name": f"{module}:Shrinking"}, from_message=True)
    assert found.name == "shrinking"
    # What is loaded may be named, and is no rule.
    with pytest.raises(ConfigError, match="is no rule"):
        algorithm_from_config({"name": "json:dumps"}, from_message=True)


# --- by a package's name --------------------------------------------------------------------


@pytest.fixture
def package(module, tmp_path, monkeypatch):
    """An installed package that names its rule."""

    def install(points):
        about = tmp_path / "shrinking-1.0.dist-info"
        about.mkdir()
        (about / "METADATA").write_text("Metadata-Version: 2.1\nName: shrinking\nVersion: 1.0\n")
        (about / "entry_points.txt").write_text(f"[flower_dhb.algorithms]\n{points}\n")
        monkeypatch.syspath_prepend(tmp_path)

    yield install
    for name in ("shrinking",):
        METHODS.pop(name, None)
        from flower_dhb.algorithms import ALGORITHMS

        ALGORITHMS.pop(name, None)


def test_a_package_names_its_rules_by_entry_points(package, module):
    package(f"shrinking = {module}:Shrinking")
    assert "shrinking" in known_names()
    assert module not in sys.modules  # no rule is loaded before it is asked for
    rule = method("shrinking:share=0.25")
    assert rule.to_config() == {"name": "shrinking", "share": 0.25, "times": 2}
    assert algorithm_from_config({"name": "shrinking"}, from_message=True).name == "shrinking"
    check_relayed(rule, GRAPH)


@pytest.mark.parametrize(
    ("point", "message"),
    [
        ("shrunk = {module}:Shrinking", "is 'shrinking'; a rule and its entry point must have one"),
        ("shrunk = {module}:nothing", "cannot be loaded: AttributeError"),
    ],
)
def test_an_entry_point_that_is_wrong_is_named(point, message, package, module):
    package(point.format(module=module))
    with pytest.raises(ConfigError, match=message):
        method("shrunk")


# --- what is no rule ------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Base(Algorithm):
    """D-PSGD, which each of those below spoils."""

    vectors = ("parameters",)
    memory = ("last",)

    def outgoing(self, state, trained):
        return {"parameters": trained}

    def combine(self, state, trained, mixed):
        return State(mixed["parameters"], {"last": state.parameters})


def spoiled(**members):
    return dataclass(frozen=True, kw_only=True)(type("Spoiled", (Base,), members))


def combining(function):
    def combine(self, state, trained, mixed):
        return function(state, trained, mixed["parameters"])

    return {"combine": combine}


def late(state, trained, mixed):
    """Not linear, but only from the second round on."""
    x = mixed + 0.5 * abs(trained) if state.round > 3 else mixed
    return State(x, {"last": trained})


WRONG = [
    (spoiled(vectors=()), "'vectors' must be a tuple of names, got \\(\\)"),
    (spoiled(vectors="parameters"), "'vectors' must be a tuple of names"),
    (spoiled(memory=("first",)), "'memory' names \\['first'\\], but combine gives \\['last'\\]"),
    (spoiled(vectors=("x",)), "'vectors' names \\['x'\\], but outgoing gives \\['parameters'\\]"),
    (spoiled(**combining(lambda s, z, m: State(m, {}))), "but combine gives \\[\\]"),
    (spoiled(**combining(lambda s, z, m: m)), "combine must return a State, got ndarray"),
    (
        spoiled(**combining(lambda s, z, m: State(m, {"last": s.memory["lost"]}))),
        "KeyError: 'lost'",
    ),
    (spoiled(**combining(lambda s, z, m: State(m, {"last": m.mean()}))), "'last' .* has the shape"),
    (
        spoiled(**combining(lambda s, z, m: State(m / np.abs(z).max(), {"last": z}))),
        "is not elementwise: 'parameters' .* declares in 'products'",
    ),
    (
        spoiled(**combining(lambda s, z, m: State(m * np.float64(2), {"last": z.astype(float)}))),
        "of float32 parameters is float64",
    ),
    (
        spoiled(linear=True, **combining(lambda s, z, m: State(abs(m), {"last": z}))),
        "declares linear = True, but 'parameters' is no linear function",
    ),
    (
        spoiled(linear=True, **combining(lambda s, z, m: State(m + 1.0, {"last": z}))),
        "declares linear = True, but",
    ),
    (spoiled(linear=True, **combining(late)), "declares linear = True, but"),
    (
        type("Half", (Algorithm,), {"vectors": ("a",)}),
        "no whole rule: it lacks combine, memory, out",
    ),
    (type("Plain", (Base,), {}), "put @dataclass"),
]


@pytest.mark.parametrize(("rule", "message"), WRONG, ids=[message[:40] for _, message in WRONG])
def test_a_rule_that_does_not_keep_to_what_it_declares_is_refused(rule, message):
    rule.name = "spoiled"
    with pytest.raises(ConfigError, match=message):
        register(rule)
    assert "spoiled" not in METHODS


@pytest.mark.parametrize("name", METHODS)
def test_the_rules_of_this_package_would_be_taken(name):
    try_out(method(name))


def test_a_sound_rule_is_taken_and_knows_its_own_name():
    assert Base.name == "Base"
    check_relayed(Base(), GRAPH)  # this module can be imported
    assert Base().to_config() == {"name": f"{__name__}:Base"}
    assert not spoiled(linear=True).registered


def test_a_class_in_place_of_a_rule_is_refused_with_a_hint():
    problem = Analytic(np.zeros((7, 2)), lambda x, k: x)
    for made in (
        lambda: simulate(HeavyBall, GRAPH, np.zeros(2), lambda x, k: x, 1),
        lambda: Engine(problem, GRAPH, HeavyBall),
        lambda: ServerlessStrategy(GRAPH, HeavyBall),
    ):
        with pytest.raises(ConfigError, match=r"did you mean HeavyBall\(\)\?"):
            made()


# --- of the wrong kind, everywhere ----------------------------------------------------------


@pytest.mark.parametrize("name", ["sgp", "centralized", "diloco"])
def test_what_needs_a_server_or_one_way_links_is_refused_where_agents_meet(name, tmp_path):
    rule = method(name)
    for made in (
        lambda: ServerlessStrategy(GRAPH, rule),
        lambda: ServerlessStrategy(Topology.complete(4, "uniform"), name),
        lambda: RunConfig.of({"algorithm": name}),
        lambda: peer(tmp_path, rule.to_config()),
    ):
        with pytest.raises(ConfigError, match=f"'{name}' is made for .*'flower-dhb compare'"):
            made()
    if name != "sgp":
        with pytest.raises(ConfigError, match="averages over all agents"):
            simulate(rule, GRAPH, np.zeros(2), lambda x, k: x, 1)


def test_a_rule_that_diverges_on_a_graph_is_refused_everywhere():
    name = "gut:tracking=0.6"
    torus = Topology.torus(4, 4, "uniform")
    for made in (
        lambda: ServerlessStrategy(torus, name),
        lambda: simulate(method(name), torus, np.zeros(2), lambda x, k: x, 1),
        lambda: Engine(Analytic(np.zeros((16, 2)), lambda x, k: x), torus, method(name)),
        lambda: RunConfig.of({"algorithm": name, "topology": "torus:4x4", "weights": "uniform"}),
        lambda: Comparison(
            problem="averaging", topologies=["torus:4x4"], splits=[""], methods=[name],
            weights="uniform",
        ),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=r"gut with tracking 0\.6 diverges for every step"):
            made()


# --- one vocabulary -------------------------------------------------------------------------


@pytest.mark.parametrize("name", [n for n in METHODS if method(n).relayed])
def test_a_name_is_one_rule_with_the_same_defaults_in_app_and_comparison(name):
    comparison = Comparison(problem="averaging", topologies=["ring:4"], splits=[""], methods=[name])
    (in_comparison,) = comparison.rules.values()
    auto: dict[str, object] = dict.fromkeys(("momentum", "lazy", "order", "form"), "auto")
    in_app = RunConfig.of({"topology": "ring:4", "algorithm": name, **auto}).algorithm
    assert method(name) == in_app == in_comparison
