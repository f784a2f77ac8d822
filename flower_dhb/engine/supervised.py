"""Supervised learning on split data: every agent does SGD steps on batches of its own part."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from flower_dhb.engine.batched import (
    Batched,
    LocalModel,
    Looped,
    Loss,
    NotBatchedError,
    cross_entropy,
)
from flower_dhb.engine.problem import Agents
from flower_dhb.engine.updates import Updates
from flower_dhb.errors import ConfigError
from flower_dhb.problems.optimizers import LocalOptimizer
from flower_dhb.problems.splits import Indices, batches
from flower_dhb.topology.graph import digest_of
from flower_dhb.types import STATISTICS, Entry, Layout, Statistics

__all__ = ["BATCH_CACHE_BYTES", "BLOCK_BYTES", "Supervised"]

# Parameters of the agents that step together. Small models need many agents in a call to
# pay its overhead, until what a step touches no longer fits into a second-level cache;
# a large model's weights are read several times a step and should stay in the cache
# while all its local steps are done. Measured (benchmarks/engine.py blocks).
BLOCK_BYTES = 5 * 2**18
FEW, FEW_BYTES = 4, 2**21

BACKENDS = ("batched", "loop", "auto")

_DROPOUT = 1  # after seed, vertex and round: other draws than those of the batches

BATCH_CACHE_BYTES = 2**27  # sample positions kept for the next run with the same seed


class Supervised:
    """Data, model and schedule of a supervised problem.

    Parameters
    ----------
    module : nn.Module
        The model; its values are every agent's initial ones. Float32 or float64.
    inputs, targets : Tensor
        All training samples, `(m, …)`.
    parts : sequence of index arrays
        Which samples each agent holds (`flower_dhb.problems.splits.split`).
    batch_size, local_steps, seed
        Batches are those of `flower_dhb.problems.splits.batches`, the same as in every runtime.
    optimizer : LocalOptimizer or str
        Of the local steps: `sgd`, `momentum:0.9`, `adamw`, … Its state begins anew each round.
    loss : callable
        `loss(output, target)`, the mean over a batch.
    backend : str
        `batched`, or `loop` for modules that cannot be batched, or `auto`: batched if that
        is possible, else the loop, with a warning that says why.
    precision : str
        Of the forward and backward passes of local steps: `float32`, which is the dtype of
        the model, or `bfloat16`, torch's autocast. Parameters and mixing keep their dtype.
    block : int, optional
        Agents that step together, which changes the speed and not the numbers. None
        chooses by the model's size, as measured; `measure_block` measures here and now.
    model : LocalModel, optional
        A model to share with other problems, so that it is traced only once.
    """

    def __init__(
        self,
        module: nn.Module,
        inputs: Tensor,
        targets: Tensor,
        parts: Sequence[Indices],
        *,
        batch_size: int = 32,
        local_steps: int = 1,
        seed: int = 0,
        optimizer: LocalOptimizer | str = "sgd",
        loss: Loss = cross_entropy,
        backend: str = "batched",
        precision: str = "float32",
        block: int | None = None,
        statistics: Statistics = STATISTICS,
        model: LocalModel | None = None,
    ) -> None:
        if backend not in BACKENDS:
            raise ConfigError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
        for what, value in (("batch_size", batch_size), ("local_steps", local_steps)):
            if not value >= 1:
                raise ConfigError(f"{what} must be at least 1, got {value}")
        if block is not None and not block >= 1:
            raise ConfigError(f"block must be at least 1, got {block}")
        kind = Looped if backend == "loop" else Batched
        self.model = model or kind(module, loss, statistics, precision)
        if self.model.precision != precision:
            raise ConfigError(
                f"precision is {precision}, but the model that is shared with other problems "
                f"has {self.model.precision}"
            )
        self.backend = backend
        self.parts = [torch.from_numpy(np.asarray(part, np.int64)) for part in parts]
        self.inputs, self.targets = inputs, targets
        self.batch_size, self.local_steps, self.seed = batch_size, local_steps, seed
        self.optimizer = (
            LocalOptimizer.parse(optimizer) if isinstance(optimizer, str) else optimizer
        )
        self._wanted_block = block
        self.block = len(self.parts)
        self._initial = {name: t.detach().clone() for name, t in module.state_dict().items()}
        self._places = _places(self.model.layout.entries)
        self._schedule: dict[int, Tensor] = {}
        # The block that is being trained; kept, since fresh memory costs page faults.
        self._stacks: dict[tuple[int, torch.device], list[Tensor]] = {}
        self._updates: dict[tuple[int, torch.device], Updates] = {}

    @property
    def n_agents(self) -> int:
        """Number of agents that hold data."""
        return len(self.parts)

    @property
    def layout(self) -> Layout:
        """The arrays of the model."""
        return self.model.layout

    @property
    def digest(self) -> str:
        """Inputs, targets, who has which, batches, steps, optimizer, precision and seed."""
        steps = (self.batch_size, self.local_steps, str(self.optimizer), self.model.precision)
        parts = [part.numpy() for part in self.parts]
        return digest_of((*steps, self.seed), self._samples_digest, *parts)

    @cached_property
    def _samples_digest(self) -> str:
        """Of all inputs and targets, which nobody changes: once, for they may be large."""
        return digest_of(*_bits(self.inputs), *_bits(self.targets))

    def start(self, device: torch.device) -> Agents:
        """The module's own values for every agent; the data move to the device."""
        self.inputs, self.targets = self.inputs.to(device), self.targets.to(device)
        self.block = min(self._wanted_block or self._good_block(device), self.n_agents)
        # As many blocks, but of one size: a last block of one agent would cost as much.
        self.block = -(-self.n_agents // -(-self.n_agents // self.block))
        layout, n = self.model.layout, self.n_agents
        dtype = torch.from_numpy(np.empty(0, layout.dtype)).dtype

        def rows(kind: str) -> Tensor:
            found = [self._initial[e.name].flatten() for e in layout.entries if e.kind == kind]
            row = torch.cat(found).to(dtype) if found else torch.zeros(0, dtype=dtype)
            return row.to(device).expand(n, -1).clone()

        local = {
            e.name: self._initial[e.name].to(device).expand(n, *e.shape).clone()
            for e in layout.entries
            if e.kind == "local"
        }
        return Agents(rows("parameter"), rows("statistic"), local)

    def adapt(self, agents: Agents, round: int, learning_rate: float, trained: Tensor) -> None:
        """`local_steps` steps of every agent's optimizer, block by block."""
        positions = self._batches(round)
        for first in range(0, self.n_agents, self.block):
            block = slice(first, min(first + self.block, self.n_agents))
            try:
                stack = self._train(agents, round, block, positions, learning_rate)
            except NotBatchedError as error:
                self._fall_back(error)
                stack = self._train(agents, round, block, positions, learning_rate)
            self._store(stack, agents, trained, block)

    def _train(
        self, agents: Agents, round: int, block: slice, positions: Tensor, learning_rate: float
    ) -> list[Tensor]:
        """The arrays of a block of agents after their local steps."""
        stack = self._load(agents, block)
        updates = self._fresh_updates(stack)
        with self._drawing(round, block, agents.parameters.device):
            for x, y in self._samples(positions[block]):
                self.model.step(stack, x, y, learning_rate, updates)
        return stack

    def _fall_back(self, error: NotBatchedError) -> None:
        """Train one agent after the other from now on, if that was asked for."""
        if self.backend != "auto":
            raise error
        model = self.model
        self.model = Looped(model.module, model.loss, model.statistics, model.precision)
        cause = str(error).partition(" Python code that")[0]
        warnings.warn(
            f"{cause} The engine trains one agent after the other, which is slower.", stacklevel=2
        )

    def outputs(self, agents: Agents, inputs: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Outputs of every agent on the same inputs, block by block: `(agents, m, …)`."""
        n = len(agents.parameters)
        with torch.no_grad():
            for first in range(0, n, self.block):
                block = slice(first, min(first + self.block, n))
                stack = self._load(agents, block)
                try:
                    found = self.model.outputs(stack, inputs)
                except NotBatchedError as error:
                    self._fall_back(error)
                    found = self.model.outputs(stack, inputs)
                yield block, found

    def measure_block(self, device: str = "cpu") -> int:
        """Choose the block by timing a round of local steps for each size; returns it.

        The numbers do not depend on the block, so a run still repeats to the bit.
        """
        agents = self.start(torch.device(device))
        seconds: dict[int, float] = {}
        size = 1
        while size <= self.n_agents:
            seconds[size] = self._time_block(agents, size)
            size *= 2
        self.block = self._wanted_block = min(seconds, key=lambda s: seconds[s])
        return self.block

    @torch.no_grad()
    def _time_block(self, agents: Agents, size: int) -> float:
        """Seconds per agent of a block's local steps, the best of three."""
        block, best = slice(0, size), float("inf")
        index = self._batches(1)[block]
        for trial in range(4):  # the first one traces
            began = time.perf_counter()
            stack = self._load(agents, block)
            updates = self._fresh_updates(stack)
            with self._drawing(1, block, agents.parameters.device):
                for x, y in self._samples(index):
                    self.model.step(stack, x, y, 0.0, updates)
            if agents.parameters.device.type == "cuda":
                torch.cuda.synchronize()
            if trial:
                best = min(best, (time.perf_counter() - began) / size)
        return best

    def _samples(self, positions: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs and targets of each local step, `(agents, batch_size, …)`.

        positions: (agents, local_steps, batch_size).
        """
        by_step = positions.transpose(0, 1).contiguous().to(self.inputs.device)
        for index in by_step:
            flat = index.view(-1)  # rows are copied whole, which an index of two axes is not
            x, y = self.inputs.index_select(0, flat), self.targets.index_select(0, flat)
            yield x.view(*index.shape, *x.shape[1:]), y.view(*index.shape, *y.shape[1:])

    def _fresh_updates(self, stack: list[Tensor]) -> Updates | None:
        """The optimizer of a block of agents, at the beginning of a round; None is plain SGD."""
        if self.optimizer.plain:
            return None
        key = (len(stack[0]), stack[0].device)
        if key not in self._updates:
            self._updates[key] = Updates(self.optimizer, stack[: len(self.model.trainable)])
        self._updates[key].begin()
        return self._updates[key]

    def _good_block(self, device: torch.device) -> int:
        if device.type != "cpu":
            return self.n_agents  # a GPU's cost is the number of calls
        size = self.model.layout.size * self.model.layout.dtype.itemsize
        return max(BLOCK_BYTES // size, min(FEW, FEW_BYTES // size), 1)

    def _load(self, agents: Agents, block: slice) -> list[Tensor]:
        size, device = block.stop - block.start, agents.parameters.device
        if (size, device) not in self._stacks:
            self._stacks[size, device] = [
                torch.empty(size, *e.shape, dtype=_torch(e), device=device)
                for e in self.model.entries
            ]
        stack = self._stacks[size, device]
        for tensor, entry in zip(stack, self.model.entries, strict=True):
            tensor.copy_(self._rows(agents, agents.parameters, entry, block))
        return stack

    def _store(self, stack: list[Tensor], agents: Agents, trained: Tensor, block: slice) -> None:
        named = dict(zip((e.name for e in self.model.entries), stack, strict=True))
        for entry in self.model.layout.entries:
            name = self.model.twins.get(entry.name, entry.name)
            self._rows(agents, trained, entry, block).copy_(named[name])

    def _rows(self, agents: Agents, parameters: Tensor, entry: Entry, block: slice) -> Tensor:
        if entry.kind == "local":
            return agents.local[entry.name][block]
        rows = parameters if entry.kind == "parameter" else agents.statistics
        piece = rows[block, self._places[entry.name]]
        return piece.view(len(piece), *entry.shape)

    def _batches(self, round: int) -> Tensor:
        """Sample positions of all agents in a round: (n, local_steps, batch_size)."""
        if round in self._schedule:
            return self._schedule[round]
        drawn = torch.empty(self.n_agents, self.local_steps, self.batch_size, dtype=torch.int64)
        for vertex, part in enumerate(self.parts):
            chosen = batches(
                len(part),
                self.batch_size,
                self.local_steps,
                seed=self.seed,
                vertex=vertex,
                round=round,
            )
            drawn[vertex] = part[torch.from_numpy(chosen)]
        if (len(self._schedule) + 1) * drawn.nbytes <= BATCH_CACHE_BYTES:
            self._schedule[round] = drawn
        return drawn

    def _drawing(
        self, round: int, block: slice, device: torch.device
    ) -> AbstractContextManager[None]:
        """Generators for models that draw, from seed, vertex and round, as the batches."""
        if isinstance(self.model, Batched) and not self.model.may_draw:
            return nullcontext()
        words = [[self.seed, vertex, round, _DROPOUT] for vertex in range(block.start, block.stop)]
        states = (np.random.SeedSequence(w).generate_state(1, np.uint64) for w in words)
        return self.model.draws.of([int(state[0]) >> 1 for state in states], device)


def _bits(tensor: Tensor) -> tuple[Any, ...]:
    """What a digest is taken of; NumPy has no bfloat16."""
    flat = tensor.detach().cpu().contiguous().flatten()
    return str(tensor.dtype), tuple(tensor.shape), flat.view(torch.uint8).numpy()


def _places(entries: tuple[Entry, ...]) -> dict[str, slice]:
    """Columns of each array within the vector of its kind."""
    ends: dict[str, int] = {}
    places = {}
    for entry in entries:
        start = ends.get(entry.kind, 0)
        ends[entry.kind] = start + entry.size
        places[entry.name] = slice(start, start + entry.size)
    return places


def _torch(entry: Entry) -> torch.dtype:
    return torch.from_numpy(np.empty(0, entry.dtype)).dtype
