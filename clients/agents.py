"""What one agent has of a workload: its samples, its batches, its model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord
from torch import Tensor, nn

from clients.settings import Settings
from clients.workload import Samples, Workload, put
from flower_dhb import ConfigError
from flower_dhb.problems.splits import Indices, batches, split
from flower_dhb.topology.turns import count_agents as agents_of

__all__ = ["Agent", "count_agents", "parts_of", "samples_of"]

_DRAWS = 1  # after seed, vertex and round: other draws than those of the batches; the engine's too


@dataclass(frozen=True, kw_only=True)
class Agent:
    """One vertex. part: positions of its samples among those that this process holds."""

    settings: Settings
    vertex: int
    samples: Samples
    part: Indices

    @classmethod
    def of(cls, values: Mapping[str, Any], node: Mapping[str, Any]) -> Agent:
        """The agent that a node is, by its run config and its node config.

        A node with a `vertex` is a device of its own, and keeps nothing but that agent's samples.
        Simulated nodes share their processes, so each of these keeps all samples once.
        Raises ConfigError for a node that the topology does not have.
        """
        settings, n = Settings.of(values), count_agents(values)
        vertex = int(node.get("vertex", node.get("partition-id", -1)))
        if not 0 <= vertex < n:
            raise ConfigError(f"this node is vertex {vertex}, the topology has {n}")
        if "vertex" in node:
            samples = _own(settings.workload, settings.split, settings.seed, n, vertex)
            return cls(
                settings=settings, vertex=vertex, samples=samples, part=np.arange(len(samples.y))
            )
        part = parts_of(settings, n)[vertex]
        samples = samples_of(settings.workload, train=True)
        return cls(settings=settings, vertex=vertex, samples=samples, part=part)

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.settings.device_of(self.vertex)

    def model(self, arrays: ArrayRecord) -> nn.Module:
        """The model with the values of a message. Each process builds it once."""
        model = _model(self.settings).to(self.device)
        put(arrays.to_torch_state_dict(), model)
        return model

    @contextmanager
    def drawing(self, round: int) -> Iterator[None]:
        """Within it, torch draws what depends on seed, vertex and round alone."""
        words = np.random.SeedSequence([self.settings.seed, self.vertex, round, _DRAWS])
        gpu = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=gpu):
            torch.manual_seed(int(words.generate_state(1, np.uint64)[0]) >> 1)
            yield

    def batches(self, round: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs and labels of each local step of a round."""
        settings, workload = self.settings, self.settings.workload
        steps = batches(
            len(self.part),
            settings.batch_size,
            settings.local_steps,
            seed=settings.seed,
            vertex=self.vertex,
            round=round,
        )
        for rows in torch.from_numpy(self.part[steps]):
            x = self.samples.x[rows]
            if settings.augment:
                x = workload.augment(x)
            yield workload.prepare(x.to(self.device)), self.samples.y[rows].to(self.device)


def count_agents(values: Mapping[str, Any]) -> int:
    """Number of agents of the topology in a run config; no graph is built.

    Asked for with every message, so a graph file is read once.
    """
    return _count(str(values.get("topology", "ring:16")))


@lru_cache(maxsize=4)
def samples_of(workload: Workload, *, train: bool) -> Samples:
    """All samples to train on, or all to test with; a process reads them once."""
    return workload.load(train=train)


def parts_of(settings: Settings, n_agents: int) -> list[Indices]:
    """Positions of each agent's training samples."""
    return _parts(settings.workload, settings.split, settings.seed, n_agents)


@lru_cache(maxsize=4)
def _parts(workload: Workload, how: str, seed: int, n_agents: int) -> list[Indices]:
    return split(samples_of(workload, train=True).y.numpy(), n_agents, how, seed)


@lru_cache(maxsize=32)
def _own(workload: Workload, how: str, seed: int, n_agents: int, vertex: int) -> Samples:
    """One agent's samples, in memory of their own: all others are let go."""
    x, y = workload.load(train=True)
    part = torch.from_numpy(split(y.numpy(), n_agents, how, seed)[vertex])
    return Samples(x[part], y[part])


@lru_cache(maxsize=1)
def _model(settings: Settings) -> nn.Module:
    return settings.new_model()


@lru_cache(maxsize=8)
def _count(topology: str) -> int:
    return agents_of(topology)
