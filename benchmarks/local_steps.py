"""Rules beside each other where agents train for many local steps between exchanges.

python -m benchmarks.local_steps run FOLDER        all runs; goes on where it was stopped
python -m benchmarks.local_steps run FOLDER --part 1/2     every second of them, for two processes
python -m benchmarks.local_steps table FOLDER      what is there, as Markdown tables
python -m benchmarks.local_steps graphs FOLDER     the same for every graph, as Markdown tables
python -m benchmarks.local_steps cells FOLDER      every setting by itself, as CSV

Digits, an MLP of 2,410 parameters, 16 agents, batch 32. Graphs: ring, 4×4 torus, exponential.
Data: IID, two classes an agent, Dirichlet 0.1. 1, 10 and 50 local steps; SGD, momentum 0.9 and
AdamW, whose state begins anew in each round (so that of one step, momentum is SGD and is left
out). Three seeds. Every rule has its default settings,
without screening: nobody lies here. `sgp` is left out, which on these graphs is `dsgd`.

The learning rate is tuned for each rule, optimizer, number of steps and kind of split, on the
ring, one other seed and the validation digits: on a ladder of factors of about three, from its
middle up or down while it gets better. The better rate is the one with which the mean agent
first has 95 %; if none has it after half of the rounds, the one that first has 90 %, or else the
higher accuracy. All rates' runs end when one of them has 95 %.
What counts are rounds until the test accuracy is 90 and 95 % for the average model, the mean
over agents, and the worst agent: the median of the seeds. A test ends when all six medians are
known.

Runs that differ in their seed or rate alone train side by side, in one batch. They are one line
of JSON in FOLDER/runs.jsonl, with all that their numbers depend on.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from torch import Tensor

from flower_dhb import ConfigError, Topology
from flower_dhb.algorithms import algorithm_from_config, method
from flower_dhb.algorithms.base import COMPLETE
from flower_dhb.algorithms.measurement import measured
from flower_dhb.algorithms.registry import METHODS
from flower_dhb.engine.batched import Batched
from flower_dhb.engine.updates import Updates
from flower_dhb.problems.digits import load_digits
from flower_dhb.problems.models import make_model
from flower_dhb.problems.optimizers import LocalOptimizer
from flower_dhb.problems.splits import batches, split
from flower_dhb.types import State

FORMAT = 2  # raised when the same settings would give other numbers
AGENTS, BATCH, SEEDS, TUNING_SEED = 16, 32, (0, 1, 2), 100
GRAPHS = ("ring:16", "torus:4x4", "exponential:16")
SPLITS = ("iid", "dirichlet:0.1", "classes:2")
STEPS = (10, 1, 50)  # in the order of interest: an interrupted study has the first ones
ROUNDS = {1: 252, 10: 80, 50: 25}
EVERY = {1: 4, 10: 1, 50: 1}  # rounds between evaluations
LADDERS = {
    "sgd": (0.01, 0.03, 0.1, 0.3, 1.0, 3.0),
    "momentum:0.9": (0.001, 0.003, 0.01, 0.03, 0.1, 0.3),
    "adamw": (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03),
}
MIDDLE = slice(1, 4)  # of a ladder: the rates that are tried first, side by side
TARGETS = (0.9, 0.95)
KINDS = ("average", "mean", "worst")
NEVER = float("inf")
WORDS = {"iid": "IID", "dirichlet:0.1": "Dirichlet 0.1", "classes:2": "two classes"}

Reached = dict[str, int]


@dataclass(frozen=True, kw_only=True)
class Runs:
    """Runs side by side, and all that their numbers depend on: `rates` and `seeds`, one a run."""

    rule: dict[str, Any]
    graph: str
    digest: str
    split: str
    steps: int
    optimizer: str
    rates: tuple[float, ...]
    seeds: tuple[int, ...]
    part: str
    rounds: int
    every: int
    format: int = FORMAT

    @property
    def key(self) -> str:
        """Digest of all settings."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


