"""One suite over all rules: what every one of them must keep, whatever its paper."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from flower_dhb.agent.mixing import combine
from flower_dhb.algorithms import (
    ALGORITHMS,
    METHODS,
    Algorithm,
    HeavyBall,
    algorithm_from_config,
    method,
)
from flower_dhb.algorithms.base import COMPLETE, DIRECTED
from flower_dhb.algorithms.measurement import measured
from flower_dhb.engine.reference import simulate
from flower_dhb.errors import ConfigError
from flower_dhb.problems.averaging import Averaging
from flower_dhb.problems.quadratic import Quadratic
from flower_dhb.topology.graph import Topology
from flower_dhb.topology.weights import lazy
from flower_dhb.types import State

# An irregular graph: no two rows of its mixing matrix are alike.
GRAPH = Topology.from_edges([(0, 1), (0, 2), (0, 3), (1, 2), (3, 4), (4, 5)])
# Other tests register rules of their own.
NAMES = sorted(n for n in METHODS if type(method(n)).__module__.startswith("flower_dhb."))
NEIGHBOR = [name for name in NAMES if method(name).relayed]
RULES = [rule for rule in ALGORITHMS.values() if rule.__module__.startswith("flower_dhb.")]
ROUNDS = 12
NAN = float("nan")


def graph_of(rule: Algorithm) -> Topology:
    """The graph that a runtime mixes this rule's payloads on."""
    return Topology.complete(6, "uniform") if rule.graph == COMPLETE else GRAPH


def run(rule: Algorithm, problem: Quadratic, dtype: type = np.float64, **keywords: object):
    start = problem.start.astype(dtype)
    step = problem.local_step(0.05)
    return simulate(rule, graph_of(rule), start, step, ROUNDS, **keywords)  # type: ignore[arg-type]


def quadratic(heterogeneity: float = 1.0) -> Quadratic:
    return Quadratic.random(
        6, 4, condition=5.0, heterogeneity=heterogeneity, curvature_spread=0.5, seed=3
    )


@pytest.mark.parametrize("name", NAMES)
def test_rule_survives_its_config(name: str) -> None:
    rule = method(name)
    assert algorithm_from_config(rule.to_config()) == rule


@pytest.mark.parametrize("name", NAMES)
def test_declares_what_it_shares_and_remembers(name: str) -> None:
    rule = method(name)
    x = np.arange(5.0)
    state = measured(rule, rule.start(x), x + 1.0)
    assert set(state.memory) == set(rule.memory)
    payload = rule.outgoing(state, x + 1.0)
    assert tuple(payload) == (*rule.vectors, *rule.scalars)
    for vector in rule.vectors:
        assert payload[vector].shape == x.shape
    for scalar in rule.scalars:
        assert payload[scalar].shape == (1,)
    new = rule.combine(state, x + 1.0, payload)
    assert set(new.memory) == set(rule.memory)


@pytest.mark.parametrize("name", NAMES)
def test_inputs_are_left_alone(name: str) -> None:
    rule = method(name)
    rng = np.random.default_rng(0)
    state = State(rng.random((6, 3)), {m: rng.random((6, 3)) for m in rule.memory})
    trained = rng.random((6, 3))
    state = measured(rule, state, trained)
    before = {k: v.copy() for k, v in {"x": state.parameters, **state.memory}.items()}
    payload = rule.outgoing(state, trained)
    mixed = {k: GRAPH.mixing_matrix @ v for k, v in payload.items()}
    rule.combine(state, trained, mixed)
    for key, value in {"x": state.parameters, **state.memory}.items():
        np.testing.assert_array_equal(value, before[key])


@pytest.mark.parametrize("name", NAMES)
def test_stays_at_the_optimum_on_equal_data(name: str) -> None:
    problem = Quadratic.random(6, 4, condition=5.0, heterogeneity=0.0, seed=3)
    rule = method(name)
    step = problem.local_step(0.05)
    x = simulate(rule, graph_of(rule), problem.optimum(), step, ROUNDS)
    np.testing.assert_allclose(x[-1], np.broadcast_to(x[0], x[-1].shape), atol=1e-13)


@pytest.mark.parametrize("name", NAMES)
def test_average_moves_as_one_agent_with_the_average_step(name: str) -> None:
    rule = method(name)
    problem = quadratic()
    steps = []

    def local_step(x: np.ndarray, k: int) -> np.ndarray:
        trained = problem.local_step(0.05)(x, k)
        steps.append((trained - x).mean(axis=0))
        return trained

    x = simulate(rule, graph_of(rule), problem.start, local_step, ROUNDS)
    alone = simulate(rule, Topology.path(1), problem.start, lambda x, k: x + steps[k - 1], ROUNDS)
    agree = np.allclose(x.mean(axis=1), alone[:, 0], rtol=0, atol=1e-12)
    assert agree == rule.preserves_average or rule.graph == DIRECTED


