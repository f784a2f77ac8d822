"""A fleet whose devices are started minutes apart, and nothing goes wrong: no seed draws it."""

from __future__ import annotations

from random import Random

from flower_dhb.peer.protocol.edition import Edition
from flower_dhb.peer.protocol.settings import Config, Timing
from flower_dhb.topology.graph import Topology

from .mesh import Mesh
from .plan import Pace, Path, Plan
from .profiles import PROFILES

__all__ = ["Starts"]


class Starts(Plan):
    """Agents of a graph, each started at its time; limits are those of a device, unless told.

    starts: seconds, by vertex. train_s: of a round, by vertex or of all. first_s: more in the first
    training of a process (a library that is loaded).
    """

    def __init__(
        self,
        graph: str,
        starts: tuple[float, ...],
        *,
        rounds: int = 400,
        train_s: float | tuple[float, ...] = 0.5,
        first_s: float = 0.0,
        timing: Timing | None = None,
        seed: int = 1,
    ) -> None:
        self.seed, self.profile = seed, "starts"
        self.rng = rng = Random(seed)  # noqa: S311
        self.odds = PROFILES["calm"]
        topology = Topology.parse(graph)
        n = self.size = topology.n_agents
        assert len(starts) == n
        self.neighbors = [tuple(sorted(topology.neighbors(i))) for i in range(n)]
        self.edges = [(i, j) for i, others in enumerate(self.neighbors) for j in others if i < j]
        self.dialers = {(i, j): i if (i + j) % 2 else j for i, j in self.edges}
        self.weights = {edge: rng.randrange(1, 1000) for edge in self.edges}
        self.origin, self.rounds, self.away_rounds = 0, rounds, 10
        self.meshes = [Mesh(1, 1, rounds, frozenset(range(n)), self.weights)]
        self.joined, self.news = [1] * n, []
        self.conserves = self.early = self.groups_writes = False
        seconds = train_s if isinstance(train_s, tuple) else (train_s,) * n
        self.paces = [Pace(s, 0.02, 0.01, 1.0, 0.0) for s in seconds]
        way = Path(latency_s=0.005, jitter=0.1, piece_s=0.002, pieces=1)
        self.paths = {pair: way for i, j in self.edges for pair in ((i, j), (j, i))}
        self.round_s = max(seconds) + 0.05
        self.timing = timing or Timing(ceiling_s=300.0)
        self.configs = [
            Config(vertex=v, editions=(Edition(1, 1, rounds, others),), timing=self.timing)
            for v, others in enumerate(self.neighbors)
        ]
        self.liar = self.hopeless = None
        self.saves_every = 1
        self.first_s = first_s
        self.starts = list(starts)
        self.length_s = rounds * self.round_s
        self.stop_at = max(starts)
        self.faults = []
