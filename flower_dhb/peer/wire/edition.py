"""An edition of a mesh as a document: its graph, its weights, its rounds, and its limits.

It is the body of a bulletin of kind `edition`, the same for all devices; each takes its own
row. Whatever is in it is checked here, since it came over the wire.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from flower_dhb.errors import ConfigError, unknown
from flower_dhb.peer.wire.address import parse_address
from flower_dhb.topology.graph import digest_of
from flower_dhb.topology.rows import connected_parts

__all__ = ["MeshEdge", "MeshEdition", "MeshVertex", "graph_digest"]

_SUM_TOLERANCE = 1e-12  # as for any mixing matrix
_INTEGERS = {"number": 1, "begins": 1, "rounds": 1, "evaluate-every": 0, "members-since": 1}
_OTHERS = ("graph", "vertices", "edges", "own-weights", "timing", "limits")
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


@dataclass(frozen=True, kw_only=True)
class MeshEdition:
    """All that the operator changes in a running mesh, under a number that only grows.

    begins: first round for which it is meant. members_since: the edition in which the set of
    vertices changed last. own_weights: of each vertex. timing, limits: keys of these tables of
    `peer.toml` that hold for all devices, whatever their own file says.

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

    def __post_init__(self) -> None:
        self._check_numbers()
        self._check_edges()
        self._check_weights()

    # --- what one device takes of it ------------------------------------------------------

    def neighbors(self, vertex: int) -> tuple[int, ...]:
        """Neighbors of a vertex, ascending; none of one that is no member."""
        return tuple(sorted(self._near.get(vertex, {})))

    def row(self, vertex: int) -> dict[int, float]:
        """Mixing weights of a vertex by vertex, its own among them."""
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
        edges = {(e.a, e.b): e.weight for e in self.edges}
        return graph_digest(edges, self.own_weights)

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
