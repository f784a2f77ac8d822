"""Networks for small images, and their normalization."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TypeAlias

import torch
from torch import Tensor, nn

from flower_dhb import ConfigError
from flower_dhb.extras import load

__all__ = ["NETWORKS", "NORMALIZATIONS", "normalized"]

Shape: TypeAlias = tuple[int, int, int]  # channels, height and width; height and width are equal

NORMALIZATIONS = ("auto", "batch", "group", "none")
_GROUP = 8  # channels of a group, or as many as divide their number


def normalized(model: nn.Module, how: str) -> nn.Module:
    """A model with another normalization; its weights stay as they are.

    how: `auto` leaves the model as its authors have it. `batch`: batch normalization, whose
    running statistics agents average. `group`: group normalization (Wu & He 2018, arXiv
    1803.08494), which has no statistics, and so is the better one where agents have different
    classes. `none`: neither. Raises ConfigError for a model that is written without one.
    """
    places = [
        (part, name, child)
        for part in model.modules()
        for name, child in part.named_children()
        if isinstance(child, nn.BatchNorm2d)
    ]
    if not places and how in ("batch", "group"):
        raise ConfigError(
            f"run config: 'normalization' = \"{how}\", but this model has no normalization: leave "
            'it at "auto", or choose another model'
        )
    for part, name, child in places:
        if how == "group":
            groups = child.num_features // math.gcd(child.num_features, _GROUP)
            setattr(part, name, nn.GroupNorm(groups, child.num_features))
        elif how == "none":
            setattr(part, name, nn.Identity())
    return model


def _lenet5(shape: Shape, classes: int) -> nn.Module:
    """LeNet-5 (LeCun et al. 1998) with today's rectifiers and maximum pooling."""
    return nn.Sequential(
        nn.Conv2d(shape[0], 6, 5, padding=(32 - shape[1]) // 2),
        *(nn.ReLU(), nn.MaxPool2d(2)),
        nn.Conv2d(6, 16, 5),
        *(nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
        *(nn.Linear(16 * 5 * 5, 120), nn.ReLU()),
        *(nn.Linear(120, 84), nn.ReLU()),
        nn.Linear(84, classes),
    )


def _cnn(shape: Shape, classes: int) -> nn.Module:
    """Four convolutions: two of 16 channels, two of 32. Small enough for a device without a GPU."""
    return nn.Sequential(
        *_convolution(shape[0], 16),
        *_convolution(16, 16),
        nn.MaxPool2d(2),
        *_convolution(16, 32),
        *_convolution(32, 32),
        *(nn.MaxPool2d(2), nn.Flatten()),
        nn.Linear(32 * (shape[1] // 4) ** 2, classes),
    )


def _vgg11(shape: Shape, classes: int) -> nn.Module:
    """VGG-11 (Simonyan & Zisserman 2015) with one linear layer, as is usual for 32 x 32."""
    layers: list[nn.Module] = [nn.ZeroPad2d((32 - shape[1]) // 2)]
    channels = shape[0]
    for width in (64, 0, 128, 0, 256, 256, 0, 512, 512, 0, 512, 512, 0):
        layers += _convolution(channels, width) if width else (nn.MaxPool2d(2),)
        channels = width or channels
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(512, classes))


def _resnet20(shape: Shape, classes: int) -> nn.Module:
    """ResNet-20 of He et al. 2016 for small images; shortcuts have no parameters."""
    blocks, channels = [], 16
    for width in (16, 32, 64):
        for first in (True, False, False):
            blocks.append(_Block(channels, width, 2 if first and width > 16 else 1))
            channels = width
    stem = (nn.Conv2d(shape[0], 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
    return nn.Sequential(
        *stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, classes)
    )


def _resnet18(shape: Shape, classes: int) -> nn.Module:
    """Torchvision's ResNet-18; for small images its stem is one 3 x 3 convolution."""
    model: nn.Module = load("torchvision.models", "ResNet-18").resnet18(num_classes=classes)
    model.conv1 = nn.Conv2d(shape[0], 64, 3, padding=1, bias=False)
    model.maxpool = nn.Identity()
    return model


NETWORKS: Mapping[str, Callable[[Shape, int], nn.Module]] = {
    "cnn": _cnn,
    "lenet5": _lenet5,
    "vgg11": _vgg11,
    "resnet20": _resnet20,
    "resnet18": _resnet18,
}


def _convolution(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()


class _Block(nn.Module):
    """Two convolutions around which the input goes, thinned out where the image shrinks."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.stride, self.more = stride, outputs - inputs

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norm1(self.conv1(x)))
        short = x[:, :, :: self.stride, :: self.stride]
        wide = nn.functional.pad(short, (0, 0, 0, 0, self.more // 2, self.more - self.more // 2))
        return torch.relu(self.norm2(self.conv2(y)) + wide)
