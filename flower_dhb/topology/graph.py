"""Communication graphs: who talks to whom, and with which mixing weights."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from flower_dhb.errors import GraphError, unknown
from flower_dhb.extras import load
from flower_dhb.topology import forms
from flower_dhb.topology.files import read_graph
from flower_dhb.topology.forms import FORMS, TURNS, Plan
from flower_dhb.topology.given import (
    check_connected,
    pairs,
    plan_of_adjacency,
    plan_of_edges,
    plan_of_labels,
    plan_of_networkx,
    sorted_ends,
    weights_of_networkx,
)
from flower_dhb.topology.spectrum import all_eigenvalues, extreme_eigenvalues
from flower_dhb.topology.weights import EdgeWeights, Matrix, Weights, edge_weights

if TYPE_CHECKING:
    import networkx as nx

__all__ = ["Topology", "digest_of"]

A = TypeVar("A", bound=NDArray[Any])


class Topology:
    """An undirected, connected communication graph with its mixing matrix.

    Vertices are 0 … n-1. `weights` is a name (`metropolis`, `uniform`, `laplacian`,
    `lazy`, `lazy-uniform`, `lazy-laplacian`), a rule such as `lazy("uniform")`, or a
    mixing matrix of your own, which is checked. The matrix is kept by edge, and its
    eigenvalues are computed when they are first asked for.

    name: what people call the graph. digest: what it is, to the bit of its weights.
    labels: of the vertices, in order. edges: pairs i < j, ascending. kind, sizes: of a
    built-in graph, such as `torus` and (3, 4); `""` and () of any other. connected: False for
    one of several graphs that take turns (`Turns`), which need not be.

    Raises GraphError if the graph is directed, has a self-loop, is not connected, has more
    than 20,000 vertices or 2,000,000 edges, or the matrix is not a mixing matrix of it.
    """

    def __init__(
        self,
        graph: nx.Graph[Any] | Plan,
        weights: Weights = "metropolis",
        *,
        name: str = "custom",
        connected: bool = True,
    ) -> None:
        plan = graph if isinstance(graph, Plan) else plan_of_networkx(graph)
        if connected:
            check_connected(plan)
        self.name: Final = name
        self.kind: Final = plan.kind
        self.sizes: Final = plan.sizes
        self.labels: Final = plan.labels
        ends = _frozen(sorted_ends(plan))
        self.edges: Final[tuple[tuple[int, int], ...]] = tuple((a, b) for a, b in ends.tolist())
        self._group = plan.group
        part = not connected
        self._weights = edge_weights(len(plan.labels), ends, weights, plan.group, part=part)
        self._rows = self._weights.rows()

    # --- builders -------------------------------------------------------------------

    @classmethod
    def ring(cls, n: int, weights: Weights = "metropolis") -> Topology:
        """Cycle of `n` >= 3 agents, each with two neighbors."""
        return cls(forms.ring(n), weights, name=f"ring:{n}")

    @classmethod
    def complete(cls, n: int, weights: Weights = "metropolis") -> Topology:
        """Every agent is every other agent's neighbor."""
        return cls(forms.complete(n), weights, name=f"complete:{n}")

    @classmethod
    def star(cls, n: int, weights: Weights = "metropolis") -> Topology:
        """Agent 0 is the neighbor of all `n` - 1 others, which have no other neighbor."""
        return cls(forms.star(n), weights, name=f"star:{n}")

    @classmethod
    def path(cls, n: int, weights: Weights = "metropolis") -> Topology:
        """A line of `n` agents."""
        return cls(forms.path(n), weights, name=f"path:{n}")

    @classmethod
    def torus(cls, rows: int, columns: int, weights: Weights = "metropolis") -> Topology:
        """Grid of `rows` x `columns` agents that wraps around; vertex = row * columns + column.

        With two rows (or columns) the wrap-around edge is the direct one.
        """
        return cls(forms.torus(rows, columns), weights, name=f"torus:{rows}x{columns}")

    @classmethod
    def bipartite(cls, a: int, b: int, weights: Weights = "metropolis") -> Topology:
        """Complete bipartite graph: each of the first `a` agents with each of the other `b`."""
        return cls(forms.bipartite(a, b), weights, name=f"bipartite:{a}x{b}")

    @classmethod
    def hypercube(cls, dimension: int, weights: Weights = "metropolis") -> Topology:
        """2^dimension agents; neighbors differ in one binary digit of their vertex."""
        return cls(forms.hypercube(dimension), weights, name=f"hypercube:{dimension}")

    @classmethod
    def exponential(cls, n: int, weights: Weights = "metropolis") -> Topology:
        """Symmetric exponential graph: i and j are neighbors if |i - j| mod n is a power of 2."""
        return cls(forms.exponential(n), weights, name=f"exponential:{n}")

    @classmethod
    def erdos_renyi(cls, n: int, p: float, seed: int, weights: Weights = "metropolis") -> Topology:
        """Each of the n (n - 1) / 2 edges is there with probability `p`.

        Raises GraphError if the graph that this seed gives is not connected.
        """
        plan, name = forms.erdos_renyi(n, p, seed), f"erdos-renyi:{n}:{p}:{seed}"
        return _random(cls, plan, weights, name, "another seed or a larger p")

    @classmethod
    def random_regular(
        cls, n: int, degree: int, seed: int, weights: Weights = "metropolis"
    ) -> Topology:
        """A random graph in which every agent has `degree` neighbors; n * degree is even."""
        plan, name = forms.random_regular(n, degree, seed), f"random-regular:{n}:{degree}:{seed}"
        return _random(cls, plan, weights, name, "another seed or a larger degree")

    @classmethod
    def small_world(
        cls, n: int, k: int, p: float, seed: int, weights: Weights = "metropolis"
    ) -> Topology:
        """Ring in which each agent knows its `k` nearest, each edge rewired with probability `p`.

        `k` is even: half of them lie on each side.
        Source: Watts & Strogatz, Nature 393 (1998).
        """
        plan, name = forms.small_world(n, k, p, seed), f"small-world:{n}:{k}:{p}:{seed}"
        return _random(cls, plan, weights, name, "another seed, a larger k or a smaller p")

    @classmethod
    def from_edges(
        cls,
        edges: Iterable[tuple[Hashable, Hashable]],
        weights: Weights = "metropolis",
        *,
        name: str = "custom",
    ) -> Topology:
        """Graph from pairs of vertices; a pair and its reverse are the same edge.

        Vertices are 0 … n-1; other labels are numbered in sorted order (`labels`).
        """
        return cls(plan_of_edges(edges), weights, name=name)

    @classmethod
    def from_networkx(
        cls,
        graph: nx.Graph[Any],
        weights: Weights = "metropolis",
        *,
        attribute: str | None = None,
        name: str = "custom",
    ) -> Topology:
        """Graph from a networkx graph; its nodes become `labels`, as in `from_edges`.

        attribute: name of an edge attribute that holds the mixing weights, instead of
        `weights`; each agent's own weight is what its row lacks to a sum of 1.
        Raises GraphError if an edge lacks the attribute, too.
        """
        plan = plan_of_networkx(graph)
        if attribute is None:
            return cls(plan, weights, name=name)
        if not isinstance(weights, str) or weights != "metropolis":
            raise GraphError(f"give either weights or an attribute of edges, '{attribute}'")
        return cls(plan, weights_of_networkx(graph, plan, attribute), name=name)

    @classmethod
    def from_adjacency(
        cls,
        matrix: Any,
        weights: Weights = "metropolis",
        *,
        labels: Sequence[Hashable] | None = None,
        name: str = "custom",
    ) -> Topology:
        """Graph from a symmetric matrix of zeros and ones: NumPy, nested lists, or sparse.

        labels: of the rows; vertices are then numbered in the labels' order, as in
        `from_edges`.
        """
        return cls(plan_of_adjacency(matrix, labels), weights, name=name)

    @classmethod
    def load(cls, path: str | Path, weights: Weights = "metropolis") -> Topology:
        """Graph from a file: GraphML (.graphml, .xml), JSON node-link (.json), else an edge list.

        An edge list has two vertices a line, `#` begins a comment. Edge attributes are
        not read: pass a mixing matrix as `weights` to set your own, or read the file with
        networkx and use `from_networkx`. Raises GraphError that names the file.
        """
        path = Path(path)
        labels, edges = read_graph(path)
        try:
            return cls(plan_of_labels(labels, edges), weights, name=path.stem)
        except GraphError as error:
            raise GraphError(f"{path}: {error}") from None

    @classmethod
    def parse(cls, spec: str, weights: Weights = "metropolis") -> Topology:
        """Graph from a short text: `ring:16`, `torus:4x4`, `erdos-renyi:16:0.3:1`, or a file.

        Random graphs end with their seed. Anything with a path separator or a file
        ending is read with `load`. Raises GraphError that names the nearest known form.
        """
        found = _read(spec)
        if found is None:
            return cls.load(spec, weights)
        form, values = found
        build: Callable[..., Topology] = getattr(cls, form.method)
        return build(*values, weights=weights)

    @classmethod
    def count(cls, spec: str) -> int:
        """Number of agents of the graph that `parse` makes of a text; only files are read.

        Raises GraphError if the text is of no known form or the file is not readable.
        """
        found = _read(spec)
        if found is None:
            return len(plan_of_labels(*read_graph(Path(spec))).labels)
        form, values = found
        agents = form.agents(*values)
        forms.check_size(spec, agents, edges=0)
        return agents

    # --- what it is -----------------------------------------------------------------

    @property
    def n_agents(self) -> int:
        """Number of vertices `n`."""
        return len(self.labels)

    @property
    def graphs(self) -> tuple[Topology, ...]:
        """The graphs that take turns: this one alone, as `Turns` has several."""
        return (self,)

    def at(self, round: int) -> Topology:  # noqa: ARG002
        """The graph of a round: this one in each, as `Turns` has others."""
        return self

    def shared(self, round: int) -> Topology:  # noqa: ARG002
        """As `at`, where `Turns` asks whether edges carry payloads both ways."""
        return self

    def __len__(self) -> int:
        return self.n_agents

    def __repr__(self) -> str:
        return (
            f"Topology({self.name}: {self.n_agents} agents, {len(self.edges)} edges, "
            f"spectral gap {self.spectral_gap:.4g})"
        )

    @property
    def together(self) -> Topology:
        """The graph of all edges: this one, as `Turns` joins several."""
        return self

    @property
    def edge_weights(self) -> EdgeWeights:
        """The mixing matrix by edge, without its zeros."""
        return self._weights

    @cached_property
    def digest(self) -> str:
        """What the graph is, 32 hexadecimal digits: vertices, edges, and each weight to the bit.

        Graphs of one digest give the same numbers, whatever their names and labels.
        """
        return digest_of(self.n_agents, self._weights.ends, self._weights.edge, self._weights.own)

    @cached_property
    def adjacency(self) -> NDArray[np.bool_]:
        """Who is whose neighbor, `(n, n)` bool, symmetric, read-only."""
        found = np.zeros((self.n_agents,) * 2, dtype=np.bool_)
        i, j = self._weights.ends.T
        found[i, j] = found[j, i] = True
        return _frozen(found)

    @cached_property
    def mixing_matrix(self) -> Matrix:
        """`(n, n)` float64, read-only: `W[i, j]` is what agent i gives to agent j's value."""
        return _frozen(self._weights.dense())

    @cached_property
    def degrees(self) -> NDArray[np.int64]:
        """Number of neighbors of each agent, `(n,)`."""
        return _frozen(np.bincount(self._weights.ends.ravel(), minlength=self.n_agents))

    def neighbors(self, vertex: int) -> tuple[int, ...]:
        """Neighbors of a vertex, ascending. Raises GraphError if there is no such vertex."""
        columns, _ = self._rows.row(self._check_vertex(vertex))
        return tuple(j for j in columns.tolist() if j != vertex)

    def due(self, vertex: int, round: int) -> tuple[int, ...]:  # noqa: ARG002
        """Neighbors of a vertex in a round: the same in each, as `Turns` has others."""
        return self.neighbors(vertex)

    def weights_of(self, vertex: int) -> dict[int, float]:
        """Row of the mixing matrix by vertex, its own weight and its neighbors'."""
        columns, values = self._rows.row(self._check_vertex(vertex))
        found = dict(zip(columns.tolist(), values.tolist(), strict=True))
        return {j: float(found.get(j, 0.0)) for j in sorted({*found, vertex})}

    def row(self, vertex: int) -> NDArray[np.float64]:
        """Row of the mixing matrix, `(n,)` float64: what this agent gives to each value."""
        columns, values = self._rows.row(self._check_vertex(vertex))
        row = np.zeros(self.n_agents)
        row[columns] = values
        return row

    @cached_property
    def eigenvalues(self) -> NDArray[np.float64]:
        """Eigenvalues of the mixing matrix, `(n,)` float64, ascending; the last is 1.

        Takes minutes for irregular graphs of thousands of agents; `second_eigenvalue` and
        `smallest_eigenvalue` do not.
        """
        return _frozen(all_eigenvalues(self._rows, self._group))

    @cached_property
    def _extremes(self) -> tuple[float, float]:
        return extreme_eigenvalues(self._rows, self._group) if self.n_agents > 1 else (1.0, 0.0)

    @property
    def smallest_eigenvalue(self) -> float:
        """The smallest eigenvalue of the mixing matrix; 1 for a single agent."""
        return self._extremes[0]

    @property
    def directed(self) -> bool:
        """False: an edge carries payloads both ways."""
        return False

    @property
    def second_eigenvalue(self) -> float:
        """The second largest absolute eigenvalue: disagreement shrinks by it every round."""
        lowest, second = self._extremes
        return max(abs(lowest), abs(second)) if self.n_agents > 1 else 0.0

    @property
    def spectral_gap(self) -> float:
        """1 - the second largest absolute eigenvalue; 1 mixes in one round, 0 never."""
        return 1.0 - self.second_eigenvalue

    def to_networkx(self) -> nx.Graph[Any]:
        """The graph for networkx: labels as nodes, the mixing weight of each edge in `weight`.

        `Topology.from_networkx(…, attribute="weight")` reads it back.
        Raises ConfigError if networkx is not installed.
        """
        graph: nx.Graph[Any] = load("networkx", "a graph for networkx").Graph(name=self.name)
        graph.add_nodes_from((label, {"vertex": v}) for v, label in enumerate(self.labels))
        graph.add_weighted_edges_from(
            (self.labels[a], self.labels[b], weight)
            for (a, b), weight in zip(self.edges, self._weights.edge.tolist(), strict=True)
        )
        return graph

    def with_missing(self, edges: Iterable[tuple[int, int]]) -> Matrix:
        """Mixing matrix of a round in which `edges` fail: their weight returns to both ends.

        Still symmetric and doubly stochastic, so the network average is kept.
        Raises GraphError if one of them is no edge.
        """
        matrix = self._weights.dense()
        failing = {(self._check_vertex(a), self._check_vertex(b)) for a, b in pairs(edges)}
        for a, b in {(min(e), max(e)) for e in failing}:
            if b not in self.neighbors(a):
                raise GraphError(f"there is no edge between {a} and {b}")
            matrix[a, a] += matrix[a, b]
            matrix[b, b] += matrix[a, b]
            matrix[a, b] = matrix[b, a] = 0.0
        return matrix

    def _check_vertex(self, vertex: int) -> int:
        whole = isinstance(vertex, int | np.integer) and not isinstance(vertex, bool)
        if not whole or not 0 <= vertex < self.n_agents:
            raise GraphError(f"no vertex {vertex!r}; vertices are 0 … {self.n_agents - 1}")
        return int(vertex)


