"""The engine's bookkeeping: wide models in parts, failing edges, bytes, averages, checkpoints."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from flower_dhb.algorithms import DSGD, Centralized, HeavyBall, PushSum
from flower_dhb.engine.checkpoint import read, write
from flower_dhb.engine.engine import Engine, messages, random_failures
from flower_dhb.engine.mixer import CHUNK
from flower_dhb.engine.problem import Agents, Analytic
from flower_dhb.engine.reference import simulate
from flower_dhb.engine.supervised import Supervised
from flower_dhb.errors import ConfigError, StateError
from flower_dhb.metrics import consensus_distance
from flower_dhb.topology.directed import DirectedTopology
from flower_dhb.topology.graph import Topology
from flower_dhb.topology.turns import Turns

GRAPH = Topology.from_edges([(0, 1), (0, 2), (0, 3), (1, 2), (3, 4), (4, 5)])
ONE_WAY = DirectedTopology([(0, 1), (1, 2), (2, 0), (2, 3), (3, 4), (4, 5), (5, 0)])


def pull(x: np.ndarray, k: int) -> np.ndarray:
    return 0.5 * x - np.arange(x.size).reshape(x.shape) % 7 - k


def engine(rule=None, graph=GRAPH, size=4, **settings) -> Engine:
    start = np.arange(6.0 * size).reshape(6, size) % 5
    return Engine(Analytic(start, pull), graph, rule or HeavyBall(), **settings)


@pytest.mark.parametrize("rule", [HeavyBall(form="tracking"), PushSum()], ids=lambda r: r.name)
@pytest.mark.parametrize("extra", [-1, 0, 1])
def test_a_model_of_any_width_is_mixed_part_by_part(rule, extra) -> None:
    """Parts are CHUNK elements over six agents; the last one is shorter, or just full."""
    size = 2 * (CHUNK // 6) + extra
    graph = ONE_WAY if isinstance(rule, PushSum) else GRAPH
    found = engine(rule, graph, size, learning_rate=0.1)
    found.run(2)
    start = np.arange(6.0 * size).reshape(6, size) % 5
    expected = simulate(rule, graph, start, lambda x, k: x - 0.1 * pull(x, k), 2)
    np.testing.assert_allclose(found.parameters.numpy(), expected[2], rtol=0, atol=1e-12)
    assert found.consensus_distance() == pytest.approx(consensus_distance(expected[2]), rel=1e-12)


def test_the_average_is_of_parameters_and_statistics_and_changes_nothing() -> None:
    found = engine()
    found.agents = Agents(
        found.parameters,
        torch.arange(12.0).reshape(6, 2),
        {"count": torch.arange(6).reshape(6, 1)},
    )
    before = found.parameters.clone()
    average = found.average()
    np.testing.assert_allclose(average.parameters.numpy(), before.numpy().mean(0, keepdims=True))
    assert average.statistics.tolist() == [[5.0, 6.0]]
    assert average.local["count"].tolist() == [[0]]
    assert torch.equal(found.parameters, before)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_one_number_that_is_not_finite_is_seen(bad: float) -> None:
    found = engine()
    assert found.finite
    found.parameters[4, 2] = bad
    assert not found.finite


def test_run_calls_back_after_every_round() -> None:
    seen: list[tuple[int, int]] = []
    found = engine()
    found.run(3, after=lambda one: seen.append((one.round, one.bytes_sent)))
    one_round = 2 * 6 * 4 * 8  # both ways over six edges, four float64
    assert seen == [(1, one_round), (2, 2 * one_round), (3, 3 * one_round)]
    found.run(0)
    assert found.round == 3


@pytest.mark.parametrize("rate", [-0.1, float("inf"), float("nan")])
def test_a_learning_rate_is_finite_and_not_negative(rate: float) -> None:
    with pytest.raises(ConfigError, match="learning_rate must be finite and >= 0, got"):
        engine(learning_rate=rate)
    assert engine(learning_rate=0.0).learning_rate == 0.0


def test_the_default_learning_rate() -> None:
    found = engine(DSGD())
    start = found.parameters.numpy().copy()
    found.step()
    expected = GRAPH.mixing_matrix @ (start - 0.1 * pull(start, 1))
    np.testing.assert_allclose(found.parameters.numpy(), expected, atol=1e-14)


# --- edges that fail ------------------------------------------------------------------------


def failed(probability: float, seed: int, rounds: int = 400) -> np.ndarray:
    """Whether each edge failed in each round, (rounds, edges)."""
    failing = random_failures(GRAPH, probability, seed)
    return np.array([[e in failing(k) for e in GRAPH.edges] for k in range(1, rounds + 1)])


def test_edges_fail_independently_of_each_other_of_rounds_and_of_seeds() -> None:
    draws = failed(0.3, seed=1)
    # Binomial(400, 0.3): a deviation of 0.023, so within 0.1 of its mean.
    assert np.abs(draws.mean(axis=0) - 0.3).max() < 0.1
    together = np.corrcoef(draws.T) - np.eye(len(GRAPH.edges))
    assert np.abs(together).max() < 0.2  # 1 / sqrt(400) = 0.05
    later = np.corrcoef(draws[1:].ravel(), draws[:-1].ravel())[0, 1]
    other = np.corrcoef(draws.ravel(), failed(0.3, seed=2).ravel())[0, 1]
    shifted = np.corrcoef(draws[1:].ravel(), failed(0.3, seed=2)[:-1].ravel())[0, 1]
    assert np.abs([later, other, shifted]).max() < 0.1  # 1 / sqrt(2400) = 0.02
    np.testing.assert_array_equal(draws, failed(0.3, seed=1))


def test_edges_that_never_or_always_fail() -> None:
    assert not failed(0.0, seed=1, rounds=20).any()
    assert failed(1.0, seed=1, rounds=20).all()
    for bad in (-0.1, 1.1, float("nan")):
        with pytest.raises(ConfigError, match=r"failure probability must be in \[0, 1\], got"):
            random_failures(GRAPH, bad, seed=1)


def test_a_round_without_failures_is_whole_again() -> None:
    missing = {2: [(1, 0), (0, 1)]}
    found, expected = engine(DSGD(), missing=missing), engine(DSGD(), missing={2: [(0, 1)]})
    for one in (found, expected):
        one.run(3)
    assert torch.equal(found.parameters, expected.parameters)
    assert found.bytes_sent == expected.bytes_sent == (6 + 5 + 6) * 2 * 4 * 8


@pytest.mark.parametrize(
    ("rule", "graph", "failing", "count"),
    [
        (HeavyBall(), GRAPH, [], 12),
        (HeavyBall(), GRAPH, [(0, 1), (1, 0), (3, 4)], 8),
        (PushSum(), ONE_WAY, [], 7),
        (PushSum(), ONE_WAY, [(2, 0), (2, 0)], 6),
        (Centralized(), GRAPH, [], 12),
        (Centralized(), Topology.star(9), [(0, 1)], 18),
    ],
)
def test_messages_of_a_round(rule, graph, failing, count) -> None:
    assert messages(rule, graph, failing) == count


def test_statistics_are_counted_in_their_own_dtype() -> None:
    found = engine(HeavyBall(payload="separate"))
    found.agents = Agents(found.parameters, torch.zeros(6, 3))
    assert found.bytes_per_edge == 2 * 4 * 8 + 3 * 4
    assert engine(PushSum(), ONE_WAY).bytes_per_edge == (4 + 1) * 8


# --- checkpoints ------------------------------------------------------------------------------


def test_a_checkpoint_holds_state_of_every_kind(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "run.safetensors"
    found = engine(HeavyBall(form="tracking"), Turns([GRAPH, Topology.ring(6)]))
    found.agents.local["count"] = torch.arange(6)
    found.agents.statistics = torch.arange(6.0).reshape(6, 1)
    found.run(3)
    found.save(path)
    arrays, description = read(path)
    assert set(arrays) == {
        *("parameters", "statistics", "local.count"),
        *("memory.displacement", "memory.mixed_tracker", "memory.last_step"),
    }
    assert (description["round"], description["bytes_sent"]) == (3, found.bytes_sent)
    other = engine(HeavyBall(form="tracking"), Turns([GRAPH, Topology.ring(6)]))
    other.agents.local["count"] = torch.zeros(6, dtype=torch.int64)
    other.agents.statistics = torch.zeros(6, 1)
    other.load(path)
    assert other.agents.local["count"].tolist() == list(range(6))
    assert torch.equal(other.agents.statistics, found.agents.statistics)
    for one in (found, other):
        one.run(2)
    assert (other.round, other.bytes_sent) == (5, found.bytes_sent)
    assert torch.equal(found.parameters, other.parameters)
    for name in found.memory:
        assert torch.equal(found.memory[name], other.memory[name])


@pytest.mark.parametrize(
    ("other", "key"),
    [
        (lambda: engine(HeavyBall(momentum=0.8)), "algorithm"),
        (lambda: engine(DSGD()), "algorithm"),
        (lambda: engine(graph=Topology.ring(6)), "topolog"),
        (lambda: engine(graph=Turns([GRAPH, GRAPH])), "topolog"),
        (lambda: engine(learning_rate=0.2), "learning_rate"),
    ],
)
def test_a_checkpoint_of_another_run_changes_nothing(tmp_path: Path, other, key: str) -> None:
    engine().save(tmp_path / "run")
    found = other()
    before = found.parameters.clone()
    with pytest.raises(StateError, match=f"checkpoint of another run: '{key}"):
        found.load(tmp_path / "run")
    assert found.round == 0
    assert torch.equal(found.parameters, before)


def test_a_checkpoint_of_other_inputs_is_refused(tmp_path: Path) -> None:
    """As many samples of the same shape, with the same labels: other data all the same."""

    def supervised(inputs: torch.Tensor) -> Engine:
        labels, parts = torch.arange(12) % 2, np.array_split(np.arange(12), 6)
        module = torch.nn.Linear(2, 2).to(inputs.dtype)
        torch.nn.init.zeros_(module.weight)
        torch.nn.init.zeros_(module.bias)
        problem = Supervised(module, inputs, labels, parts, batch_size=2, backend="loop")
        return Engine(problem, GRAPH, DSGD())

    inputs = torch.linspace(-1, 1, 24).reshape(12, 2)
    supervised(inputs).save(tmp_path / "run")
    supervised(inputs.clone()).load(tmp_path / "run")
    other = inputs.clone()
    other[7, 1] += 1e-6
    for wrong in (other, inputs.double()):
        with pytest.raises(StateError, match="checkpoint of another run: 'problem'"):
            supervised(wrong).load(tmp_path / "run")


def test_a_checkpoint_of_another_size_is_refused(tmp_path: Path) -> None:
    engine(size=3).save(tmp_path / "run")
    with pytest.raises(StateError, match="checkpoint of another run: 'problem'"):
        engine(size=4).load(tmp_path / "run")
    found = engine()
    found.save(tmp_path / "run")
    arrays, description = read(tmp_path / "run")
    cut = arrays | {"parameters": arrays["parameters"][:, :3].copy()}
    write(tmp_path / "run", cut, description)
    with pytest.raises(StateError, match=r"'parameters' is \(6, 3\), expected \(6, 4\)"):
        engine().load(tmp_path / "run")
    del arrays["memory.displacement"]
    write(tmp_path / "run", arrays, description)
    with pytest.raises(StateError, match=r"'memory.displacement' is None, expected \(6, 4\)"):
        engine().load(tmp_path / "run")


def test_a_checkpoint_round_trip_and_its_file(tmp_path: Path) -> None:
    path = tmp_path / "new" / "state"
    arrays = {"a": np.arange(6.0).reshape(2, 3), "b": np.arange(3)}
    write(path, arrays, {"round": 4, "name": "x"})
    found, description = read(path)
    assert description == {"round": 4, "name": "x"}
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype
    assert [p.name for p in path.parent.iterdir()] == ["state"]
    data = path.read_bytes()
    for damaged in (data[:-1], data[: len(data) // 2], b"", b"x" * 40, json.dumps({}).encode()):
        path.write_bytes(damaged)
        with pytest.raises(StateError, match="not a checkpoint of this package, or damaged"):
            read(path)
    with pytest.raises(StateError, match="no such checkpoint"):
        read(tmp_path / "none")


def test_a_sum_that_leaves_the_numbers_of_float32_is_no_divergence() -> None:
    found = engine()
    found.agents.parameters = torch.full((5, 3), 3e38)
    assert found.parameters.sum().isinf()
    assert found.finite
