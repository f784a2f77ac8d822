"""The editions of a mesh, as they lie in the operator's folder: one file each, never changed."""

from __future__ import annotations

import json
from pathlib import Path

from flower_dhb.errors import ConfigError
from flower_dhb.peer.wire.edition import MeshEdition

__all__ = ["FOLDER", "FORMER", "edition_name", "read_editions"]

FOLDER = "editions"
FORMER = "former"  # the folders of devices that were replaced


def edition_name(number: int) -> str:
    """Name of the file of an edition."""
    return f"edition-{number}.json"


def read_editions(directory: Path) -> dict[int, MeshEdition]:
    """All editions of the mesh in a directory, by number. Raises ConfigError if one is damaged."""
    found = {}
    for path in sorted((directory / FOLDER).glob("edition-*.json")):
        try:
            edition = MeshEdition.of(json.loads(path.read_bytes()))
        except (OSError, ValueError, ConfigError) as error:
            raise ConfigError(f"{path}: is not as 'flower-dhb mesh' wrote it: {error}") from None
        found[edition.number] = edition
    if not found:
        raise ConfigError(
            f"{directory / FOLDER}: holds no editions; 'mesh create' writes the first one"
        )
    return dict(sorted(found.items()))
