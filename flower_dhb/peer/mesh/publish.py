"""The operator's side of bulletins: number, sign, keep, and hand them to whoever can be reached."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flower_dhb.errors import ConfigError
from flower_dhb.files import make_folder, write_durably
from flower_dhb.peer.mesh.certificates import Authority
from flower_dhb.peer.mesh.fleet import Fleet
from flower_dhb.peer.mesh.overview import read_overview
from flower_dhb.peer.wire.bulletin import KINDS, Bulletin, BulletinError, verify

__all__ = [
    "FOLDER",
    "Published",
    "bulletin_path",
    "hand_out",
    "keep",
    "load_authority",
    "newest",
    "publish",
    "put_bulletins",
    "sign_again",
    "signed",
]

FOLDER = "bulletins"


@dataclass(frozen=True)
class Published:
    """A bulletin, and who has it on its disk.

    path: where it lies, to be carried to a device by hand: into `bulletins/` beside its
    `peer.toml`. failures: why the others have not taken it, by vertex; as soon as one neighbor
    has it, they learn it from there. refused: those of them that have looked at it.
    """

    bulletin: Bulletin
    path: Path
    took: tuple[int, ...]
    failures: Mapping[int, str]
    refused: frozenset[int] = frozenset()


def publish(
    directory: Path,
    kind: str,
    body: Mapping[str, Any],
    *,
    number: int | None = None,
    timeout_s: float = 10.0,
) -> Published:
    """Sign the next bulletin of a kind, keep it in the mesh's directory, and hand it out.

    number: larger than that of the newest one; the next, if not given. It lies in the
    directory, and in the folder of each device there, before anybody is asked. Raises
    ConfigError, for a mesh in plaintext as well: it has no authority that could sign.
    """
    _write(directory, kind, signed(directory, kind, body, number=number))
    return hand_out(directory, kind, timeout_s=timeout_s)


def signed(
    directory: Path, kind: str, body: Mapping[str, Any], *, number: int | None = None
) -> bytes:
    """The next bulletin of a kind, which is written nowhere. number, errors: as for `publish`."""
    authority = load_authority(directory)
    before = newest(directory, kind)
    least = 1 if before is None else before.number + 1
    number = least if number is None else number
    if number < least:
        raise ConfigError(
            f"bulletin {number} of kind '{kind}': number {least - 1} is published already, and "
            "devices take none with a smaller or the same number"
        )
    return authority.sign(Bulletin(kind, authority.mesh, number, body))


def sign_again(directory: Path, kind: str, *, timeout_s: float = 10.0) -> Published | None:
    """Have the newest bulletin of a kind signed by all authorities that the mesh has now.

    Devices take it in the place of the one that they have. None if there is none.
    """
    bulletin = newest(directory, kind)
    if bulletin is None:
        return None
    keep(directory, load_authority(directory), bulletin)
    return hand_out(directory, kind, timeout_s=timeout_s)


def keep(directory: Path, authority: Authority, bulletin: Bulletin) -> None:
    """Sign a bulletin, and write it into the mesh's directory and the folder of each device."""
    _write(directory, bulletin.kind, authority.sign(bulletin))


def _write(directory: Path, kind: str, raw: bytes) -> None:
    write_durably(bulletin_path(directory, kind), raw)
    for home in sorted(directory.glob("vertex-*")):
        put_bulletins(directory, home)


def hand_out(
    directory: Path,
    kind: str,
    *,
    former: Mapping[int, str | None] | None = None,
    timeout_s: float = 10.0,
) -> Published:
    """Hand the newest bulletin of a kind to every device that can be reached, once more.

    former: addresses that devices had before; they are asked there, too. Raises ConfigError if
    there is none.
    """
    bulletin, path = newest(directory, kind), bulletin_path(directory, kind)
    if bulletin is None:
        raise ConfigError(f"{path}: no bulletin of kind '{kind}' has been published")
    fleet = Fleet(directory)
    try:
        replies, failures = fleet.publish(path.read_bytes(), timeout_s)
        moved = {v: a for v, a in (former or {}).items() if a and a != fleet.hosts.get(v)}
    finally:
        fleet.close()
    if moved:
        before = Fleet(directory, moved)
        try:
            there, silent = before.publish(path.read_bytes(), timeout_s)
        finally:
            before.close()
        replies = {**there, **replies}
        failures = {v: why for v, why in {**silent, **failures}.items() if v not in replies}
    refused = set()
    for vertex, reply in replies.items():
        if reply.refused:
            failures[vertex] = reply.refused
            refused.add(vertex)
        elif reply.number > bulletin.number:
            failures[vertex] = f"it has number {reply.number}, which is newer"
    took = tuple(sorted(replies.keys() - failures.keys()))
    return Published(bulletin, path, took, dict(sorted(failures.items())), frozenset(refused))


def newest(directory: Path, kind: str) -> Bulletin | None:
    """The newest bulletin of a kind that has been published; None if there is none.

    Raises ConfigError if what lies there is not one of this mesh.
    """
    path = bulletin_path(directory, kind)
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from None
    authority = load_authority(directory)
    try:
        return verify(raw, authority.roots, authority.mesh)
    except BulletinError as error:
        raise ConfigError(f"{path}: {error}") from None


def put_bulletins(directory: Path, home: Path) -> None:
    """Copy what has been published into a device's folder, for whoever carries that there."""
    for kind in KINDS:
        source = bulletin_path(directory, kind)
        if source.exists():
            make_folder(home / FOLDER)
            write_durably(home / FOLDER / source.name, source.read_bytes())


def load_authority(directory: Path) -> Authority:
    """The authority of the mesh in a directory. Raises ConfigError, and for a mesh in plaintext."""
    if read_overview(directory)["plaintext"]:
        raise ConfigError(
            f"{directory}: a mesh in plaintext has no authority, which alone could sign a change "
            "or a certificate; create a mesh with TLS"
        )
    return Authority.load(directory / "authority")


def bulletin_path(directory: Path, kind: str) -> Path:
    """Where the newest bulletin of a kind lies in the mesh's directory."""
    return directory / FOLDER / f"{kind}.bulletin"