def _read(spec: str) -> tuple[forms.Form, list[Any]] | None:
    """Form and values of a graph's short text; None if it names a file."""
    if not isinstance(spec, str):
        raise GraphError(f"a topology is a text such as 'ring:8' or a file's name, got {spec!r}")
    kind = spec.partition(":")[0]
    if kind in TURNS:
        raise GraphError(
            f"'{spec}' is a sequence of graphs that take turns, and here one graph is needed, such "
            "as 'ring:8'; in Python flower_dhb.topology.turns.parse_graph makes both"
        )
    if kind not in FORMS:
        if "." in kind or "/" in spec or "\\" in spec:
            return None
        raise GraphError(unknown("topology", kind, FORMS) + ", or a graph file")
    values = FORMS[kind].read(spec)
    if values is None:
        raise GraphError(f"topology '{spec}' is not of the form {FORMS[kind].text}")
    return FORMS[kind], values


def _random(cls: type[Topology], plan: Plan, weights: Weights, name: str, remedy: str) -> Topology:
    try:
        check_connected(plan)
    except GraphError as error:
        raise GraphError(f"{name}: {error}, or choose {remedy}") from None
    return cls(plan, weights, name=name)


def digest_of(*arrays: Any) -> str:
    """Digest of numbers and arrays: their types, shapes and bits."""
    found = hashlib.sha256()
    for array in arrays:
        values = np.asarray(array)
        found.update(f"{values.dtype.str}{values.shape}".encode())
        found.update(np.ascontiguousarray(values).tobytes())
    return found.hexdigest()[:32]


def _frozen(array: A) -> A:
    array.setflags(write=False)
    return array
