"""Local steps of many agents in one call: the model batched over agents, traced once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, functionalize, grad, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.attention import SDPBackend, sdpa_kernel

from flower_dhb.engine.draws import Draws
from flower_dhb.engine.graph_passes import (
    apply_updates,
    call_directly,
    drop_idle_gradients,
    fold_constants,
    fuse_bias,
    is_random,
    own_gradients,
    simplify,
)
from flower_dhb.engine.updates import Updates
from flower_dhb.errors import ConfigError, unknown
from flower_dhb.types import STATISTICS, Entry, Layout, Statistics

__all__ = [
    "PRECISIONS",
    "Batched",
    "LocalModel",
    "Looped",
    "Loss",
    "NotBatchedError",
    "cross_entropy",
]

PRECISIONS = ("float32", "bfloat16")

Loss: TypeAlias = Callable[[Tensor, Tensor], Tensor]
Stack: TypeAlias = Sequence[Tensor]  # one tensor per array of the model, agents first


class NotBatchedError(ConfigError):
    """A module cannot be recorded for all agents at once."""


def cross_entropy(output: Tensor, target: Tensor) -> Tensor:
    """Mean cross-entropy of class scores `(m, classes)` and labels `(m,)`.

    The number of `torch.nn.functional.cross_entropy`, without its ignored labels, which
    would cost as many operations as a small model.
    """
    scores = torch.log_softmax(output, dim=-1)
    return -scores.gather(-1, target.unsqueeze(-1)).mean()


class LocalModel:
    """A module seen as named arrays, and what agents do with it; the arrays lie outside.

    layout: the arrays in the order of `state_dict`, with what the law does with each;
    the same as in the other runtimes. A subclass says how many agents step at once.
    draws: generators for random layers; `step` draws from those of `draws.of(…)`.
    precision: of a step's forward and backward pass: `float32`, which leaves them in the
    dtype of the model, or `bfloat16`, which is torch's autocast. Parameters, gradients as
    the optimizer sees them and outputs for evaluation keep the dtype of the model.
    """

    def __init__(
        self,
        module: nn.Module,
        loss: Loss = cross_entropy,
        statistics: Statistics = STATISTICS,
        precision: str = "float32",
    ) -> None:
        if precision not in PRECISIONS:
            raise ConfigError(unknown("precision", precision, PRECISIONS))
        self.module = module
        self.loss = loss
        self.statistics = statistics
        self.precision = precision
        self.draws = Draws()
        arrays = module.state_dict()
        self.layout = Layout.of(
            {name: np.empty(t.shape, _numpy(t.dtype)) for name, t in arrays.items()}, statistics
        )
        trained = {
            name for name, p in module.named_parameters(remove_duplicate=False) if p.requires_grad
        }
        self.twins = _twins(module)
        self.trainable: tuple[Entry, ...] = tuple(
            e for e in self.layout.entries if e.name in trained and e.name not in self.twins
        )
        self.other: tuple[Entry, ...] = tuple(
            e for e in self.layout.entries if e.name not in trained
        )
        if not self.trainable:
            raise ConfigError(f"{type(module).__name__} has no parameter that requires a gradient")

    @property
    def entries(self) -> tuple[Entry, ...]:
        """Arrays that a stack holds: those trained, then the others; twins not repeated."""
        return self.trainable + self.other

    def step(
        self,
        stack: Stack,
        x: Tensor,
        y: Tensor,
        learning_rate: float,
        updates: Updates | None = None,
    ) -> None:
        """One step of all agents of a stack, in place: that of `updates`.

        None is plain SGD, `p -= learning_rate * gradient`.
        """
        raise NotImplementedError

    def outputs(self, stack: Stack, x: Tensor) -> Tensor:
        """Every agent's output on the same inputs, in evaluation mode: (agents, m, …)."""
        raise NotImplementedError

    def _loss(self, arrays: Sequence[Tensor], x: Tensor, y: Tensor) -> Tensor:
        """The loss that a step goes down, in the precision of the steps."""
        if self.precision == "float32":
            return self.loss(self._call(arrays, x), y)
        # Without its cache, which would keep what is traced.
        half = torch.autocast(x.device.type, torch.bfloat16, cache_enabled=False)
        with half, _whole_norms(self.module):
            return self.loss(self._call(arrays, x), y)

    def _call(self, arrays: Sequence[Tensor], x: Tensor) -> Tensor:
        named = dict(zip((e.name for e in self.entries), arrays, strict=True))
        output: Tensor = functional_call(self.module, named, (x,))
        return output


