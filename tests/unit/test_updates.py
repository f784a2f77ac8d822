"""Local optimizers of all agents at once are torch.optim's, agent by agent."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from flower_dhb import HeavyBall, Topology
from flower_dhb.engine.batched import Batched, LocalModel, Looped
from flower_dhb.engine.engine import Engine
from flower_dhb.engine.supervised import Supervised
from flower_dhb.engine.updates import Updates
from flower_dhb.errors import ConfigError, StateError
from flower_dhb.problems.optimizers import OPTIMIZERS, LocalOptimizer, Schedule
from flower_dhb.problems.splits import batches

pytestmark = pytest.mark.thorough

AGENTS, STEPS, RATE = 3, 7, 0.05
WORDS = [
    *OPTIMIZERS,
    "sgd:weight-decay=0.1",
    "momentum:0.8:weight-decay=0.1",
    "nesterov:0.9:weight-decay=0.1",
    "adam:weight-decay=0.1:beta1=0.5",
]


class Net(nn.Module):
    """A parameter that is not used, one that is frozen, and running statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.idle = nn.Parameter(torch.ones(2))
        self.first, self.norm, self.last = nn.Linear(8, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)
        self.first.bias.requires_grad_(requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norm(self.first(x)).tanh())


@cache
def model_of(backend: str) -> LocalModel:
    """One for all tests: a trace serves every optimizer."""
    kind = Batched if backend == "batched" else Looped
    return kind(module(), nn.functional.cross_entropy)


def data() -> tuple[Tensor, Tensor, list[np.ndarray]]:
    x = torch.randn(60, 8, generator=torch.Generator().manual_seed(0)).double()
    return x, torch.arange(60) % 3, [np.arange(60)[i::AGENTS] for i in range(AGENTS)]


def module() -> Net:
    torch.manual_seed(1)
    return Net().double()


def one_after_the_other(words: str, rounds: int, rate: float) -> list[Net]:
    """What the app does: each agent's own model, and a new torch.optim optimizer each round."""
    x, y, parts = data()
    models = [module() for _ in range(AGENTS)]
    for k in range(1, rounds + 1):
        for vertex, (model, part) in enumerate(zip(models, parts, strict=True)):
            wanted = [p for p in model.parameters() if p.requires_grad]
            optimizer = LocalOptimizer.parse(words).make(wanted, rate)
            for at in part[batches(len(part), 5, STEPS, seed=4, vertex=vertex, round=k)]:
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(x[at]), y[at]).backward()
                optimizer.step()
    return models


def rows(models: list[Net], names: list[str]) -> Tensor:
    return torch.stack([torch.cat([m.state_dict()[n].flatten() for n in names]) for m in models])


@pytest.mark.parametrize("words", WORDS)
@pytest.mark.parametrize("backend", ["batched", "loop"])
def test_local_steps_are_those_of_torch_optim(words: str, backend: str) -> None:
    x, y, parts = data()
    problem = Supervised(
        module(),
        x,
        y,
        parts,
        batch_size=5,
        local_steps=STEPS,
        seed=4,
        optimizer=words,
        backend=backend,
        model=model_of(backend),
    )
    agents = problem.start(torch.device("cpu"))
    with torch.no_grad():
        for k in (1, 2):
            trained = torch.empty_like(agents.parameters)
            problem.adapt(agents, k, RATE, trained)
            agents.parameters.copy_(trained)
    models = one_after_the_other(words, 2, RATE)
    layout = problem.model.layout.entries
    expected = rows(models, [e.name for e in layout if e.kind == "parameter"])
    statistics = rows(models, [e.name for e in layout if e.kind == "statistic"])
    # In a loop the gradients are torch's own, so everything is equal to the bit. Batched
    # gradients add up in another order: float64, 14 steps, Adam divides by their size.
    tolerance = 0.0 if backend == "loop" else 1e-10
    torch.testing.assert_close(agents.parameters, expected, rtol=0, atol=tolerance)
    torch.testing.assert_close(agents.statistics, statistics, rtol=0, atol=tolerance)
    assert torch.equal(
        agents.parameters[:, :2], torch.ones(AGENTS, 2).double()
    )  # idle: no decay, either
    assert (agents.parameters[0] - agents.parameters[1]).abs().max() > 0.01


