"""One run of one method: everything that determines its numbers, and the curves that it gives."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Self

import numpy as np
import torch

from flower_dhb.algorithms import Algorithm
from flower_dhb.compare.tasks import Task
from flower_dhb.compare.training import Scores, Training
from flower_dhb.engine.attacks import Attack
from flower_dhb.engine.engine import Engine, random_failures
from flower_dhb.errors import ConfigError
from flower_dhb.metrics import agents_text
from flower_dhb.topology.turns import AnyGraph

__all__ = ["Curves", "Run", "attack_of", "execute"]

_FORMAT = 2  # raised when the same settings would give other numbers
_RUNAWAY = 1e8  # parameters this many times as long as at the start (or as 1) have diverged


@dataclass(frozen=True, kw_only=True)
class Run:
    """Settings of a run: the same settings give the same curves, to the bit.

    Names are followed by what they stand for, since a file, a module or a rule of the same
    name may be another tomorrow. graph, data, code: digests of the graph, of the problem, and
    of the sources of rule and engine with the versions of libraries. algorithm: a rule's
    `to_config`. part: `validation` or `test`, what is measured. failures: probability that a
    link fails in a round.
    """

    problem: str
    data: str
    topology: str
    weights: str
    graph: str
    split: str
    algorithm: Mapping[str, Any]
    code: str
    learning_rate: float
    seed: int
    rounds: int
    evaluate_every: int
    batch_size: int
    local_steps: int
    optimizer: str
    schedule: str
    part: str
    compression: str = "none"
    failures: float = 0.0
    attack: str = ""
    attackers: int = 1
    attack_from: int = 1

    def attack_on(self, n_agents: int) -> Attack | None:
        """The attack on a graph of so many agents. Raises ConfigError if it cannot be."""
        return attack_of(self.attack, self.attackers, self.attack_from, n_agents, self.seed)

    @property
    def training(self) -> Training:
        """How agents train between two exchanges."""
        return Training(
            batch_size=self.batch_size, local_steps=self.local_steps, optimizer=self.optimizer
        )

    @property
    def key(self) -> str:
        """Name of its results: a digest of the settings.

        What the graph is called is left out: what it is, is there.
        """
        settings = {name: value for name, value in asdict(self).items() if name != "topology"}
        text = json.dumps([_FORMAT, settings], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:20]


@dataclass(frozen=True)
class Curves:
    """What a run showed: one entry per evaluated round, and every honest agent's final score.

    stopped: why the run ended early, and in which round; empty if it did not. It then ends
    with the last evaluation at which all was well.
    """

    rounds: list[int] = field(default_factory=list)
    average: list[float] = field(default_factory=list)
    mean: list[float] = field(default_factory=list)
    worst: list[float] = field(default_factory=list)
    consensus: list[float] = field(default_factory=list)
    megabytes: list[float] = field(default_factory=list)
    agents: list[float] = field(default_factory=list)
    stopped: str = ""

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """From plain values, as in JSON."""
        return cls(**{name: values[name] for name in cls.__dataclass_fields__})


def execute(run: Run, task: Task, topology: AnyGraph, algorithm: Algorithm) -> Curves:
    """Do a run. One thread: more would round sums in another order on another machine."""
    torch.set_num_threads(1)
    problem = task.problem(topology.n_agents, run.split, run.seed, run.training)
    missing = random_failures(topology, run.failures, run.seed) if run.failures else None
    engine = Engine(
        problem,
        topology,
        algorithm,
        learning_rate=run.learning_rate,
        missing=missing,
        attack=run.attack_on(topology.n_agents),
        schedule=run.schedule,
        compression=run.compression,
        rounds=run.rounds,
    )
    honest = engine.honest
    curves = Curves()

    def ended(scores: Scores, why: str = "") -> Curves:
        return replace(curves, agents=scores.agents.tolist(), stopped=why)

    def measure() -> Scores:
        found = task.scores(engine, run.part)
        return Scores(found.average, found.agents[honest])

    scores, limit = measure(), _RUNAWAY * max(1.0, _length(engine))
    for k in range(1, run.rounds + 1):
        engine.step()
        if k % run.evaluate_every and k != run.rounds:
            continue
        now, why = scores, _gone(engine, limit)
        if not why:
            now = measure()
            if not np.isfinite(now.average + now.agents.sum()):
                why = "a score is not finite"
        if why:
            return ended(scores, f"round {k}: {why}")
        scores = now
        curves.rounds.append(k)
        curves.average.append(scores.average)
        curves.mean.append(float(scores.agents.mean()))
        worst = scores.agents.min() if task.rising else scores.agents.max()
        curves.worst.append(float(worst))
        curves.consensus.append(engine.consensus_distance())
        curves.megabytes.append(engine.bytes_sent / 1e6)
    return ended(scores)


def _gone(engine: Engine, limit: float) -> str:
    """Why the honest agents' parameters are of no use any more; empty if they are."""
    if not engine.finite:
        bad = ~torch.isfinite(engine.parameters[engine.honest]).all(dim=1).cpu().numpy()
        agents = [agent for agent, is_bad in zip(engine.honest, bad, strict=True) if is_bad]
        return f"parameters of {agents_text(agents)} are NaN or infinite"
    if _length(engine) > limit:
        return f"parameters have grown beyond {limit:.0e}"
    return ""


def _length(engine: Engine) -> float:
    """Norm of the longest honest agent's parameters."""
    return float(engine.parameters[engine.honest].double().norm(dim=1).max())


def attack_of(kind: str, count: int, since: int, n_agents: int, seed: int = 0) -> Attack | None:
    """An attack by the last `count` agents of a graph; None if `kind` is empty.

    Raises ConfigError if there is no such attack, or if it leaves nobody honest.
    """
    if not kind:
        return None
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count < n_agents:
        raise ConfigError(
            f"attackers must be at least 1 and fewer than the {n_agents} agents, got {count!r}"
        )
    vertices = tuple(range(n_agents - count, n_agents))
    return Attack(kind=kind, vertices=vertices, since=since, seed=seed)
