"""What to compare, checked where it is made."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any

from flower_dhb.agent.compression import Compression
from flower_dhb.algorithms import Algorithm, method
from flower_dhb.compare.runs import Run, attack_of
from flower_dhb.compare.sources import digest_of_rule, digest_of_runtime
from flower_dhb.compare.tasks import Task, check_task, make_task
from flower_dhb.compare.training import TEST, Training
from flower_dhb.compare.tuning import COORDINATE, GRID, Point, least_points, most_points
from flower_dhb.compare.workers import Bench, Work
from flower_dhb.engine.engine import check_rule
from flower_dhb.engine.publics import check_compression
from flower_dhb.errors import ConfigError, FlowerDhbError
from flower_dhb.problems.optimizers import LocalOptimizer, Schedule
from flower_dhb.topology.turns import AnyGraph, parse_graph, share_every

__all__ = ["SEARCHED", "Case", "Comparison", "Cost"]

# Settings that can be tuned beside the learning rate, and the values that are tried.
SEARCHED: dict[str, tuple[float, ...]] = {
    "momentum": (0.0, 0.5, 0.8, 0.9, 0.95),
    "momentum_mixing": (0.0, 0.25, 0.5, 0.75, 1.0),
}
_AXES = ("local_steps", "optimizers", "schedules", "compressions")
_ADAPTIVE = ("adam", "adamw")
_ADAPTIVE_SHARE = 0.01  # their steps are about the learning rate itself, whatever the gradient


@dataclass(frozen=True, kw_only=True)
class Case:
    """One graph, one split, and one way to train locally: a table of its own."""

    topology: str
    split: str
    local_steps: int = 1
    optimizer: str = "sgd"
    schedule: str = "constant"
    compression: str = "none"

    @property
    def name(self) -> str:
        """For headings and file names; what is usual is left out."""
        words = [f"{self.topology} {self.split}".strip()]
        if self.local_steps != 1:
            words.append(f"{self.local_steps} local steps")
        words += [
            word
            for word, usual in (
                (self.optimizer, "sgd"),
                (self.schedule, "constant"),
                (self.compression, "none"),
            )
            if word != usual
        ]
        return ", ".join(words)


@dataclass(frozen=True)
class Cost:
    """How many runs a comparison takes: of tuning, at least and at most, and the final ones."""

    least: int
    most: int
    final: int

    @property
    def text(self) -> str:
        """One sentence."""
        runs = f"{self.final} runs"
        if not self.most:
            return f"{runs}, as far as they are not done yet."
        tuning = f"{self.least}" if self.least == self.most else f"{self.least} to {self.most}"
        return f"{tuning} runs of tuning and {runs} after it, as far as they are not done yet."


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Methods on cases, with the same seeds, rounds, batches and tuning for all.

    Parameters
    ----------
    problem : str or Task
        A name, `package.module:make`, or a task such as `TorchTask`.
    topologies : sequence of str or graphs
        Short texts, files, or `Topology`, `DirectedTopology`, `Turns`.
    splits : sequence of str
        `iid`, `classes:K`, `dirichlet:A`.
    methods : sequence of str or Algorithm
        Names, each with settings after colons (`dmsgd:momentum=0.8`), `package.module:Rule`,
        or rules.
    local_steps, optimizers, schedules : sequences
        Of an agent's training between two exchanges; each combination is a case. Words of
        `problems.optimizers`.
    compressions : sequence of str
        Of payloads: `none`, `int8`, `topk:0.1`, … (`agent.compression`); an axis as well.
    seeds, rounds, evaluate_every, batch_size
        Numbers of each run; `rounds=0` takes the problem's own.
    tune : bool
        Whether each method takes the learning rate that is best on validation data;
        otherwise the first of `grid`.
    search : mapping of str to values
        Settings to tune beside the rate, such as `{"momentum": (0.8, 0.9)}`; of those, a
        method has what its rule has. how: `coordinate` or `grid` (`tuning.search`).
    targets : sequence of float
        Scores to reach.
    grid : sequence of float
        Learning rates. Default: the problem's; for `adam` and `adamw` a hundredth of them.
    weights : str
        Mixing weights of undirected graphs that are given as texts.
    share_every : int
        Rounds from one exchange to the next, on all graphs; between them each agent trains by
        itself.
    failures : float
        Probability that a link fails in a round.
    attack, attackers, attack_from
        What the last agents of each graph do, how many they are, and from which round on;
        scores are then of the others.

    Raises
    ------
    ConfigError
        That names the value found, the values allowed and the nearest one.
    """

    problem: str | Task
    topologies: Sequence[str | AnyGraph]
    splits: Sequence[str] = ("iid",)
    methods: Sequence[str | Algorithm]
    local_steps: Sequence[int] = (1,)
    optimizers: Sequence[str] = ("sgd",)
    schedules: Sequence[str] = ("constant",)
    compressions: Sequence[str] = ("none",)
    seeds: int = 3
    rounds: int = 0
    tune: bool = False
    search: Mapping[str, Sequence[float]] = field(default_factory=dict)
    how: str = COORDINATE
    grid: Sequence[float] = ()
    targets: Sequence[float] = ()
    evaluate_every: int = 5
    batch_size: int = 32
    weights: str = "metropolis"
    share_every: int = 1
    failures: float = 0.0
    attack: str = ""
    attackers: int = 1
    attack_from: int = 1

    def __post_init__(self) -> None:
        task = self.task
        self._set(targets=tuple(self.targets) or tuple(task.targets))
        self._set(rounds=self.rounds or task.rounds, grid=tuple(self.grid))
        if not task.splits:
            self._set(splits=("",))
        for name in (*_AXES, "topologies", "splits", "methods"):
            values = getattr(self, name)
            if isinstance(values, str) or not isinstance(values, Sequence):
                raise ConfigError(f"{name} must be a sequence, got {values!r}")
            labels = [_label(value) for value in values]
            if not labels or len(set(labels)) != len(labels):
                raise ConfigError(f"{name} must be different and at least one, got {labels}")
        for name in ("seeds", "rounds", "evaluate_every", "batch_size", "share_every"):
            _check_count(name, getattr(self, name))
        for steps in self.local_steps:
            _check_count("local_steps", steps)
        for optimizer in self.optimizers:
            LocalOptimizer.parse(optimizer)
        for schedule in self.schedules:
            Schedule.parse(schedule)
        self._set(compressions=tuple(str(Compression.parse(each)) for each in self.compressions))
        if not all(0.0 < rate < float("inf") for rate in self.grid):
            raise ConfigError(f"learning rates must be finite and above 0, got {list(self.grid)}")
        if not all(math.isfinite(target) for target in self.targets):
            raise ConfigError(f"targets must be finite, got {list(self.targets)}")
        if not 0.0 <= self.failures < 1.0:
            raise ConfigError(f"failures must be in [0, 1), got {self.failures}")
        self._check_search()
        self._check_cases()

    def _set(self, **values: Any) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def _check_search(self) -> None:
        if self.how not in (COORDINATE, GRID):
            raise ConfigError(f"how must be {COORDINATE} or {GRID}, got {self.how!r}")
        known = {name for rule in self.rules.values() for name in _numbers_of(rule)}
        for name, values in self.search.items():
            if name not in known:
                raise ConfigError(
                    f"search: none of the methods has a setting '{name}' that is a number; they "
                    f"have {', '.join(sorted(known)) or 'none'}"
                )
            if not values or not all(math.isfinite(value) for value in values):
                raise ConfigError(f"search: values of '{name}' must be finite, got {list(values)}")
        if self.search and not self.tune:
            raise ConfigError("search: settings are tuned beside the learning rate; set tune, too")

    def _check_cases(self) -> None:
        """Try every graph with every rule and every case, before hours are spent."""
        for spec, graph in self.graphs.items():
            attack_of(self.attack, self.attackers, self.attack_from, graph.n_agents)
            for name, rule in self.rules.items():
                try:
                    check_rule(rule, graph)
                    for each in self.compressions:
                        check_compression(Compression.parse(each), rule, graph)
                except FlowerDhbError as error:
                    raise ConfigError(f"method '{name}' on '{spec}': {error}") from None
        for case in self.cases:
            self.task.problem(
                self.graphs[case.topology].n_agents, case.split, 0, self._training(case)
            )

    # --- what it is made of ---------------------------------------------------------

    @cached_property
    def task(self) -> Task:
        """What is solved and how it is scored."""
        if isinstance(self.problem, str):
            return make_task(self.problem)
        return check_task(self.problem, "problem")

    @cached_property
    def graphs(self) -> dict[str, AnyGraph]:
        """The graphs, as they are now, by what they are called."""
        found = {
            _label(graph): parse_graph(graph, self.weights) if isinstance(graph, str) else graph
            for graph in self.topologies
        }
        return {name: share_every(graph, self.share_every) for name, graph in found.items()}

    @cached_property
    def rules(self) -> dict[str, Algorithm]:
        """The rules, by what they are called."""
        return {
            _label(each): method(each) if isinstance(each, str) else each for each in self.methods
        }

    @cached_property
    def cases(self) -> list[Case]:
        """All combinations of graph, split and local training."""
        return [
            Case(topology=t, split=s, local_steps=n, optimizer=o, schedule=r, compression=c)
            for t in self.graphs
            for s in self.splits
            for n in self.local_steps
            for o in self.optimizers
            for r in self.schedules
            for c in self.compressions
        ]

    @cached_property
    def bench(self) -> Bench:
        """What its runs are done on."""
        return Bench(self.problem, self.graphs, self.task.digest, self.task)

    def rates(self, case: Case) -> tuple[float, ...]:
        """Learning rates to begin with."""
        if self.grid:
            return tuple(self.grid)
        adaptive = LocalOptimizer.parse(case.optimizer).name in _ADAPTIVE
        return tuple(
            float(f"{r * (_ADAPTIVE_SHARE if adaptive else 1.0):.3g}") for r in self.task.grid
        )

    def axes(self, name: str) -> dict[str, tuple[float, ...]]:
        """Settings of a method that are tuned beside its rate, its own value among them."""
        own = _numbers_of(self.rules[name])
        return {
            setting: tuple(sorted({*(float(v) for v in values), own[setting]}))
            for setting, values in self.search.items()
            if setting in own
        }

    def start(self, name: str) -> dict[str, float]:
        """A method's own values of the settings that are tuned."""
        own = _numbers_of(self.rules[name])
        return {setting: own[setting] for setting in self.axes(name)}

    def cost(self) -> Cost:
        """How many runs it takes, if nothing is done yet."""
        least = most = 0
        for case in self.cases:
            for name in self.rules:
                grid, axes = self.rates(case), self.axes(name)
                if self.tune and (len(grid) > 1 or axes):
                    least += least_points(grid, axes, self.how)
                    most += most_points(grid, axes, self.how)
        final = len(self.cases) * len(self.rules) * self.seeds
        return Cost(least * self.seeds, most * self.seeds, final)

    def rule_at(self, case: Case, name: str, point: Point) -> Algorithm | None:
        """A method with the settings of a point; None if the rule or the graph refuses them."""
        try:
            rule = replace(self.rules[name], **dict(point.settings))
            graph = self.graphs[case.topology]
            check_rule(rule, graph)
            check_compression(Compression.parse(case.compression), rule, graph)
        except FlowerDhbError:
            return None
        return rule

    def work(self, case: Case, rule: Algorithm, rate: float, seed: int, part: str = TEST) -> Work:
        """One run of a rule on a case."""
        run = Run(
            problem=self.task.name,
            data=self.bench.digest,
            topology=case.topology,
            weights=self.weights,
            graph=self.graphs[case.topology].digest,
            split=case.split,
            algorithm=rule.to_config(),
            code=f"{digest_of_runtime()}-{digest_of_rule(rule)}",
            learning_rate=rate,
            seed=seed,
            rounds=self.rounds,
            evaluate_every=self.evaluate_every,
            batch_size=self.batch_size,
            local_steps=case.local_steps,
            optimizer=case.optimizer,
            schedule=case.schedule,
            compression=case.compression,
            part=part,
            failures=self.failures,
            attack=self.attack,
            attackers=self.attackers,
            attack_from=self.attack_from,
        )
        return Work(run, rule)

    def to_json(self) -> dict[str, Any]:
        """Its settings as plain values."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        plain = {
            "problem": self.task.name,
            "topologies": list(self.graphs),
            "methods": list(self.rules),
            "search": {name: list(values) for name, values in self.search.items()},
        }
        listed = {n: list(v) if isinstance(v, tuple) else v for n, v in values.items()}
        digests = {name: graph.digest for name, graph in self.graphs.items()}
        return {**listed, **plain, "graphs": digests, "data": self.bench.digest}

    def _training(self, case: Case) -> Training:
        return Training(
            batch_size=self.batch_size, local_steps=case.local_steps, optimizer=case.optimizer
        )


def _label(value: Any) -> Any:
    """What something given in Python is called in tables and files."""
    if isinstance(value, Algorithm):
        usual, own = type(value)(), value
        changed = [n for n in own.settings() if getattr(own, n) != getattr(usual, n)]
        return ":".join(
            [value.name, *(f"{n.replace('_', '-')}={_plain(getattr(own, n))}" for n in changed)]
        )
    return value if isinstance(value, str | int) else getattr(value, "name", value)


def _plain(value: Any) -> str:
    return (
        str(value).lower()
        if isinstance(value, bool)
        else f"{value:g}"
        if isinstance(value, float)
        else str(value)
    )


def _numbers_of(rule: Algorithm) -> dict[str, float]:
    """Settings of a rule that are numbers, with their values."""
    return {
        name: float(value)
        for name in rule.settings()
        for value in (getattr(rule, name),)
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def _check_count(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not value >= 1:
        raise ConfigError(f"{name} must be at least 1 and an integer, got {value!r}")
