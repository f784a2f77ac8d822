"""All agents at once: one stacked tensor, mixing is one product with the mixing matrix."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flower_dhb.agent.compression import Compression, Compressor
from flower_dhb.agent.mixing import convex_rows
from flower_dhb.algorithms.base import COMPLETE, Algorithm
from flower_dhb.algorithms.measurement import measured
from flower_dhb.algorithms.registry import require_rule
from flower_dhb.engine.attacks import Attack, Attackers
from flower_dhb.engine.checkpoint import read, write
from flower_dhb.engine.guards import Guards, Measured, clipped_matrix
from flower_dhb.engine.mixer import CHUNK, Mixer
from flower_dhb.engine.problem import Agents, Problem
from flower_dhb.engine.publics import Publics, check_compression
from flower_dhb.engine.reference import Edges, Missing, missing_in
from flower_dhb.errors import ConfigError, StateError
from flower_dhb.problems.optimizers import Schedule
from flower_dhb.topology.directed import DirectedTopology
from flower_dhb.topology.graph import Topology
from flower_dhb.topology.planning import check_rule_on
from flower_dhb.topology.turns import AnyGraph
from flower_dhb.topology.weights import Matrix
from flower_dhb.types import Layout, Payload, State

__all__ = [
    "AnyTopology",
    "Engine",
    "Missing",
    "check_rule",
    "mixing_matrix_of",
    "random_failures",
]

AnyTopology: TypeAlias = Topology | DirectedTopology


class Engine:
    """One run: a problem, a graph, a rule, and the state of all agents after `round` rounds.

    Parameters
    ----------
    problem : Problem
        Where agents start and how they train locally.
    topology : Topology, DirectedTopology or Turns
        The graph; of graphs that take turns, each round uses the next one.
    algorithm : Algorithm
        The rule.
    learning_rate : float
        Of the local steps.
    schedule : Schedule or str
        What becomes of the learning rate from round to round: `constant`, `cosine`, …
    rounds : int, optional
        Of the whole run, for a schedule that depends on it.
    missing : optional
        Edges that fail, per round: a mapping by round, a function of the round, or a
        sequence whose first entry is round 1. Their weight returns to both ends.
    mixing : str
        `dense`, `sparse`, or `auto` for the faster one.
    device : str
        Where the agents live: `cpu`, `cuda`, `cuda:1`, …
    compression : Compression or str
        Of payloads: `none`, `bf16`, `int8`, `topk:0.1`, … (`agent.compression`).
    attack : Attack, optional
        Agents that lie. What the engine says of all agents, their average and their
        consensus distance, is then of the honest ones.

    Attributes
    ----------
    screened : dict
        How many payloads each agent has screened, by (agent, neighbor).

    Raises
    ------
    ConfigError
        If the rule needs another kind of graph, diverges on this one for every step
        size, or the number of agents differs.
    """

    def __init__(
        self,
        problem: Problem,
        topology: AnyGraph,
        algorithm: Algorithm,
        *,
        learning_rate: float = 0.1,
        schedule: Schedule | str = "constant",
        rounds: int | None = None,
        missing: Missing | None = None,
        mixing: str = "auto",
        device: str = "cpu",
        compression: Compression | str = "none",
        attack: Attack | None = None,
    ) -> None:
        if not 0.0 <= learning_rate < float("inf"):
            raise ConfigError(f"learning_rate must be finite and >= 0, got {learning_rate}")
        if topology.n_agents != problem.n_agents:
            raise ConfigError(
                f"topology '{topology.name}' has {topology.n_agents} agents, but the problem's "
                f"data are split among {problem.n_agents}"
            )
        self.topology = topology
        check_rule(algorithm, topology)
        self.problem, self.algorithm = problem, algorithm
        self.learning_rate, self.missing, self.mixing = learning_rate, missing, mixing
        self.schedule = Schedule.parse(schedule) if isinstance(schedule, str) else schedule
        if self.schedule.needs_rounds and not (rounds is not None and rounds >= 1):
            raise ConfigError(
                f"the schedule '{self.schedule}' depends on the number of rounds of the whole "
                f"run: Engine(..., rounds=300); got {rounds!r}"
            )
        self.rounds = rounds
        self.device = torch.device(device)
        self.round = 0
        self.agents = problem.start(self.device)
        self.memory: dict[str, Tensor] = dict(algorithm.start(self.agents.parameters).memory)
        self._trained = torch.empty_like(self.agents.parameters)
        self._mixers: dict[int, tuple[Mixer, Mixer]] = {}
        self.bytes_sent = 0
        meant = Compression.parse(compression)
        self.compression = check_compression(meant, algorithm, topology)
        self._publics = self._compressed(attack)
        self._known: dict[str, Tensor] = {}  # public payloads, as far as they are mixed
        self.attackers = attack and Attackers(attack, problem.n_agents)
        self._guards: Guards | None = None
        factor = algorithm.screening_factor
        if factor is not None:
            x = self.agents.parameters
            start = x.double().norm(dim=1).cpu().numpy()
            self._guards = Guards(factor, start, common=bool((x == x[:1]).all()))

    def _compressed(self, attack: Attack | None) -> Publics | None:
        if not self.compression.on:
            return None
        if attack is not None:
            raise ConfigError("agents that lie send payloads as they are: compression='none'")
        names = self.algorithm.vectors
        compressor = Compressor.of(self.compression, names, _layout_of(self.problem, self.agents))
        x = self.agents.parameters
        ready = measured(self.algorithm, State(x, self.memory), x)
        return Publics(compressor, _arrays(self.algorithm.outgoing(ready, x)))

    def _tensor(self, rows: NDArray[Any]) -> Tensor:
        return torch.from_numpy(rows).to(self.device)

    # --- rounds ---------------------------------------------------------------------

    def run(self, rounds: int, after: Callable[[Engine], object] | None = None) -> None:
        """Do `rounds` rounds; `after(engine)` is called at the end of each."""
        for _ in range(rounds):
            self.step()
            if after is not None:
                after(self)

    @torch.no_grad()
    def step(self) -> None:
        """One round of all agents: adapt, share, combine."""
        k = self.round + 1
        topology = self.topology.at(k)
        failing = list(missing_in(self.missing, k))
        if self.attackers and self.attackers.cut_out:
            failing += _edges_of(topology, self.attackers.attack.vertices)
        x = self.agents.parameters
        rate = self.schedule.rate(self.learning_rate, k, self.rounds or k)
        self.problem.adapt(self.agents, k, rate, self._trained)
        if self.attackers:
            self.attackers.trained(k, x, self._trained)
        state = State(x, self.memory, round=self.round)
        self._numbers = measured(self.algorithm, state, self._trained).measured
        if self._publics:
            whole = self.algorithm.outgoing(self._state(slice(None)), self._trained)
            mixed = self._publics.publish(k, _arrays(whole), cast(Topology, topology))
            self._known = {name: self._tensor(rows) for name, rows in mixed.items()}
        found = self._measure(topology, failing)
        refused = self._guards.screen(k, found) if self._guards and found else set()
        mixer, averager = self._mixers_of(topology, [*failing, *refused], found)
        moved = self._combine(mixer)
        if self.agents.statistics.shape[1]:
            self.agents.statistics = averager(self.agents.statistics)
        if self._guards and found:
            self._guards.after(moved.sqrt().cpu().numpy(), found, refused)
        self.round = k
        edges = messages(self.algorithm, topology, failing)
        self.bytes_sent += edges * self.bytes_per_edge

    def _measure(
        self, topology: AnyTopology, failing: Sequence[tuple[int, int]]
    ) -> Measured | None:
        """Distances between payloads, where the rule screens or clips."""
        if self._guards is None and not self.algorithm.clips:
            return None
        gone = {(min(edge), max(edge)) for edge in failing}
        edges = np.array([e for e in topology.edges if e not in gone], np.int64)
        return Measured.of(
            edges.reshape(-1, 2),
            self.agents.parameters,
            self._trained,
            self._payload,
            self.algorithm.vectors[0],
            lengths=self._guards is not None,
        )

    def _payload(self, part: slice) -> dict[str, Tensor]:
        """What all agents send, some columns of it; scalars whole."""
        if self._publics:
            return {n: self._tensor(rows[:, part]) for n, rows in self._publics.public.items()}
        return self._sent(self.algorithm.outgoing(self._state(part), self._trained[:, part]), part)

    def _sent(self, payload: Payload, part: slice) -> dict[str, Tensor]:
        sent = dict(payload)
        if self.attackers:
            size = self.agents.parameters.shape[1]
            for name in self.algorithm.vectors:
                sent[name] = self.attackers.payload(self.round + 1, name, sent[name], part, size)
        return sent

    def _state(self, part: slice) -> State:
        scalars = self.algorithm.scalars
        memory = {name: m if name in scalars else m[:, part] for name, m in self.memory.items()}
        return State(self.agents.parameters[:, part], memory, self._numbers, self.round)

    def _combine(self, mixer: Mixer) -> Tensor:
        """The rule on some columns of all agents at a time: intermediates stay in the cache.

        Returns the square of the way that each agent has gone, `(n,)`, if it is screened for.
        """
        x = self.agents.parameters
        n, d = x.shape
        moved = torch.zeros(n, dtype=torch.float64, device=x.device)
        width = max(1, CHUNK // n)
        scalars = [name for name in self.memory if name in self.algorithm.scalars]
        for first in range(0, d, width):
            part = slice(first, first + width)
            state = self._state(part)
            payload = self.algorithm.outgoing(state, self._trained[:, part])
            if self._publics:
                known = {name: rows[:, part] for name, rows in self._known.items()}
                mixed = self._publics.mix(payload, known, mixer)
            else:
                mixed = {name: mixer(vector) for name, vector in self._sent(payload, part).items()}
            if self.attackers:  # who lies to others does not lie to itself
                rows = list(self.attackers.attack.vertices)
                for name, vector in payload.items():
                    mixed[name][rows] = mixer(vector)[rows]
            new = self.algorithm.combine(state, self._trained[:, part], mixed)
            if self._guards is not None:
                moved += (new.parameters - x[:, part]).square().sum(-1).double()
            x[:, part] = new.parameters
            for name in self.memory:
                if name not in scalars:
                    self.memory[name][:, part] = new.memory[name]
        for name in scalars:
            self.memory[name] = new.memory[name]
        return moved

    def _mixers_of(
        self,
        topology: AnyTopology,
        failing: Sequence[tuple[int, int]],
        found: Measured | None,
    ) -> tuple[Mixer, Mixer]:
        """Mixing of a round with this graph, and averaging of its statistics."""
        if self.algorithm.clips and found is not None:
            matrix = mixing_matrix_of(self.algorithm, topology, failing)
            refused = {(min(edge), max(edge)) for edge in failing}
            clipped = clipped_matrix(matrix, found, refused, self.algorithm.clip_radius)
            if self.attackers:  # they have nothing to fear from each other, or from the truth
                rows = list(self.attackers.attack.vertices)
                clipped[rows] = matrix[rows]
            return self._new_mixers(clipped)
        if failing:
            return self._new_mixers(mixing_matrix_of(self.algorithm, topology, failing))
        at = id(topology)  # of one graph at a time, which `self.topology` holds
        if at not in self._mixers:
            self._mixers[at] = self._new_mixers(mixing_matrix_of(self.algorithm, topology))
        return self._mixers[at]

    def _new_mixers(self, matrix: Matrix) -> tuple[Mixer, Mixer]:
        x, s = self.agents.parameters, self.agents.statistics
        mixer = Mixer(matrix, x.dtype, self.device, self.mixing)
        if not s.shape[1]:
            return mixer, mixer
        rows = convex_rows(matrix)
        return mixer, Mixer(rows, s.dtype, self.device, self.mixing)

    # --- what it is -----------------------------------------------------------------

    @property
    def parameters(self) -> Tensor:
        """All agents' parameters after the last round, `(n, d)`."""
        return self.agents.parameters

    @property
    def bytes_per_edge(self) -> int:
        """Payload bytes that one agent sends to one neighbor each round."""
        x, s = self.agents.parameters, self.agents.statistics
        statistics = s.shape[1] * s.element_size()
        if self._publics:
            return self._publics.compressor.n_bytes + statistics
        values = len(self.algorithm.vectors) * x.shape[1] + len(self.algorithm.scalars)
        return int(values * x.element_size() + statistics)

    def average(self) -> Agents:
        """The network average as a single agent, formed for an observer."""
        a = self.agents
        local = {name: tensor[:1] for name, tensor in a.local.items()}
        x, s = self._honest(a.parameters), self._honest(a.statistics)
        return Agents(x.mean(0, keepdim=True), s.mean(0, keepdim=True), local)

    @property
    def honest(self) -> list[int]:
        """The agents that do not lie: all of them, unless there is an attack."""
        return self.attackers.honest if self.attackers else list(range(self.problem.n_agents))

    def _honest(self, rows: Tensor) -> Tensor:
        return rows[self.honest] if self.attackers else rows

    @property
    def screened(self) -> dict[tuple[int, int], int]:
        """Payloads that were screened, by (agent, neighbor)."""
        return dict(self._guards.counts) if self._guards else {}

    def consensus_distance(self) -> float:
        """Root mean square over agents of the distance to their mean."""
        x = self._honest(self.agents.parameters)
        total = 0.0
        width = max(1, CHUNK // len(x))
        for first in range(0, x.shape[1], width):
            block = x[:, first : first + width].double()
            total += float((block - block.mean(0)).square().sum())
        return float(np.sqrt(total / len(x)))

    @property
    def finite(self) -> bool:
        """Whether no parameter is NaN or infinite."""
        x = self._honest(self.agents.parameters)
        # A sum is cheap, but it may leave the numbers of float32 although every value is one.
        return bool(torch.isfinite(x.sum())) or bool(torch.isfinite(x).all())

    # --- checkpoints ----------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """Write everything that the next round needs, atomically; never pickled."""
        tensors = {"parameters": self.agents.parameters, "statistics": self.agents.statistics}
        tensors |= {f"memory.{name}": t for name, t in self.memory.items()}
        tensors |= {f"local.{name}": t for name, t in self.agents.local.items()}
        arrays = {name: t.contiguous().cpu().numpy() for name, t in tensors.items()}
        if self._publics:
            arrays |= {f"sent.{name}": rows for name, rows in self._publics.sent.items()}
        write(Path(path), arrays, self._description())

    def load(self, path: str | Path) -> None:
        """Go on from a checkpoint: the next round is the same to the bit.

        Raises StateError if the file is damaged or of another run.
        """
        arrays, found = read(Path(path))
        wanted = self._description()
        for key in wanted:
            if key not in ("round", "bytes_sent") and found.get(key) != wanted[key]:
                raise StateError(
                    f"{path}: checkpoint of another run: '{key}' is {found.get(key)!r}, "
                    f"expected {wanted[key]!r}"
                )

        def restore(name: str, old: Tensor) -> Tensor:
            array = arrays.get(name)
            if array is None or tuple(array.shape) != tuple(old.shape):
                shape = None if array is None else array.shape
                raise StateError(f"{path}: '{name}' is {shape}, expected {tuple(old.shape)}")
            return torch.from_numpy(array.copy()).to(self.device, old.dtype)

        a = self.agents
        agents = Agents(
            restore("parameters", a.parameters),
            restore("statistics", a.statistics),
            {name: restore(f"local.{name}", t) for name, t in a.local.items()},
        )
        memory = {name: restore(f"memory.{name}", t) for name, t in self.memory.items()}
        if self._publics:
            # A compression by its own error remembers nothing before the first round.
            names = [n for n in self.algorithm.vectors if f"sent.{n}" in arrays]
            sent = {name: restore(f"sent.{name}", a.parameters) for name in names}
            self._publics.sent = {name: rows.cpu().numpy() for name, rows in sent.items()}
        self.agents, self.memory = agents, memory
        self.round, self.bytes_sent = int(found["round"]), int(found["bytes_sent"])

    def _description(self) -> dict[str, Any]:
        return {
            "version": 4,
            "algorithm": self.algorithm.to_config(),
            **({"compression": str(self.compression)} if self.compression.on else {}),
            # What the graphs are, not what they are called: a file may change.
            "topologies": [graph.digest for graph in self.topology.graphs],
            "problem": self.problem.digest,
            "learning_rate": self.learning_rate,
            "schedule": str(self.schedule),
            "rounds": self.rounds if self.schedule.needs_rounds else None,
            "round": self.round,
            "bytes_sent": self.bytes_sent,
        }


def _arrays(payload: Payload) -> dict[str, NDArray[Any]]:
    return {name: vector.cpu().numpy() for name, vector in payload.items()}


def _layout_of(problem: Problem, agents: Agents) -> Layout:
    """The arrays of a problem's model; one flat array where the problem does not say."""
    layout = getattr(problem, "layout", None)
    if isinstance(layout, Layout):
        return layout
    return Layout.of({"parameters": agents.parameters[0].cpu().numpy()})


def _edges_of(topology: AnyTopology, vertices: Sequence[int]) -> list[tuple[int, int]]:
    return [edge for edge in topology.edges if set(edge) & set(vertices)]


def mixing_matrix_of(algorithm: Algorithm, topology: AnyTopology, failing: Edges = ()) -> Matrix:
    """Mixing matrix that a rule uses on a graph, in a round in which some edges fail.

    Whether the rule may run on the graph is for `check_rule` to say, once.
    """
    if algorithm.graph == COMPLETE:
        n = topology.n_agents
        return np.full((n, n), 1.0 / n) if topology.edges else np.eye(n)
    return topology.with_missing(failing)


def check_rule(algorithm: Algorithm, topology: AnyGraph) -> None:
    """Raise ConfigError if it is no rule, or cannot run on the graph, or on graphs in turn."""
    require_rule(algorithm)
    if algorithm.graph != COMPLETE:
        check_rule_on(algorithm, topology)


def messages(algorithm: Algorithm, topology: AnyTopology, failing: Sequence[Any] = ()) -> int:
    """Payloads sent in one round over all links; by way of a server for the centralized rule."""
    if algorithm.graph == COMPLETE:
        return 2 * topology.n_agents if topology.edges else 0
    if isinstance(topology, DirectedTopology):
        return len(topology.edges) - len(set(failing))
    # An edge may be named by either end first, and twice.
    return 2 * (len(topology.edges) - len({(min(edge), max(edge)) for edge in failing}))


def random_failures(topology: AnyGraph, probability: float, seed: int) -> Missing:
    """Edges that fail independently with a probability each round, drawn from seed and round."""
    if not 0.0 <= probability <= 1.0:
        raise ConfigError(f"failure probability must be in [0, 1], got {probability}")

    def failing(round: int) -> Edges:
        edges = topology.at(round).edges
        draws = np.random.default_rng([seed, round]).random(len(edges))
        return [e for e, draw in zip(edges, draws, strict=True) if draw < probability]

    return failing