class Rated(Updates):
    """The local optimizer of agents that have different learning rates, one a row."""

    def __init__(
        self, optimizer: LocalOptimizer, parameters: Sequence[Tensor], rates: Tensor
    ) -> None:
        super().__init__(optimizer, parameters)
        self._rates = [-rates.view(-1, *(1 for _ in p.shape[1:])) for p in parameters]

    def _descend(
        self, x: list[Tensor], g: list[Tensor], memory: list[list[Tensor]], _rate: float
    ) -> None:
        steps = [torch.zeros_like(p) for p in x]
        super()._descend(steps, g, memory, -1.0)
        self._move(x, steps)

    def _adapt(
        self, x: list[Tensor], g: list[Tensor], memory: list[list[Tensor]], _rate: float
    ) -> None:
        steps = [torch.zeros_like(p) for p in x]
        super()._adapt(steps, g, memory, -1.0)
        if self.optimizer.weight_decay:
            torch._foreach_add_(steps, x, alpha=self.optimizer.weight_decay)
        self._move(x, steps)

    def _move(self, x: list[Tensor], steps: list[Tensor]) -> None:
        for parameter, step, rate in zip(x, steps, self._rates, strict=True):
            parameter.addcmul_(step, rate)


class Abreast:
    """Agents of all runs in one stack: `x` is `(runs * AGENTS, d)`, a run's agents together."""

    def __init__(self, runs: Runs, graph: Topology, study: Study) -> None:
        data = load_digits()
        self.rule = algorithm_from_config(runs.rule)
        self.model, self.round = study.model, 0
        matrix = graph.mixing_matrix
        if self.rule.graph == COMPLETE:
            matrix = np.full((AGENTS, AGENTS), 1.0 / AGENTS)
        self.matrix = torch.tensor(np.ascontiguousarray(matrix), dtype=torch.float32)
        self.draws = [study.draws(runs.split, seed, runs.steps) for seed in runs.seeds]
        self.inputs, self.targets = data.train_x, data.train_y
        own = [torch.cat([t.flatten() for t in _arrays(seed)]) for seed in runs.seeds]
        self.x = torch.stack(own).repeat_interleave(AGENTS, 0)
        self.memory = dict(self.rule.start(self.x).memory)
        self.shapes = [t.shape for t in _arrays(runs.seeds[0])]
        rates = torch.tensor(runs.rates).repeat_interleave(AGENTS)
        self.updates = Rated(LocalOptimizer.parse(runs.optimizer), self._stack(self.x), rates)

    @torch.no_grad()
    def step(self) -> None:
        """One round of all runs: adapt, share, combine."""
        self.round += 1
        stack = self._stack(self.x)
        self.updates.begin()
        positions = torch.cat([draw(self.round) for draw in self.draws]).transpose(0, 1)
        for index in positions.contiguous():  # (agents, batch), one local step
            flat = index.view(-1)
            x = self.inputs.index_select(0, flat).view(*index.shape, -1)
            y = self.targets.index_select(0, flat).view(index.shape)
            self.model.step(stack, x, y, 0.0, self.updates)
        trained = torch.cat([t.flatten(1) for t in stack], 1)
        state = State(self.x, self.memory, round=self.round - 1)
        state = measured(self.rule, state, trained)
        payload = self.rule.outgoing(state, trained)
        new = self.rule.combine(state, trained, {k: self._mixed(v) for k, v in payload.items()})
        self.x, self.memory = new.parameters, dict(new.memory)

    def _mixed(self, vectors: Tensor) -> Tensor:
        return (self.matrix @ vectors.view(-1, AGENTS, vectors.shape[-1])).view(vectors.shape)

    def _stack(self, x: Tensor) -> list[Tensor]:
        parts = x.split([shape.numel() for shape in self.shapes], 1)
        return [
            part.reshape(-1, *shape).clone() for part, shape in zip(parts, self.shapes, strict=True)
        ]

    @torch.no_grad()
    def accuracies(self, x: Tensor, y: Tensor) -> list[dict[str, float]]:
        """Of each run: of the average model, the mean agent and the worst; 0 if it diverged."""
        agents = self.x.view(-1, AGENTS, self.x.shape[-1])
        right = _right(self._stack(torch.cat([self.x, agents.mean(1)])), x, y)
        own, average = right[: len(self.x)].view(-1, AGENTS), right[len(self.x) :]
        finite = torch.isfinite(agents).flatten(1).all(1)
        values = torch.stack([average, own.mean(1), own.amin(1)], 1) * finite.unsqueeze(1)
        return [dict(zip(KINDS, row, strict=True)) for row in values.tolist()]

    @property
    def finite(self) -> bool:
        """Whether one run at least has not diverged."""
        agents = self.x.view(len(self.draws), -1)
        return bool(torch.isfinite(agents).all(1).any())