@pytest.mark.parametrize("words", WORDS)
def test_equal_gradients_give_equal_parameters_to_the_bit(words: str) -> None:
    generator = torch.Generator().manual_seed(2)
    shapes = [(5, 3), (7,)]
    start = [torch.randn(AGENTS, *shape, generator=generator) for shape in shapes]
    gradients = [
        [torch.randn(AGENTS, *shape, generator=generator) for shape in shapes] for _ in range(STEPS)
    ]
    together, updates = [s.clone() for s in start], Updates(LocalOptimizer.parse(words), start)
    for round in range(2):  # noqa: A001
        updates.begin()
        for step in gradients:
            updates.advance()
            updates.apply(together, step, RATE * (round + 1))
    for agent in range(AGENTS):
        alone = [s[agent].clone().requires_grad_() for s in start]
        for round in range(2):  # noqa: A001
            optimizer = LocalOptimizer.parse(words).make(alone, RATE * (round + 1))
            for step in gradients:
                for parameter, gradient in zip(alone, step, strict=True):
                    parameter.grad = gradient[agent].clone()
                optimizer.step()
        for parameter, found in zip(alone, together, strict=True):
            assert torch.equal(parameter.detach(), found[agent])


@pytest.mark.parametrize("words", ["momentum:0.9", "adamw"])
def test_the_block_does_not_change_a_bit(words: str) -> None:
    x, y, parts = data()
    ends = []
    for block in (1, 2, 3):
        torch.manual_seed(3)
        problem = Supervised(
            nn.Linear(8, 3).double(), x, y, parts, local_steps=3, optimizer=words, block=block
        )
        engine = Engine(problem, Topology.ring(AGENTS), HeavyBall(), learning_rate=RATE)
        engine.run(4)
        ends.append(engine.parameters.clone())
    assert torch.equal(ends[0], ends[1])
    assert torch.equal(ends[0], ends[2])


def engine_of(**settings: object) -> Engine:
    x, y, parts = data()
    problem = Supervised(module(), x, y, parts, batch_size=5)
    return Engine(problem, Topology.ring(AGENTS), HeavyBall(), **settings)  # type: ignore[arg-type]


def test_each_round_has_the_rate_of_the_schedule() -> None:
    one = engine_of(learning_rate=0.2, schedule="warmup:2+linear", rounds=6)
    two = engine_of(learning_rate=0.2)
    for k in range(1, 7):
        one.step()
        two.learning_rate = Schedule.parse("warmup:2+linear").rate(0.2, k, 6)
        two.step()
        assert torch.equal(one.parameters, two.parameters)
    assert two.learning_rate == pytest.approx(0.05)


def test_a_schedule_over_the_whole_run_needs_its_length() -> None:
    with pytest.raises(ConfigError, match="'cosine' depends on the number of rounds"):
        engine_of(schedule="cosine")
    with pytest.raises(ConfigError, match="unknown learning-rate schedule 'cosin'"):
        engine_of(schedule="cosin")
    assert engine_of(schedule="step:0.1@5").rounds is None


def test_a_checkpoint_of_another_optimizer_or_schedule_is_refused(tmp_path) -> None:
    engine_of(schedule="cosine", rounds=5).save(tmp_path / "a")
    for other in ({"schedule": "linear", "rounds": 5}, {"schedule": "cosine", "rounds": 6}):
        with pytest.raises(StateError, match="checkpoint of another run"):
            engine_of(**other).load(tmp_path / "a")
    x, y, parts = data()
    problem = Supervised(module(), x, y, parts, batch_size=5, optimizer="adamw")
    engine = Engine(problem, Topology.ring(AGENTS), HeavyBall(), schedule="cosine", rounds=5)
    with pytest.raises(StateError, match="'problem' is"):
        engine.load(tmp_path / "a")
