"""One device's own folder: `peer.toml`, key, certificate, and the arrays that it begins with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flower_dhb.errors import ConfigError
from flower_dhb.peer.device.settings import PeerSettings
from flower_dhb.peer.mesh.certificates import Authority
from flower_dhb.peer.wire.edition import MeshEdition

__all__ = ["START", "Host", "device_files", "folder_of", "peer_document"]

START = "start.safetensors"
_TLS = {"key": "key.pem", "certificate": "certificate.pem", "authority": "authority.pem"}


@dataclass(frozen=True)
class Host:
    """Where one vertex runs: a `[[hosts]]` table of `hosts.toml`."""

    vertex: int | str
    """Its number, or its name in a graph whose vertices have names."""
    address: str | None = None
    """Where neighbors reach it; without it the device dials all of them (behind NAT).

    Allowed: `host:port`.
    """
    listen: str | None = None
    """What it binds.

    Without the key: all interfaces with the port of `address`. Allowed: `host:port`.
    """
    app: str | None = None
    """Directory of the app on that device, if it is not where `--app` says."""
    node_config: Mapping[str, Any] = field(default_factory=dict)
    """What the app finds in `context.node_config` there, such as where the data lie.

    Allowed: numbers, texts, true, false.
    """

    @property
    def listens_on(self) -> str | None:
        """Address to bind: all interfaces with the port of `address`, if not said."""
        if self.address is None or self.listen is not None:
            return self.listen
        host, _, port = self.address.rpartition(":")
        if host in ("127.0.0.1", "[::1]", "localhost"):
            return self.address
        return f"[::]:{port}" if host.startswith("[") else f"0.0.0.0:{port}"


def folder_of(vertex: int) -> str:
    """Name of a device's folder in a mesh's."""
    return f"vertex-{vertex}"


def peer_document(
    common: Mapping[str, Any], edition: MeshEdition, host: Host, vertex: int, home: Path
) -> dict[str, Any]:
    """The `peer.toml` of a vertex, as it is in an edition of the mesh.

    common: what all devices have in common, as `mesh.toml` holds it (`mesh`, `run`, `plaintext`
    and the table `device`). home: a directory to judge it by. Raises ConfigError for whatever
    the device itself would refuse.
    """
    row, dial = edition.row(vertex), edition.dial(vertex)
    neighbors = [
        {
            "vertex": j,
            "weight": row[j],
            **_name(edition, j),
            **({"address": dial[j]} if j in dial else {}),
        }
        for j in edition.neighbors(vertex)
    ]
    device = dict(common["device"])
    partition = {"partition-id": vertex, "num-partitions": max(edition.vertices) + 1}
    node_config = {**partition, **host.node_config, **device.pop("node-config", {})}
    document: dict[str, Any] = {
        "mesh": common["mesh"],
        "run": common["run"],
        "vertex": vertex,
        **_name(edition, vertex),
        "rounds": edition.rounds,
        "evaluate-every": edition.evaluate_every,
        "own-weight": row[vertex],
        "neighbors": neighbors,
        **_turns(edition, vertex),
        "graph": edition.graph,
        **device,
        "node-config": node_config,
    }
    if host.app is not None:
        document["app"] = host.app
    if edition.number > 1:
        document |= {"edition": edition.number, "begins": edition.begins}
        document["members-since"] = edition.members_since
    if edition.is_dialed(vertex) or host.listens_on is not None:
        document["listen"] = host.listens_on
    document |= {"plaintext": True} if common["plaintext"] else {"tls": dict(_TLS)}
    try:
        PeerSettings.of(document, home)
    except ConfigError as error:
        raise ConfigError(f"peer.toml of vertex {vertex}: {error}") from None
    return document


def _turns(edition: MeshEdition, vertex: int) -> dict[str, Any]:
    """A vertex's weights in each round of a period, where there is one."""
    tables: list[dict[str, Any]] = []
    for row in edition.rows(vertex):
        near = {str(j): weight for j, weight in row.items() if j != vertex}
        tables.append({"own-weight": row[vertex], "weights": near} if near else {})
    return {"turns": tables} if tables else {}


def _name(edition: MeshEdition, vertex: int) -> dict[str, str]:
    """The name of a vertex as a key of a table, nothing where it has none."""
    name = edition.vertices[vertex].name
    return {} if name is None else {"name": name}


def device_files(authority: Authority, vertex: int, days: int) -> dict[str, tuple[bytes, bool]]:
    """A new key and certificate, as files by name; whether each is for its owner only."""
    key, certificate = authority.issue(vertex, days)
    return {
        _TLS["key"]: (key, True),
        _TLS["certificate"]: (certificate, False),
        _TLS["authority"]: (authority.pem, False),
    }