def _right(stack: list[Tensor], x: Tensor, y: Tensor) -> Tensor:
    """Share of samples that each of many MLPs gets right, `(models,)`.

    Written out, samples last: five times as fast as the model's own code for all of them.
    """
    inner, shift, outer, last = stack
    hidden = torch.relu_((x @ inner.flatten(0, 1).t()).add_(shift.flatten()))
    hidden = hidden.view(len(x), *shift.shape).permute(1, 2, 0)
    scores = torch.baddbmm(last.unsqueeze(-1), outer, hidden)  # (models, classes, samples)
    own = scores.gather(1, y.expand(len(scores), 1, -1)).squeeze(1)
    return (own >= scores.amax(1)).double().mean(-1)


def _arrays(seed: int) -> list[Tensor]:
    return [t.detach() for t in make_model("mlp", seed).state_dict().values()]


@dataclass
class Study:
    """The runs that are there, and what is drawn for those at hand."""

    folder: Path
    found: dict[str, dict[str, Any]] = field(default_factory=dict)
    graphs: dict[str, Topology] = field(default_factory=dict)
    drawn: dict[Any, Callable[[int], Tensor]] = field(default_factory=dict)
    model: Batched = field(default_factory=lambda: Batched(make_model("mlp", 0)))

    @classmethod
    def open(cls, folder: Path) -> Study:
        """Read what is there; a line that a kill has cut off is as if it were not there."""
        study = cls(folder)
        study.graphs = {spec: Topology.parse(spec) for spec in GRAPHS}
        path = folder / "runs.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        for line in lines:
            try:
                value = json.loads(line)
                if value["runs"]["format"] == FORMAT:
                    study.found[value["key"]] = value
            except (ValueError, KeyError):
                continue
        return study

    def draws(self, how: str, seed: int, steps: int) -> Callable[[int], Tensor]:
        """Sample positions of all agents in a round, `(AGENTS, steps, BATCH)`, kept for a while."""
        key = (how, seed, steps)
        if key not in self.drawn:
            if len(self.drawn) >= len(SEEDS) + 1:
                self.drawn.pop(next(iter(self.drawn)))
            parts = split(load_digits().train_y.numpy(), AGENTS, how, seed)
            rounds: dict[int, Tensor] = {}

            def positions(round: int) -> Tensor:
                if round not in rounds:
                    settings = {"seed": seed, "round": round}
                    rounds[round] = torch.from_numpy(
                        np.stack(
                            [
                                part[batches(len(part), BATCH, steps, vertex=v, **settings)]
                                for v, part in enumerate(parts)
                            ]
                        )
                    )
                return rounds[round]

            self.drawn[key] = positions
        return self.drawn[key]

    def runs(self, name: str, spec: str, how: str, steps: int, words: str, **more: Any) -> Runs:
        """Settings of runs. Raises ConfigError if the rule cannot run on the graph."""
        rule = method(f"{name}:screening=off" if method(name).screening_factor else name)
        if rule.graph != COMPLETE:
            rule.check(self.graphs[spec])
        return Runs(
            rule=rule.to_config(),
            graph=spec,
            digest=self.graphs[spec].digest,
            split=how,
            steps=steps,
            optimizer=words,
            every=EVERY[steps],
            **more,
        )

    def result(self, runs: Runs) -> dict[str, Any]:
        """Result of runs, done now if it is not there."""
        if runs.key not in self.found:
            began = time.process_time()
            reached, last, done = self._do(runs)
            value = {
                "key": runs.key,
                "runs": asdict(runs),
                "reached": reached,
                "last": last,
                "done": done,
                "seconds": round(time.process_time() - began, 3),
            }
            with (self.folder / "runs.jsonl").open("a") as file:
                file.write(json.dumps(value) + "\n")
            self.found[runs.key] = value
        return self.found[runs.key]

    def _do(self, runs: Runs) -> tuple[list[Reached], list[dict[str, float]], int]:
        data, test = load_digits(), runs.part == "test"
        x = data.test_x if test else data.validation_x
        y = data.test_y if test else data.validation_y
        engine = Abreast(runs, self.graphs[runs.graph], self)
        reached: list[Reached] = [{} for _ in runs.seeds]
        last = [dict.fromkeys(KINDS, 0.0) for _ in runs.seeds]
        for k in range(1, runs.rounds + 1):
            engine.step()
            if k % runs.every:
                continue
            last = engine.accuracies(x, y)
            for values, own in zip(last, reached, strict=True):
                for kind, value in values.items():
                    for target in TARGETS:
                        if value >= target:
                            own.setdefault(f"{kind} {target}", k)
            if (_settled(reached) if test else _tuned(reached)) or not engine.finite:
                return reached, last, k
        return reached, last, runs.rounds

    def tuned(self, name: str, how: str, steps: int, words: str) -> float:
        """The rate of a rule for an optimizer, a number of steps and a kind of split."""
        ladder = LADDERS[words]
        costs: dict[float, tuple[float, ...]] = {}

        def climb(rates: tuple[float, ...]) -> None:
            """Rounds to the last target, to the first, then inaccuracy: less is better."""
            # A rate that comes after the best one so far is of no interest.
            rounds = min([ROUNDS[steps] // 2, *(int(c[0]) for c in costs.values() if c[0] < NEVER)])
            runs = self.runs(
                name,
                GRAPHS[0],
                how,
                steps,
                words,
                rates=rates,
                seeds=(TUNING_SEED,) * len(rates),
                part="validation",
                rounds=rounds,
            )
            found = self.result(runs)
            for rate, own, last in zip(rates, found["reached"], found["last"], strict=True):
                ways = [own.get(f"mean {target}", NEVER) for target in TARGETS[::-1]]
                costs[rate] = (*ways, -last["mean"] if last["mean"] else NEVER)

        climb(ladder[MIDDLE])
        for direction in (1, -1):
            while True:
                best = min(costs, key=lambda rate: costs[rate])
                place = ladder.index(best) + direction
                if not 0 <= place < len(ladder) or ladder[place] in costs:
                    break
                climb((ladder[place],))
        return min(costs, key=lambda rate: costs[rate])


def _settled(reached: list[Reached]) -> bool:
    """Whether most runs have reached everything, each target by itself: the medians are known."""
    wanted = [f"{kind} {target}" for kind in KINDS for target in TARGETS]
    return all(2 * sum(goal in own for own in reached) > len(reached) for goal in wanted)


def _tuned(reached: list[Reached]) -> bool:
    return any(f"mean {TARGETS[-1]}" in own for own in reached)


def settings() -> Iterator[tuple[int, str, str, str]]:
    """Local steps, split, optimizer and graph, the most interesting first."""
    for steps in STEPS:
        for how in SPLITS:
            for spec in GRAPHS:
                for words in LADDERS:
                    # Of one step, momentum that begins anew is SGD.
                    if steps > 1 or words != "momentum:0.9":
                        yield steps, how, words, spec


def rules(study: Study, spec: str) -> list[str]:
    """Names of the rules that run on a graph; the centralized ones, once, beside the ring."""
    found = []
    for name in METHODS:
        rule = method(name)
        if rule.scalars or (rule.graph == COMPLETE and spec != GRAPHS[0]):
            continue
        try:
            if rule.graph != COMPLETE:
                rule.check(study.graphs[spec])
        except ConfigError:
            continue
        found.append(name)
    return found


def run_all(folder: Path, part: int = 1, parts: int = 1) -> None:
    """Do all runs that are not there yet, or one part of them.

    What is tuned together, the graphs, stays together. All parts may share the folder: a line
    is appended in one piece.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "runs.jsonl"
    if path.exists() and not path.read_bytes().endswith(b"\n"):
        with path.open("a") as file:  # a kill has cut the last line off
            file.write("\n")
    study = Study.open(folder)
    torch.set_num_threads(1)
    print(f"{len(study.found)} lines are there", flush=True)
    together = sorted({setting[:3] for setting in settings()}, key=str)
    for steps, how, words, spec in settings():
        if together.index((steps, how, words)) % parts != part - 1:
            continue
        began, before = time.process_time(), len(study.found)
        for name in rules(study, spec):
            rate = study.tuned(name, how, steps, words)
            more = {"rates": (rate,) * len(SEEDS), "seeds": SEEDS, "part": "test"}
            runs = study.runs(name, spec, how, steps, words, rounds=ROUNDS[steps], **more)
            study.result(runs)
        seconds = time.process_time() - began
        print(
            f"{steps} steps, {how}, {words}, {spec}: {len(study.found) - before} lines, "
            f"{seconds:.0f} s",
            flush=True,
        )
    print("complete", flush=True)


Cell = tuple[int, str, str, str, str]


def cells(study: Study) -> dict[Cell, dict[str, Any]]:
    """Tests by steps, split, optimizer, graph and rule."""
    found: dict[Cell, dict[str, Any]] = {}
    wanted = set(settings())
    names = {json.dumps(method(name).to_config(), sort_keys=True): name for name in METHODS}
    for value in study.found.values():
        runs = value["runs"]
        config = {k: v for k, v in runs["rule"].items() if k != "screening"}
        name = names.get(json.dumps(config, sort_keys=True))
        setting = (runs["steps"], runs["split"], runs["optimizer"], runs["graph"])
        if runs["part"] == "test" and name is not None and setting in wanted:
            found[(*setting, name)] = value
    return found


def middle(value: dict[str, Any], kind: str, target: float) -> float:
    """Median over seeds of the rounds to a target; infinite where most runs never had it."""
    return median(own.get(f"{kind} {target}", NEVER) for own in value["reached"])


def pooled(values: list[dict[str, Any]], kind: str, target: float) -> float:
    """Median over graphs of the medians over seeds."""
    return median(middle(value, kind, target) for value in values)


def words_of(values: list[dict[str, Any]], target: float) -> str:
    """`average/mean/worst`."""
    rounds = [pooled(values, kind, target) for kind in KINDS]
    return "/".join("–" if v == NEVER else f"{v:.0f}" for v in rounds)


def columns_of(study: Study) -> list[tuple[int, str]]:
    """Numbers of local steps and splits of which something is there."""
    there = {(steps, how) for steps, how, *_ in cells(study)}
    return [(s, how) for s in sorted(STEPS) for how in SPLITS if (s, how) in there]


def table(study: Study) -> None:
    """For each number of steps one row an optimizer and rule; then who is first in each column."""
    found, columns = cells(study), columns_of(study)
    ranked: dict[tuple[int, str, str], list[tuple[list[float], str]]] = {}
    for steps in sorted({steps for steps, _ in columns}):
        splits = [how for s, how in columns if s == steps]
        print(f"\n{steps} local step{'s' * (steps > 1)}:\n")
        print("| optimizer | rule | " + " | ".join(WORDS[how] for how in splits) + " |")
        print("|---|---|" + "---|" * len(splits))
        for words in LADDERS:
            for name in _rows(found, steps, words):
                row = []
                for how in splits:
                    keys = [(steps, how, words, spec, name) for spec in GRAPHS]
                    values = [found[key] for key in keys if key in found]
                    row.append(
                        f"{words_of(values, 0.95)} ({words_of(values, 0.9)})" if values else ""
                    )
                    if values and method(name).graph != COMPLETE:
                        place = [
                            pooled(values, kind, t) for t in (0.95, 0.9) for kind in KINDS[::-1]
                        ]
                        ranked.setdefault((steps, how, words), []).append((place, name))
                print(f"| {words} | {name} | " + " | ".join(row) + " |")
    print()
    for (steps, how, words), places in sorted(ranked.items()):
        first = [f"{name} {_number(place[0])}" for place, name in sorted(places)[:5]]
        print(f"- {steps}, {WORDS[how]}, {words}: {', '.join(first)}")
    lacking(study)


def lacking(study: Study) -> None:
    """Say which settings have no results yet."""
    found, missing = cells(study), []
    for steps, how, words, spec in settings():
        wanted = rules(study, spec)
        less = sum((steps, how, words, spec, name) not in found for name in wanted)
        if less:
            missing.append(f"{steps} steps, {how}, {words}, {spec}: {less} of {len(wanted)} rules")
    print(f"\nSettings that lack rules: {len(missing)}.")
    for line in missing:
        print(f"- {line}")


def graphs(study: Study) -> None:
    """A table for each number of steps and each split: all graphs and optimizers."""
    found = cells(study)
    for steps, how in columns_of(study):
        heads = [(spec, words) for spec in GRAPHS for words in LADDERS]
        print(f"\n{steps} local steps, {WORDS[how]}: rounds to 95 %\n")
        print("| rule | " + " | ".join(f"{spec}, {words}" for spec, words in heads) + " |")
        print("|---|" + "---|" * len(heads))
        for name in METHODS:
            keys = [(steps, how, words, spec, name) for spec, words in heads]
            row = [words_of([found[key]], 0.95) if key in found else "" for key in keys]
            if any(row):
                print(f"| {name} | " + " | ".join(row) + " |")


def write_cells(study: Study) -> None:
    """Every setting by itself, as CSV."""
    out = csv.writer(sys.stdout, lineterminator="\n")
    wanted = [(kind, target) for target in TARGETS for kind in KINDS]
    out.writerow(
        ["steps", "split", "optimizer", "graph", "rule", "rate", "seeds", "rounds done"]
        + [f"{kind} {100 * target:.0f} %" for kind, target in wanted]
        + [f"last {kind}" for kind in KINDS]
    )
    for key, value in sorted(cells(study).items()):
        last = [np.median([own[kind] for own in value["last"]]) for kind in KINDS]
        out.writerow(
            [*key, value["runs"]["rates"][0], len(value["runs"]["seeds"]), value["done"]]
            + [_number(middle(value, kind, target)) for kind, target in wanted]
            + [f"{v:.3f}" for v in last]
        )


def _rows(found: dict[Cell, Any], steps: int, words: str) -> list[str]:
    """Rules of which something is there with an optimizer: of the centralized ones first."""
    there = {key[-1] for key in found if (key[0], key[2]) == (steps, words)}
    return sorted(there, key=lambda name: (method(name).graph != COMPLETE, [*METHODS].index(name)))


def _number(value: float) -> str:
    return "–" if value == NEVER else f"{value:.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=_Plain)
    show = {"table": table, "graphs": graphs, "cells": write_cells}
    parser.add_argument("what", choices=["run", *show])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--part", default="1/1", metavar="K/N")
    arguments = parser.parse_args()
    if arguments.what == "run":
        part, parts = (int(number) for number in arguments.part.split("/"))
        run_all(arguments.folder, part, parts)
    else:
        show[arguments.what](Study.open(arguments.folder))


class _Plain(argparse.RawDescriptionHelpFormatter):
    """The description as it is written."""


if __name__ == "__main__":
    main()
