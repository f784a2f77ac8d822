"""An edition of a mesh as a document: its graph, its weights, its rounds, and its limits.

It is the body of a bulletin of kind `edition`, the same for all devices; each takes its own
row. Whatever is in it is checked here, since it came over the wire.

Of graphs that take turns it holds each round of a period, so both ends of an edge know when it is
due. Its edges are then all that any round has, and their weights the mean over a period, by which a
device begins again from its neighbors.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from flower_dhb.errors import ConfigError, unknown
from flower_dhb.peer.protocol.edition import in_turn
from flower_dhb.peer.wire.address import parse_address
from flower_dhb.topology.graph import digest_of
from flower_dhb.topology.rows import connected_parts

__all__ = ["MeshEdge", "MeshEdition", "MeshTurn", "MeshVertex", "graph_digest"]

_SUM_TOLERANCE = 1e-12  # as for any mixing matrix
_INTEGERS = {"number": 1, "begins": 1, "rounds": 1, "evaluate-every": 0, "members-since": 1}
_OTHERS = ("graph", "vertices", "edges", "own-weights", "timing", "limits", "turns")
_OF_VERTEX = ("name", "address")


@dataclass(frozen=True, slots=True)
class MeshVertex:
    """A device: what its users call it, and where its neighbors reach it (None behind NAT)."""

    name: str | None = None
    address: str | None = None


@dataclass(frozen=True, slots=True, order=True)
class MeshEdge:
    """An edge between the vertices a < b. dials: the one of them that dials the other."""

    a: int
    b: int
    weight: float
    dials: int


@dataclass(frozen=True, slots=True)
class MeshTurn:
    """The graph of one round of a period.

    edges: weights by the vertices a < b, ascending. own_weights: of the vertices that have an edge
    in it; all others keep what they have, with weight 1.
    """

    edges: Mapping[tuple[int, int], float]
    own_weights: Mapping[int, float]

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> MeshTurn:
        """Inverse of `body`."""
        return cls(
            {(a, b): weight for a, b, weight in document["edges"]},
            {_vertex(v): weight for v, weight in document["own-weights"].items()},
        )

    def body(self) -> dict[str, Any]:
        """As a document."""
        return {
            "edges": [[a, b, weight] for (a, b), weight in sorted(self.edges.items())],
            "own-weights": {str(v): weight for v, weight in sorted(self.own_weights.items())},
        }

    def row(self, vertex: int) -> dict[int, float]:
        """Mixing weights of a vertex by vertex, its own among them."""
        near = {a + b - vertex: w for (a, b), w in self.edges.items() if vertex in (a, b)}
        return dict(sorted({**near, vertex: self.own_weights.get(vertex, 1.0)}.items()))


@dataclass(frozen=True, kw_only=True)
class MeshEdition:
    """All that the operator changes in a running mesh, under a number that only grows.

    begins: first round for which it is meant. members_since: the edition in which the set of
    vertices changed last. own_weights: of each vertex. timing, limits: keys of these tables of
    `peer.toml` that hold for all devices, whatever their own file says. turns: the rounds of a
    period (`protocol.edition.in_turn`); none where all edges are due in every round.

    Raises ConfigError if it is not a mesh: see `of`.
    """

    number: int
    begins: int
    rounds: int
    evaluate_every: int
    vertices: Mapping[int, MeshVertex]
    edges: tuple[MeshEdge, ...]
    own_weights: Mapping[int, float]
    members_since: int = 1
    timing: Mapping[str, Any] = field(default_factory=dict)
    limits: Mapping[str, Any] = field(default_factory=dict)
    turns: tuple[MeshTurn, ...] = ()

    def __post_init__(self) -> None:
        self._check_numbers()
        self._check_edges()
        self._check_weights()
        self._check_turns()

    # --- what one device takes of it ------------------------------------------------------

    def neighbors(self, vertex: int) -> tuple[int, ...]:
        """Neighbors of a vertex, ascending; none of one that is no member."""
        return tuple(sorted(self._near.get(vertex, {})))

    def rows(self, vertex: int) -> tuple[dict[int, float], ...]:
        """Mixing weights of a vertex in each round of a period; none where all are the same."""
        return tuple(turn.row(vertex) for turn in self.turns) if vertex in self.vertices else ()

    def row_at(self, vertex: int, round: int) -> dict[int, float]:
        """Mixing weights of a vertex in a round."""
        if not self.turns:
            return self.row(vertex)
        return in_turn(self.turns, round).row(vertex)

    def row(self, vertex: int) -> dict[int, float]:
        """Mixing weights of a vertex by vertex, its own among them; the mean over a period."""
        row = {j: edge.weight for j, edge in self._near[vertex].items()}
        return dict(sorted({**row, vertex: self.own_weights[vertex]}.items()))

    def dial(self, vertex: int) -> dict[int, str]:
        """Addresses of the neighbors that a vertex dials."""
        near = self._near.get(vertex, {})
        found = {j: self.vertices[j].address for j, edge in near.items() if edge.dials == vertex}
        return {j: address for j, address in sorted(found.items()) if address is not None}

    def is_dialed(self, vertex: int) -> bool:
        """Whether any neighbor dials a vertex."""
        return any(edge.dials != vertex for edge in self._near.get(vertex, {}).values())

    @cached_property
    def _near(self) -> dict[int, dict[int, MeshEdge]]:
        near: dict[int, dict[int, MeshEdge]] = {v: {} for v in self.vertices}
        for edge in self.edges:
            near[edge.a][edge.b] = near[edge.b][edge.a] = edge
        return near

    @cached_property
    def graph(self) -> str:
        """Digest of vertices, edges and weights; of vertices 0 … n-1 it is the topology's."""
        if not self.turns:
            return graph_digest({(e.a, e.b): e.weight for e in self.edges}, self.own_weights)
        alone = dict.fromkeys(self.vertices, 1.0)
        digests = (graph_digest(t.edges, {**alone, **t.own_weights}) for t in self.turns)
        return digest_of(*digests)

    # --- as a document ----------------------------------------------------------------------

    @classmethod
    def of(cls, body: Mapping[str, Any]) -> MeshEdition:
        """The edition that a document holds.

        Raises ConfigError that says what is wrong with it: a key, a number, a vertex, an edge
        that nobody can dial, rows that do not sum to 1, a graph in several parts.
        """
        known = (*_INTEGERS, *_OTHERS)
        try:
            for key in body:
                if key not in known:
                    raise ConfigError(unknown("key", key, known))
            vertices = {_vertex(v): _described(v, about) for v, about in body["vertices"].items()}
            edges = tuple(MeshEdge(a, b, w, dials) for a, b, w, dials in body["edges"])
            edition = cls(
                **{key.replace("-", "_"): body[key] for key in _INTEGERS},
                vertices=vertices,
                edges=edges,
                own_weights={_vertex(v): weight for v, weight in body["own-weights"].items()},
                timing=dict(body["timing"]),
                limits=dict(body["limits"]),
                turns=tuple(MeshTurn.of(turn) for turn in body.get("turns", ())),
            )
            if body["graph"] != edition.graph:
                raise ConfigError(f"its graph is {edition.graph}, and it says {body['graph']}")
        except KeyError as error:
            raise ConfigError(f"an edition lacks {error}") from None
        except (TypeError, ValueError, AttributeError, OverflowError) as error:
            raise ConfigError(f"an edition is not as it should be: {error}") from None
        except ConfigError as error:
            raise ConfigError(f"edition {body.get('number')}: {error}") from None
        return edition

    def body(self) -> dict[str, Any]:
        """Inverse of `of`."""
        vertices: dict[str, dict[str, str]] = {}
        for v, about in sorted(self.vertices.items()):
            said = {"name": about.name, "address": about.address}
            vertices[str(v)] = {key: text for key, text in said.items() if text is not None}
        return {
            **{key: getattr(self, key.replace("-", "_")) for key in _INTEGERS},
            "graph": self.graph,
            "vertices": vertices,
            "edges": [[e.a, e.b, e.weight, e.dials] for e in self.edges],
            "own-weights": {str(v): w for v, w in sorted(self.own_weights.items())},
            "timing": dict(self.timing),
            "limits": dict(self.limits),
            **({"turns": [turn.body() for turn in self.turns]} if self.turns else {}),
        }

    # --- checks -----------------------------------------------------------------------------

    def _check_numbers(self) -> None:
        for key, least in _INTEGERS.items():
            value = getattr(self, key.replace("-", "_"))
            if type(value) is not int or not least <= value < 2**53:
                raise ConfigError(f"{key} must be an integer of at least {least}, got {value!r}")
        if self.begins > self.rounds:
            raise ConfigError(
                f"it begins in round {self.begins}, after its last round {self.rounds}"
            )
        for name in ("timing", "limits"):
            for key, value in getattr(self, name).items():
                pair = isinstance(value, list | tuple)
                if not (isinstance(key, str) and all(_is_positive(x) for x in _listed(value))):
                    raise ConfigError(f"[{name}] {key} must be above 0, got {value!r}")
                if pair and len(value) != 2:
                    raise ConfigError(f"[{name}] {key} must be a number or two, got {value!r}")

    def _check_edges(self) -> None:
        if sorted(self.own_weights) != sorted(self.vertices):
            raise ConfigError("its own weights are not of its vertices")
        pairs = [(edge.a, edge.b) for edge in self.edges]
        for edge in self.edges:
            a, b = edge.a, edge.b
            whole = type(a) is int and type(b) is int
            if not (whole and a in self.vertices and b in self.vertices and a < b):
                raise ConfigError(f"edge {a}-{b} is not between two of its vertices, ascending")
            if edge.dials not in (a, b):
                raise ConfigError(f"edge {a}-{b} is dialed by {edge.dials}, which is no end of it")
            if self.vertices[a + b - edge.dials].address is None:
                raise ConfigError(
                    f"edge {a}-{b}: vertex {edge.dials} dials, and {a + b - edge.dials} has no "
                    "address"
                )
        if pairs != sorted(set(pairs)):
            raise ConfigError("its edges are not each there once, in ascending order")
        ids = sorted(self.vertices)
        index = {v: i for i, v in enumerate(ids)}
        ends = np.array([(index[a], index[b]) for a, b in pairs], np.int64).reshape(-1, 2)
        if len(ids) < 2 or connected_parts(len(ids), ends).max() > 0:
            raise ConfigError("its graph is not connected, or a single vertex")

    def _check_weights(self) -> None:
        sums = dict.fromkeys(self.vertices, 0.0)
        for edge in self.edges:
            for end in (edge.a, edge.b):
                sums[end] += edge.weight
        for v, own in self.own_weights.items():
            if not abs(sums[v] + own - 1.0) <= _SUM_TOLERANCE:
                raise ConfigError(f"the weights of vertex {v} sum to {sums[v] + own}, expected 1")

    def _check_turns(self) -> None:
        known, met = {(e.a, e.b) for e in self.edges}, set[tuple[int, int]]()
        for at, turn in enumerate(self.turns):
            strange = sorted(turn.edges.keys() - known)
            if strange:
                raise ConfigError(
                    f"turn {at + 1} has the edge {strange[0]}, which is none of its own"
                )
            if list(turn.edges) != sorted(turn.edges):
                raise ConfigError(f"the edges of turn {at + 1} are not in ascending order")
            met |= turn.edges.keys()
            sums = dict(turn.own_weights)
            if set(sums) != {v for edge in turn.edges for v in edge}:
                raise ConfigError(f"turn {at + 1}: its own weights are not of its edges' vertices")
            for (a, b), weight in turn.edges.items():
                sums[a], sums[b] = sums[a] + weight, sums[b] + weight
            for v, total in sums.items():
                if not abs(total - 1.0) <= _SUM_TOLERANCE:
                    raise ConfigError(
                        f"the weights of vertex {v} in turn {at + 1} sum to {total}, expected 1"
                    )
        if self.turns and met != known:
            raise ConfigError(f"edge {sorted(known - met)[0]} has no turn")


