"""What a workload is: data that agents share out among them, and models that learn from it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

__all__ = ["Samples", "Workload", "evaluate", "put", "shared", "train"]


class Samples(NamedTuple):
    """Inputs `(m, …)` as they are kept in memory, and labels `(m,)` int64."""

    x: Tensor
    y: Tensor


@dataclass(frozen=True)
class Workload(ABC):
    """Data and models. A workload of one's own says `models`, `load` and `build`, and no more.

    models: names for the run config's `model`; the first one is taken for `auto`.
    folder, download: `data-dir`, and whether what is missing there may be fetched.
    """

    folder: Path = Path("data")
    download: bool = False
    models: ClassVar[tuple[str, ...]]

    @abstractmethod
    def load(self, *, train: bool) -> Samples:
        """All samples to train on, or all to test with; the same ones on every machine."""

    @abstractmethod
    def build(self, model: str) -> nn.Module:
        """A model that has class scores as its output, its weights drawn from torch's generator."""

    def prepare(self, x: Tensor) -> Tensor:
        """What the model takes, of a batch of inputs as they are kept."""
        return x

    def augment(self, x: Tensor) -> Tensor:
        """A random variation of each input of a training batch, drawn from torch's generator."""
        return x


def train(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], optimizer: torch.optim.Optimizer
) -> float:
    """One step for each batch of inputs and labels; returns the mean loss before each step."""
    model.train()
    losses = []
    for x, y in batches:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return sum(losses) / len(losses)


def evaluate(
    model: nn.Module, workload: Workload, samples: Samples, device: torch.device, chunk: int = 250
) -> tuple[float, float]:
    """Mean loss and accuracy in [0, 1]. chunk: samples that are computed at once."""
    model.eval()
    loss, right = 0.0, 0
    with torch.inference_mode():
        for x, y in zip(samples.x.split(chunk), samples.y.split(chunk), strict=True):
            scores, labels = model(workload.prepare(x.to(device))), y.to(device)
            loss += nn.functional.cross_entropy(scores, labels, reduction="sum").item()
            right += int((scores.argmax(dim=1) == labels).sum())
    return loss / len(samples.y), right / len(samples.y)


def shared(model: nn.Module) -> dict[str, Tensor]:
    """The arrays of a model that travel: all but its frozen parameters, which everyone has."""
    frozen = {
        name
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if not parameter.requires_grad
    }
    return {name: t for name, t in model.state_dict().items() if name not in frozen}


def put(arrays: dict[str, Tensor], model: nn.Module) -> None:
    """Put the arrays that have traveled into a model. Raises RuntimeError if they are others."""
    if missing := shared(model).keys() - arrays.keys():
        raise RuntimeError(f"arrays of the model are missing: {', '.join(sorted(missing))}")
    lost = model.load_state_dict(arrays, strict=False).unexpected_keys
    if lost:
        raise RuntimeError(f"the model has no arrays {', '.join(lost)}")
