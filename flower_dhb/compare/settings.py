"""What to compare, checked where it is made."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from flower_dhb.algorithms import method
from flower_dhb.compare.runs import Run, attack_of
from flower_dhb.compare.tasks import TEST, Task, make_task
from flower_dhb.engine.engine import check_rule
from flower_dhb.errors import ConfigError, FlowerDhbError
from flower_dhb.topology.turns import parse_graph

__all__ = ["Case", "Comparison"]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One graph and one split: a table of its own."""

    topology: str
    split: str

    @property
    def name(self) -> str:
        """For headings and file names."""
        return f"{self.topology} {self.split}".strip()


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Methods on cases, with the same seeds, rounds, batches and tuning for all.

    methods: names, each with settings after colons (`dmsgd:momentum=0.8`). targets:
    scores to reach. grid: learning rates; with `tune`, each method takes the one that is
    best on validation data, otherwise the first. failures: probability that a link
    fails in a round. attack, attackers, attack_from: what the last agents of each graph do,
    how many they are, and from which round on; scores are then of the others. graphs: digest
    of each topology, as it was when this was made.

    Raises ConfigError that names the value found, the values allowed and the nearest one.
    """

    problem: str
    topologies: Sequence[str]
    splits: Sequence[str]
    methods: Sequence[str]
    seeds: int = 3
    rounds: int = 0
    tune: bool = False
    grid: Sequence[float] = ()
    targets: Sequence[float] = ()
    evaluate_every: int = 5
    batch_size: int = 32
    local_steps: int = 1
    weights: str = "metropolis"
    failures: float = 0.0
    attack: str = ""
    attackers: int = 1
    attack_from: int = 1
    graphs: Mapping[str, str] = field(init=False)

    def __post_init__(self) -> None:
        task = self.task
        for name, default in (("grid", task.grid), ("targets", task.targets)):
            object.__setattr__(self, name, tuple(getattr(self, name)) or default)
        object.__setattr__(self, "rounds", self.rounds or task.rounds)
        if not task.splits:
            object.__setattr__(self, "splits", ("",))
        for name in ("topologies", "splits", "methods"):
            values = getattr(self, name)
            if not values or len(set(values)) != len(values):
                raise ConfigError(f"{name} must be different and at least one, got {list(values)}")
        for name in ("seeds", "rounds", "evaluate_every", "batch_size", "local_steps"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not value >= 1:
                raise ConfigError(f"{name} must be at least 1 and an integer, got {value!r}")
        if not all(0.0 < rate < float("inf") for rate in self.grid):
            raise ConfigError(f"learning rates must be finite and above 0, got {list(self.grid)}")
        if not all(math.isfinite(target) for target in self.targets):
            raise ConfigError(f"targets must be finite, got {list(self.targets)}")
        if not 0.0 <= self.failures < 1.0:
            raise ConfigError(f"failures must be in [0, 1), got {self.failures}")
        object.__setattr__(self, "graphs", self._check_cases())

    def _check_cases(self) -> dict[str, str]:
        """Try every graph with every rule and every split, before hours are spent.

        Returns the digest of each graph, by its text.
        """
        digests = {}
        for spec in self.topologies:
            topology = parse_graph(spec, self.weights)
            digests[spec] = topology.digest
            attack_of(self.attack, self.attackers, self.attack_from, topology.n_agents)
            for name in self.methods:
                try:
                    check_rule(method(name), topology)
                except FlowerDhbError as error:
                    raise ConfigError(f"method '{name}' on '{spec}': {error}") from None
            for how in self.splits:
                self.task.problem(topology.n_agents, how, 0)
        return digests

    @property
    def task(self) -> Task:
        """What is solved and how it is scored."""
        return make_task(self.problem, self.batch_size, self.local_steps)

    @property
    def cases(self) -> list[Case]:
        """All pairs of graph and split."""
        return [Case(topology=t, split=s) for t in self.topologies for s in self.splits]

    def run(self, case: Case, name: str, learning_rate: float, seed: int, part: str = TEST) -> Run:
        """One run of a method on a case."""
        return Run(
            problem=self.problem,
            topology=case.topology,
            weights=self.weights,
            graph=self.graphs[case.topology],
            split=case.split,
            algorithm=method(name).to_config(),
            learning_rate=learning_rate,
            seed=seed,
            rounds=self.rounds,
            evaluate_every=self.evaluate_every,
            batch_size=self.batch_size,
            local_steps=self.local_steps,
            part=part,
            failures=self.failures,
            attack=self.attack,
            attackers=self.attackers,
            attack_from=self.attack_from,
        )
