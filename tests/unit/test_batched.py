"""Local steps of many agents at once: the numbers of one agent after the other, for odd modules."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from flower_dhb.engine.batched import Batched, LocalModel, Looped, cross_entropy
from flower_dhb.errors import ConfigError

pytestmark = pytest.mark.thorough

AGENTS, SAMPLES, STEP = 3, 5, 0.1


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def stack_of(model: LocalModel) -> list[Tensor]:
    """Each agent's arrays: the module's own, moved a little."""
    arrays = model.module.state_dict()
    found = []
    for k, entry in enumerate(model.entries):
        array = arrays[entry.name]
        rows = torch.stack([array] * AGENTS)
        noise = 0.3 * random(*rows.shape, seed=k)
        found.append(rows + noise.abs() if array.is_floating_point() else rows)
    return found


def mean_square(output: Tensor, target: Tensor) -> Tensor:
    return ((output - target) ** 2).mean()


class Factors(nn.Module):
    """x U V: the gradient of each factor is a product with the other."""

    def __init__(self) -> None:
        super().__init__()
        self.u, self.v = nn.Parameter(random(4, 3)), nn.Parameter(random(3, 5, seed=1))
        self.shift = nn.Parameter(random(4, 5, seed=2), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return x @ (self.shift + self.u @ self.v)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4, dtype=torch.float64), nn.Linear(4, 4, dtype=torch.float64)
        self.b.weight = self.a.weight
        self.last = nn.Linear(4, 5, bias=False, dtype=torch.float64)
        self.unused = nn.Parameter(random(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.b(self.a(x).tanh()).tanh())


class Counting(nn.Module):
    """BatchNorm, a constant, and a counter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 6, dtype=torch.float64)
        self.norm = nn.BatchNorm1d(6, dtype=torch.float64)
        self.last = nn.Linear(6, 5, dtype=torch.float64)
        self.register_buffer("scale", torch.full((5,), 0.5, dtype=torch.float64))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.calls += 2
        return self.last(self.norm(self.first(x)).relu()) * self.scale


MODULES = {"factors": Factors, "tied": Tied, "counting": Counting}


@pytest.mark.parametrize("name", MODULES)
def test_a_step_of_all_agents_is_each_agents_own(name: str) -> None:
    torch.manual_seed(0)
    module = MODULES[name]()
    x, y = random(AGENTS, SAMPLES, 4, seed=3), random(AGENTS, SAMPLES, 5, seed=4)
    results = []
    for kind in (Batched, Looped):
        model = kind(module, mean_square)
        stack = stack_of(model)
        for k in range(3):
            model.step(stack, x + k, y, STEP)
        outputs = model.outputs(stack, x[0])
        assert not module.training
        results.append([*stack, outputs])
    for batched, looped in zip(*results, strict=True):
        # float64: three steps whose sums are rounded in another order.
        torch.testing.assert_close(batched, looped, rtol=0, atol=1e-13)
    assert len(set(results[0][0].flatten(1).sum(1).tolist())) == AGENTS


@pytest.mark.parametrize("kind", [Batched, Looped])
def test_a_step_is_sgd_by_hand(kind: type[LocalModel]) -> None:
    """x W + b with the mean square: the gradient of W is 2 x'(x W + b - y) / (5 samples * 5)."""
    module = nn.Linear(4, 5, dtype=torch.float64)
    model = kind(module, mean_square)
    assert [entry.name for entry in model.entries] == ["weight", "bias"]
    weight, bias = stack = stack_of(model)
    x, y = random(AGENTS, SAMPLES, 4, seed=3), random(AGENTS, SAMPLES, 5, seed=4)
    old_weight, old_bias = weight.clone(), bias.clone()
    error = 2 * (x @ weight.transpose(1, 2) + bias[:, None] - y) / (SAMPLES * 5)
    model.step(stack, x, y, STEP)
    torch.testing.assert_close(weight, old_weight - STEP * error.transpose(1, 2) @ x)
    torch.testing.assert_close(bias, old_bias - STEP * error.sum(1))
    outputs = model.outputs(stack, x[1])
    torch.testing.assert_close(outputs, x[1] @ weight.transpose(1, 2) + bias[:, None])


@pytest.mark.parametrize("kind", [Batched, Looped])
def test_statistics_move_in_training_alone(kind: type[LocalModel]) -> None:
    torch.manual_seed(0)
    model = kind(Counting(), mean_square)
    places = {entry.name: k for k, entry in enumerate(model.entries)}
    stack = stack_of(model)
    x, y = random(AGENTS, SAMPLES, 4, seed=3), random(AGENTS, SAMPLES, 5, seed=4)
    before = [tensor.clone() for tensor in stack]
    model.step(stack, x, y, STEP)
    first = (
        x @ before[places["first.weight"]].transpose(1, 2) + before[places["first.bias"]][:, None]
    )
    for name, seen in (("norm.running_mean", first.mean(1)), ("norm.running_var", first.var(1))):
        expected = 0.9 * before[places[name]] + 0.1 * seen
        torch.testing.assert_close(stack[places[name]], expected)
    assert stack[places["norm.num_batches_tracked"]].tolist() == [1] * AGENTS
    assert stack[places["calls"]].tolist() == [2] * AGENTS
    torch.testing.assert_close(stack[places["scale"]], before[places["scale"]], rtol=0, atol=0)
    after = [tensor.clone() for tensor in stack]
    model.outputs(stack, x[0])
    for old, new in zip(after, stack, strict=True):
        assert torch.equal(old, new)


