"""Directed communication graphs for rules that need no symmetric mixing matrix (push-sum)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from flower_dhb.errors import GraphError, unknown
from flower_dhb.topology.fastest import FDLA, fastest_weights
from flower_dhb.topology.forms import check_size, integer
from flower_dhb.topology.given import pairs
from flower_dhb.topology.graph import Topology, digest_of
from flower_dhb.topology.weights import WEIGHTS, Matrix

__all__ = ["DirectedTopology", "parse_topology"]

Edges: TypeAlias = Sequence[tuple[int, int]]

_KINDS = ("directed-ring", "directed-exponential")


class DirectedTopology:
    """A strongly connected directed graph; every agent divides its value among its receivers.

    edges: pairs (sender, receiver) over vertices 0 … n-1. `W[i, j]`, what i gives to j's
    value, is 1 / (1 + the number of receivers of j) for every edge j -> i and for i = j:
    columns sum to 1, rows need not. Source of the weights: Kempe, Dobra & Gehrke, FOCS 2003.

    connected: False for one of several graphs that take turns (`Turns`), which need not be.
    n_agents: where some vertices may have no edge.

    Raises GraphError if an edge is a self-loop or the graph is not strongly connected.
    """

    def __init__(
        self,
        edges: Iterable[tuple[int, int]],
        *,
        name: str = "directed",
        connected: bool = True,
        n_agents: int | None = None,
    ) -> None:
        self.name: Final = name
        self.edges: Final = tuple(
            sorted(
                {
                    (integer(name, "a vertex", a, 0), integer(name, "a vertex", b, 0))
                    for a, b in pairs(edges)
                }
            )
        )
        ends = {vertex for edge in self.edges for vertex in edge}
        vertices = sorted(ends | set(range(n_agents or 0)))
        n = len(vertices)
        check_size(name, n, len(self.edges))
        if n == 0 or vertices != list(range(n)):
            raise GraphError(f"{name}: vertices must be 0 … n-1, got {vertices[:8]}")
        loops = [a for a, b in self.edges if a == b]
        if loops:
            raise GraphError(f"{name}: self-loop at vertex {loops[0]}; own weight needs no edge")
        matrix = np.eye(n)
        senders, receivers = np.array(self.edges, np.int64).reshape(-1, 2).T
        matrix[receivers, senders] = 1.0
        if connected and not _strongly_connected(self.edges, n):
            raise GraphError(
                f"{name}: not strongly connected: some agents never hear of others; add edges back"
            )
        self.mixing_matrix: Final[Matrix] = matrix / matrix.sum(axis=0)
        self.mixing_matrix.setflags(write=False)

    @classmethod
    def ring(cls, n: int) -> DirectedTopology:
        """Cycle in which each agent sends to the next one only."""
        n = integer("directed-ring", "the number of agents", n, 2)
        check_size("directed-ring", n, n)
        return cls(((i, (i + 1) % n) for i in range(n)), name=f"directed-ring:{n}")

    @classmethod
    def exponential(cls, n: int) -> DirectedTopology:
        """Agent i sends to i + 1, i + 2, i + 4, … (mod n), as in the SGP paper."""
        n = integer("directed-exponential", "the number of agents", n, 2)
        hops = [2**k for k in range((n - 1).bit_length()) if 2**k < n]
        check_size("directed-exponential", n, n * len(hops))
        return cls(
            ((i, (i + hop) % n) for i in range(n) for hop in hops),
            name=f"directed-exponential:{n}",
        )

    @property
    def n_agents(self) -> int:
        """Number of vertices `n`."""
        return len(self.mixing_matrix)

    @property
    def graphs(self) -> tuple[DirectedTopology, ...]:
        """The graphs that take turns: this one alone, as `Turns` has several."""
        return (self,)

    def at(self, round: int) -> DirectedTopology:  # noqa: ARG002
        """The graph of a round: this one in each, as `Turns` has others."""
        return self

    def __repr__(self) -> str:
        return f"DirectedTopology({self.name}: {self.n_agents} agents, {len(self.edges)} edges)"

    @cached_property
    def digest(self) -> str:
        """What the graph is: vertices, edges and each weight, as `Topology.digest`."""
        return digest_of(self.n_agents, self.edges, self.mixing_matrix)

    @cached_property
    def eigenvalues(self) -> NDArray[np.float64]:
        """Absolute eigenvalues of the mixing matrix, `(n,)` float64, ascending; the last is 1."""
        return np.sort(np.abs(np.linalg.eigvals(self.mixing_matrix)))

    @property
    def directed(self) -> bool:
        """True: an edge carries payloads one way."""
        return True

    @property
    def smallest_eigenvalue(self) -> float:
        """The smallest absolute eigenvalue of the mixing matrix."""
        return float(self.eigenvalues[0])

    @property
    def second_eigenvalue(self) -> float:
        """The second largest absolute eigenvalue: disagreement shrinks by it every round."""
        return float(self.eigenvalues[-2])

    @property
    def spectral_gap(self) -> float:
        """1 - the second largest absolute eigenvalue."""
        return 1.0 - self.second_eigenvalue

    def with_missing(self, edges: Iterable[tuple[int, int]]) -> Matrix:
        """Mixing matrix of a round in which `edges` (sender, receiver) fail.

        The weight stays with the sender, so columns still sum to 1.
        Raises GraphError if one of them is no edge.
        """
        matrix = self.mixing_matrix.copy()
        for sender, receiver in set(pairs(edges)):
            if (sender, receiver) not in self._known:
                raise GraphError(f"there is no edge from {sender} to {receiver}")
            matrix[sender, sender] += matrix[receiver, sender]
            matrix[receiver, sender] = 0.0
        return matrix

    @cached_property
    def _known(self) -> frozenset[tuple[int, int]]:
        return frozenset(self.edges)


def parse_topology(spec: str, weights: str = "metropolis") -> Topology | DirectedTopology:
    """Graph from a short text: as `Topology.parse`, or `directed-ring:N`, `directed-exponential:N`.

    weights: a name of `flower_dhb.topology.weights`, or `fdla` for the fastest-mixing ones (a
    directed graph has weights of its own). Raises GraphError that names the nearest known form.
    """
    if weights not in (*WEIGHTS, FDLA):
        raise GraphError(unknown("weights", weights, (*WEIGHTS, FDLA)))
    kind, _, size = str(spec).partition(":")
    if not kind.startswith("directed"):
        return Topology.parse(spec, fastest_weights if weights == FDLA else weights)
    if kind not in _KINDS:
        raise GraphError(unknown("topology", kind, _KINDS))
    if not (size.isascii() and size.isdecimal() and len(size) < 19):
        raise GraphError(f"topology '{spec}' is not of the form {kind}:N")
    build = DirectedTopology.ring if kind == _KINDS[0] else DirectedTopology.exponential
    return build(int(size))


def _strongly_connected(edges: Edges, n: int) -> bool:
    """Whether agent 0 reaches all others, and they reach it."""
    return all(_reached(way, n) == n for way in (edges, [(b, a) for a, b in edges]))


def _reached(edges: Edges, n: int) -> int:
    receivers: list[list[int]] = [[] for _ in range(n)]
    for sender, receiver in edges:
        receivers[sender].append(receiver)
    seen, rest = {0}, [0]
    while rest:
        new = [v for v in receivers[rest.pop()] if v not in seen]
        seen.update(new)
        rest += new
    return len(seen)