@pytest.mark.parametrize("name", NAMES)
def test_average_survives_missing_neighbors(name: str) -> None:
    rule = method(name)
    problem = Averaging.random(6, 5, seed=1)
    missing = {k: [GRAPH.edges[k % len(GRAPH.edges)], (0, 1)] for k in range(2, 9)}
    if rule.graph == COMPLETE:
        missing = {}
    x = simulate(rule, graph_of(rule), problem.start, problem.local_step(), 40, missing=missing)
    np.testing.assert_allclose(x.mean(axis=1), x[:1].mean(axis=1).repeat(41, 0), atol=1e-12)
    assert np.abs(x[-1] - x[-1].mean(axis=0)).max() < 0.7 * np.abs(x[0] - x[0].mean(axis=0)).max()


# The others keep part of their own local step or momentum for a round.
AGREE_AT_ONCE = [
    name
    for name in NAMES
    if not name.endswith("-cta")
    and not name.startswith(("cd", "exact-diffusion", "safeguarded", "gasloc", "motef"))
]


@pytest.mark.parametrize("name", AGREE_AT_ONCE)
def test_agents_agree_in_one_round_on_a_complete_graph(name: str) -> None:
    rule = method(name)
    problem = quadratic()
    x = simulate(rule, Topology.complete(6, "uniform"), problem.start, problem.local_step(0.05), 8)
    np.testing.assert_allclose(x, np.broadcast_to(x.mean(1, keepdims=True), x.shape), atol=1e-12)


