"""Communication graphs: who talks to whom, and with which mixing weights."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar

import networkx as nx
import numpy as np
from numpy.typing import NDArray

from flower_dhb.errors import GraphError, unknown
from flower_dhb.graph_files import read_graph
from flower_dhb.weights import Matrix, WeightRule, mixing_matrix, second_largest

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Topology"]

Weights: TypeAlias = str | Matrix | WeightRule
A = TypeVar("A", bound=NDArray[Any])


class Topology:
    """An undirected, connected communication graph with its mixing matrix.

    Vertices are 0 … n-1. `weights` is a name (`metropolis`, `uniform`, `laplacian`,
    `lazy`, `lazy-uniform`, `lazy-laplacian`), a rule such as `lazy("uniform")`, or a
    mixing matrix of your own, which is checked.

    Raises GraphError if the graph is directed, has a self-loop, is not connected, or
    the matrix is not a mixing matrix of it.
    """

    def __init__(
        self,
        graph: nx.Graph[Any],
        weights: Weights = "metropolis",
        *,
        name: str = "custom",
    ) -> None:
        self.name: Final = name
        self.labels: Final = _check_graph(graph)
        order = {label: vertex for vertex, label in enumerate(self.labels)}
        # A set: a multigraph may hold an edge twice.
        edges = sorted({tuple(sorted((order[a], order[b]))) for a, b in graph.edges()})
        self.edges: Final[tuple[tuple[int, int], ...]] = tuple((a, b) for a, b in edges)
        adjacency = np.zeros((len(self.labels),) * 2, dtype=np.bool_)
        for a, b in self.edges:
            adjacency[a, b] = adjacency[b, a] = True
        self.adjacency: Final = _frozen(adjacency)
        self.mixing_matrix: Final[Matrix] = _frozen(mixing_matrix(adjacency, weights))

    # --- builders -------------------------------------------------------------------

    @classmethod
    def ring(cls, n: int, weights: Weights = "metropolis") -> Topology:
        """Cycle of `n` >= 3 agents, each with two neighbors."""
        _at_least("ring", n, 3, "for two agents use Topology.path(2)")
        return cls(nx.cycle_graph(n), weights, name=f"ring:{n}")

    @classmethod
    def complete(cls, n: int, weights: Weights = "metropolis") -> Topology:
        """Every agent is every other agent's neighbor."""
        _at_least("complete", n, 1)
        return cls(nx.complete_graph(n), weights, name=f"complete:{n}")

    @classmethod
    def star(cls, n: int, weights: Weights = "metropolis") -> Topology:
        """Agent 0 is the neighbor of all `n` - 1 others, which have no other neighbor."""
        _at_least("star", n, 2)
        return cls(nx.star_graph(n - 1), weights, name=f"star:{n}")

    @classmethod
    def path(cls, n: int, weights: Weights = "metropolis") -> Topology:
        """A line of `n` agents."""
        _at_least("path", n, 1)
        return cls(nx.path_graph(n), weights, name=f"path:{n}")

    @classmethod
    def torus(cls, rows: int, columns: int, weights: Weights = "metropolis") -> Topology:
        """Grid of `rows` x `columns` agents that wraps around; vertex = row * columns + column.

        With two rows (or columns) the wrap-around edge is the direct one.
        """
        _at_least("torus", min(rows, columns), 2, "for one row use Topology.ring")
        grid = nx.grid_2d_graph(rows, columns, periodic=True)
        return cls(grid, weights, name=f"torus:{rows}x{columns}")

    @classmethod
    def bipartite(cls, a: int, b: int, weights: Weights = "metropolis") -> Topology:
        """Complete bipartite graph: each of the first `a` agents with each of the other `b`."""
        _at_least("bipartite", min(a, b), 1)
        return cls(nx.complete_bipartite_graph(a, b), weights, name=f"bipartite:{a}x{b}")

    @classmethod
    def hypercube(cls, dimension: int, weights: Weights = "metropolis") -> Topology:
        """2^dimension agents; neighbors differ in one binary digit of their vertex."""
        _at_least("hypercube", dimension, 1)
        cube = nx.hypercube_graph(dimension)
        return cls(cube, weights, name=f"hypercube:{dimension}")

    @classmethod
    def exponential(cls, n: int, weights: Weights = "metropolis") -> Topology:
        """Symmetric exponential graph: i and j are neighbors if |i - j| mod n is a power of 2."""
        _at_least("exponential", n, 2)
        graph: nx.Graph[int] = nx.empty_graph(n)
        hops = [2**k for k in range((n - 1).bit_length()) if 2**k < n]
        graph.add_edges_from((i, (i + hop) % n) for i in range(n) for hop in hops)
        return cls(graph, weights, name=f"exponential:{n}")

    @classmethod
    def erdos_renyi(cls, n: int, p: float, seed: int, weights: Weights = "metropolis") -> Topology:
        """Each of the n (n - 1) / 2 edges is there with probability `p`.

        Raises GraphError if the graph that this seed gives is not connected.
        """
        _at_least("erdos_renyi", n, 1)
        _probability("erdos_renyi", p)
        graph = nx.gnp_random_graph(n, p, seed=_seed(seed))
        name = f"erdos-renyi:{n}:{p}:{seed}"
        return _random(cls, graph, weights, name, "another seed or a larger p")

    @classmethod
    def random_regular(
        cls, n: int, degree: int, seed: int, weights: Weights = "metropolis"
    ) -> Topology:
        """A random graph in which every agent has `degree` neighbors; n * degree is even."""
        _at_least("random_regular", n, 2)
        if not 1 <= degree < n or n * degree % 2:
            raise GraphError(
                f"random_regular needs 1 <= degree < n and an even n * degree; "
                f"got n = {n}, degree = {degree}"
            )
        graph = nx.random_regular_graph(degree, n, seed=_seed(seed))
        name = f"random-regular:{n}:{degree}:{seed}"
        return _random(cls, graph, weights, name, "another seed or a larger degree")

    @classmethod
    def small_world(
        cls, n: int, k: int, p: float, seed: int, weights: Weights = "metropolis"
    ) -> Topology:
        """Ring in which each agent knows its `k` nearest, each edge rewired with probability `p`.

        Source: Watts & Strogatz, Nature 393 (1998).
        """
        _at_least("small_world", n, 3)
        _probability("small_world", p)
        if not 2 <= k < n:
            raise GraphError(f"small_world needs 2 <= k < n; got n = {n}, k = {k}")
        graph = nx.watts_strogatz_graph(n, k, p, seed=_seed(seed))
        name = f"small-world:{n}:{k}:{p}:{seed}"
        return _random(cls, graph, weights, name, "another seed, a larger k or a smaller p")

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
        graph: nx.Graph[Any] = nx.Graph()
        for edge in edges:
            pair = tuple(edge)
            if len(pair) != 2:
                raise GraphError(f"an edge is a pair of vertices, got {edge!r}")
            graph.add_edge(*pair)
        return cls(graph, weights, name=name)

    @classmethod
    def load(cls, path: str | Path, weights: Weights = "metropolis") -> Topology:
        """Graph from a file: GraphML (.graphml, .xml), JSON node-link (.json), else an edge list.

        An edge list has two vertices a line, `#` begins a comment. Edge attributes are
        not read: pass a mixing matrix as `weights` to set your own.
        Raises GraphError that names the file.
        """
        path = Path(path)
        graph = read_graph(path)
        try:
            return cls(graph, weights, name=path.stem)
        except GraphError as error:
            raise GraphError(f"{path}: {error}") from None

    @classmethod
    def parse(cls, spec: str, weights: Weights = "metropolis") -> Topology:
        """Graph from a short text: `ring:16`, `torus:4x4`, `erdos-renyi:16:0.3:1`, or a file.

        Random graphs end with their seed. Anything with a path separator or a file
        ending is read with `load`. Raises GraphError that names the nearest known form.
        """
        kind, _, rest = spec.strip().partition(":")
        if kind not in _FORMS:
            if "." in kind or "/" in spec or "\\" in spec:
                return cls.load(spec, weights)
            raise GraphError(unknown("topology", kind, _FORMS) + ", or a graph file")
        builder, form = _FORMS[kind]
        fields = rest.replace("x", ":").split(":") if rest else []
        names = form.partition(":")[2].replace("x", ":").split(":")
        types = [float if name == "P" else int for name in names]
        try:
            values = [parse(field) for parse, field in zip(types, fields, strict=True)]
        except ValueError:
            raise GraphError(f"topology '{spec}' is not of the form {form}") from None
        topology: Topology = getattr(cls, builder)(*values, weights=weights)
        return topology

    # --- what it is -----------------------------------------------------------------

    @property
    def n_agents(self) -> int:
        """Number of vertices `n`."""
        return len(self.labels)

    def __len__(self) -> int:
        return self.n_agents

    def __repr__(self) -> str:
        return (
            f"Topology({self.name}: {self.n_agents} agents, {len(self.edges)} edges, "
            f"spectral gap {self.spectral_gap:.4g})"
        )

    def neighbors(self, vertex: int) -> tuple[int, ...]:
        """Neighbors of a vertex, ascending. Raises GraphError if there is no such vertex."""
        return tuple(int(j) for j in np.flatnonzero(self.adjacency[self._check_vertex(vertex)]))

    def row(self, vertex: int) -> NDArray[np.float64]:
        """Row of the mixing matrix, `(n,)` float64: what this agent gives to each value."""
        row: NDArray[np.float64] = self.mixing_matrix[self._check_vertex(vertex)]
        return row

    @cached_property
    def eigenvalues(self) -> NDArray[np.float64]:
        """Eigenvalues of the mixing matrix, `(n,)` float64, ascending; the last is 1."""
        return _frozen(np.asarray(np.linalg.eigvalsh(self.mixing_matrix), np.float64))

    @property
    def directed(self) -> bool:
        """False: an edge carries payloads both ways."""
        return False

    @property
    def smallest_eigenvalue(self) -> float:
        """The smallest eigenvalue of the mixing matrix, above -1."""
        return float(self.eigenvalues[0])

    @property
    def second_eigenvalue(self) -> float:
        """The second largest absolute eigenvalue: disagreement shrinks by it every round."""
        return second_largest(self.eigenvalues)

    @property
    def spectral_gap(self) -> float:
        """1 - the second largest absolute eigenvalue; 1 mixes in one round, 0 never."""
        return 1.0 - self.second_eigenvalue

    @property
    def picture(self) -> Figure:
        """Drawing of the graph and its mixing weights (needs the `plot` extra)."""
        from flower_dhb.plots import topology_figure

        return topology_figure(self)

    def with_missing(self, edges: Iterable[tuple[int, int]]) -> Matrix:
        """Mixing matrix of a round in which `edges` fail: their weight returns to both ends.

        Still symmetric and doubly stochastic, so the network average is kept.
        Raises GraphError if one of them is no edge.
        """
        matrix = self.mixing_matrix.copy()
        for a, b in {(min(e), max(e)) for e in edges}:
            if not self.adjacency[self._check_vertex(a), self._check_vertex(b)]:
                raise GraphError(f"there is no edge between {a} and {b}")
            matrix[a, a] += matrix[a, b]
            matrix[b, b] += matrix[a, b]
            matrix[a, b] = matrix[b, a] = 0.0
        return matrix

    def _check_vertex(self, vertex: int) -> int:
        if not 0 <= vertex < self.n_agents:
            raise GraphError(f"no vertex {vertex}; vertices are 0 … {self.n_agents - 1}")
        return vertex


