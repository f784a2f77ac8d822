"""Checkpoints: tensors and their JSON description in one safetensors file, written atomically."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from flower_dhb.errors import StateError
from flower_dhb.files import write_durably

__all__ = ["read", "write"]

_KEY = "flower_dhb"


def write(path: Path, tensors: Mapping[str, NDArray[Any]], description: Mapping[str, Any]) -> None:
    """Write a checkpoint; a crash leaves the old file or the new one, never a mixture."""
    write_durably(path, save(dict(tensors), metadata={_KEY: json.dumps(dict(description))}))


def read(path: Path) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Tensors and description of a checkpoint. Raises StateError if it is absent or damaged."""
    try:
        data = path.read_bytes()
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        return load(data), json.loads(header["__metadata__"][_KEY])
    except FileNotFoundError:
        raise StateError(f"{path}: no such checkpoint") from None
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise StateError(
            f"{path}: not a checkpoint of this package, or damaged: {error}; "
            "delete it to begin anew"
        ) from error
