"""What a workload is: data, a split over the agents, a model; and how a model is trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from flower_dhb.problems.splits import Indices

__all__ = ["Workload", "evaluate", "train"]


@dataclass(frozen=True)
class Workload:
    """Training and test data, the samples of each agent, and how to make the model."""

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor
    parts: list[Indices]
    make_model: Callable[[], nn.Module]


def train(model: nn.Module, x: Tensor, y: Tensor, batches: Indices, learning_rate: float) -> float:
    """Plain SGD, one step per row of `batches`; returns the mean loss before each step.

    There is no momentum here: momentum is what the agents share, and `consensus_mod`
    takes care of it.
    """
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=learning_rate)
    total = 0.0
    for batch in torch.from_numpy(batches):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x[batch]), y[batch])
        loss.backward()
        optimizer.step()
        total += loss.item()
    return total / len(batches)


def evaluate(model: nn.Module, x: Tensor, y: Tensor, chunk: int = 1000) -> tuple[float, float]:
    """Mean loss and accuracy in [0, 1]."""
    model.eval()
    loss, correct = 0.0, 0
    with torch.inference_mode():
        for xs, ys in zip(x.split(chunk), y.split(chunk), strict=True):
            scores = model(xs)
            loss += nn.functional.cross_entropy(scores, ys, reduction="sum").item()
            correct += int((scores.argmax(dim=1) == ys).sum())
    return loss / len(y), correct / len(y)
