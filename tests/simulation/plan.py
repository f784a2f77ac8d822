"""Everything about a schedule that is settled before it begins, drawn from its seed."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from flower_dhb.peer.protocol.settings import Config, Timing

from .field import PRIME
from .mesh import Mesh, changed, turns_of
from .profiles import CAMPAIGN, PROFILES, Profile

__all__ = ["Fault", "Pace", "Path", "Plan", "profile_of"]


@dataclass(frozen=True, slots=True)
class Path:
    """One direction of an edge: seconds to the other end, seconds and pieces of a payload."""

    latency_s: float
    jitter: float
    piece_s: float
    pieces: int


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast an agent is, and how its clock runs."""

    train_s: float
    combine_s: float
    disk_s: float
    clock_rate: float
    clock_offset: float


@dataclass(frozen=True, slots=True)
class Fault:
    """What goes wrong, when, and where. place: a vertex, or the ends of an edge."""

    at: float
    kind: str
    place: tuple[int, ...]


def profile_of(seed: int) -> str:
    """The profile that a campaign gives a seed."""
    large = {49: "sprint", 74: "dense", 98: "sprint", 99: "dense"}
    return large.get(seed % 100) or CAMPAIGN[seed % len(CAMPAIGN)]


class Plan:
    """A schedule before it begins.

    meshes: the editions of the mesh. neighbors: by vertex, in any of them. joined: by vertex, the
    edition that it begins with. news: when each edition after the first is announced, and to whom.
    dialers: for every edge (smaller vertex first), who dials. weights:
    symmetric field elements. hopeless: an agent whose app always fails. groups_writes: a save is
    left to a journal that waits behind it. saves_every: rounds between two saves that are
    written. first_s: more in the first training of a process.
    round_s: roughly, the seconds of a round. stop_at: no fault begins later.
    """

    first_s = 0.0

    def __init__(self, seed: int, profile: str) -> None:
        self.seed, self.profile = seed, profile
        self.rng = rng = Random(f"{profile} {seed}")  # noqa: S311
        self.odds = odds = PROFILES[profile]
        self.neighbors = _graph(rng, odds)
        self.size = self.began = len(self.neighbors)
        self.edges = [(i, j) for i, others in enumerate(self.neighbors) for j in others if i < j]
        self.dialers = {edge: rng.choice(edge) for edge in self.edges}
        self.weights = {edge: rng.randrange(1, PRIME) for edge in self.edges}
        self.origin = rng.randint(0, odds.origin) if odds.origin else 0
        self.rounds = self.origin + rng.randint(*odds.rounds)
        turns = turns_of(rng, self.weights) if odds.turns and rng.random() < odds.turns else ()
        members = frozenset(range(self.size))
        first = Mesh(1, 1, self.rounds, members, self.weights, turns=turns)
        self.meshes = [first]
        self.joined = [1] * self.size
        if odds.editions:
            self._draw_editions()
        self.conserves = rng.random() < odds.conserves
        self.early = rng.random() < odds.early and not self.conserves
        unit = 10 ** rng.uniform(*odds.seconds)
        self.paces = [self._pace(unit) for _ in range(self.size)]
        self.paths = {}
        share = 10 ** rng.uniform(-3, 0)
        for i, j in self.edges:
            self.paths[i, j], self.paths[j, i] = self._path(unit, share), self._path(unit, share)
        slowest = max(pace.train_s + 2 * pace.disk_s + pace.combine_s for pace in self.paces)
        transfer = max(
            p.latency_s * (1 + p.jitter) + p.piece_s * p.pieces for p in self.paths.values()
        )
        self.round_s = slowest + 2 * transfer
        self.timing = self._timing(transfer)
        self.away_rounds = rng.randint(1, 10)
        self.configs = [
            Config(
                vertex=vertex,
                editions=(self.meshes[self.joined[vertex] - 1].row(vertex),),
                timing=self.timing,
                away_rounds=self.away_rounds,
                early=self.early,
                conserves=self.conserves,
                origin=self.origin,
            )
            for vertex in range(self.size)
        ]
        self.liar = rng.randrange(self.size) if rng.random() < odds.liar else None
        self.hopeless = rng.randrange(self.size) if rng.random() < odds.failures * 2 else None
        self.groups_writes = rng.random() < 0.3
        self.saves_every = rng.choice((1, 1, 1, 2, 5))
        self.length_s = (self.rounds - self.origin) * self.round_s
        self.stop_at = self.length_s * rng.uniform(0.3, 1.3)
        self.starts = [0.0 if rng.random() < 0.5 else rng.random() * unit for _ in self.neighbors]
        for vertex in range(self.size):
            if rng.random() < odds.late_start:
                self.starts[vertex] = rng.uniform(0, 1.2) * self.length_s
        self.news = self._draw_news() if odds.editions else []
        self.faults = sorted(self._faults(), key=lambda fault: fault.at)

    def _draw_editions(self) -> None:
        rng = self.rng
        for _ in range(rng.randint(1, self.odds.editions)):
            mesh = changed(rng, self.meshes[-1], self.size, self.odds.agents[1] + 2)
            self.meshes.append(mesh)
            self.joined += [mesh.number] * (max(mesh.members) + 1 - self.size)
            self.size = len(self.joined)
        self.rounds = max(mesh.rounds for mesh in self.meshes)
        self.edges = sorted({edge for mesh in self.meshes for edge in mesh.weights})
        self.dialers |= {e: rng.choice(e) for e in self.edges if e not in self.dialers}
        pairs = [*self.edges, *((j, i) for i, j in self.edges)]
        self.neighbors = [tuple(sorted(j for i, j in pairs if i == v)) for v in range(self.size)]

    def _draw_news(self) -> list[tuple[float, int, list[int]]]:
        rng, news, at = self.rng, [], 0.0
        for mesh in self.meshes[1:]:
            at = max(at, mesh.begins * self.round_s * rng.uniform(0.1, 1.2))
            told = [v for v in range(self.size) if rng.random() < 0.3] or [rng.randrange(self.size)]
            if self.odds.early_news:
                at, told = self.round_s * 0.01 * mesh.number, list(range(self.size))
            news.append((at, mesh.number, told))
            for vertex in (v for v, number in enumerate(self.joined) if number == mesh.number):
                self.starts[vertex] = max(0.0, at + self.length_s * rng.uniform(-0.2, 0.3))
                if self.odds.early_news:
                    self.starts[vertex] = at
        return news

    def _pace(self, unit: float) -> Pace:
        rng = self.rng
        train_s = unit * rng.uniform(0.5, 1.5)
        if rng.random() < self.odds.slow:
            train_s *= 10
        exact = rng.random() < 0.3
        return Pace(
            train_s=train_s,
            combine_s=unit * 10 ** rng.uniform(-4, -0.5),
            disk_s=unit * 10 ** rng.uniform(-4, 0),
            clock_rate=1.0 if exact else 2 ** rng.uniform(-1, 1),
            clock_offset=rng.uniform(0, 1e5),
        )

    def _path(self, unit: float, share: float) -> Path:
        rng = self.rng
        pieces = rng.choice((1, 1, 1, 2, 3, 5))
        return Path(
            latency_s=unit * share * rng.uniform(0.1, 1),
            jitter=rng.choice((0.0, 0.1, 3.0)),
            piece_s=unit * share * rng.uniform(0, 1) / pieces,
            pieces=pieces,
        )

    def _timing(self, transfer_s: float) -> Timing:
        rng, second = self.rng, self.round_s
        if rng.random() < self.odds.wild:
            low, high = second * 0.1, second * 100
            logs = [low * (high / low) ** rng.random() for _ in range(9)]
            names = ("ceiling_s", "least_s", "reconnect_s", "resume_s", "start_s", "linger_s")
            names += ("hello_s", "dead_after_s", "transfer_s")
            return Timing(factor=rng.uniform(1, 10), **dict(zip(names, logs, strict=True)))
        return Timing(
            ceiling_s=second * 2 * 10 ** rng.uniform(0.3, 1.5),
            least_s=second * 10 ** rng.uniform(-1, 0.5),
            factor=rng.uniform(1.5, 5),
            reconnect_s=second * 10 ** rng.uniform(-1, 0.7),
            resume_s=second * 10 ** rng.uniform(-1, 1),
            start_s=second * 10 ** rng.uniform(0, 1.5),
            linger_s=second * 10 ** rng.uniform(-0.5, 1.5),
            hello_s=4 * (transfer_s + second * 10 ** rng.uniform(-1, 0.5)),
            dead_after_s=4 * transfer_s + 2 * second * 10 ** rng.uniform(0, 1),
            transfer_s=4 * transfer_s + second * 10 ** rng.uniform(-1, 1),
        )

    def _faults(self) -> list[Fault]:
        rng, odds, found = self.rng, self.odds, []

        def scatter(kind: str, mean: float, place: tuple[int, ...]) -> None:
            number = int(mean) + (rng.random() < mean - int(mean))
            if mean > 1:
                number = rng.randint(0, 2 * number)
            found.extend(Fault(rng.random() * self.stop_at, kind, place) for _ in range(number))

        for vertex in range(self.size):
            scatter("crash", odds.crashes, (vertex,))
            scatter("halt", odds.stops, (vertex,))
            scatter("pause", odds.pauses, (vertex,))
            scatter("revival", odds.revivals, (vertex,))
        for edge in self.edges:
            scatter("cut", odds.cuts, edge)
            if rng.random() < odds.crashes * 0.1:  # both ends at once
                at = rng.random() * self.stop_at
                found.extend(Fault(at, "crash", (vertex,)) for vertex in edge)
        for _ in range(rng.randint(1, 2) if rng.random() < odds.third else 0):
            at = rng.random() * self.stop_at
            third = rng.sample(range(self.size), (self.size + 2) // 3)
            found.extend(Fault(at, "third", (vertex,)) for vertex in third)
        if rng.random() < odds.twins:
            scatter("twin", 1.0, (rng.randrange(self.size),))
        return found


def _graph(rng: Random, odds: Profile) -> list[tuple[int, ...]]:
    size = rng.randint(*odds.agents)
    kind = rng.choice(("ring", "path", "star", "complete", "random"))
    if rng.random() < odds.dense:
        size, kind = 31, rng.choice(("star", "star", "complete"))
        if kind == "complete":
            size = 12
    pairs: set[tuple[int, int]]
    if kind == "complete":
        pairs = {(i, j) for i in range(size) for j in range(i + 1, size)}
    elif kind == "star":
        pairs = {(0, i) for i in range(1, size)}
    elif kind == "random":
        pairs = {(rng.randrange(i), i) for i in range(1, size)}
        for i in range(size):
            for j in range(i + 1, size):
                if rng.random() < 0.3:
                    pairs.add((i, j))
    else:
        pairs = {(i, i + 1) for i in range(size - 1)}
        if kind == "ring" and size > 2:
            pairs.add((0, size - 1))
    return [
        tuple(sorted(j for j in range(size) if (i, j) in pairs or (j, i) in pairs))
        for i in range(size)
    ]
