"""The networks that people train, all agents at once: the numbers of one agent after the other."""

from __future__ import annotations

import copy
import warnings

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from flower_dhb import HeavyBall, Topology
from flower_dhb.engine.batched import Batched, Looped
from flower_dhb.engine.engine import Engine
from flower_dhb.engine.supervised import Supervised
from flower_dhb.errors import ConfigError

pytestmark = pytest.mark.thorough

AGENTS = 3


class Block(nn.Module):
    """A residual block with a stride, as ResNet-20 has it, and a normalization."""

    def __init__(self, norm: type[nn.Module]) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(4, 8, 3, 2, 1, bias=False), nn.Conv2d(8, 8, 3, 1, 1)
        self.norms = nn.ModuleList([_norm(norm), _norm(norm)])
        self.shortcut = nn.Conv2d(4, 8, 1, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        found = self.norms[0](self.first(x)).relu()
        return (self.norms[1](self.second(found)) + self.shortcut(x)).relu()


def _norm(kind: type[nn.Module]) -> nn.Module:
    return nn.GroupNorm(2, 8) if kind is nn.GroupNorm else kind(8)


def residual(norm: type[nn.Module]) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), Block(norm), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(8, 5),
    )  # fmt: skip


def pooling() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, groups=2, dilation=2, padding=2), nn.Tanh(),
        nn.MaxPool2d(2, ceil_mode=True), nn.Conv2d(4, 6, 2), nn.AvgPool2d(2, 1),
        nn.Flatten(), nn.LazyLinear(5),
    )  # fmt: skip


def transformer() -> nn.Module:
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
            self.norm, self.last = nn.LayerNorm(8), nn.Linear(8, 5)

        def forward(self, x: Tensor) -> Tensor:
            x = x.reshape(len(x), -1, 8)
            return self.last(self.norm(x + self.attention(x, x, x, need_weights=False)[0]).mean(1))

    return Words()


NETWORKS = {
    "batch": lambda: residual(nn.BatchNorm2d),
    "group": lambda: residual(nn.GroupNorm),
    "pooling": pooling,
    "transformer": transformer,
}


