"""Supervised problems: blocks of agents, batches, and where each array lies in the vectors."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch
from torch import nn

from flower_dhb.engine.supervised import Supervised
from flower_dhb.errors import ConfigError
from flower_dhb.problems.splits import batches

CPU = torch.device("cpu")


def problem(module: nn.Module, n: int, **settings: object) -> Supervised:
    x = torch.arange(40.0).reshape(40, 1).expand(40, 8) / 40
    y = torch.arange(40) % 3
    parts = [np.arange(40)[i::n] if n <= 40 else np.arange(40) for i in range(n)]
    return Supervised(module, x, y, parts, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("inputs", "outputs", "n", "block"),
    [
        (8, 3, 7, 7),  # 108 bytes an agent: all fit
        (600, 4, 200, 100),  # 9,616 bytes: 136 fit into 1.25 MiB; two blocks of equal size
        (1000, 100, 30, 4),  # 400,400 bytes: three would fit, four are the least
        (1000, 100, 9, 3),  # three blocks of three rather than 4, 4 and 1
        (1000, 250, 9, 2),  # 1,001,000 bytes: two within 2 MiB
        (1000, 600, 3, 1),  # 2,402,400 bytes: each by itself
    ],
)
def test_as_many_agents_step_together_as_the_cache_holds(inputs, outputs, n, block) -> None:
    found = problem(nn.Linear(inputs, outputs), n)
    found.start(CPU)
    assert found.block == block


@pytest.mark.parametrize(("wanted", "n", "block"), [(1, 5, 1), (2, 5, 2), (4, 5, 3), (9, 5, 5)])
def test_a_wanted_block_is_made_of_equal_parts(wanted, n, block) -> None:
    found = problem(nn.Linear(8, 3), n, block=wanted)
    found.start(CPU)
    assert found.block == block


class Mixed(nn.Module):
    """Arrays of every kind, in an order that flat vectors do not have."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(8)
        self.last = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.norm(x))


def test_every_agent_starts_with_the_modules_own_values() -> None:
    torch.manual_seed(3)
    module = Mixed()
    with torch.no_grad():
        module.norm.running_mean += torch.arange(8.0)
        module.norm.num_batches_tracked += 5
    agents = problem(module, 4).start(CPU)
    arrays = module.state_dict()
    names = ("norm.weight", "norm.bias", "last.weight", "last.bias")
    vector = torch.cat([arrays[name].flatten() for name in names])
    statistics = torch.cat([arrays["norm.running_mean"], arrays["norm.running_var"]])
    torch.testing.assert_close(agents.parameters, vector.expand(4, -1), rtol=0, atol=0)
    torch.testing.assert_close(agents.statistics, statistics.expand(4, -1), rtol=0, atol=0)
    assert agents.local["norm.num_batches_tracked"].tolist() == [5] * 4
    agents.parameters[1] += 1.0
    torch.testing.assert_close(agents.parameters[0], vector, rtol=0, atol=0)


@pytest.mark.parametrize("backend", ["batched", "loop"])
@pytest.mark.thorough
def test_local_steps_are_sgd_on_the_agents_own_batches(backend: str) -> None:
    torch.manual_seed(0)
    module = nn.Linear(8, 3)
    found = problem(module, 3, batch_size=4, local_steps=2, seed=9, backend=backend, block=2)
    agents = found.start(CPU)
    agents.parameters += torch.arange(3.0)[:, None] / 10
    before = agents.parameters.clone()
    trained = torch.empty_like(before)
    with torch.no_grad():
        found.adapt(agents, 5, 0.5, trained)
    torch.testing.assert_close(agents.parameters, before, rtol=0, atol=0)
    for vertex in range(3):
        own = nn.Linear(8, 3)
        nn.utils.vector_to_parameters(before[vertex].clone(), own.parameters())
        optimizer = torch.optim.SGD(own.parameters(), lr=0.5)
        part = np.arange(40)[vertex::3]
        for chosen in batches(len(part), 4, 2, seed=9, vertex=vertex, round=5):
            optimizer.zero_grad()
            at = part[chosen]
            nn.functional.cross_entropy(own(found.inputs[at]), found.targets[at]).backward()
            optimizer.step()
        expected = nn.utils.parameters_to_vector(own.parameters()).detach()
        torch.testing.assert_close(trained[vertex], expected, rtol=0, atol=1e-6)
    outputs = dict.fromkeys(range(3))
    for agents_of, values in found.outputs(agents, found.inputs[:5]):
        for row, vertex in enumerate(range(agents_of.start, agents_of.stop)):
            outputs[vertex] = values[row]
    for vertex, values in outputs.items():
        own = nn.Linear(8, 3)
        nn.utils.vector_to_parameters(before[vertex].clone(), own.parameters())
        torch.testing.assert_close(values, own(found.inputs[:5]).detach(), rtol=0, atol=1e-6)


def test_what_holds_where_nothing_is_said() -> None:
    parameters = inspect.signature(Supervised).parameters
    said = {name: parameters[name].default for name in ("batch_size", "local_steps", "seed")}
    assert said == {"batch_size": 32, "local_steps": 1, "seed": 0}
    assert (parameters["backend"].default, parameters["block"].default) == ("batched", None)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"backend": "vmap"}, "backend must be one of batched, loop, auto, got 'vmap'"),
        ({"precision": "float16"}, "unknown precision 'float16', did you mean 'bfloat16'"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"local_steps": 0}, "local_steps must be at least 1"),
        ({"block": 0}, "block must be at least 1"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        problem(nn.Linear(8, 3), 2, **settings)
