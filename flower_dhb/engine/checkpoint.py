"""Checkpoints: tensors and their JSON description in one safetensors file, written atomically."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from flower_dhb.errors import StateError

__all__ = ["read", "write", "write_bytes"]

_KEY = "flower_dhb"


def write(path: Path, tensors: Mapping[str, NDArray[Any]], description: Mapping[str, Any]) -> None:
    """Write a checkpoint; a crash leaves the old file or the new one, never a mixture."""
    write_bytes(path, save(dict(tensors), metadata={_KEY: json.dumps(dict(description))}))


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


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file by way of a temporary one in the same folder: on disk before it is renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
