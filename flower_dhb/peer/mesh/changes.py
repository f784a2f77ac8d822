"""A change of a running mesh: written into the operator's folder as a whole, then handed out."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import tomli_w

from flower_dhb.errors import ConfigError
from flower_dhb.files import read_toml
from flower_dhb.peer.mesh.certificates import DEVICE_DAYS, Authority
from flower_dhb.peer.mesh.devices import START, device_files, folder_of, peer_document
from flower_dhb.peer.mesh.editions import Draft, MeshFolder, Moment
from flower_dhb.peer.mesh.fleet import Fleet
from flower_dhb.peer.mesh.folder import Change, changing
from flower_dhb.peer.mesh.overview import overview_of
from flower_dhb.peer.mesh.publish import FOLDER, bulletin_path, signed
from flower_dhb.peer.mesh.renewal import revocations_with, serials_of
from flower_dhb.peer.watch.editions import FOLDER as EDITIONS
from flower_dhb.peer.watch.editions import FORMER, edition_name
from flower_dhb.peer.watch.status import FINISHED, REMOVED
from flower_dhb.peer.wire.bulletin import EDITION, KINDS, REVOCATIONS

__all__ = ["Desk", "Written", "desk", "moment_of"]


@dataclass(frozen=True)
class Written:
    """What a change has left in the mesh's folder, and what is to be carried from there.

    folder: of a new device, to be carried whole. settings: a `peer.toml` that changed. revoked:
    certificates of the device whose place another takes.
    """

    draft: Draft
    folder: Path | None = None
    settings: Path | None = None
    revoked: tuple[str, ...] = ()


def moment_of(directory: Path, timeout_s: float = 5.0) -> Moment:
    """Ask all devices which round they are in."""
    fleet = Fleet(directory)
    try:
        found = fleet.status(timeout_s, sketch=0)
    finally:
        fleet.close()
    newest, paces = [], []
    for reply in found.replies.values():
        over = reply.phase in (FINISHED, REMOVED) or reply.round >= reply.rounds
        newest.append(reply.round if over else reply.round + 1)
        newest += [neighbor.round for neighbor in reply.neighbors]
        if reply.seconds_per_round > 0.0 and not over:
            paces.append(reply.seconds_per_round)
    return Moment(max(newest, default=None), min(paces, default=0.0))


class Desk:
    """The folder of a mesh, held for one change of it."""

    def __init__(self, folder: MeshFolder, change: Change) -> None:
        self.folder = folder
        self._change = change
        self._directory = folder.directory

    def write(self, draft: Draft, days: int = DEVICE_DAYS) -> Written:
        """Put the next edition into the folder, as a whole.

        days: how long the certificate of a new device is valid. Raises ConfigError; nothing is
        changed then.
        """
        edition, change = draft.edition, self._change
        bulletins = {
            EDITION: signed(self._directory, EDITION, edition.body(), number=edition.number)
        }
        revoked = [] if draft.new is None else serials_of(self._directory, draft.new)
        if revoked:
            why = f"replaced by another device in edition {edition.number}"
            listed = revocations_with(self._directory, revoked, why)
            bulletins[REVOCATIONS] = signed(self._directory, REVOCATIONS, listed)
        body = json.dumps(edition.body(), indent=1).encode()
        change.write(f"{EDITIONS}/{edition_name(edition.number)}", body)
        homes = [path.name for path in sorted(self._directory.glob("vertex-*"))]
        for kind, bulletin in bulletins.items():
            name = f"{FOLDER}/{bulletin_path(self._directory, kind).name}"
            change.write(name, bulletin)
            for home in homes:
                if draft.new is None or home != folder_of(draft.new):
                    change.write(f"{home}/{name}", bulletin)
        common = {**self.folder.document, "weights": draft.weights}
        change.write("mesh.toml", overview_of(common, edition, draft.hosts, draft.next_vertex))
        written = Written(
            draft,
            self._new_device(draft, bulletins, days),
            self._new_address(draft),
            tuple(revoked),
        )
        change.commit()
        return written

    def _new_device(self, draft: Draft, bulletins: Mapping[str, bytes], days: int) -> Path | None:
        """A folder for a device that comes. What its vertex had before is put aside."""
        vertex, change = draft.new, self._change
        if vertex is None:
            return None
        home, edition = folder_of(vertex), draft.edition
        document = peer_document(
            self.folder.document, edition, draft.hosts[vertex], vertex, self._directory
        )
        files = device_files(Authority.load(self._directory / "authority"), vertex, days)
        change.put_aside(home, f"{FORMER}/{home}-until-edition-{edition.number}")
        for name, (data, private) in files.items():
            change.write(f"{home}/{name}", data, private=private)
        change.write(f"{home}/peer.toml", tomli_w.dumps(document).encode())
        try:
            change.write(f"{home}/{START}", (self._directory / START).read_bytes())
        except OSError as error:
            raise ConfigError(
                f"{self._directory / START}: {error.strerror}; the new device needs the arrays "
                "that all began with"
            ) from None
        for kind in KINDS:
            path = bulletin_path(self._directory, kind)
            said = bulletins.get(kind)
            if said is None and path.exists():
                said = path.read_bytes()
            if said is not None:
                change.write(f"{home}/{FOLDER}/{path.name}", said)
        return self._directory / home

    def _new_address(self, draft: Draft) -> Path | None:
        """The `peer.toml` of a device that has to listen elsewhere now, as far as one knows it."""
        for vertex, host in draft.hosts.items():
            before = self.folder.hosts.get(vertex)
            path = self._directory / folder_of(vertex) / "peer.toml"
            if vertex == draft.new or before is None or before.listens_on == host.listens_on:
                continue
            if path.exists():
                document = read_toml(path, "'mesh create' wrote it")
                document["listen"] = host.listens_on
                if host.listens_on is None:
                    del document["listen"]
                self._change.write(
                    f"{folder_of(vertex)}/peer.toml", tomli_w.dumps(document).encode()
                )
            return path
        return None


@contextmanager
def desk(directory: Path) -> Iterator[Desk]:
    """Hold the folder of a mesh for one change. Raises ConfigError, NotNowError and OSError."""
    with changing(directory) as change:
        yield Desk(MeshFolder.read(directory), change)