class Batched(LocalModel):
    """All agents of a stack in one call: `torch.func.vmap`, traced once per shape.

    Tracing records the operations of the batched gradient and replays them without the
    Python code of the model, of autograd and of vmap. A module whose Python code
    branches on data cannot be recorded: ConfigError names it.
    """

    def __init__(
        self,
        module: nn.Module,
        loss: Loss = cross_entropy,
        statistics: Statistics = STATISTICS,
        precision: str = "float32",
    ) -> None:
        super().__init__(module, loss, statistics, precision)
        self._traces: dict[Any, Callable[..., Any]] = {}
        self.may_draw = True  # until the first trace shows otherwise

    def step(  # noqa: D102 (in the base class)
        self,
        stack: Stack,
        x: Tensor,
        y: Tensor,
        learning_rate: float,
        updates: Updates | None = None,
    ) -> None:
        n_trained = len(self.trainable)
        key = ("step", updates is None, x.shape, x.dtype, x.device, y.shape)
        if key not in self._traces:
            self._traces[key] = self._trace_step(stack, x, y, in_place=updates is None)
        if updates is None:
            fresh = self._traces[key](*stack, x, y, -learning_rate)
        else:
            found = self._traces[key](*stack, x, y)
            gradients, fresh = found[:n_trained], found[n_trained:]
            updates.advance()
            updates.apply(stack[:n_trained], gradients, learning_rate)
        for tensor, new in zip(stack[n_trained:], fresh, strict=True):
            if new is not tensor:
                tensor.copy_(new)

    def outputs(self, stack: Stack, x: Tensor) -> Tensor:  # noqa: D102
        key = ("outputs", len(stack[0]), x.shape, x.dtype, x.device)
        if key not in self._traces:
            self._traces[key] = self._trace_outputs(stack, x)
        result: Tensor = self._traces[key](*stack, x)[0]
        return result

    def _trace_step(
        self, stack: Stack, x: Tensor, y: Tensor, *, in_place: bool = True
    ) -> Callable[..., Any]:
        """The gradient of all agents; in_place: with the update by plain SGD in it."""
        n_trained = len(self.trainable)

        def loss(trained: list[Tensor], other: list[Tensor], x: Tensor, y: Tensor) -> Any:
            fresh = [tensor.clone() for tensor in other]
            return self._loss([*trained, *fresh], x, y), fresh

        def gradients(*values: Tensor) -> list[Tensor]:
            def one(*agent: Tensor) -> Any:
                arrays, batch = agent[:-2], agent[-2:]
                return grad(loss, has_aux=True)(
                    list(arrays[:n_trained]), list(arrays[n_trained:]), *batch
                )

            found, fresh = vmap(one, randomness="different")(*values)
            return [*found, *fresh]

        self.module.train()
        module = self._record(gradients, [*stack, x, y])
        self.may_draw = is_random(module.graph)
        simplify(module)
        drop_idle_gradients(module, n_trained)
        fold_constants(module, x.device)
        fuse_bias(module)
        simplify(module)
        if in_place:
            apply_updates(module, n_trained)
        else:
            own_gradients(module, n_trained)
        call_directly(module)
        self.draws.separate(module, len(x))
        module.recompile()
        return module.forward  # type: ignore[no-any-return]

    def _trace_outputs(self, stack: Stack, x: Tensor) -> Callable[..., Any]:
        def outputs(*values: Tensor) -> list[Tensor]:
            *arrays, inputs = values
            return [vmap(lambda *agent: self._call(agent, inputs))(*arrays)]

        self.module.eval()
        module = self._record(outputs, [*stack, x])
        simplify(module)
        fuse_bias(module)
        call_directly(module)
        module.recompile()
        return module.forward  # type: ignore[no-any-return]

    def _record(self, function: Callable[..., Any], example: list[Tensor]) -> Any:
        # Tracing draws from the generator too; the steps must not notice.
        # Fused attention has no batched form; written out as products it has.
        plain = sdpa_kernel(SDPBackend.MATH)
        with _Watched(self.module) as inside, torch.random.fork_rng(), plain, _no_fast_path():
            try:
                return make_fx(functionalize(function))(*example)
            except Exception as error:  # torch raises its own kinds, one per obstacle
                first = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
                raise NotBatchedError(
                    f"{inside.where()} cannot be batched over agents: {first} Python code that "
                    "branches on data is the usual cause. Choose the slower path that trains "
                    "one agent after the other: backend='loop'"
                ) from error