def _check_graph(graph: nx.Graph[Any]) -> tuple[Hashable, ...]:
    """Vertex labels in order, if the graph is one that agents can sit on."""
    if graph.is_directed():
        raise GraphError("a communication graph is undirected; got a directed graph")
    labels = list(graph.nodes())
    if not labels:
        raise GraphError("the communication graph is empty: it has no vertex")
    loops = list(nx.selfloop_edges(graph))
    if loops:
        raise GraphError(
            f"self-loop at vertex {loops[0][0]}; an agent's own weight is the diagonal of "
            "the mixing matrix, not an edge"
        )
    if not nx.is_connected(graph):
        parts = sorted((sorted(part, key=str) for part in nx.connected_components(graph)), key=len)
        raise GraphError(
            f"the graph is disconnected: {len(parts)} parts that can never agree, the smallest "
            f"is {parts[0][:8]}; add an edge between the parts"
        )
    if all(isinstance(label, int | np.integer) for label in labels):
        integers = sorted(int(label) for label in labels)
        if integers != list(range(len(integers))):
            raise GraphError(
                f"integer vertices must be 0 … {len(integers) - 1}, got {integers[:8]} …"
            )
        return tuple(integers)
    return tuple(sorted(labels, key=lambda label: (str(type(label)), label)))


