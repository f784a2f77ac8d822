"""Graphs that take turns: together they connect all agents, though one by one they need not."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from difflib import SequenceMatcher, get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from flower_dhb.errors import GraphError, unknown
from flower_dhb.topology.directed import DirectedTopology, parse_topology
from flower_dhb.topology.fastest import FDLA
from flower_dhb.topology.finite import base_rounds
from flower_dhb.topology.forms import FORMS, TURNS, Plan, check_size, integer
from flower_dhb.topology.given import pairs
from flower_dhb.topology.graph import Topology, digest_of
from flower_dhb.topology.matchings import matchings_of
from flower_dhb.topology.rows import connected_parts
from flower_dhb.topology.weights import EdgeWeights, Matrix, given_edge_weights

__all__ = [
    "AnyGraph",
    "Graphs",
    "Turns",
    "count_agents",
    "has_same_edges",
    "parse_graph",
    "parse_graphs",
    "share_every",
]

Pairs: TypeAlias = Iterable[tuple[int, int]]

_ZERO = 1e-12  # an eigenvalue of a product that is exactly 0 comes out as a few 1e-17
_MOST_TURNS = 10_000


class Turns:
    """Graphs that take turns: round k uses graph (k - 1) modulo their number.

    One by one they need not be connected: in a matching each agent talks to one other.
    Together they must be, or some agents would never hear of others. A graph may have no
    edges at all: in its round nobody exchanges anything, and W = I.

    graphs: one or more topologies of as many agents, all directed or none. name: what
    people call the sequence.

    Raises GraphError if there is none, if they are of different sizes or kinds, or if all
    their edges together do not connect the agents.
    """

    def __init__(
        self, graphs: Iterable[Topology | DirectedTopology], *, name: str = "turns"
    ) -> None:
        found = tuple(graphs)
        wrong = next((g for g in found if not isinstance(g, Topology | DirectedTopology)), None)
        if wrong is not None:
            raise GraphError(f"{name}: graphs that take turns are topologies, got {wrong!r}")
        if not found:
            raise GraphError(f"{name}: the sequence of graphs that take turns is empty")
        first = found[0]
        for k, graph in enumerate(found):
            if graph.n_agents != first.n_agents:
                raise GraphError(
                    f"{name}: all graphs must have the same agents; the first has "
                    f"{first.n_agents}, graph {k + 1} ('{graph.name}') has {graph.n_agents}"
                )
            if graph.directed != first.directed:
                raise GraphError(
                    f"{name}: either all graphs have one-way links or none; graph {k + 1} "
                    f"('{graph.name}') is of another kind than the first"
                )
        self.graphs: Final = found
        self.name: Final = name
        _check_connected(found, name)

    # --- builders -------------------------------------------------------------------

    @classmethod
    def one_peer(cls, n: int, weights: str = "metropolis") -> Turns:
        """Each agent talks to one other a round; after log2(n) rounds all have the same average.

        In round k agent i talks to i XOR 2^k, which is i + 2^k or i - 2^k: the one-peer
        exponential graph made symmetric, for n a power of 2. The product of its mixing
        matrices with weights 1/2 is exactly 1/n everywhere. Source: Ying, Yuan, Chen, Hu,
        Pan & Yin, "Exponential graph is provably efficient for decentralized deep
        training", NeurIPS 2021, arXiv 2110.13363, whose own form is directed
        (`directed_one_peer`).
        """
        n = integer("one-peer", "the number of agents", n, 2)
        if n & (n - 1):
            raise GraphError(
                f"one-peer:{n}: as pairs that talk both ways it needs a power of 2 agents, such as "
                f"{1 << n.bit_length() - 1} or {1 << n.bit_length()}; for {n} take base:{n}:1, "
                "which averages exactly with one neighbor a round, too"
            )
        hops = [2**k for k in range(n.bit_length() - 1)]
        rounds = [[(i, i ^ hop) for i in range(n) if i < i ^ hop] for hop in hops]
        return cls.of_edges(n, rounds, weights, name=f"one-peer:{n}")

    @classmethod
    def base(cls, n: int, most: int, weights: str = "metropolis") -> Turns:
        """At most `most` neighbors a round, any n, and exact averages after a period.

        The base-(k+1) graph for k = `most`; its period is at most 2 log(n) / log(k + 1) + 2
        rounds. Its weights are its own and differ from edge to edge, so `weights` is
        `metropolis`, which leaves them as they are, or `lazy`. Source: Takezawa, Sato, Bao, Niwa
        & Yamada, NeurIPS 2023, arXiv 2305.11420 (`topology.finite`).
        """
        n = integer("base", "the number of agents", n, 2)
        most = integer(f"base:{n}:K, where K neighbors are the most in a round,", "K", most, 1)
        name = f"base:{n}:{most}"
        if weights not in ("metropolis", "lazy"):
            raise GraphError(
                f"{name} has weights of its own, with which it averages exactly: leave weights at "
                f"'metropolis', or take 'lazy' for (I + W) / 2; got {weights!r}"
            )
        check_size(name, n, n * min(most, n - 1) // 2)
        graphs = []
        for k, edges in enumerate(base_rounds(n, most)):
            ordered = sorted((min(a, b), max(a, b), w) for a, b, w in edges)
            ends = np.array([(a, b) for a, b, _ in ordered], np.int64).reshape(-1, 2)
            found = given_edge_weights(ends, np.array([float(w) for *_, w in ordered]), n)
            if weights == "lazy":
                found = EdgeWeights(ends, found.edge / 2.0, (1.0 + found.own) / 2.0)
            plan, called = Plan(tuple(range(n)), ends), f"{name}, round {k + 1}"
            graphs.append(Topology(plan, found, name=called, connected=False))
        return cls(graphs, name=name)

    @classmethod
    def directed_one_peer(cls, n: int) -> Turns:
        """In round k agent i sends to i + 2^k (mod n) alone, for any n; for push-sum.

        Source: Assran, Loizou, Ballas & Rabbat, "Stochastic gradient push", ICML 2019,
        arXiv 1811.10792.
        """
        n = integer("directed-one-peer", "the number of agents", n, 2)
        check_size("directed-one-peer", n, n)
        hops = [2**k for k in range((n - 1).bit_length())]
        name = f"directed-one-peer:{n}"
        graphs = (
            DirectedTopology(
                ((i, (i + hop) % n) for i in range(n)), name=f"{name}, {hop} ahead", connected=False
            )
            for hop in hops
        )
        return cls(graphs, name=name)

    @classmethod
    def matchings(cls, topology: Topology, weights: str = "metropolis") -> Turns:
        """The edges of a graph divided into matchings: each agent talks to one other at a time.

        Every edge is used once a period, which is as long as the largest degree, or one
        round longer.
        """
        if not isinstance(topology, Topology):
            raise GraphError(f"matchings are made of an undirected topology, got {topology!r}")
        rounds = matchings_of(topology.edges, topology.n_agents)
        return cls.of_edges(topology.n_agents, rounds, weights, name=f"matchings:{topology.name}")

    @classmethod
    def random_pairs(cls, n: int, period: int, seed: int, weights: str = "metropolis") -> Turns:
        """Random pairs in each round, drawn anew for `period` rounds, then the same again.

        With an odd number of agents one of them is left out each round.
        """
        what = "random-pairs"
        n = integer(what, "the number of agents", n, 2)
        period = integer(what, "the number of rounds of a period", period, 1)
        seed = integer(what, "the seed", seed, 0)
        _check_period(what, period)
        rounds = []
        for k in range(period):
            order = np.random.default_rng([seed, k]).permutation(n).tolist()
            rounds.append(list(zip(order[: n - 1 : 2], order[1::2], strict=True)))
        name = f"{what}:{n}:{period}:{seed}"
        try:
            return cls.of_edges(n, rounds, weights, name=name)
        except GraphError as error:
            raise GraphError(f"{error}; choose a longer period or another seed") from None

    @classmethod
    def of_edges(
        cls,
        n_agents: int,
        rounds: Iterable[Pairs],
        weights: str = "metropolis",
        *,
        name: str = "turns",
    ) -> Turns:
        """Graphs from the pairs of vertices 0 … n-1 that talk in each round; there may be none.

        weights: a name of `flower_dhb.topology.weights` that needs no connected graph.
        """
        n = integer(name, "the number of agents", n_agents, 2)
        graphs = []
        for k, edges in enumerate(rounds):
            _check_period(name, k + 1)
            ends = [
                (integer(name, "a vertex", a, 0), integer(name, "a vertex", b, 0))
                for a, b in pairs(edges)
            ]
            for a, b in ends:
                if max(a, b) >= n or a == b:
                    raise GraphError(
                        f"{name}: round {k + 1} has the edge ({a}, {b}); an edge joins two of the "
                        f"vertices 0 … {n - 1}"
                    )
            check_size(name, n, len(ends))
            plan = Plan(tuple(range(n)), np.array(ends, np.int64).reshape(-1, 2))
            graphs.append(Topology(plan, weights, name=f"{name}, round {k + 1}", connected=False))
        return cls(graphs, name=name)

    @classmethod
    def load(cls, path: str | Path, weights: str = "metropolis") -> Turns:
        """Graphs from a file: edge lists with a line `---` between one round and the next.

        Vertices are 0 … n-1, two a line, and `#` begins a comment. A `.json` file holds a
        list of rounds, each a list of pairs. Raises GraphError that names the file.
        """
        path = Path(path)
        try:
            text = path.read_text(encoding="utf-8-sig")
            rounds = json.loads(text) if path.suffix.lower() == ".json" else _blocks(text)
            if not isinstance(rounds, list):
                raise GraphError("expected a list of rounds, each a list of pairs of vertices")
            listed = [pairs(edges) for edges in rounds]
            ends = [v for edges in listed for edge in edges for v in edge]
            n = max((integer("the file", "a vertex", v, 0) for v in ends), default=-1) + 1
            return cls.of_edges(n, listed, weights, name=path.stem)
        except FileNotFoundError:
            raise GraphError(f"{path}: no such file") from None
        except (GraphError, OSError, ValueError) as error:
            raise GraphError(f"{path}: {error}") from None

    # --- what they are --------------------------------------------------------------

    def at(self, round: int) -> Topology | DirectedTopology:
        """The graph of a round. Rounds count from 1."""
        return self.graphs[(round - 1) % len(self.graphs)]

    @property
    def n_agents(self) -> int:
        """Number of vertices `n`."""
        return self.graphs[0].n_agents

    @property
    def directed(self) -> bool:
        """Whether links carry payloads one way."""
        return self.graphs[0].directed

    @cached_property
    def together(self) -> Topology:
        """The graph of all edges, with the mean of a period's weights.

        Who may ever hear of whom. No round mixes with it. Raises GraphError if links carry
        payloads one way.
        """
        if self.directed:
            raise GraphError(f"'{self.name}' has one-way links, which have no mean in common")
        n, sums, own = self.n_agents, dict[tuple[int, int], float](), np.zeros(self.n_agents)
        for graph in self.graphs:
            given = graph.edge_weights  # type: ignore[union-attr]  # undirected
            own += given.own
            for a, b, weight in zip(*given.ends.T.tolist(), given.edge.tolist(), strict=True):
                sums[a, b] = sums.get((a, b), 0.0) + weight
        ends = np.array(sorted(sums), np.int64).reshape(-1, 2)
        edge = np.array([sums[a, b] for a, b in ends.tolist()]) / len(self)
        weights = EdgeWeights(ends, edge, own / len(self))
        return Topology(Plan(tuple(range(n)), ends), weights, name=self.name)

    @property
    def edges(self) -> tuple[tuple[int, int], ...]:
        """The edges of all graphs, ascending."""
        return self.together.edges

    def shared(self, round: int) -> Topology:
        """As `at`, of graphs whose edges carry payloads both ways. Raises GraphError otherwise."""
        graph = self.at(round)
        if not isinstance(graph, Topology):
            raise GraphError(f"'{self.name}' has one-way links")
        return graph

    def due(self, vertex: int, round: int) -> tuple[int, ...]:
        """Neighbors of a vertex in a round, ascending."""
        return self.shared(round).neighbors(vertex)

    def neighbors(self, vertex: int) -> tuple[int, ...]:
        """Who is a neighbor of a vertex in any round, ascending."""
        return self.together.neighbors(vertex)

    def __len__(self) -> int:
        return len(self.graphs)

    def __repr__(self) -> str:
        return f"Turns({self.name}: {self.n_agents} agents, {len(self)} graphs in turn)"

    @cached_property
    def digest(self) -> str:
        """What the sequence is: the digests of its graphs, in order."""
        return digest_of(*(graph.digest for graph in self.graphs))

    @cached_property
    def mixing_matrix(self) -> Matrix:
        """Product of one period, `(n, n)` float64, read-only: what all its rounds do together.

        The last round's matrix stands first. It is symmetric only by chance.
        """
        product = np.eye(self.n_agents)
        for graph in self.graphs:
            product = graph.mixing_matrix @ product
        product.setflags(write=False)
        return product

    @cached_property
    def second_eigenvalue(self) -> float:
        """Disagreement shrinks by it every round, on average over a period and in the long run.

        The second largest absolute eigenvalue of the period's product, to the power of 1 /
        the number of rounds. 0 if a period leaves no disagreement.
        """
        second: float = np.sort(np.abs(np.linalg.eigvals(self.mixing_matrix)))[-2]
        return 0.0 if second <= _ZERO else float(second ** (1.0 / len(self)))

    @property
    def spectral_gap(self) -> float:
        """1 - `second_eigenvalue`."""
        return 1.0 - self.second_eigenvalue


AnyGraph: TypeAlias = Topology | DirectedTopology | Turns
Graphs: TypeAlias = Topology | Turns  # whose edges carry payloads both ways, each time


def share_every(graph: AnyGraph, rounds: int) -> AnyGraph:
    """A graph, or graphs that take turns, of which only each `rounds`-th round has an exchange.

    In the rounds between, agents train and keep to themselves, and the law is the same with
    W = I. Exchange k uses the graph that round k would have used. With 1 the graph is what it is.

    Raises GraphError if `rounds` is no integer of at least 1, or the period gets too long.
    """
    every = integer("share-every", "the number of rounds from one exchange to the next", rounds, 1)
    if every == 1:
        return graph
    name = f"{graph.name}, shared every {every} rounds"
    _check_period(name, every * len(graph.graphs))
    n, alone = graph.n_agents, f"{name}: nobody shares"
    none: Topology | DirectedTopology
    if graph.directed:
        none = DirectedTopology((), name=alone, connected=False, n_agents=n)
    else:
        plan = Plan(tuple(range(n)), np.zeros((0, 2), np.int64))
        none = Topology(plan, name=alone, connected=False)
    found = [each for shared in graph.graphs for each in (*[none] * (every - 1), shared)]
    return Turns(found, name=name)


def has_same_edges(graph: AnyGraph) -> bool:
    """Whether all rounds with an exchange have the same edges: each neighbor hears each payload."""
    return len({tuple(each.edges) for each in graph.graphs if each.edges}) == 1


def parse_graph(spec: str, weights: str = "metropolis") -> AnyGraph:
    """Graph from a short text: as `parse_topology`, or graphs that take turns.

    `one-peer:N` (or `one-peer-exponential:N`), `base:N:K`, `directed-one-peer:N`,
    `matchings:GRAPH`, `random-pairs:N:PERIOD:SEED`, `turns:GRAPH+GRAPH+…`, or `turns:FILE`.
    Raises GraphError that names the nearest known form.
    """
    kind, _, rest = str(spec).partition(":")
    if kind not in TURNS:
        if _meant(kind):
            raise GraphError(unknown("topology", kind, TURNS))
        return parse_topology(spec, weights)
    if weights == FDLA and kind != "turns":
        raise GraphError(f"'{spec}': fastest-mixing weights are those of one connected graph")
    return _BUILDERS[kind](spec, rest, weights)


def parse_graphs(spec: str, weights: str = "metropolis") -> Graphs:
    """As `parse_graph`, for agents that send each other payloads: an edge goes both ways.

    Raises GraphError for graphs with one-way links, too.
    """
    kind = str(spec).partition(":")[0]
    graph = parse_graph(spec, weights) if kind in TURNS or _meant(kind) else None
    if graph is None or isinstance(graph, Topology):
        return Topology.parse(spec, weights)
    if isinstance(graph, DirectedTopology) or graph.directed:
        raise GraphError(
            f"'{spec}' has one-way links, which push-sum ('sgp') alone runs on, in the engine and "
            "in 'flower-dhb compare'; take one such as 'one-peer:8' or 'exponential:8'"
        )
    return graph


def count_agents(spec: str) -> int:
    """Number of agents of the graphs that `parse_graphs` makes of a text; only files are read.

    Raises GraphError if the text is of no known form or the file is not readable.
    """
    kind, _, rest = str(spec).partition(":")
    if kind not in TURNS:
        return Topology.count(spec)
    if kind in ("matchings", "turns"):
        first = rest.partition("+")[0].strip()
        if kind == "matchings" or first.partition(":")[0] in (*FORMS, *TURNS):
            return count_agents(first)
        return parse_graphs(spec).n_agents
    found = _integers(spec, rest, TURNS[kind].count(":"))[0]
    check_size(spec, found, 0)
    return found


def _meant(kind: str) -> bool:
    """Whether a word that is unknown is nearer to a sequence's than to any single graph's."""
    single = (*FORMS, "directed-ring", "directed-exponential")
    return _likeness(kind, TURNS) > _likeness(kind, single)


def _likeness(word: str, known: Iterable[str]) -> float:
    """How near the nearest of some words is, 0 if none is near enough to be meant."""
    near = get_close_matches(word, known, n=1)
    return SequenceMatcher(None, near[0], word).ratio() if near else 0.0


def _one_peer(spec: str, rest: str, weights: str) -> Turns:
    (n,) = _integers(spec, rest, 1)
    return Turns.one_peer(n, weights)


def _base(spec: str, rest: str, weights: str) -> Turns:
    n, most = _integers(spec, rest, 2)
    return Turns.base(n, most, weights)


def _directed_one_peer(spec: str, rest: str, _weights: str) -> Turns:
    (n,) = _integers(spec, rest, 1)
    return Turns.directed_one_peer(n)


def _matchings(spec: str, rest: str, weights: str) -> Turns:
    if not rest:
        raise GraphError(f"topology '{spec}' is not of the form {TURNS['matchings']}")
    return Turns.matchings(Topology.parse(rest), weights)


def _random_pairs(spec: str, rest: str, weights: str) -> Turns:
    n, period, seed = _integers(spec, rest, 3)
    return Turns.random_pairs(n, period, seed, weights)


def _turns(spec: str, rest: str, weights: str) -> Turns:
    names = [name.strip() for name in rest.split("+")]
    if not all(names):
        raise GraphError(f"topology '{spec}' is not of the form {TURNS['turns']}")
    if len(names) == 1 and names[0].partition(":")[0] not in FORMS:
        return Turns.load(names[0], weights)
    graphs: list[Topology | DirectedTopology] = []
    for name in names:
        graph = parse_graph(name, weights)
        graphs += graph.graphs if isinstance(graph, Turns) else [graph]
    return Turns(graphs, name=spec)


_BUILDERS: dict[str, Callable[[str, str, str], Turns]] = {
    "one-peer": _one_peer,
    "one-peer-exponential": _one_peer,
    "base": _base,
    "directed-one-peer": _directed_one_peer,
    "matchings": _matchings,
    "random-pairs": _random_pairs,
    "turns": _turns,
}


def _integers(spec: str, rest: str, count: int) -> list[int]:
    words = rest.split(":")
    if len(words) != count or not all(w.isascii() and w.isdecimal() and len(w) < 19 for w in words):
        form = TURNS[spec.partition(":")[0]]
        raise GraphError(f"topology '{spec}' is not of the form {form}")
    return [int(word) for word in words]


def _check_period(name: str, length: int) -> None:
    if length > _MOST_TURNS:
        raise GraphError(f"{name}: at most {_MOST_TURNS:,} graphs take turns")


def _check_connected(graphs: Sequence[Topology | DirectedTopology], name: str) -> None:
    edges = sorted({edge for graph in graphs for edge in graph.edges})
    if graphs[0].directed:
        DirectedTopology(edges, name=name)  # checks that it is strongly connected
        return
    n = graphs[0].n_agents
    parts = connected_parts(n, np.array(edges, np.int64).reshape(-1, 2))
    if parts.max(initial=0) > 0:
        counts: NDArray[Any] = np.bincount(parts)
        smallest = np.flatnonzero(parts == counts.argmin())[:8].tolist()
        raise GraphError(
            f"{name}: even all graphs together leave {len(counts)} parts that never hear of each "
            f"other, the smallest is {smallest}; add an edge between the parts to one of them"
        )


def _blocks(text: str) -> list[list[tuple[int, int]]]:
    """Edge lists, with a line of dashes between them."""
    rounds: list[list[tuple[int, int]]] = [[]]
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.partition("#")[0].replace(",", " ").split()
        if not words:
            continue
        if len(words) == 1 and set(words[0]) == {"-"}:
            rounds.append([])
        elif len(words) == 2 and all(w.isascii() and w.isdecimal() for w in words):
            rounds[-1].append((int(words[0]), int(words[1])))
        else:
            raise GraphError(
                f"line {number}: expected two vertices, or --- between two rounds; got "
                f"{line.strip()!r}"
            )
    return rounds
