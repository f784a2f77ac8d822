"""The built-in graphs: their vertices and edges, their short texts, and how large they may be."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flower_dhb.errors import GraphError
from flower_dhb.extras import load
from flower_dhb.topology.weights import Ends

__all__ = [
    "FORMS",
    "MAX_AGENTS",
    "MAX_EDGES",
    "TURNS",
    "Form",
    "Plan",
    "check_size",
    "integer",
    "probability",
]

MAX_AGENTS = 20_000  # a dense mixing matrix of more does not fit a workstation's memory
MAX_EDGES = 2_000_000


@dataclass(frozen=True, eq=False)
class Plan:
    """Vertices and edges of a graph, before it has weights.

    labels: of the vertices 0 … n-1. ends: (m, 2) int64, the two vertices of each edge, in
    any order. kind, sizes: of a built-in graph, such as `torus` and (3, 4). group:
    lengths of the cycles whose product the vertices are, if the edges look the same from
    each vertex.
    """

    labels: tuple[Hashable, ...]
    ends: Ends
    kind: str = ""
    sizes: tuple[int, ...] = ()
    group: tuple[int, ...] = ()


def ring(n: int) -> Plan:
    n = integer("ring", "the number of agents", n, 3, "for two agents use Topology.path(2)")
    check_size("ring", n, n)
    return _plan("ring", (n,), _hops(n, [1]), group=(n,))


def complete(n: int) -> Plan:
    n = integer("complete", "the number of agents", n, 1)
    check_size("complete", n, n * (n - 1) // 2)
    return _plan("complete", (n,), np.column_stack(np.triu_indices(n, 1)), group=(n,))


def star(n: int) -> Plan:
    n = integer("star", "the number of agents", n, 2)
    check_size("star", n, n - 1)
    return _plan("star", (n,), np.column_stack([np.zeros(n - 1, np.int64), np.arange(1, n)]))


def path(n: int) -> Plan:
    n = integer("path", "the number of agents", n, 1)
    check_size("path", n, n - 1)
    return _plan("path", (n,), np.column_stack([np.arange(n - 1), np.arange(1, n)]))


def torus(rows: int, columns: int) -> Plan:
    remedy = "for one row use Topology.ring"
    rows = integer("torus", "the number of rows", rows, 2, remedy)
    columns = integer("torus", "the number of columns", columns, 2, remedy)
    check_size("torus", rows * columns, 2 * rows * columns)
    at = np.arange(rows * columns).reshape(rows, columns)
    ends = [np.column_stack([at.ravel(), np.roll(at, -1, axis).ravel()]) for axis in (0, 1)]
    labels = tuple(divmod(v, columns) for v in range(rows * columns))
    return Plan(labels, np.vstack(ends), "torus", (rows, columns), (rows, columns))


def bipartite(a: int, b: int) -> Plan:
    a = integer("bipartite", "the size of a side", a, 1)
    b = integer("bipartite", "the size of a side", b, 1)
    check_size("bipartite", a + b, a * b)
    left, right = np.meshgrid(np.arange(a), np.arange(a, a + b), indexing="ij")
    return _plan("bipartite", (a, b), np.column_stack([left.ravel(), right.ravel()]))


def hypercube(dimension: int) -> Plan:
    dimension = integer("hypercube", "the dimension", dimension, 1)
    n = 2 ** min(dimension, 64)  # more is too many in any case
    check_size("hypercube", n, n * dimension // 2)
    vertices, digits = np.arange(n), range(dimension)
    ends = np.vstack([np.column_stack([vertices, vertices ^ (1 << k)]) for k in digits])
    labels = tuple(tuple(v >> k & 1 for k in reversed(digits)) for v in range(n))
    return Plan(labels, ends, "hypercube", (dimension,), (2,) * dimension)


def exponential(n: int) -> Plan:
    n = integer("exponential", "the number of agents", n, 2)
    hops = [2**k for k in range((n - 1).bit_length()) if 2**k < n]
    check_size("exponential", n, n * len(hops))
    return _plan("exponential", (n,), _hops(n, hops), group=(n,))


def erdos_renyi(n: int, p: float, seed: int) -> Plan:
    n = integer("erdos_renyi", "the number of agents", n, 1)
    p, seed = probability("erdos_renyi", p), _seed("erdos_renyi", seed)
    check_size("erdos_renyi", n, int(p * n * (n - 1) / 2))
    # The draws of `random.Random(seed)`, pair after pair, as networkx has them.
    generator = np.random.RandomState(_words(seed))
    rows = [np.flatnonzero(generator.random_sample(n - 1 - i) < p) + i + 1 for i in range(n - 1)]
    counts = [len(row) for row in rows]
    ends = np.column_stack(
        [np.repeat(np.arange(n - 1), counts), np.concatenate([*rows, np.zeros(0, np.int64)])]
    )
    return _plan("erdos-renyi", (n,), ends)


def random_regular(n: int, degree: int, seed: int) -> Plan:
    n = integer("random_regular", "the number of agents", n, 2)
    degree, seed = integer("random_regular", "degree", degree, 1), _seed("random_regular", seed)
    if degree >= n or n * degree % 2:
        raise GraphError(
            f"random_regular needs 1 <= degree < n and an even n * degree; "
            f"got n = {n}, degree = {degree}"
        )
    check_size("random_regular", n, n * degree // 2)
    nx = load("networkx", "a 'random-regular' graph")
    graph = nx.random_regular_graph(degree, n, seed=seed)
    return _plan("random-regular", (n, degree), _ends(graph))


def small_world(n: int, k: int, p: float, seed: int) -> Plan:
    n, k = integer("small_world", "the number of agents", n, 3), integer("small_world", "k", k, 2)
    p, seed = probability("small_world", p), _seed("small_world", seed)
    if not k < n or k % 2:
        raise GraphError(
            f"small_world needs an even k with 2 <= k < n, k / 2 neighbors on each side; "
            f"got n = {n}, k = {k}"
        )
    check_size("small_world", n, n * k // 2)
    nx = load("networkx", "a 'small-world' graph")
    graph = nx.watts_strogatz_graph(n, k, p, seed=seed)
    return _plan("small-world", (n, k), _ends(graph))


@dataclass(frozen=True)
class Form:
    """A graph's short text: its pattern, the `Topology` method that builds it, its size."""

    text: str
    method: str
    agents: Callable[..., int]

    def read(self, spec: str) -> list[Any] | None:
        """Values of a text of this form, as the method takes them; None if it is not."""
        names = re.findall("[A-Z]+", self.text)
        pattern = self.text
        for name in names:
            pattern = pattern.replace(name, _NUMBER if name == "P" else _INTEGER, 1)
        found = re.fullmatch(pattern, spec)
        kinds = (float if name == "P" else int for name in names)
        return found and [kind(value) for kind, value in zip(kinds, found.groups(), strict=True)]


