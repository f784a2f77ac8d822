"""The editions of the mesh that one device knows, and what each says of it.

The first is its own `peer.toml`. Later ones come as bulletins; each is on the disk before the
protocol hears of it, since a payload of it may leave from then on.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import xxhash

from flower_dhb.errors import ConfigError
from flower_dhb.peer.device.settings import PeerSettings
from flower_dhb.peer.monitor import Monitor
from flower_dhb.peer.protocol.edition import Edition
from flower_dhb.peer.wire.bulletin import Bulletin
from flower_dhb.peer.wire.edition import MeshEdition

__all__ = ["Editions"]

_FILE = "editions.json"
_REMEMBERED = 32  # editions; of older ones no payload is left
_AGREED = 8  # newest of them that are compared with a neighbor's


class Editions:
    """What a device goes by, in which edition of the mesh.

    base: its `peer.toml`. store: writes a file durably, tries again for as long as it takes, and
    then calls what it was given. announce: called with an edition that is new, and on the disk.
    """

    def __init__(
        self,
        base: PeerSettings,
        monitor: Monitor,
        store: Callable[[Path, bytes, Callable[[], None]], None],
        announce: Callable[[Edition], None],
    ) -> None:
        self._base, self._monitor = base, monitor
        self._store, self._announce = store, announce
        self._path = base.state_dir / _FILE
        self._lock = threading.Condition()
        self._coming = 0  # on their way to the disk
        self._documents: dict[int, MeshEdition] = {}  # without the base
        self._load()

    # --- what is known ----------------------------------------------------------------------

    def protocol(self) -> tuple[Edition, ...]:
        """All of them, as the protocol knows them."""
        base = self._base
        first = Edition(
            number=base.edition,
            begins=base.begins,
            rounds=base.rounds,
            neighbors=base.neighbors,
            members_since=base.members_since,
            turns=_turns(base.vertex, base.turns),
        )
        return (first, *(self._of(document) for document in self._known()))

    def settings(self, number: int) -> PeerSettings:
        """The settings of this device in an edition, of which it is a member."""
        if number == self._base.edition:
            return self._base
        with self._lock:
            document = self._documents[number]
        return self._base.in_edition(document)

    @property
    def newest(self) -> PeerSettings:
        """The settings in the newest edition of which this device is a member."""
        members = [d for d in self._known() if self._base.vertex in d.vertices]
        return self._base.in_edition(members[-1]) if members else self._base

    def dial(self, neighbor: int) -> str | None:
        """Where a neighbor is dialed, by the newest edition that has it; None if it dials us."""
        for document in reversed(self._known()):
            if neighbor in document.neighbors(self._base.vertex):
                return document.dial(self._base.vertex).get(neighbor)
        return self._base.dial.get(neighbor)

    def agreement(self) -> dict[str, str]:
        """What two neighbors compare: the digest of each edition that both know."""
        base = self._base
        found = {base.edition: _digest(base.graph, base.begins, base.rounds)}
        for document in self._known():
            found[document.number] = _digest(document.graph, document.begins, document.rounds)
        newest = sorted(found.items())[-_AGREED:]
        return {f"edition {number}": digest for number, digest in newest}

    def _known(self) -> list[MeshEdition]:
        with self._lock:
            return [document for _, document in sorted(self._documents.items())]

    def _of(self, document: MeshEdition) -> Edition:
        vertex = self._base.vertex
        return Edition(
            number=document.number,
            begins=document.begins,
            rounds=document.rounds,
            neighbors=document.neighbors(vertex),
            member=vertex in document.vertices,
            members_since=document.members_since,
            turns=_turns(vertex, document.rows(vertex)),
        )

    # --- what comes ---------------------------------------------------------------------------

    def check(self, bulletin: Bulletin) -> None:
        """Raise ConfigError for an edition that is none, or that this device cannot follow."""
        document = MeshEdition.of(bulletin.body)
        base = self._base
        if document.number != bulletin.number:
            raise ConfigError(f"it says that it is edition {document.number}")
        if document.number == base.edition:
            mine = _digest(base.graph, base.begins, base.rounds)
            theirs = _digest(document.graph, document.begins, document.rounds)
            if mine != theirs:
                raise ConfigError(
                    f"it is {theirs}, and peer.toml, which is of the same edition, says {mine}; "
                    "carry this device's folder to it anew"
                )
        if base.vertex in document.vertices:
            base.in_edition(document)

    def take(self, bulletin: Bulletin) -> None:
        """Keep an edition that was checked, and announce it when it is on the disk."""
        document = MeshEdition.of(bulletin.body)
        with self._lock:
            if document.number <= max(self._base.edition, *self._documents, 0):
                return
            self._documents[document.number] = document
            for old in sorted(self._documents)[:-_REMEMBERED]:
                del self._documents[old]
            data = self._data()
            self._coming += 1
        edition = self._of(document)
        self._store(self._path, data, lambda: self._stored(edition))

    def store_again(self) -> None:
        """The state directory is another one than before: have it hold all again."""
        with self._lock:
            if self._documents:
                self._store(self._path, self._data(), lambda: None)

    def settle(self, seconds: float) -> bool:
        """Wait until nothing is on its way to the disk. Returns whether that is so."""
        with self._lock:
            return self._lock.wait_for(lambda: not self._coming, seconds)

    def _data(self) -> bytes:
        """All but the base, as the disk holds them."""
        data = json.dumps([d.body() for _, d in sorted(self._documents.items())]).encode()
        return xxhash.xxh3_64_hexdigest(data).encode() + b"\n" + data

    def _stored(self, edition: Edition) -> None:
        self._announce(edition)
        with self._lock:
            self._coming -= 1
            self._lock.notify_all()

    def _load(self) -> None:
        """What the disk holds; a file that is damaged is told, and the bulletins begin anew."""
        try:
            checksum, _, data = self._path.read_bytes().partition(b"\n")
            if xxhash.xxh3_64_hexdigest(data).encode() != checksum:
                raise ValueError("its checksum is another one")
            bodies: list[Mapping[str, Any]] = json.loads(data)
            documents = [MeshEdition.of(body) for body in bodies]
        except FileNotFoundError:
            return
        except (OSError, ValueError, TypeError, ConfigError) as error:
            why = f"{self._path}: {error}; the neighbors or the operator bring the newest again"
            self._monitor.warning("damaged", why=why)
            return
        self._documents = {d.number: d for d in documents if d.number > self._base.edition}


def _turns(vertex: int, rows: Sequence[Mapping[int, float]]) -> tuple[tuple[int, ...], ...]:
    """Who is due in each round of a period."""
    return tuple(tuple(sorted(set(row) - {vertex})) for row in rows)


def _digest(graph: str, begins: int, rounds: int) -> str:
    return f"graph {graph[:16]}, rounds {begins} to {rounds}"
