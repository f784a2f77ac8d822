"""The engine: the same numbers as the reference and a plain loop, whatever the settings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from flower_dhb.algorithms import CDMSGD, DSGD, Algorithm, Centralized, HeavyBall, PushSum, method
from flower_dhb.engine.batched import cross_entropy
from flower_dhb.engine.engine import Engine, mixing_matrix_of, random_failures
from flower_dhb.engine.mixer import Mixer
from flower_dhb.engine.problem import Analytic
from flower_dhb.engine.reference import simulate
from flower_dhb.engine.supervised import Supervised
from flower_dhb.errors import ConfigError, GraphError, StateError
from flower_dhb.metrics import consensus_distance
from flower_dhb.problems.averaging import Averaging
from flower_dhb.problems.digits import load_digits
from flower_dhb.problems.models import make_model
from flower_dhb.problems.quadratic import Quadratic
from flower_dhb.problems.splits import batches, split
from flower_dhb.topology.directed import DirectedTopology, parse_topology
from flower_dhb.topology.graph import Topology
from flower_dhb.topology.planning import check_rule_on
from flower_dhb.topology.turns import Turns, share_every

pytestmark = pytest.mark.thorough

GRAPH = Topology.from_edges([(0, 1), (0, 2), (0, 3), (1, 2), (3, 4), (4, 5)])
RATE, STEPS, BATCH, SEED = 0.1, 2, 16, 7


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def digits_problem(module: nn.Module, double: bool = False, **settings: object) -> Supervised:
    data = load_digits()
    parts = split(data.train_y.numpy(), 6, "dirichlet:0.5", SEED)
    x = data.train_x.double() if double else data.train_x
    settings = {"batch_size": BATCH, "local_steps": STEPS, "seed": SEED} | settings
    return Supervised(module, x, data.train_y, parts, **settings)  # type: ignore[arg-type]


def plain_local_step(module: nn.Module, x: torch.Tensor):
    """Local training as an app writes it: one model, an optimizer, one agent at a time."""
    data = load_digits()
    parts = split(data.train_y.numpy(), 6, "dirichlet:0.5", SEED)

    def step(vectors: np.ndarray, k: int) -> np.ndarray:
        trained = []
        for vertex, (vector, part) in enumerate(zip(vectors, parts, strict=True)):
            nn.utils.vector_to_parameters(torch.from_numpy(vector.copy()), module.parameters())
            optimizer = torch.optim.SGD(module.parameters(), lr=RATE)
            for chosen in batches(len(part), BATCH, STEPS, seed=SEED, vertex=vertex, round=k):
                at = part[chosen]
                optimizer.zero_grad()
                functional.cross_entropy(module(x[at]), data.train_y[at]).backward()
                optimizer.step()
            trained.append(nn.utils.parameters_to_vector(module.parameters()).detach().numpy())
        return np.stack(trained)

    return step


@pytest.mark.parametrize("name", ["dmsgd", "dmsgd-gt", "qg", "dsgd"])
def test_engine_is_the_reference_on_an_irregular_graph(name: str) -> None:
    module = make_model("mlp", SEED).double()
    start = nn.utils.parameters_to_vector(module.parameters()).detach().numpy()
    engine = Engine(digits_problem(module, double=True), GRAPH, method(name), learning_rate=RATE)
    np.testing.assert_array_equal(engine.parameters[3].numpy(), start)
    missing = {3: [(0, 1)], 5: [(0, 2), (3, 4)]}
    engine.missing = missing
    step = plain_local_step(make_model("mlp", SEED).double(), load_digits().train_x.double())
    expected = simulate(method(name), GRAPH, start, step, 8, missing=missing)
    for k in range(1, 9):
        engine.step()
        # float64: products of a few hundred terms, rounded in another order.
        np.testing.assert_allclose(engine.parameters.numpy(), expected[k], rtol=0, atol=1e-12)
    assert engine.consensus_distance() == pytest.approx(consensus_distance(expected[8]))


@pytest.mark.parametrize("model", ["logistic", "mlp", "cnn"])
def test_batched_is_the_loop(model: str) -> None:
    engines = [
        Engine(digits_problem(make_model(model, 1), backend=b), GRAPH, HeavyBall())
        for b in ("batched", "loop")
    ]
    for engine in engines:
        engine.run(4)
    batched, looped = (engine.parameters for engine in engines)
    # float32, eight SGD steps of size 0.1 whose sums are rounded in another order.
    torch.testing.assert_close(batched, looped, rtol=0, atol=5e-6)
    x = load_digits().test_x[:20]
    outputs = [torch.cat([o for _, o in e.problem.outputs(e.agents, x)]) for e in engines]  # type: ignore[attr-defined]
    torch.testing.assert_close(*outputs, rtol=0, atol=5e-5)


@pytest.mark.parametrize("block", [1, 2, 4, 5])
def test_block_size_changes_no_bit(block: int) -> None:
    whole = Engine(digits_problem(make_model("mlp", 1), block=6), GRAPH, HeavyBall())
    parts = Engine(digits_problem(make_model("mlp", 1), block=block), GRAPH, HeavyBall())
    whole.run(3)
    parts.run(3)
    assert torch.equal(whole.parameters, parts.parameters)


def test_measured_block_is_used_and_changes_no_bit() -> None:
    problem = digits_problem(make_model("mlp", 1))
    assert problem.measure_block() == problem.block
    engines = [
        Engine(p, GRAPH, HeavyBall()) for p in (problem, digits_problem(make_model("mlp", 1)))
    ]
    for engine in engines:
        engine.run(2)
    assert torch.equal(engines[0].parameters, engines[1].parameters)


def test_same_seed_same_bits_other_seed_other_bits() -> None:
    def final(seed: int) -> torch.Tensor:
        engine = Engine(digits_problem(make_model("mlp", 1), seed=seed), GRAPH, HeavyBall())
        engine.run(3)
        return engine.parameters

    assert torch.equal(final(1), final(1))
    assert not torch.equal(final(1), final(2))


class Normalized(nn.Module):
    """BatchNorm, an integer counter, a constant buffer and a frozen parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(64, 12)
        self.norm = nn.BatchNorm1d(12)
        self.last = nn.Linear(12, 10)
        self.frozen = nn.Parameter(torch.ones(10), requires_grad=False)
        self.register_buffer("scale", torch.full((10,), 0.5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.norm(self.first(x)).relu()) * self.scale * self.frozen


NEGATIVE = Topology.path(3, np.array([[0.5, 0.5, 0.0], [0.5, -0.2, 0.7], [0.0, 0.7, 0.3]]))


def test_statistics_never_follow_a_negative_weight() -> None:
    """Row 1 is (0.5, -0.2, 0.7): its absolute shares are 5/14, 2/14 and 7/14."""
    torch.manual_seed(0)
    data = load_digits()
    parts = split(data.train_y.numpy(), 3, "dirichlet:0.5", 0)
    problem = Supervised(Normalized(), data.train_x, data.train_y, parts, batch_size=16)
    engine = Engine(problem, NEGATIVE, DSGD(), learning_rate=0.0)
    variances = torch.tensor([1.0, 50.0, 2.0]).unsqueeze(1).expand(3, 12)
    engine.agents.statistics[:, 12:] = variances
    before = engine.agents.statistics.clone()
    problem.adapt(engine.agents, 1, 0.0, engine._trained)
    trained, engine.agents.statistics = engine.agents.statistics.clone(), before
    engine.step()
    rows = torch.tensor([[7, 7, 0], [5, 2, 7], [0, 9.8, 4.2]]) / 14
    torch.testing.assert_close(engine.agents.statistics, rows @ trained, rtol=1e-5, atol=1e-6)
    engine.run(20)
    assert (engine.agents.statistics[:, 12:] > 0).all()


def test_statistics_of_push_sum_are_averaged_by_rows() -> None:
    """Columns of its matrix sum to 1, rows do not: constant statistics must stay constant."""
    torch.manual_seed(0)
    data = load_digits()
    parts = split(data.train_y.numpy(), 4, "iid", 0)
    problem = Supervised(Normalized(), data.train_x, data.train_y, parts, batch_size=16)
    one_way = DirectedTopology([(0, 1), (1, 2), (2, 0), (0, 3), (3, 1)])
    engine = Engine(problem, one_way, PushSum(), learning_rate=0.0)
    _, averager = engine._mixers_of(engine.topology, [], None)
    assert not np.allclose(one_way.mixing_matrix.sum(axis=1), 1.0)
    torch.testing.assert_close(averager(torch.full((4, 2), 3.0)), torch.full((4, 2), 3.0))
    # Vertex 1 hears 0 (which has two receivers, so 1/3) and 3 (1/2), and keeps 1/2 of its own.
    heard = averager(torch.tensor([[6.0], [0.0], [0.0], [0.0]]))
    assert heard[1].item() == pytest.approx(6 * (1 / 3) / (1 / 3 + 1 / 2 + 1 / 2))


def test_batchnorm_statistics_are_mixed_without_momentum() -> None:
    torch.manual_seed(0)
    engine = Engine(digits_problem(Normalized()), GRAPH, HeavyBall(), learning_rate=RATE)
    module = engine.problem.model.module  # type: ignore[attr-defined]
    looped = Engine(digits_problem(module, backend="loop"), GRAPH, HeavyBall())
    for k in range(3):
        before = engine.agents.statistics.clone()
        trained = Engine(engine.problem, GRAPH, HeavyBall(), learning_rate=RATE)
        trained.agents.parameters.copy_(engine.parameters)
        trained.agents.statistics = before
        with torch.no_grad():
            trained.problem.adapt(trained.agents, k + 1, RATE, trained._trained)
        engine.step()
        looped.step()
        expected = torch.tensor(GRAPH.mixing_matrix.copy()).float() @ trained.agents.statistics
        torch.testing.assert_close(engine.agents.statistics, expected, rtol=0, atol=1e-6)
    assert engine.agents.statistics.shape == (6, 24)
    assert (engine.agents.statistics[:, 12:] > 0).all()  # variances
    assert engine.agents.local["norm.num_batches_tracked"].tolist() == [3 * STEPS] * 6
    torch.testing.assert_close(
        engine.agents.statistics, looped.agents.statistics, rtol=0, atol=1e-4
    )
    torch.testing.assert_close(engine.parameters, looped.parameters, rtol=0, atol=1e-4)
    columns = engine.problem._places  # type: ignore[attr-defined]
    assert (engine.parameters[:, columns["frozen"]] == 1.0).all()
    assert (engine.parameters[:, columns["scale"]] == 0.5).all()


class Branching(nn.Module):
    """Chooses by the data, in Python."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.inner(x)
        return y if y.sum() > 0 else -y


class Outer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.choice = Branching()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.choice(x)


def test_module_that_cannot_be_batched_is_named_and_runs_in_the_loop() -> None:
    torch.manual_seed(0)
    module = Outer()
    with pytest.raises(ConfigError, match=r"'choice' \(Branching\).*backend='loop'"):
        Engine(digits_problem(module), GRAPH, HeavyBall()).step()
    engine = Engine(digits_problem(module, backend="loop"), GRAPH, HeavyBall())
    engine.run(2)
    assert engine.finite


class Tied(nn.Module):
    """One matrix under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(64, 64, bias=False)
        self.b = nn.Linear(64, 64, bias=False)
        self.b.weight = self.a.weight
        self.out = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.b(self.a(x)))


