"""What a peer's disk says of its edges: which rounds counted at one end only, or may have."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import xxhash
from safetensors import SafetensorError

from flower_dhb import __version__
from flower_dhb.errors import ConfigError

__all__ = ["FORMAT", "Ledger", "check_format", "read_about", "read_ledger"]

# Of the files of a state. 1: up to release 0.1, which wrote no number. 2: `format`, `software`,
# and whose state it is.
FORMAT = 2


@dataclass(frozen=True)
class Ledger:
    """The edges of one peer's protocol record, by neighbor."""

    edges: Mapping[int, Mapping[str, Any]]

    def evidence(self, neighbor: int, round: int) -> str | None:
        """How the peer knows of a difference in this round, or reckons with it; else None."""
        edge = self.edges.get(neighbor)
        if edge is None:
            return None
        if round == edge["counted"][0] and not edge["settled"]:
            return "had not heard yet whether it counted at the other end"
        for name, words in _WORDS.items():
            if round in edge[name]:
                return words
            # The oldest are remembered by their number only.
            if edge[f"{name}_total"] > len(edge[name]) and round < min(edge[name], default=0):
                return f"{words} (or another one of {edge[f'{name}_total']} so old)"
        return None


_WORDS = {
    "one_sided": "knows that it counted at one end only",
    "doubts": "gave it up after its acknowledgment, in doubt",
}


def read_about(metadata: Mapping[str, str] | None, path: Path) -> dict[str, Any]:
    """What a file of a peer's state says of itself.

    metadata: the file's own. Raises ValueError or KeyError if it is not what was written, and
    ConfigError if a later release has written it.
    """
    found = metadata or {}
    checksum = xxhash.xxh3_64_hexdigest(found["about"].encode())
    if checksum != found["checksum"]:
        raise ValueError(f"its checksum is {checksum}, expected {found['checksum']}")
    document: dict[str, Any] = json.loads(found["about"])
    check_format(document, path, FORMAT)
    return document


def check_format(document: Mapping[str, Any], path: Path, known: int) -> None:
    """Refuse by name what a later release has written: it is not damaged. Raises ConfigError."""
    found = document.get("format", 1)
    if not (isinstance(found, int) and found <= known):
        raise ConfigError(
            f"{path}: is of format {found}, written by flower_dhb {document.get('software', '')}; "
            f"this is flower_dhb {__version__}, which reads formats up to {known}. Install that "
            "release again, or a later one"
        )


def read_ledger(state_dir: Path) -> Ledger | None:
    """The newest whole record in a peer's state directory, None if there is none.

    Raises ConfigError if a later release has written it.
    """
    fetched = state_dir / "ledger.json"  # as `flower-dhb mesh fetch` writes it
    if fetched.exists():
        found = json.loads(fetched.read_text())["edges"]
        return Ledger({int(j): edge for j, edge in found.items()})
    newest: tuple[tuple[int, str], Ledger] | None = None
    for path in state_dir.glob("*-*.safetensors"):
        try:
            with safetensors.safe_open(path, framework="numpy") as file:
                document = read_about(file.metadata(), path)
            # A round's payload is written before its state: `payload` comes before `round`.
            at = (int(document["round"]), path.stem.partition("-")[0])
            edges = {int(j): edge for j, edge in document["record"]["edges"].items()}
        except ConfigError:
            raise
        except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError):
            continue
        if newest is None or at > newest[0]:
            newest = at, Ledger(edges)
    return newest[1] if newest is not None else None