def test_what_is_trained_and_what_lies_beside_it() -> None:
    tied, factors = Looped(Tied()), Looped(Factors())
    assert [e.name for e in tied.trainable] == [
        *("unused", "a.weight", "a.bias", "b.bias", "last.weight"),
    ]
    assert tied.twins == {"b.weight": "a.weight"}
    assert [e.name for e in tied.other] == []
    assert [e.name for e in factors.entries] == ["u", "v", "shift"]
    assert [e.name for e in Looped(Counting()).other] == [
        *("scale", "calls", "norm.running_mean", "norm.running_var", "norm.num_batches_tracked"),
    ]


def test_statistics_may_be_named() -> None:
    model = Looped(Counting(), mean_square, statistics=("scale",))
    kinds = {entry.name: entry.kind for entry in model.layout.entries}
    assert kinds["scale"] == "statistic"
    assert kinds["norm.running_mean"] == "parameter"
    assert kinds["calls"] == "local"


def test_a_trace_serves_one_shape_and_is_made_once() -> None:
    calls: list[tuple[int, ...]] = []

    class Noted(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            calls.append(tuple(x.shape))
            return super().forward(x)

    model = Batched(Noted(4, 5, dtype=torch.float64), mean_square)
    stack = stack_of(model)
    for samples in (5, 5, 2, 5):
        model.step(stack, random(AGENTS, samples, 4), random(AGENTS, samples, 5), STEP)
    for samples in (7, 7, 1):
        assert model.outputs(stack, random(samples, 4)).shape == (AGENTS, samples, 5)
    assert calls == [(5, 4), (2, 4), (7, 4), (1, 4)]


def test_drawing_is_noticed_and_agents_draw_apart() -> None:
    plain = Batched(nn.Linear(4, 5, dtype=torch.float64), mean_square)
    noisy = Batched(
        nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 5, dtype=torch.float64)), mean_square
    )
    assert plain.may_draw is noisy.may_draw is True
    x, y = torch.ones(1, SAMPLES, 4, dtype=torch.float64), random(1, SAMPLES, 5)
    x, y = x.expand(AGENTS, -1, -1), y.expand(AGENTS, -1, -1)
    for model in (plain, noisy):
        stack = [tensor[:1].repeat(AGENTS, *[1] * (tensor.dim() - 1)) for tensor in stack_of(model)]
        before = torch.get_rng_state()
        model._trace_step(stack, x, y)
        assert torch.equal(before, torch.get_rng_state())  # tracing draws, and puts it back
        torch.manual_seed(1)
        model.step(stack, x, y, STEP)
        apart = len(set(stack[0].flatten(1).sum(1).tolist()))
        assert apart == (AGENTS if model is noisy else 1)
    assert plain.may_draw is False
    assert noisy.may_draw is True


@pytest.mark.parametrize("kind", [Batched, Looped])
def test_half_precision_is_refused_with_the_remedy(kind: type[LocalModel]) -> None:
    with pytest.raises(ConfigError, match=r"float32 or float64; got bfloat16: \.float\(\) it"):
        kind(nn.Linear(2, 2, dtype=torch.bfloat16))


class Bad(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.good, self.choice = nn.Linear(4, 4), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.good(x)
        if y.sum() > 0:
            y = -y
        return self.choice(y)


def test_an_obstacle_in_the_module_itself_names_it_and_leaves_no_hooks() -> None:
    module = Bad()
    model = Batched(module)
    with pytest.raises(ConfigError, match=r"^Bad cannot be batched over agents: .*branches"):
        model.step(
            [torch.stack([p.detach()] * 2) for p in module.parameters()],
            torch.ones(2, 3, 4),
            torch.zeros(2, 3, dtype=torch.int64),
            STEP,
        )
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())


def test_cross_entropy_of_scores_by_hand() -> None:
    scores = torch.tensor([[2.0, 0.0], [0.0, 0.0]], dtype=torch.float64)
    found = cross_entropy(scores, torch.tensor([0, 1]))
    expected = (torch.log1p(torch.exp(torch.tensor(-2.0))) + torch.log(torch.tensor(2.0))) / 2
    assert found == pytest.approx(float(expected), abs=1e-7)


def test_a_traced_step_holds_no_operation_too_many() -> None:
    """On small models the time of a step is the number of its operations."""
    module = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5)).double()
    model = Batched(module)
    labels = torch.zeros(AGENTS, SAMPLES, dtype=torch.int64)
    model.step(stack_of(model), random(AGENTS, SAMPLES, 4), labels, STEP)
    (trace,) = model._traces.values()
    graph = trace.__self__.graph  # type: ignore[attr-defined]
    called = [node for node in graph.nodes if node.op == "call_function"]
    assert len(called) <= 23
