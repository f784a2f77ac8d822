"""Image data sets of torchvision (extra `vision`), read from their original files."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from clients.networks import NETWORKS
from clients.originals import Originals
from clients.workload import Samples, Workload
from flower_dhb.extras import load

__all__ = ["Images"]

# What torchvision raises for files that are cut off, or are something else.
_UNREADABLE = (RuntimeError, OSError, ValueError, TypeError, KeyError, AssertionError)


class Images(Workload):
    """Images, kept as bytes `(m, channels, side, side)`.

    kind: torchvision's class. shape: of an image. mean, deviation: of each channel over the
    training images, in [0, 1]. varied: whether training images are shifted and mirrored, as is
    usual for photographs.
    """

    kind: ClassVar[str]
    shape: ClassVar[tuple[int, int, int]]
    classes: ClassVar[int] = 10
    mean: ClassVar[tuple[float, ...]]
    deviation: ClassVar[tuple[float, ...]]
    varied: ClassVar[bool] = False
    models = tuple(NETWORKS)

    def build(self, model: str) -> nn.Module:
        """One of NETWORKS for these images."""
        return NETWORKS[model](self.shape, self.classes)

    def load(self, *, train: bool) -> Samples:
        """Read the files. Raises ConfigError that says which ones are missing or damaged."""
        source = getattr(load("torchvision.datasets", f"the data set {self.kind}"), self.kind)
        originals = Originals.of(source, self.folder)
        originals.provide(download=self.download)
        try:
            data = source(str(self.folder), train=train)
        except _UNREADABLE as error:
            raise originals.damaged(str(error) or "torchvision cannot read them") from None
        x = torch.as_tensor(data.data)
        x = x.unsqueeze(1) if x.ndim == 3 else x.permute(0, 3, 1, 2).contiguous()
        y = torch.as_tensor(data.targets, dtype=torch.int64)
        if x.shape != (len(y), *self.shape):
            raise originals.damaged(f"{len(y)} labels, and images of shape {tuple(x.shape)}")
        if len(y) == 0 or not 0 <= int(y.min()) <= int(y.max()) < self.classes:
            raise originals.damaged(f"labels must be 0 to {self.classes - 1}, got {y.unique()}")
        return Samples(x, y)

    def prepare(self, x: Tensor) -> Tensor:
        """Float images, each channel with mean 0 and deviation 1 over the training images."""
        mean, deviation = (
            torch.tensor(values, device=x.device).view(-1, 1, 1)
            for values in (self.mean, self.deviation)
        )
        return (x.float() / 255.0 - mean) / deviation

    def augment(self, x: Tensor) -> Tensor:
        """Each image shifted by up to four pixels, and mirrored or not."""
        if not self.varied:
            return x
        v2: Any = load("torchvision.transforms.v2", "an image")
        vary = v2.Compose([v2.RandomCrop(self.shape[1], padding=4), v2.RandomHorizontalFlip()])
        return torch.stack([vary(image) for image in x])
