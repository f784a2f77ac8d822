"""One run of one method: everything that determines its numbers, and the curves that it gives."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from flower_dhb.algorithms import algorithm_from_config
from flower_dhb.compare.tasks import Scores, Task, make_task
from flower_dhb.engine.attacks import Attack
from flower_dhb.engine.engine import Engine, random_failures
from flower_dhb.errors import ConfigError, GraphError
from flower_dhb.files import write_durably
from flower_dhb.topology.turns import AnyGraph, parse_graph

__all__ = ["Curves", "Run", "Store", "attack_of", "execute"]

_FORMAT = 1  # raised when the same settings would give other numbers


@dataclass(frozen=True, kw_only=True)
class Run:
    """Settings of a run: the same settings give the same curves, to the bit.

    graph: digest of the mixing matrix that `topology` and `weights` gave: a file of the
    same name may hold another graph tomorrow. algorithm: a rule's `to_config`. part:
    `validation` or `test`, what is measured. failures: probability that a link fails in a
    round.
    """

    problem: str
    topology: str
    weights: str
    graph: str
    split: str
    algorithm: Mapping[str, Any]
    learning_rate: float
    seed: int
    rounds: int
    evaluate_every: int
    batch_size: int
    local_steps: int
    part: str
    failures: float = 0.0
    attack: str = ""
    attackers: int = 1
    attack_from: int = 1

    def attack_on(self, n_agents: int) -> Attack | None:
        """The attack on a graph of so many agents. Raises ConfigError if it cannot be."""
        return attack_of(self.attack, self.attackers, self.attack_from, n_agents, self.seed)

    @property
    def key(self) -> str:
        """Name of its results: a digest of the settings."""
        text = json.dumps([_FORMAT, asdict(self)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:20]


@dataclass(frozen=True)
class Curves:
    """What a run showed: one entry per evaluated round, and every honest agent's final score.

    A run that diverged ends with the last round that was finite.
    """

    rounds: list[int]
    average: list[float]
    mean: list[float]
    worst: list[float]
    consensus: list[float]
    megabytes: list[float]
    agents: list[float]
    diverged: bool

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """From plain values, as in JSON."""
        return cls(**{name: values[name] for name in cls.__dataclass_fields__})


class Store:
    """Finished runs in a folder, one file each: an interrupted comparison goes on from here."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get(self, run: Run) -> Curves | None:
        """Curves of a finished run; None if it is not there or not readable."""
        try:
            values = json.loads((self.folder / f"{run.key}.json").read_text(encoding="utf-8"))
            return Curves.of(values["curves"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def put(self, run: Run, curves: Curves) -> None:
        """Write the curves, atomically."""
        text = json.dumps({"run": asdict(run), "curves": asdict(curves)})
        write_durably(self.folder / f"{run.key}.json", text.encode())


def execute(run: Run) -> Curves:
    """Do a run. One thread: more would round sums in another order on another machine."""
    torch.set_num_threads(1)
    task = _task(run.problem, run.batch_size, run.local_steps)
    topology = _topology(run.topology, run.weights, run.graph)
    steps = (run.batch_size, run.local_steps)
    problem = _problem(run.problem, *steps, topology.n_agents, run.split, run.seed)
    missing = random_failures(topology, run.failures, run.seed) if run.failures else None
    engine = Engine(
        problem,
        topology,
        algorithm_from_config(run.algorithm),
        learning_rate=run.learning_rate,
        missing=missing,
        attack=run.attack_on(topology.n_agents),
    )
    honest = engine.honest
    curves = Curves([], [], [], [], [], [], [], diverged=False)

    def measure() -> Scores:
        found = task.scores(engine, run.part)
        return Scores(found.average, found.agents[honest])

    scores = measure()
    for k in range(1, run.rounds + 1):
        engine.step()
        if k % run.evaluate_every and k != run.rounds:
            continue
        consensus = engine.consensus_distance() if engine.finite else float("nan")
        now = measure()
        if not np.isfinite(consensus + now.average + now.agents.sum()):
            return Curves(**{**asdict(curves), "agents": scores.agents.tolist(), "diverged": True})
        scores = now
        curves.rounds.append(k)
        curves.average.append(scores.average)
        curves.mean.append(float(scores.agents.mean()))
        worst = scores.agents.min() if task.rising else scores.agents.max()
        curves.worst.append(float(worst))
        curves.consensus.append(consensus)
        curves.megabytes.append(engine.bytes_sent / 1e6)
    return Curves(**{**asdict(curves), "agents": scores.agents.tolist()})


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


@cache
def _task(name: str, batch_size: int, local_steps: int) -> Task:
    return make_task(name, batch_size, local_steps)


@cache
def _topology(spec: str, weights: str, digest: str) -> AnyGraph:
    topology = parse_graph(spec, weights)
    if topology.digest != digest:
        raise GraphError(
            f"'{spec}' with weights '{weights}' is no longer the graph that this comparison "
            "began with; leave the file alone while a comparison runs, and start it again"
        )
    return topology


@cache
def _problem(name: str, batch_size: int, local_steps: int, n: int, how: str, seed: int) -> Any:
    return _task(name, batch_size, local_steps).problem(n, how, seed)