# Python's own `int` and `float` also take `1_6`, ` 8`, `nan` and digits of other scripts.
_INTEGER = "([0-9]{1,18})"
_NUMBER = r"([0-9]*\.?[0-9]+(?:e-?[0-9]{1,3})?)"


def _first(*values: Any) -> int:
    return int(values[0])


# P is a probability, every other name in capitals an integer.
FORMS: dict[str, Form] = {
    "ring": Form("ring:N", "ring", _first),
    "complete": Form("complete:N", "complete", _first),
    "star": Form("star:N", "star", _first),
    "path": Form("path:N", "path", _first),
    "torus": Form("torus:ROWSxCOLUMNS", "torus", lambda rows, columns: rows * columns),
    "bipartite": Form("bipartite:AxB", "bipartite", lambda a, b: a + b),
    "hypercube": Form("hypercube:DIMENSION", "hypercube", lambda d: 2 ** min(d, 64)),
    "exponential": Form("exponential:N", "exponential", _first),
    "erdos-renyi": Form("erdos-renyi:N:P:SEED", "erdos_renyi", _first),
    "random-regular": Form("random-regular:N:DEGREE:SEED", "random_regular", _first),
    "small-world": Form("small-world:N:K:P:SEED", "small_world", _first),
}

# Sequences of graphs (`topology.turns`).
TURNS: dict[str, str] = {
    "one-peer": "one-peer:N",
    "one-peer-exponential": "one-peer-exponential:N",
    "base": "base:N:K",
    "directed-one-peer": "directed-one-peer:N",
    "matchings": "matchings:GRAPH",
    "random-pairs": "random-pairs:N:PERIOD:SEED",
    "turns": "turns:GRAPH+GRAPH+… or turns:FILE",
}


def integer(what: str, name: str, value: Any, least: int, remedy: str = "") -> int:
    """`value` as an integer not below `least`; raises GraphError for anything else."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | np.integer):
        raise GraphError(f"{what}: {name} must be an integer, got {value!r}")
    if not value >= least:
        raise GraphError(
            f"{what} needs at least {least}, got {value}" + (f"; {remedy}" if remedy else "")
        )
    return int(value)


def probability(what: str, p: Any) -> float:
    """`p` as a number in [0, 1]; raises GraphError for anything else."""
    number = isinstance(p, int | float | np.integer | np.floating) and not isinstance(p, bool)
    if not number or not 0.0 <= p <= 1.0:
        raise GraphError(f"{what} needs a probability in [0, 1], got {p!r}")
    return float(p)


def check_size(what: str, agents: int, edges: int) -> None:
    """Refuse a graph that is too large, before anything of it is built."""
    for name, value, most in (("agents", agents, MAX_AGENTS), ("edges", edges, MAX_EDGES)):
        if value > most:
            found = f"{value:,}" if value < 2**63 else "more than 2^63"
            raise GraphError(
                f"{what}: {found} {name} are too many; a topology has at most {MAX_AGENTS:,} "
                f"agents and {MAX_EDGES:,} edges"
            )


def _seed(what: str, seed: Any) -> int:
    # networkx takes None as "the global generator", which no run could repeat.
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
        raise GraphError(f"{what} needs a seed that is an integer >= 0, got {seed!r}")
    return int(seed)


def _words(seed: int) -> list[int]:
    """The 32-bit words of a seed, lowest first, as `random.Random` takes them."""
    return [seed >> shift & 0xFFFFFFFF for shift in range(0, max(seed.bit_length(), 1), 32)]


def _plan(
    kind: str, sizes: tuple[int, ...], ends: NDArray[Any], group: tuple[int, ...] = ()
) -> Plan:
    n = sum(sizes) if kind == "bipartite" else sizes[0]
    return Plan(tuple(range(n)), ends.astype(np.int64), kind, sizes, group)


def _hops(n: int, hops: Iterable[int]) -> Ends:
    vertices = np.arange(n)
    return np.vstack([np.column_stack([vertices, (vertices + hop) % n]) for hop in hops])


def _ends(graph: Any) -> Ends:
    return np.array(list(graph.edges()), dtype=np.int64).reshape(-1, 2)