@pytest.mark.parametrize("name", [n for n in NAMES if "momentum" in method(n).to_config()])
def test_without_momentum_it_is_its_plain_rule(name: str) -> None:
    plain = {
        "dmsgd": "dsgd",
        "dmsgd-buffer": "dsgd",
        "dmsgd-cta": "cdsgd",
        "dmsgd-buffer-cta": "cdsgd",
        "dmsgd-gt": "dsgt",
        "cdmsgd": "cdsgd",
        "cdmsgd-nesterov": "cdsgd",
        "qg": "dsgd",
        "decentlam": "dsgd",
        "momentum-tracking": "dsgt",
        "safeguarded": "dsgd",
        "exact-diffusion": "exact-diffusion",
        "exact-diffusion-hb": "exact-diffusion",
        "motef": "dsgt:order=combine-then-adapt",
        "gasloc": "dsgd",
        "diloco": "dsgd",
    }
    rule = replace(method(name), momentum=0.0)  # type: ignore[call-arg]
    problem = quadratic()
    if name == "noloco":  # agents move by a share of what D-PSGD would move them by
        rule = replace(rule, outer_rate=1.0, consensus_rate=1.0)  # type: ignore[call-arg]
    rate = 0.05 * rule.to_config().get("outer_rate", 1.0)
    expected = simulate(
        method(plain.get(name, "dsgd")),
        graph_of(rule),
        problem.start,
        problem.local_step(rate),
        ROUNDS,
    )
    np.testing.assert_allclose(run(rule, problem), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("form", ["displacement", "tracking"])
def test_folded_is_separate(form: str) -> None:
    problem = quadratic()
    folded = run(HeavyBall(form=form, payload="folded"), problem)
    separate = run(HeavyBall(form=form, payload="separate"), problem)
    np.testing.assert_allclose(folded, separate, rtol=0, atol=1e-13)


def test_decentlam_is_displacement_without_momentum_mixing() -> None:
    problem = quadratic()
    expected = run(HeavyBall(momentum_mixing=0.0), problem)
    np.testing.assert_allclose(run(method("decentlam"), problem), expected, rtol=0, atol=1e-13)


def test_cdmsgd_is_the_buffer_form_without_momentum_mixing() -> None:
    problem = quadratic()
    rule = HeavyBall(form="buffer", order="combine-then-adapt", momentum_mixing=0.0)
    expected = run(rule, problem)
    np.testing.assert_allclose(run(method("cdmsgd"), problem), expected, rtol=0, atol=1e-13)


def test_exact_diffusion_is_d2_on_lazy_weights() -> None:
    problem = quadratic()
    d2 = algorithm_from_config({"name": "exact-diffusion", "lazy": False})
    graph = Topology.from_edges(GRAPH.edges, lazy("metropolis"))
    expected = simulate(d2, graph, problem.start, problem.local_step(0.05), ROUNDS)
    found = run(method("exact-diffusion"), problem)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("name", NAMES)
def test_float32_stays_float32_and_near_float64(name: str) -> None:
    rule, problem = method(name), quadratic()
    single = run(rule, problem, np.float32)
    assert single.dtype == np.float32
    # 12 rounds of values below 10, each rounded to 24 bits a few times.
    np.testing.assert_allclose(single, run(rule, problem), rtol=0, atol=2e-5)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", NAMES)
def test_torch_and_numpy_agree_to_the_bit(name: str, dtype: type) -> None:
    rule = method(name)
    rng = np.random.default_rng(1)
    x = rng.standard_normal((6, 4)).astype(dtype)
    state = rule.start(x)
    memory = {m: np.ones_like(v) * dtype(0.5) for m, v in state.memory.items()}
    trained = rng.standard_normal((6, 4)).astype(dtype)
    here = State(x, memory)
    there = State(torch.from_numpy(x), {m: torch.from_numpy(v) for m, v in memory.items()})
    here = measured(rule, here, trained)
    there = measured(rule, there, torch.from_numpy(trained))
    payload = rule.outgoing(here, trained)
    payload_t = rule.outgoing(there, torch.from_numpy(trained))
    for key in payload:
        np.testing.assert_array_equal(payload[key], payload_t[key].numpy())
    new = rule.combine(here, trained, payload)
    new_t = rule.combine(there, torch.from_numpy(trained), payload_t)
    assert new.parameters.dtype == dtype
    np.testing.assert_array_equal(new.parameters, new_t.parameters.numpy())
    for key in new.memory:
        np.testing.assert_array_equal(new.memory[key], new_t.memory[key].numpy())


@pytest.mark.parametrize("name", NEIGHBOR)
def test_one_agent_alone_does_what_the_stack_does(name: str) -> None:
    rule, problem = method(name), quadratic()
    expected = run(rule, problem)
    states = [rule.start(problem.start.copy()) for _ in range(6)]
    for k in range(1, ROUNDS + 1):
        stack = np.stack([s.parameters for s in states])
        trained = problem.local_step(0.05)(stack, k)
        states = [measured(rule, s, z) for s, z in zip(states, trained, strict=True)]
        payloads = [rule.outgoing(s, z) for s, z in zip(states, trained, strict=True)]
        states = [
            combine(
                rule,
                states[i],
                trained[i],
                i,
                {j: GRAPH.mixing_matrix[i, j] for j in (i, *GRAPH.neighbors(i))},
                {j: payloads[j] for j in GRAPH.neighbors(i)},
            )
            for i in range(6)
        ]
    # A matrix product and a sum in vertex order round differently.
    np.testing.assert_allclose([s.parameters for s in states], expected[-1], rtol=0, atol=1e-13)


@pytest.mark.parametrize("name", [n for n in NAMES if method(n).exact])
def test_exact_rules_reach_the_optimum_on_different_data(name: str) -> None:
    rule, problem = method(name), quadratic()
    graph = graph_of(rule)
    # MoTEF's momentum smooths the steps, the others' makes them 1 / (1 - momentum) as long.
    momentum = 0.0 if name == "motef" else rule.to_config().get("momentum", 0.0)
    x = simulate(rule, graph, problem.start, problem.local_step(0.2 * (1.0 - momentum)), 3000)
    target = np.broadcast_to(problem.optimum(), (6, 4))
    np.testing.assert_allclose(x[-1], target, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", [n for n in NAMES if not method(n).exact])
@pytest.mark.thorough
def test_other_rules_keep_a_bias(name: str) -> None:
    rule, problem = method(name), quadratic()
    x = simulate(rule, graph_of(rule), problem.start, problem.local_step(0.02), 3000)
    assert np.abs(x[-1] - problem.optimum()).max() > 1e-3


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_bad_settings_are_refused(rule: type[Algorithm]) -> None:
    fields = rule.__dataclass_fields__
    bad: list[tuple[str, object]] = [("momentum", value) for value in (1.0, NAN, "x", True)]
    bad += [("momentum_mixing", value) for value in (-0.1, 1.1, NAN, "x", True)]
    bad += [("outer_rate", value) for value in (0.0, -1.0, float("inf"), NAN, "x", True)]
    bad += [("consensus_rate", value) for value in (0.0, -1.0, float("inf"), NAN, "x", True)]
    bad += [("tracking", value) for value in (-0.1, 1.0, NAN, "x", True)]
    for setting, value in bad:
        if setting in rule.settings():
            with pytest.raises(ConfigError, match=f"{setting} must be a .*number"):
                rule(**{setting: value})
    for flag in ("nesterov", "lazy"):
        if flag in fields:
            with pytest.raises(ConfigError, match=flag):
                rule(**{flag: 1})
    with pytest.raises(ConfigError, match=r"Known: |has no settings"):
        algorithm_from_config({"name": rule.name, "momentun": 0.9})


def test_d2_refuses_a_graph_on_which_it_diverges() -> None:
    d2 = algorithm_from_config({"name": "exact-diffusion", "lazy": False})
    with pytest.raises(ConfigError, match="-1/3"):
        d2.check(Topology.torus(4, 4, "uniform"))


def test_unknown_method_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'dmsgd-gt'"):
        method("dmsgd-gtt")