def network(name: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(0)
    module = NETWORKS[name]()
    module.eval()
    module(torch.zeros(1, 2, 8, 8))
    return module.to(dtype)


def problem(module: nn.Module, **settings: object) -> Supervised:
    dtype = next(module.parameters()).dtype
    x = torch.randn(48, 2, 8, 8, generator=torch.Generator().manual_seed(1)).to(dtype)
    parts = [np.arange(48)[i::AGENTS] for i in range(AGENTS)]
    return Supervised(module, x, torch.arange(48) % 5, parts, batch_size=6, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", NETWORKS)
def test_all_agents_at_once_are_one_after_the_other(name: str) -> None:
    ends = []
    for backend in ("batched", "loop"):
        found = problem(network(name), local_steps=2, optimizer="momentum:0.9", backend=backend)
        engine = Engine(found, Topology.star(AGENTS), HeavyBall(), learning_rate=0.05)
        engine.run(2)
        outputs = torch.cat([rows for _, rows in found.outputs(engine.agents, found.inputs[:4])])
        ends.append((engine.parameters, engine.agents.statistics, outputs))
    for batched, looped in zip(*ends, strict=True):
        # float64; sums are added up in another order.
        torch.testing.assert_close(batched, looped, rtol=0, atol=1e-11)
    parameters, statistics, _ = ends[0]
    assert parameters.std(0).max() > 1e-4  # agents differ
    assert (statistics.shape[1] > 0) == (name == "batch")


def test_statistics_of_batch_normalization_are_the_loops_to_the_last_digits() -> None:
    """Each agent's own batches move its own statistics; W averages them, without momentum."""
    found = problem(network("batch"), local_steps=3)
    agents = found.start(torch.device("cpu"))
    with torch.no_grad():
        found.adapt(agents, 1, 0.05, torch.empty_like(agents.parameters))
    assert agents.statistics.std(0).min() > 0.0
    counts = [t for name, t in agents.local.items() if name.endswith("num_batches_tracked")]
    assert [t.tolist() for t in counts] == [[3] * AGENTS] * 2
    variances = [e for e in found.model.layout.entries if e.name.endswith("running_var")]
    places = [found._places[e.name] for e in variances]
    assert all((agents.statistics[:, place] > 0.0).all() for place in places)


@pytest.mark.parametrize("loss", [nn.functional.mse_loss, nn.functional.smooth_l1_loss])
def test_any_loss_of_outputs_and_targets(loss: object) -> None:
    ends = []
    for kind in (Batched, Looped):
        model = kind(network("group"), loss)  # type: ignore[arg-type]
        arrays = model.module.state_dict()
        stack = [torch.stack([arrays[e.name]] * AGENTS) for e in model.entries]
        x = torch.randn(AGENTS, 6, 2, 8, 8, generator=torch.Generator().manual_seed(1)).double()
        model.step(stack, x, torch.ones(AGENTS, 6, 5).double(), 0.1)
        ends.append(stack)
    for batched, looped in zip(*ends, strict=True):
        torch.testing.assert_close(batched, looped, rtol=0, atol=1e-12)


class Branching(nn.Linear):
    """Its Python code looks at the data."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if x.mean() > 0 else -x)


def test_what_cannot_be_batched_is_trained_in_a_loop_if_one_says_so() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), Branching(128, 5))
    with pytest.raises(ConfigError, match=r"module '1' \(Branching\) cannot be batched.*'loop'"):
        Engine(problem(copy.deepcopy(module)), Topology.star(AGENTS), HeavyBall()).run(1)
    auto = Engine(
        problem(copy.deepcopy(module), backend="auto"), Topology.star(AGENTS), HeavyBall()
    )
    with pytest.warns(UserWarning, match="'1' .Branching. cannot be batched.* one agent after"):
        auto.run(1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it is said once
        auto.run(2)
    loop = Engine(problem(module, backend="loop"), Topology.star(AGENTS), HeavyBall())
    loop.run(3)
    assert torch.equal(auto.parameters, loop.parameters)
    outputs = problem(copy.deepcopy(module), backend="auto")
    with pytest.warns(UserWarning, match="cannot be batched"):
        list(outputs.outputs(outputs.start(torch.device("cpu")), outputs.inputs[:2]))


@pytest.mark.parametrize("name", ["batch"])
def test_half_precision_is_of_the_passes_alone(name: str) -> None:
    ends = {}
    for precision, backend in (
        ("float32", "batched"),
        ("bfloat16", "batched"),
        ("bfloat16", "loop"),
    ):
        module = network(name, torch.float32)
        found = problem(module, precision=precision, backend=backend, local_steps=2)
        engine = Engine(found, Topology.star(AGENTS), HeavyBall(), learning_rate=0.05)
        engine.run(3)
        assert engine.parameters.dtype == engine.agents.statistics.dtype == torch.float32
        _, rows = next(iter(found.outputs(engine.agents, found.inputs[:4])))
        assert rows.dtype == torch.float32
        ends[precision, backend] = engine.parameters
    full = ends["float32", "batched"]
    start = problem(network(name, torch.float32)).start(torch.device("cpu")).parameters
    way = (full - start).norm()
    # Eight bits of a mantissa: a gradient is right within about 1 %.
    for backend in ("batched", "loop"):
        apart = (ends["bfloat16", backend] - full).norm()
        assert 1e-4 < apart / way < 0.1


def test_a_shared_model_has_the_precision_of_the_problem() -> None:
    with pytest.raises(ConfigError, match="precision is bfloat16, but the model that is shared"):
        problem(network("group"), precision="bfloat16", model=Batched(network("group")))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that torch can use")
@pytest.mark.parametrize("name", NETWORKS)
def test_a_gpu_gives_the_numbers_of_the_cpu(name: str) -> None:
    ends = []
    for device in ("cpu", "cuda"):
        found = problem(network(name), local_steps=2, optimizer="adamw")
        engine = Engine(found, Topology.star(AGENTS), HeavyBall(), device=device)
        engine.run(2)
        ends.append(engine.parameters.cpu())
    torch.testing.assert_close(*ends, rtol=0, atol=1e-8)  # float64, other kernels