def graph_digest(edges: Mapping[tuple[int, int], float], own_weights: Mapping[int, float]) -> str:
    """Digest of a graph with its weights to the bit. edges: by their ends, ascending."""
    ids = sorted(own_weights)
    whole = ids == list(range(len(ids)))
    index = {v: i for i, v in enumerate(ids)}
    ends = [(index[a], index[b]) for a, b in edges]
    return digest_of(
        len(ids) if whole else np.array(ids, np.int64),
        np.array(ends, np.int64).reshape(-1, 2),
        np.array(list(edges.values()), np.float64),
        np.array([own_weights[v] for v in ids], np.float64),
    )


def _vertex(text: object) -> int:
    """A vertex from a key of a document."""
    if not (isinstance(text, str) and text.isascii() and text.isdecimal()) or len(text) > 9:
        raise ConfigError(f"a vertex is a number of at most nine digits, got {text!r}")
    return int(text)


def _described(vertex: str, about: Mapping[str, Any]) -> MeshVertex:
    for key, text in about.items():
        if key not in _OF_VERTEX:
            raise ConfigError(unknown(f"key of vertex {vertex}", key, _OF_VERTEX))
        if not isinstance(text, str):
            raise ConfigError(f"vertex {vertex}: {key} must be a text, got {text!r}")
    found = MeshVertex(about.get("name"), about.get("address"))
    if found.address is not None:
        parse_address(found.address)
    return found


def _listed(value: object) -> Iterable[object]:
    return value if isinstance(value, list | tuple) else [value]


def _is_positive(value: object) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and 0.0 < value < math.inf  # type: ignore[operator]
