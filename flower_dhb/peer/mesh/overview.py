"""`mesh.toml`, the overview of a mesh that `flower-dhb mesh` writes for the operator."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomli_w

from flower_dhb.errors import ConfigError
from flower_dhb.files import read_toml
from flower_dhb.peer.mesh.devices import Host
from flower_dhb.peer.mesh.folder import settle
from flower_dhb.peer.wire.edition import MeshEdition

__all__ = ["COMMON", "overview_of", "read_overview"]

# What stays the same in all editions of a mesh; the rest is of the newest edition.
COMMON = ("mesh", "run", "topology", "weights", "plaintext", "device")
_KEYS = {
    "mesh": str,
    "run": str,
    "topology": str,
    "weights": str,
    "plaintext": bool,
    "edition": int,
    "next-vertex": int,
    "edges": list,
    "hosts": list,
    "algorithm": dict,
    "device": dict,
}


def overview_of(
    common: Mapping[str, Any],
    edition: MeshEdition,
    hosts: Mapping[int, Host],
    next_vertex: int | None = None,
) -> bytes:
    """The overview of a mesh in its newest edition.

    common: see `COMMON`. next_vertex: number of the vertex that is added next, which no other
    ever had; one more than the largest if not said.
    """
    tables = []
    for v, about in sorted(edition.vertices.items()):
        host = hosts[v]
        found = {
            "name": about.name,
            "address": about.address,
            "listen": host.listen,
            "app": host.app,
            "node-config": dict(host.node_config) or None,
        }
        tables.append({"vertex": v, **{k: x for k, x in found.items() if x is not None}})
    turns = [[list(edge) for edge in turn.edges] for turn in edition.turns]
    document = {
        **{key: common[key] for key in COMMON if key != "device"},
        "edition": edition.number,
        "next-vertex": max(edition.vertices) + 1 if next_vertex is None else next_vertex,
        "edges": [{"between": [e.a, e.b], "dials": e.dials} for e in edition.edges],
        **({"turns": turns} if turns else {}),
        "hosts": tables,
        "algorithm": common["device"]["algorithm"],
        "device": {k: v for k, v in common["device"].items() if k != "algorithm"},
    }
    return tomli_w.dumps(document).encode()


def read_overview(directory: Path) -> dict[str, Any]:
    """The overview of the mesh in a directory. Raises ConfigError if it is not whole."""
    settle(directory)
    path = directory / "mesh.toml"
    document = read_toml(path, "'mesh create' writes it")
    for key, kind in _KEYS.items():
        if not isinstance(document.get(key), kind):
            raise ConfigError(f"{path}: '{key}' is not as 'mesh create' writes it; create it anew")
    document["device"]["algorithm"] = document["algorithm"]
    return document
