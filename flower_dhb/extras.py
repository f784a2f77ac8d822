"""Libraries that only an optional extra of this package installs, and what to say without them."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any

from flower_dhb.errors import ConfigError

__all__ = ["EXTRAS", "installed", "load", "needs_extra"]

# The extra that installs a library, for all libraries that the package can do without.
EXTRAS = {
    "cryptography": "peer",
    "cvxpy": "fdla",
    "google": "peer",
    "grpc": "peer",
    "matplotlib": "plot",
    "mlflow": "mlflow",
    "networkx": "graphs",
    "pandas": "frames",
    "peft": "lora",
    "prometheus_client": "peer",
    "psutil": "simulation",
    "pyarrow": "parquet",
    "ray": "simulation",
    "scipy": "graphs",
    "sklearn": "engine",
    "tensorboard": "tensorboard",
    "tomli_w": "peer",
    "torch": "engine",
    "torchvision": "vision",
    "transformers": "lora",
    "vl_convert": "report",
    "wandb": "wandb",
}


def needs_extra(what: str, extra: str) -> ConfigError:
    """Error for something that needs an extra, with the command that installs it."""
    return ConfigError(f"{what} needs the '{extra}' extra: pip install 'flower-dhb[{extra}]'")


def installed(*libraries: str) -> bool:
    """Whether all of some libraries can be imported; none of them is loaded."""
    try:
        return all(find_spec(library) is not None for library in libraries)
    except (ImportError, ValueError):
        return False


def load(library: str, what: str) -> Any:
    """A library that an extra installs.

    what: what needs it, for the error. Raises ConfigError that names the extra if it is not
    installed.
    """
    if not installed(library):
        raise needs_extra(what, EXTRAS[library.partition(".")[0]])
    return import_module(library)
