"""Small models for the digits, each said as its layers: what is built, and how large it is.

Only building one loads torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from flower_dhb.errors import ConfigError, unknown

if TYPE_CHECKING:
    from torch import nn

__all__ = ["MODELS", "make_model", "n_parameters", "new_model"]

# Kind of a layer, inputs and outputs; both are 0 where a layer has no parameters.
Layer: TypeAlias = tuple[str, int, int]

_CONVOLUTION = 3  # width of a convolution's window, padded so that the image keeps its size
_RELU, _POOL, _FLAT = ("relu", 0, 0), ("pool", 0, 0), ("flat", 0, 0)
MODELS: dict[str, tuple[Layer, ...]] = {
    "logistic": (("linear", 64, 10),),
    "mlp": (("linear", 64, 32), _RELU, ("linear", 32, 10)),
    "cnn": (
        ("image", 0, 0),
        ("convolution", 1, 8),
        _RELU,
        _POOL,
        ("convolution", 8, 16),
        _RELU,
        _FLAT,
        ("linear", 16 * 4 * 4, 10),
    ),
}


def make_model(name: str, seed: int) -> nn.Module:
    """Model with weights drawn from `seed` alone; the global generator is left as it was.

    `logistic` is multinomial logistic regression, `mlp` is 64-32-10, `cnn` two small
    convolutions and a linear layer. Raises ConfigError for another name.
    """
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return new_model(name)


def new_model(name: str) -> nn.Module:
    """Model with weights drawn from torch's own generator, as it stands.

    Raises ConfigError for a name that is none of MODELS.
    """
    from torch import nn

    modules = [_module(*layer) for layer in _layers(name)]
    return modules[0] if len(modules) == 1 else nn.Sequential(*modules)


def n_parameters(name: str) -> int:
    """Number of a model's parameters. Raises ConfigError for a name that is none of MODELS."""
    windows = {"linear": 1, "convolution": _CONVOLUTION**2}
    return sum(
        outputs * (windows[kind] * inputs + 1)
        for kind, inputs, outputs in _layers(name)
        if kind in windows
    )


def _layers(name: str) -> tuple[Layer, ...]:
    if name not in MODELS:
        raise ConfigError(unknown("model", name, MODELS))
    return MODELS[name]


def _module(kind: str, inputs: int, outputs: int) -> nn.Module:
    from torch import nn

    match kind:
        case "linear":
            return nn.Linear(inputs, outputs)
        case "convolution":
            return nn.Conv2d(inputs, outputs, _CONVOLUTION, padding=_CONVOLUTION // 2)
        case "pool":
            return nn.MaxPool2d(2)
        case "image":
            return nn.Unflatten(1, (1, 8, 8))
        case "flat":
            return nn.Flatten()
        case _:
            return nn.ReLU()