def test_shared_parameters_stay_shared() -> None:
    torch.manual_seed(0)
    engine = Engine(digits_problem(Tied()), GRAPH, HeavyBall())
    engine.run(3)
    columns = engine.problem._places  # type: ignore[attr-defined]
    a, b = (engine.parameters[:, columns[f"{name}.weight"]] for name in "ab")
    assert torch.equal(a, b)
    assert not torch.equal(a[0], a[1])


class Noisy(nn.Module):
    """Draws in each of the ways that torch has: like a tensor, of a size, with a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(64, 6), nn.Linear(6, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = functional.dropout(self.a(x), 0.5, self.training)
        hidden = hidden + torch.rand_like(hidden) + torch.randn(hidden.shape)
        return self.b(hidden * torch.bernoulli(torch.full_like(hidden, 0.7)))


def drawn(seed: int = SEED, rounds: int = 2, **settings: object) -> torch.Tensor:
    torch.manual_seed(0)
    module = Noisy()
    torch.manual_seed(seed)  # whatever the caller's generator does is not asked
    engine = Engine(digits_problem(module, seed=seed, **settings), GRAPH, DSGD())
    engine.run(rounds)
    return engine.parameters


def test_random_layers_draw_the_same_whatever_the_block() -> None:
    alone = drawn(block=1)
    assert torch.equal(drawn(block=4), alone)  # blocks of 3, evenly
    torch.manual_seed(0)
    problem = digits_problem(Noisy())
    before = torch.get_rng_state()
    problem.measure_block()
    engine = Engine(problem, GRAPH, DSGD())
    engine.run(2)
    assert torch.equal(engine.parameters, alone)
    assert torch.equal(before, torch.get_rng_state())


def test_random_layers_differ_between_agents_rounds_and_seeds() -> None:
    """Two agents with the same data, a learning rate of 0 for the rest: only masks differ."""
    module = nn.Sequential(nn.Flatten(0), nn.Dropout(0.5), nn.Unflatten(0, (-1, 64)))
    module = nn.Sequential(module, nn.Linear(64, 10, bias=False))
    data = load_digits()
    for backend in ("batched", "loop"):
        found = []
        for seed in (0, 1):
            problem = Supervised(
                module,
                data.train_x[:1].expand(6, 64),
                data.train_y[:1].expand(6),
                [np.array([v]) for v in range(6)],
                batch_size=1,
                seed=seed,
                backend=backend,
            )
            agents = problem.start(torch.device("cpu"))
            for k in (1, 2):
                trained = torch.empty_like(agents.parameters)
                problem.adapt(agents, k, 1.0, trained)
                found += [tuple((row != 0).tolist()) for row in trained - agents.parameters]
        assert len(set(found)) == len(found) == 24


def test_looped_and_batched_models_draw_the_same() -> None:
    torch.testing.assert_close(drawn(backend="loop"), drawn(), rtol=0, atol=1e-5)
    assert torch.equal(drawn(backend="loop", block=1), drawn(backend="loop", block=4))
    assert not torch.equal(drawn(), drawn(seed=SEED + 1))


def test_a_draw_that_has_no_agents_in_it_is_refused() -> None:
    class Shuffled(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x)[:, torch.randperm(10)]

    with pytest.raises(ConfigError, match="backend='loop'"):
        Engine(digits_problem(Shuffled(64, 10)), GRAPH, DSGD()).run(1)
    Engine(digits_problem(Shuffled(64, 10), backend="loop"), GRAPH, DSGD()).run(1)


def test_stop_and_resume_is_the_same_to_the_bit(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Linear(64, 16), nn.BatchNorm1d(16), nn.Dropout(0.2), nn.Linear(16, 10)
    )
    for name in ("dmsgd-gt", "sgp"):
        failing = random_failures(GRAPH, 0.3, seed=4)
        through = Engine(digits_problem(module), GRAPH, method(name), missing=failing)
        through.run(4)
        stopped = Engine(digits_problem(module), GRAPH, method(name), missing=failing)
        stopped.run(2)
        stopped.save(tmp_path / "run.safetensors")
        resumed = Engine(digits_problem(module), GRAPH, method(name), missing=failing)
        resumed.load(tmp_path / "run.safetensors")
        assert resumed.round == 2
        resumed.run(2)
        assert torch.equal(through.parameters, resumed.parameters)
        assert torch.equal(through.agents.statistics, resumed.agents.statistics)
        assert through.bytes_sent == resumed.bytes_sent
        other = Engine(digits_problem(module), GRAPH, method(name), learning_rate=0.2)
        with pytest.raises(StateError, match=r"'learning_rate' is 0.1, expected 0.2"):
            other.load(tmp_path / "run.safetensors")
    assert [p.name for p in tmp_path.iterdir()] == ["run.safetensors"]


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    """A graph is what it is, not what it is called; the same holds for the data."""
    path = tmp_path / "run.safetensors"
    module = make_model("logistic", 0)
    Engine(digits_problem(module), Topology.ring(6), DSGD()).save(path)
    called = Topology.from_edges(GRAPH.edges, name="ring:6")
    same = Topology.from_edges(Topology.ring(6).edges, name="other")
    lazy = Topology.ring(6, "lazy")
    for graph in (called, lazy, Turns([Topology.ring(6), lazy])):
        with pytest.raises(StateError, match="checkpoint of another run: 'topologies' is"):
            Engine(digits_problem(module), graph, DSGD()).load(path)
    for change in ({"seed": 8}, {"batch_size": 8}, {"local_steps": 3}):
        with pytest.raises(StateError, match="checkpoint of another run: 'problem' is"):
            Engine(digits_problem(module, **change), same, DSGD()).load(path)
    other = digits_problem(module)
    other.parts[0], other.parts[1] = other.parts[1], other.parts[0]
    with pytest.raises(StateError, match="checkpoint of another run: 'problem' is"):
        Engine(other, same, DSGD()).load(path)
    Engine(digits_problem(module, block=1), same, DSGD()).load(path)
    quadratic_engine(DSGD(), GRAPH).save(path)
    quadratic_engine(DSGD(), GRAPH).load(path)


@pytest.mark.parametrize("content", [b"", b"\x08\x00\x00\x00\x00\x00\x00\x00notjson!", b"x" * 100])
def test_damaged_checkpoint_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "run.safetensors"
    path.write_bytes(content)
    engine = Engine(digits_problem(make_model("logistic", 0)), GRAPH, HeavyBall())
    with pytest.raises(StateError, match="damaged"):
        engine.load(path)
    with pytest.raises(StateError, match="no such checkpoint"):
        engine.load(tmp_path / "absent")
    assert engine.round == 0


def quadratic_engine(rule: Algorithm, graph: object, n: int = 6, **settings: object) -> Engine:
    q = Quadratic.random(n, 5, condition=5.0, curvature_spread=0.4, seed=2)
    problem = Analytic(q.start, lambda x, _k: q.gradient(x), n_agents=n)
    return Engine(problem, graph, rule, learning_rate=0.05, **settings)  # type: ignore[arg-type]


def test_time_varying_topologies_take_turns() -> None:
    other = Topology.ring(6)
    engine = quadratic_engine(HeavyBall(), Turns([GRAPH, other]))
    q = Quadratic.random(6, 5, condition=5.0, curvature_spread=0.4, seed=2)
    state = HeavyBall().start(np.broadcast_to(q.start, (6, 5)).copy())
    rule = HeavyBall()
    for k in range(6):
        z = q.local_step(0.05)(state.parameters, k)
        w = (GRAPH, other)[k % 2].mixing_matrix
        state = rule.combine(state, z, {n: w @ v for n, v in rule.outgoing(state, z).items()})
    engine.run(6)
    np.testing.assert_allclose(engine.parameters.numpy(), state.parameters, rtol=0, atol=1e-13)


def test_between_two_exchanges_nobody_is_averaged_and_nothing_is_sent() -> None:
    rare = share_every(GRAPH, 3)
    rule = HeavyBall(momentum=0.5)
    engine = quadratic_engine(rule, rare)
    q = Quadratic.random(6, 5, condition=5.0, curvature_spread=0.4, seed=2)
    expected = simulate(rule, rare, q.start, q.local_step(0.05), 9)
    engine.run(9)
    np.testing.assert_allclose(engine.parameters.numpy(), expected[9], rtol=0, atol=1e-13)
    with pytest.raises(ConfigError, match="diverges on 'custom, shared every 3 rounds'"):
        quadratic_engine(HeavyBall(), rare)  # momentum 0.9 goes on for too long by itself
    assert engine.bytes_sent == 3 * 2 * len(GRAPH.edges) * 5 * 8
    # A rule of a server's meets it as seldom.
    central = quadratic_engine(Centralized(momentum=0.0), rare)
    for k in range(1, 7):
        central.step()
        assert (central.consensus_distance() < 1e-12) == (k % 3 == 0)
    assert central.bytes_sent == 2 * 2 * 6 * 5 * 8
    check_rule_on(Centralized(), share_every(Topology.complete(4, "uniform"), 3))


def test_random_failures_repeat_and_save_bytes() -> None:
    failing = random_failures(GRAPH, 0.4, seed=1)
    assert failing(3) == failing(3)  # type: ignore[operator]
    whole, broken = (
        quadratic_engine(DSGD(), GRAPH),
        quadratic_engine(DSGD(), GRAPH, missing=failing),
    )
    whole.run(10)
    broken.run(10)
    assert broken.bytes_sent < whole.bytes_sent == 10 * 2 * len(GRAPH.edges) * 5 * 8
    with pytest.raises(ConfigError, match=r"in \[0, 1\]"):
        random_failures(GRAPH, 1.5, seed=1)


def test_failures_differ_from_round_to_round_and_from_seed_to_seed() -> None:
    """Which links fail is drawn anew each round; over many rounds each fails its share."""
    graph = Topology.complete(8)
    rounds = range(1, 201)
    failing = {
        seed: [tuple(random_failures(graph, 0.3, seed)(k)) for k in rounds]  # type: ignore[operator]
        for seed in (0, 1)
    }
    for seed in (0, 1):
        assert len(set(failing[seed])) > 195
    assert not any(a == b for a, b in zip(*failing.values(), strict=True))
    # The next round's links are not this round's, moved on by one either.
    assert not any(a == b for a, b in zip(failing[0][1:], failing[1], strict=False))
    counts = [sum(edge in r for r in failing[0]) for edge in graph.edges]
    # Binomial(200, 0.3): within 5 standard deviations (6.5) of 60, for each of 28 links.
    assert all(28 <= count <= 92 for count in counts)
    assert random_failures(graph, 0.0, 0)(1) == []  # type: ignore[operator]
    assert random_failures(graph, 1.0, 0)(1) == list(graph.edges)  # type: ignore[operator]


def test_bytes_by_rule() -> None:
    one_vector = 2 * len(GRAPH.edges) * 5 * 8
    for rule, expected in (
        (HeavyBall(), one_vector),
        (HeavyBall(payload="separate"), 2 * one_vector),
        (HeavyBall(form="tracking"), 2 * one_vector),
        (PushSum(), one_vector + 2 * len(GRAPH.edges) * 8),
        (Centralized(), 2 * 6 * 5 * 8),
    ):
        engine = quadratic_engine(rule, GRAPH)
        engine.step()
        assert engine.bytes_sent == expected


def test_push_sum_averages_over_one_way_links() -> None:
    graph = DirectedTopology([(0, 1), (1, 2), (2, 0), (2, 3), (3, 0)])
    row = graph.mixing_matrix[:, 2]
    np.testing.assert_allclose(row, [1 / 3, 0, 1 / 3, 1 / 3])  # agent 2 divides by three
    values = Averaging.random(4, 3, seed=1)
    engine = Engine(Analytic(values.start, lambda x, _k: 0 * x), graph, PushSum())
    engine.run(120)
    np.testing.assert_allclose(
        engine.parameters.numpy(), np.broadcast_to(values.optimum(), (4, 3)), atol=1e-12
    )
    # Plain averaging on the same links ends elsewhere.
    plain = np.linalg.matrix_power(graph.mixing_matrix, 300) @ values.start
    assert np.abs(plain[0] - values.optimum()).max() > 0.05
    missing = Engine(
        Analytic(values.start, lambda x, _k: 0 * x), graph, PushSum(), missing={2: [(2, 3)]}
    )
    missing.run(150)
    np.testing.assert_allclose(missing.parameters[0].numpy(), values.optimum(), atol=1e-12)


def test_rules_get_the_graph_they_need() -> None:
    directed = DirectedTopology.exponential(6)
    with pytest.raises(GraphError, match=r"needs an undirected graph.*directed-exponential:6"):
        quadratic_engine(HeavyBall(), directed)
    with pytest.raises(ConfigError, match="diverges for every step size"):
        quadratic_engine(HeavyBall(momentum_mixing=1.0), Topology.bipartite(3, 3, "uniform"))
    with pytest.raises(ConfigError, match=r"5 agents.*split among 6"):
        quadratic_engine(HeavyBall(), Topology.ring(5))
    np.testing.assert_allclose(mixing_matrix_of(Centralized(), directed), np.full((6, 6), 1 / 6))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("directed-rng:5", "did you mean 'directed-ring'"),
        ("directed-ring:x", "not of the form directed-ring:N"),
        ("rng:5", "did you mean 'ring'"),
        ("directed-ring:1", "at least 2"),
    ],
)
def test_unknown_topologies_name_the_nearest(spec: str, message: str) -> None:
    with pytest.raises(GraphError, match=message):
        parse_topology(spec)


def test_directed_graphs_are_checked() -> None:
    with pytest.raises(GraphError, match="not strongly connected"):
        DirectedTopology([(0, 1), (1, 2)])
    with pytest.raises(GraphError, match="self-loop"):
        DirectedTopology([(0, 0), (0, 1), (1, 0)])
    with pytest.raises(GraphError, match="no edge from 1 to 0"):
        DirectedTopology.ring(3).with_missing([(1, 0)])
    assert parse_topology("directed-ring:4").n_agents == 4


def test_sparse_and_dense_mixing_agree() -> None:
    graph = Topology.ring(200)
    v = torch.randn(200, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    dense, sparse = (
        Mixer(graph.mixing_matrix, torch.float64, torch.device("cpu"), kind)
        for kind in ("dense", "sparse")
    )
    torch.testing.assert_close(dense(v), sparse(v), rtol=0, atol=1e-14)
    auto = Mixer(graph.mixing_matrix, torch.float64, torch.device("cpu"))
    assert auto.kind == "sparse"
    full = Mixer(Topology.complete(200).mixing_matrix, torch.float32, torch.device("cpu"))
    assert full.kind == "dense"
    with pytest.raises(ConfigError, match="auto, dense, sparse"):
        Mixer(graph.mixing_matrix, torch.float32, torch.device("cpu"), "csr")


def test_memory_is_three_times_the_parameters_and_a_block() -> None:
    engine = Engine(digits_problem(make_model("mlp", 0), block=1), GRAPH, CDMSGD())
    engine.run(2)
    held = [engine.parameters, *engine.memory.values(), engine._trained]
    assert sum(t.nbytes for t in held) == 3 * engine.parameters.nbytes
    block = sum(t.nbytes for t in next(iter(engine.problem._stacks.values())))  # type: ignore[attr-defined]
    assert block == engine.parameters[0].nbytes


def test_cross_entropy_is_torchs() -> None:
    output = torch.randn(9, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    target = torch.arange(9) % 4
    expected = functional.cross_entropy(output, target)
    torch.testing.assert_close(cross_entropy(output, target), expected, rtol=1e-14, atol=0)


@pytest.mark.parametrize(
    "settings", [{"batch_size": 0}, {"local_steps": 0}, {"block": 0}, {"backend": "fast"}]
)
def test_bad_settings_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))):
        digits_problem(make_model("logistic", 0), **settings)


def test_bad_learning_rate_is_refused() -> None:
    with pytest.raises(ConfigError, match="learning_rate"):
        Engine(digits_problem(make_model("logistic", 0)), GRAPH, DSGD(), learning_rate=float("nan"))
    frozen = nn.Linear(64, 10).requires_grad_(False)
    with pytest.raises(ConfigError, match="no parameter that requires a gradient"):
        digits_problem(frozen)
