"""Nodes of a Flower deployment in one process: each with its identity of a mesh, and an address."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from flower_dhb.peer.mesh.certificates import Authority, write_private
from flower_dhb.runs.superlink import free_ports


def node_configs(
    folder: Path, n: int, *, without_address: Collection[int] = (), **more: object
) -> list[dict[str, object]]:
    """Node configs of n vertices that can hold rounds among themselves."""
    authority = Authority.create("mesh-of-a-test")
    ports = free_ports(n)
    configs: list[dict[str, object]] = []
    for vertex in range(n):
        place = folder / f"vertex-{vertex}"
        place.mkdir(parents=True)
        key, certificate = authority.issue(vertex, 300)
        write_private(place / "key.pem", key)
        (place / "certificate.pem").write_bytes(certificate)
        (place / "authority.pem").write_bytes(authority.pem)
        config: dict[str, object] = {"partition-id": vertex, "mesh": str(place), **more}
        if vertex not in without_address:
            config["address"] = f"127.0.0.1:{ports[vertex]}"
        configs.append(config)
    return configs
