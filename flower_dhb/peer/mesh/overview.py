"""`mesh.toml`, the overview of a mesh that `flower-dhb mesh create` writes for the operator."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flower_dhb.errors import ConfigError
from flower_dhb.files import read_toml

__all__ = ["read_overview"]

_KEYS = {
    "mesh": str,
    "run": str,
    "topology": str,
    "plaintext": bool,
    "edges": list,
    "hosts": list,
    "weights": list,
    "algorithm": dict,
}


def read_overview(directory: Path) -> dict[str, Any]:
    """The overview of the mesh in a directory. Raises ConfigError if it is not whole."""
    path = directory / "mesh.toml"
    document = read_toml(path, "'mesh create' writes it")
    for key, kind in _KEYS.items():
        if not isinstance(document.get(key), kind):
            raise ConfigError(f"{path}: '{key}' is not as 'mesh create' writes it; create it anew")
    return document
