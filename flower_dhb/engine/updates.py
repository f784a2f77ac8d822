"""Local optimizers of many agents at once: the arithmetic of `torch.optim`, array by array."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from flower_dhb.problems.optimizers import LocalOptimizer

__all__ = ["Updates"]


class Updates:
    """What a local optimizer remembers within a round, for all agents that step together.

    The operations on an element and their order are those of `torch.optim`'s optimizers, so
    that equal gradients give equal parameters, whether an agent steps alone or with others.

    parameters: one tensor per trained array, agents first; the memory has the same shapes.
    """

    def __init__(self, optimizer: LocalOptimizer, parameters: Sequence[Tensor]) -> None:
        self.optimizer = optimizer
        self._adam = optimizer.name in ("adam", "adamw")
        vectors = 2 if self._adam else int(optimizer.momentum > 0.0)
        self._memory = [[torch.zeros_like(p) for p in parameters] for _ in range(vectors)]
        self._steps = 0

    def begin(self) -> None:
        """Forget everything: a round begins."""
        self._steps = 0
        for vectors in self._memory:
            torch._foreach_zero_(vectors)

    def advance(self) -> None:
        """A local step begins, the same for all agents."""
        self._steps += 1

    @torch.no_grad()
    def apply(
        self,
        parameters: Sequence[Tensor],
        gradients: Sequence[Tensor | None],
        rate: float,
        agent: int | None = None,
    ) -> None:
        """Change parameters in place by one step of all agents, or of one.

        A parameter without a gradient (None) stays as it is, as in `torch.optim`. agent: its
        place in the stack, if parameters and gradients are only its own.
        """
        there = [k for k, gradient in enumerate(gradients) if gradient is not None]
        x = [parameters[k] for k in there]
        g = [gradient for gradient in gradients if gradient is not None]
        memory = [
            [vectors[k] if agent is None else vectors[k][agent] for k in there]
            for vectors in self._memory
        ]
        if not x:
            return
        if self._adam:
            self._adapt(x, g, memory, rate)
        else:
            self._descend(x, g, memory, rate)

    def _descend(
        self, x: list[Tensor], g: list[Tensor], memory: list[list[Tensor]], rate: float
    ) -> None:
        o = self.optimizer
        if o.weight_decay:
            g = list(torch._foreach_add(g, x, alpha=o.weight_decay))
        if memory:
            v = memory[0]
            torch._foreach_mul_(v, o.momentum)
            torch._foreach_add_(v, g)
            g = list(torch._foreach_add(g, v, alpha=o.momentum)) if o.name == "nesterov" else v
        torch._foreach_add_(x, g, alpha=-rate)

    def _adapt(
        self, x: list[Tensor], g: list[Tensor], memory: list[list[Tensor]], rate: float
    ) -> None:
        o = self.optimizer
        mean, square = memory
        if o.weight_decay and o.name == "adamw":
            torch._foreach_mul_(x, 1 - rate * o.weight_decay)
        elif o.weight_decay:
            g = list(torch._foreach_add(g, x, alpha=o.weight_decay))
        torch._foreach_lerp_(mean, g, 1 - o.beta1)
        torch._foreach_mul_(square, o.beta2)
        torch._foreach_addcmul_(square, g, g, 1 - o.beta2)
        root = list(torch._foreach_sqrt(square))
        torch._foreach_div_(root, (1 - o.beta2**self._steps) ** 0.5)
        torch._foreach_add_(root, o.epsilon)
        torch._foreach_addcdiv_(x, mean, root, -rate / (1 - o.beta1**self._steps))
