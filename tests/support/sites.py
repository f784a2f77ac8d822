"""Nodes of a Flower deployment in one process: each with its identity of a mesh, and an address."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from flower_dhb.peer.mesh.devices import folder_of
from flower_dhb.peer.mesh.identities import IdentityPlan, create_identities
from flower_dhb.runs.superlink import free_ports


def identities(
    folder: Path, n: int, *, without_address: Collection[int] = ()
) -> dict[int, str | None]:
    """Write an identity for each vertex, in `vertex-3` and so on; returns addresses by vertex."""
    create_identities(IdentityPlan(out=folder, vertices=n))
    ports = free_ports(n)
    return {
        v: None if v in without_address else f"127.0.0.1:{port}" for v, port in enumerate(ports)
    }


def node_configs(
    folder: Path, n: int, *, without_address: Collection[int] = ()
) -> list[dict[str, object]]:
    """Node configs of n vertices that can hold rounds among themselves."""
    addresses = identities(folder, n, without_address=without_address)
    configs: list[dict[str, object]] = []
    for vertex, address in addresses.items():
        config = {"partition-id": vertex, "mesh": str(folder / folder_of(vertex))}
        configs.append({**config, **({"address": address} if address else {})})
    return configs