class Looped(LocalModel):
    """One agent after the other with plain autograd: slower, for any module at all."""

    def step(  # noqa: D102
        self,
        stack: Stack,
        x: Tensor,
        y: Tensor,
        learning_rate: float,
        updates: Updates | None = None,
    ) -> None:
        self.module.train()
        if updates is not None:
            updates.advance()
        n_trained = len(self.trainable)
        for agent in range(len(x)):
            arrays = [tensor[agent] for tensor in stack]
            with torch.inference_mode(False), torch.enable_grad():
                trained = [tensor.detach().requires_grad_() for tensor in arrays[:n_trained]]
                with self.draws.agent(agent):
                    loss = self._loss([*trained, *arrays[n_trained:]], x[agent], y[agent])
                    gradients = torch.autograd.grad(loss, trained, allow_unused=True)
            if updates is not None:
                updates.apply(arrays[:n_trained], gradients, learning_rate, agent)
                continue
            for tensor, gradient in zip(arrays, gradients, strict=False):
                if gradient is not None:
                    tensor.add_(gradient, alpha=-learning_rate)

    def outputs(self, stack: Stack, x: Tensor) -> Tensor:  # noqa: D102
        self.module.eval()
        agents = range(len(stack[0]))
        return torch.stack([self._call([t[agent] for t in stack], x) for agent in agents])


@contextmanager
def _whole_norms(module: nn.Module) -> Iterator[None]:
    """Let normalizations compute in float32 under autocast: statistics need the digits."""
    kinds = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)

    def whole(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(x.float() if x.dtype is torch.bfloat16 else x for x in inputs)

    hooks = [p.register_forward_pre_hook(whole) for p in module.modules() if isinstance(p, kinds)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _no_fast_path() -> Iterator[None]:
    """Let attention in evaluation mode do what it does in training, which can be batched."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


class _Watched:
    """Remembers which submodule was running when an error came."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.inside: list[str] = []

    def __enter__(self) -> _Watched:
        self._hooks = []
        for name, part in self.module.named_modules():
            label = f"module '{name}' ({type(part).__name__})" if name else type(part).__name__
            self._hooks += [
                part.register_forward_pre_hook(lambda *_, label=label: self.inside.append(label)),
                part.register_forward_hook(lambda *_: self._leave()),
            ]
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _leave(self) -> None:
        self.inside.pop()

    def where(self) -> str:
        return self.inside[-1] if self.inside else type(self.module).__name__


def _twins(module: nn.Module) -> Mapping[str, str]:
    """Second names of shared parameters, with the first name of each."""
    first: dict[int, str] = {}
    twins: dict[str, str] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        other = first.setdefault(id(parameter), name)
        if other != name:
            twins[name] = other
    return twins


def _numpy(dtype: torch.dtype) -> np.dtype[Any]:
    if dtype is torch.bfloat16:
        raise ConfigError("the engine computes in float32 or float64; got bfloat16: .float() it")
    return np.dtype(str(dtype).removeprefix("torch."))
