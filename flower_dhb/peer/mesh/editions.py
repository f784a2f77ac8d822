"""The next edition of a mesh: what the operator changes, made of what the mesh's folder holds."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from flower_dhb.agent.compression import NONE, Compression
from flower_dhb.algorithms import algorithm_from_config, check_relayed
from flower_dhb.engine.publics import check_compression
from flower_dhb.errors import ConfigError, GraphError
from flower_dhb.peer.device.settings import PeerSettings
from flower_dhb.peer.mesh.create import check_addresses, dialing_ends
from flower_dhb.peer.mesh.devices import Host, peer_document
from flower_dhb.peer.mesh.overview import read_overview
from flower_dhb.peer.watch.editions import read_editions
from flower_dhb.peer.wire.edition import MeshEdge, MeshEdition, MeshVertex
from flower_dhb.references import folder_here
from flower_dhb.topology.graph import Topology

__all__ = [
    "MARGIN_ROUNDS",
    "MARGIN_S",
    "Draft",
    "MeshFolder",
    "Moment",
    "add",
    "beginning",
    "remove",
    "replace_device",
    "set_address",
    "set_values",
]

MARGIN_S, MARGIN_ROUNDS = 30.0, 5  # for an edition to reach all before it begins: the longer


@dataclass(frozen=True)
class MeshFolder:
    """What the operator's folder says of a mesh.

    document: the overview. edition: the newest. hosts: of its vertices.
    """

    directory: Path
    document: Mapping[str, Any]
    edition: MeshEdition
    hosts: Mapping[int, Host]

    @classmethod
    def read(cls, directory: Path) -> MeshFolder:
        """Raises ConfigError if it is not whole, or the mesh has no authority."""
        document = read_overview(directory)
        if document["plaintext"]:
            raise ConfigError(
                f"{directory}: a mesh in plaintext has no authority that could sign a change; "
                "create it with TLS"
            )
        editions = read_editions(directory)
        number = document["edition"]
        if number not in editions:
            raise ConfigError(f"{directory}: edition {number}, which mesh.toml names, is not there")
        hosts = {
            h["vertex"]: Host(
                h["vertex"], h.get("address"), h.get("listen"), h.get("app"),
                h.get("node-config", {}),
            )
            for h in document["hosts"]
        }  # fmt: skip
        if sorted(hosts) != sorted(editions[number].vertices):
            raise ConfigError(f"{directory}: mesh.toml and edition {number} differ; restore them")
        return cls(directory, document, editions[number], hosts)

    @property
    def next_vertex(self) -> int:
        """A number that no vertex ever had."""
        return int(self.document["next-vertex"])

    def vertex(self, called: str) -> int:
        """A vertex by its number or its name. Raises ConfigError if there is none."""
        members = self.edition.vertices
        for v, about in members.items():
            if called in (str(v), about.name):
                return v
        shown = ", ".join(str(v) for v in sorted(members))
        raise ConfigError(f"the mesh has no vertex '{called}'; it has {shown}")


@dataclass(frozen=True)
class Draft:
    """What a command makes of a mesh: its next edition, and whose folder is written anew.

    next_vertex: as in the overview. new: the vertex that gets a new folder with a new key.
    """

    edition: MeshEdition
    hosts: Mapping[int, Host]
    next_vertex: int
    weights: str
    new: int | None = None


@dataclass(frozen=True)
class Moment:
    """How far the run is, as far as one could ask.

    newest: the latest round that any device is in, None if none answered. pace_s: seconds that
    the fastest takes for one, 0 if not known.
    """

    newest: int | None
    pace_s: float = 0.0


def beginning(
    edition: MeshEdition, moment: Moment, *, rounds: int | None = None, at_round: int | None = None
) -> int:
    """The round in which the next edition begins.

    edition: the newest until now. rounds: the last round of the next one, if it changes. The
    margin is the rounds that the fastest device does in `MARGIN_S`, and `MARGIN_ROUNDS` at
    least; nobody can be past the end of the run, so a longer run never waits beyond that. Raises
    ConfigError if there is no such round.
    """
    last = edition.rounds if rounds is None else rounds
    newest = moment.newest
    if at_round is not None:
        if newest is not None and at_round <= newest:
            raise ConfigError(
                f"--at-round {at_round}: round {newest} is under way already; what begins in a "
                "round that is over would cost edges, so choose a later one"
            )
        if at_round < edition.begins:
            raise ConfigError(
                f"--at-round {at_round}: edition {edition.number} begins in round "
                f"{edition.begins}, and the next one cannot begin before it"
            )
        if at_round > last:
            raise ConfigError(
                f"--at-round {at_round}: the run ends with round {last}; choose an earlier one, or "
                "let the run go on before: 'flower-dhb mesh set MESH rounds=N'"
            )
        return at_round
    if newest is None:
        raise ConfigError(
            "no device could be asked which round it is in; say when the change is to begin: "
            "--at-round N, some rounds after the newest that can be under way"
        )
    margin = MARGIN_ROUNDS
    if moment.pace_s > 0.0:
        margin = max(margin, math.ceil(MARGIN_S / moment.pace_s))
    begins = max(edition.begins, newest + margin)
    if last > edition.rounds:
        begins = min(begins, edition.rounds + 1)
    if begins > last:
        over = newest > edition.rounds or newest == edition.rounds == last
        found = (
            f"the run ends with round {last}"
            if over
            else f"round {newest} of {last} is under way, and with a margin of {margin} rounds the "
            f"change would begin in round {begins}, after the last"
        )
        raise ConfigError(
            f"{found}; let the run go on before ('flower-dhb mesh set MESH rounds=N'), or say when "
            "to begin (--at-round N)"
        )
    return begins


# --- changes --------------------------------------------------------------------------------


def add(
    folder: MeshFolder,
    begins: int,
    neighbors: Sequence[int],
    host: Host,
    *,
    name: str | None = None,
    weights: str | None = None,
) -> Draft:
    """One more vertex, with a number that none ever had. Raises ConfigError."""
    vertex = int(host.vertex)
    edition = folder.edition
    if vertex < folder.next_vertex:
        was = "is there" if vertex in edition.vertices else "was there"
        raise ConfigError(
            f"vertex {vertex} {was}; a number is not used twice, so that no certificate and no "
            f"record is another device's: the next free one is {folder.next_vertex}"
        )
    if name is not None and name in {about.name for about in edition.vertices.values()}:
        raise ConfigError(f"a vertex is named '{name}' already")
    vertices = {**edition.vertices, vertex: MeshVertex(name, host.address)}
    new = {(min(j, vertex), max(j, vertex)) for j in neighbors}
    if not new:
        raise ConfigError(f"vertex {vertex} needs a neighbor: --neighbors 3,7")
    hosts = {**folder.hosts, vertex: host}
    made = _remade(folder, begins, vertices, hosts, new=new, weights=weights)
    return replace(made, next_vertex=vertex + 1, new=vertex)


def remove(
    folder: MeshFolder,
    begins: int,
    vertex: int,
    *,
    connect: Iterable[tuple[int, int]] = (),
    weights: str | None = None,
) -> Draft:
    """One vertex less. connect: edges that take the place of its own. Raises ConfigError."""
    edition = folder.edition
    vertices = {v: about for v, about in edition.vertices.items() if v != vertex}
    hosts = {v: host for v, host in folder.hosts.items() if v != vertex}
    if len(vertices) < 2:
        raise ConfigError(f"without vertex {vertex} a single one is left, which is no mesh")
    new = set()
    for a, b in connect:
        edge = (min(a, b), max(a, b))
        if a == b or not {a, b} <= set(vertices):
            raise ConfigError(f"--connect {a}-{b}: expected two of the vertices that stay")
        if b in edition.neighbors(a):
            raise ConfigError(f"--connect {a}-{b}: that edge is there already")
        new.add(edge)
    kept = {(e.a, e.b) for e in edition.edges if vertex not in (e.a, e.b)}
    parts = _parts(vertices, kept | new)
    if len(parts) > 1:
        firsts = [_first(part, edition.neighbors(vertex)) for part in parts]
        remedy = " ".join(f"--connect {a}-{b}" for a, b in pairwise(firsts))
        shown = ", ".join(str(part) for part in parts)
        raise ConfigError(
            f"without vertex {vertex} the mesh falls into parts that cannot agree: {shown}; "
            f"connect them: {remedy}"
        )
    return _remade(folder, begins, vertices, hosts, new=new, weights=weights)


def replace_device(folder: MeshFolder, begins: int, vertex: int, host: Host) -> Draft:
    """The same vertex on another device, which begins from its neighbors. Raises ConfigError."""
    made = set_address(folder, begins, vertex, host)
    return replace(made, new=vertex)


def set_address(folder: MeshFolder, begins: int, vertex: int, host: Host) -> Draft:
    """A vertex that is reached elsewhere. Raises ConfigError."""
    edition = folder.edition
    about = replace(edition.vertices[vertex], address=host.address)
    vertices = {**edition.vertices, vertex: about}
    return _remade(folder, begins, vertices, {**folder.hosts, vertex: host})


def set_values(
    folder: MeshFolder, begins: int, values: Mapping[str, Any], *, weights: str | None = None
) -> Draft:
    """Other rounds, evaluations, time limits or bounds for all devices.

    values: `rounds`, `evaluate-every`, and keys of two tables such as `timing.ceiling-s` and
    `limits.frames`. weights: the scheme of the mixing weights. Raises ConfigError.
    """
    edition = folder.edition
    changes: dict[str, Any] = {"timing": dict(edition.timing), "limits": dict(edition.limits)}
    for key, value in values.items():
        table, _, name = key.partition(".")
        if key in ("rounds", "evaluate-every"):
            changes[key.replace("-", "_")] = value
        elif table in ("timing", "limits") and name:
            changes[table][name] = value
        else:
            raise ConfigError(
                f"'{key}' cannot be set in a running mesh; what can: rounds, evaluate-every, keys "
                "of [timing] such as timing.ceiling-s, keys of [limits] such as limits.frames. "
                "Anything else is changed in the device's peer.toml, with a restart"
            )
    return _remade(folder, begins, edition.vertices, folder.hosts, weights=weights, changes=changes)


# --- parts ----------------------------------------------------------------------------------


def _remade(
    folder: MeshFolder,
    begins: int,
    vertices: Mapping[int, MeshVertex],
    hosts: Mapping[int, Host],
    *,
    new: Collection[tuple[int, int]] = (),
    weights: str | None = None,
    changes: Mapping[str, Any] | None = None,
) -> Draft:
    """The next edition. new: edges that come; those of vertices that are gone go with them."""
    before = folder.edition
    if weights is None:
        weights = folder.document["weights"]
    check_addresses(hosts)
    kept = {(e.a, e.b): e for e in before.edges if {e.a, e.b} <= set(vertices)}
    pairs = sorted({*kept, *new})
    addresses = {v: about.address for v, about in vertices.items()}
    ends = dialing_ends(pairs, addresses)
    for pair, edge in kept.items():  # a stream that stands is not turned around
        if addresses[sum(pair) - edge.dials] is not None:
            ends[pair] = edge.dials
    own, on_edge = _weights(folder, pairs, vertices, weights)
    same_members = set(vertices) == set(before.vertices)
    number = before.number + 1
    edition = replace(
        before,
        number=number,
        begins=begins,
        vertices=dict(sorted(vertices.items())),
        edges=tuple(MeshEdge(*pair, on_edge[pair], ends[pair]) for pair in pairs),
        own_weights=own,
        members_since=before.members_since if same_members else number,
        **(changes or {}),
    )
    _check_devices(folder, edition, hosts)
    return Draft(edition, dict(hosts), folder.next_vertex, weights)


def _weights(
    folder: MeshFolder,
    pairs: Sequence[tuple[int, int]],
    vertices: Collection[int],
    scheme: str,
) -> tuple[dict[int, float], dict[tuple[int, int], float]]:
    """Own weights and edge weights; as they are where neither graph nor scheme changes."""
    before = folder.edition
    same = [(e.a, e.b) for e in before.edges] == list(pairs)
    if same and set(vertices) == set(before.vertices) and scheme == folder.document["weights"]:
        return dict(before.own_weights), {(e.a, e.b): e.weight for e in before.edges}
    if before.turns:
        raise ConfigError(
            f"the edges of '{folder.document['topology']}' take turns, and no command gives a "
            "running mesh other edges or weights then: what can change are rounds, limits and "
            "addresses; for another graph create a mesh anew, with --start of the model so far"
        )
    ids = sorted(vertices)
    index = {v: i for i, v in enumerate(ids)}
    try:
        ends = [(index[a], index[b]) for a, b in pairs]
        topology = Topology.from_edges(ends, scheme, name=folder.document["topology"])
        app = folder_here(folder.document["device"].get("app"))
        algorithm = algorithm_from_config(folder.document["algorithm"], app)
        check_relayed(algorithm, topology)
        compression = folder.document["device"].get("compression", NONE)
        check_compression(Compression.parse(compression), algorithm, topology)
    except GraphError as error:
        raise ConfigError(f"the graph as it would be: {error}") from None
    matrix = topology.mixing_matrix
    edge = {(ids[a], ids[b]): float(matrix[a, b]) for a, b in topology.edges}
    return {v: float(matrix[i, i]) for i, v in enumerate(ids)}, edge


def _check_devices(folder: MeshFolder, edition: MeshEdition, hosts: Mapping[int, Host]) -> None:
    """Refuse what a device would refuse, as far as the folder knows the devices."""
    for v in edition.vertices:
        document = peer_document(folder.document, edition, hosts[v], v, folder.directory)
        settings = PeerSettings.of(document, folder.directory)
        try:
            settings.in_edition(edition)
        except ConfigError as error:
            raise ConfigError(f"vertex {v} could not follow: {error}") from None


def _parts(vertices: Iterable[int], pairs: Iterable[tuple[int, int]]) -> list[list[int]]:
    """Vertices that are connected with one another, by their smallest."""
    part_of = {v: {v} for v in vertices}
    for a, b in pairs:
        if part_of[a] is not part_of[b]:
            whole = part_of[a] | part_of[b]
            part_of |= dict.fromkeys(whole, whole)
    return sorted(sorted(part) for part in {min(p): p for p in part_of.values()}.values())


def _first(part: Sequence[int], near: Collection[int]) -> int:
    """The vertex of a part that is best connected with another: a former neighbor."""
    return next((v for v in part if v in near), part[0])