def _random(
    cls: type[Topology], graph: nx.Graph[Any], weights: Weights, name: str, remedy: str
) -> Topology:
    try:
        _check_graph(graph)
    except GraphError as error:
        raise GraphError(f"{name}: {error}, or choose {remedy}") from None
    return cls(graph, weights, name=name)


def _at_least(what: str, value: int, least: int, remedy: str = "") -> None:
    if not value >= least:
        raise GraphError(
            f"{what} needs at least {least}, got {value}" + (f"; {remedy}" if remedy else "")
        )


def _probability(what: str, p: float) -> None:
    if not 0.0 <= p <= 1.0:
        raise GraphError(f"{what} needs a probability in [0, 1], got {p}")


def _seed(seed: int) -> int:
    # networkx takes None as "the global generator", which no run could repeat.
    if not isinstance(seed, int | np.integer) or seed < 0:
        raise GraphError(f"a random graph needs a seed that is an integer >= 0, got {seed!r}")
    return int(seed)


def _frozen(array: A) -> A:
    array.setflags(write=False)
    return array


# name: (builder, form); P is a probability, everything else an integer.
_FORMS: dict[str, tuple[str, str]] = {
    "ring": ("ring", "ring:N"),
    "complete": ("complete", "complete:N"),
    "star": ("star", "star:N"),
    "path": ("path", "path:N"),
    "torus": ("torus", "torus:ROWSxCOLUMNS"),
    "bipartite": ("bipartite", "bipartite:AxB"),
    "hypercube": ("hypercube", "hypercube:DIMENSION"),
    "exponential": ("exponential", "exponential:N"),
    "erdos-renyi": ("erdos_renyi", "erdos-renyi:N:P:SEED"),
    "random-regular": ("random_regular", "random-regular:N:DEGREE:SEED"),
    "small-world": ("small_world", "small-world:N:K:P:SEED"),
}
