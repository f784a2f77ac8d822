"""Keys and certificates alone: who the nodes of a Flower deployment are, to each other."""

from __future__ import annotations

import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path

import tomli_w

from flower_dhb.errors import ConfigError
from flower_dhb.files import write_durably
from flower_dhb.peer.mesh.certificates import AUTHORITY_DAYS, DEVICE_DAYS, Authority
from flower_dhb.peer.mesh.create import check_empty
from flower_dhb.peer.mesh.devices import device_files, folder_of
from flower_dhb.peer.wire.identity import OPERATOR

__all__ = ["IdentityPlan", "create_identities"]


@dataclass(frozen=True, kw_only=True)
class IdentityPlan:
    """What `mesh identities` was asked for.

    vertices: how many nodes. days, authority_days: how long certificates, and who issues them, are
    valid. force: a mesh that lies in `out` is replaced.
    """

    out: Path
    vertices: int
    days: int = DEVICE_DAYS
    authority_days: int = AUTHORITY_DAYS
    force: bool = False

    def __post_init__(self) -> None:
        if not self.vertices >= 1:
            raise ConfigError(f"--vertices must be at least 1, got {self.vertices}")
        if not 1 <= self.days <= self.authority_days:
            raise ConfigError(
                f"certificates of {self.days} days by an authority of {self.authority_days}: none "
                "can hold longer than its authority; choose fewer --days"
            )


def create_identities(plan: IdentityPlan) -> list[Path]:
    """Write an authority, and a folder with key and certificate for each vertex.

    `mesh renew` and `mesh revoke` know the directory as they know that of any mesh; it has no
    addresses, so what they publish is carried to the nodes. Returns the folders, by vertex.
    Raises ConfigError.
    """
    check_empty(plan.out, force=plan.force)
    if plan.force and plan.out.exists():
        shutil.rmtree(plan.out)
    authority = Authority.create(secrets.token_hex(4), plan.authority_days)
    plan.out.mkdir(parents=True, exist_ok=True)
    write_durably(plan.out / "mesh.toml", tomli_w.dumps(_overview(authority.mesh, plan)).encode())
    homes = []
    for vertex in range(plan.vertices):
        homes.append(plan.out / folder_of(vertex))
        _issue(authority, homes[-1], vertex, plan.days)
    _issue(authority, plan.out / "operator", OPERATOR, plan.days)
    (plan.out / "authority").mkdir(mode=0o700)
    authority.save(plan.out / "authority")
    return homes


def _issue(authority: Authority, home: Path, vertex: int, days: int) -> None:
    home.mkdir(mode=0o700)
    for name, (data, private) in device_files(authority, vertex, days).items():
        write_durably(home / name, data, private=private)


def _overview(mesh: str, plan: IdentityPlan) -> dict[str, object]:
    """As `mesh create` writes it, with vertices and without a graph."""
    return {
        "mesh": mesh,
        "run": "",
        "topology": "",
        "weights": "",
        "plaintext": False,
        "edition": 1,
        "next-vertex": plan.vertices,
        "edges": [],
        "hosts": [{"vertex": vertex} for vertex in range(plan.vertices)],
        "algorithm": {},
        "device": {},
    }
