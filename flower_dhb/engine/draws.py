"""Random layers: every agent draws from a generator of its own, whoever steps beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from flower_dhb.engine.graph_passes import draws as is_draw
from flower_dhb.errors import ConfigError

__all__ = ["Draws"]


class Draws:
    """Generators of the agents that step together, and draws from them in turn.

    A batched operation would draw for all agents from one generator, so that an agent's
    numbers depended on how many step beside it. Within `of`, agent a draws what it would
    draw alone.
    """

    def __init__(self) -> None:
        self._states: list[Tensor] = []
        self._device = torch.device("cpu")

    @contextmanager
    def of(self, seeds: Sequence[int], device: torch.device) -> Iterator[None]:
        """Seed a generator for each agent; torch's own is left as it was."""
        self._device = device
        self._states = [torch.Generator(device).manual_seed(seed).get_state() for seed in seeds]
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
        self._states = []

    @contextmanager
    def agent(self, agent: int) -> Iterator[None]:
        """Draw from the generator of one agent, where there is one."""
        if not self._states:
            yield
            return
        if self._device.type == "cuda":
            torch.cuda.set_rng_state(self._states[agent], self._device)
            yield
            self._states[agent] = torch.cuda.get_rng_state(self._device)
        else:
            torch.set_rng_state(self._states[agent])
            yield
            self._states[agent] = torch.get_rng_state()

    def separate(self, module: GraphModule, n_agents: int) -> None:
        """Let every operation of a recorded step that draws do so agent by agent.

        Raises ConfigError if one does not have the agents as its first dimension.
        """
        for node in module.graph.nodes:
            if not is_draw(node):
                continue
            values = node.meta.get("val")
            for value in values if isinstance(values, tuple | list) else [values]:
                if value is None or value.ndim == 0 or len(value) != n_agents:
                    raise ConfigError(
                        f"the model draws with '{node.target}', which cannot be batched over "
                        "agents; choose the slower path that trains one agent after the "
                        "other: backend='loop'"
                    )
            node.target = self._separated(node.target, n_agents)

    def _separated(self, operation: Callable[..., Any], n_agents: int) -> Callable[..., Any]:
        def drawn(*args: Any, **kwargs: Any) -> Any:
            results = []
            for agent in range(n_agents):
                own = [_own(arg, agent, n_agents) for arg in args]
                with self.agent(agent):
                    results.append(operation(*own, **kwargs))
            if isinstance(results[0], Tensor):
                return torch.cat(results)
            return tuple(torch.cat(parts) for parts in zip(*results, strict=True))

        return drawn


def _own(value: Any, agent: int, n_agents: int) -> Any:
    """One agent's part of an argument: of a tensor, or of the size of one."""
    if isinstance(value, Tensor) and value.ndim and len(value) == n_agents:
        return value[agent : agent + 1]
    if isinstance(value, list | tuple) and value and value[0] == n_agents:
        return [1, *value[1:]]
    return value
