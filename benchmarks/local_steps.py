"""Rules beside each other where agents train for many local steps between exchanges.

python -m benchmarks.local_steps run FOLDER        all runs; goes on where it was stopped
python -m benchmarks.local_steps table FOLDER      what is there, as one Markdown table
python -m benchmarks.local_steps cells FOLDER      the same for every graph, as CSV
python -m benchmarks.local_steps estimate          processor time of all runs, at most

Digits, an MLP of 2,410 parameters, 16 agents, batch 32. Graphs: ring, 4×4 torus, exponential.
Data: IID, two classes an agent, Dirichlet 0.1. 1, 10 and 50 local steps; SGD, momentum 0.9 and
AdamW, whose state begins anew in each round. Three seeds. Every rule has its default settings.

The learning rate is tuned for each rule, optimizer, number of steps and kind of split, on the
ring, another seed and the validation digits: up or down a ladder of factors of about three,
while it gets better: fewer rounds until the mean agent has 95 %, or else a higher last
accuracy. What counts are rounds until the test accuracy is 90 and 95 % for the average model,
the mean over agents, and the worst agent.

A run is one line of JSON in FOLDER/runs.jsonl, with all that its numbers depend on.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

from flower_dhb import ConfigError, Topology
from flower_dhb.algorithms import method
from flower_dhb.algorithms.base import COMPLETE
from flower_dhb.algorithms.registry import METHODS
from flower_dhb.engine.batched import Batched
from flower_dhb.engine.engine import Engine
from flower_dhb.engine.supervised import Supervised
from flower_dhb.problems.digits import load_digits
from flower_dhb.problems.models import make_model
from flower_dhb.problems.splits import split


def _accuracy(problem, agents, x, y):  # type: ignore[no-untyped-def]
    """Share of samples that each agent's own model gets right, `(n,)`."""
    right = [(output.argmax(-1) == y).double().mean(-1) for _, output in problem.outputs(agents, x)]
    return torch.cat(right).numpy()


FORMAT = 1  # raised when the same settings would give other numbers
AGENTS, SEEDS, TUNING_SEED = 16, (0, 1, 2), 100
GRAPHS = ("ring:16", "torus:4x4", "exponential:16")
SPLITS = ("classes:2", "dirichlet:0.1", "iid")
STEPS = (10, 50, 1)  # in the order of interest: an interrupted study has the first ones
ROUNDS = {1: 252, 10: 80, 50: 25}
EVERY = {1: 4, 10: 1, 50: 1}  # rounds between evaluations
LADDERS = {
    "sgd": (0.01, 0.03, 0.1, 0.3, 1.0, 3.0),
    "momentum:0.9": (0.001, 0.003, 0.01, 0.03, 0.1, 0.3),
    "adamw": (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03),
}
TARGETS = (0.9, 0.95)
KINDS = ("average", "mean", "worst")
NEVER = float("inf")


@dataclass(frozen=True, kw_only=True)
class Run:
    """All that a run's numbers depend on."""

    rule: dict[str, Any]
    graph: str
    digest: str
    split: str
    steps: int
    optimizer: str
    rate: float
    seed: int
    part: str
    rounds: int
    every: int
    format: int = FORMAT

    @property
    def key(self) -> str:
        """Digest of all settings."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass
class Study:
    """The runs that are there, and the problem at hand."""

    folder: Path
    found: dict[str, dict[str, Any]] = field(default_factory=dict)
    problems: dict[Any, Supervised] = field(default_factory=dict)
    graphs: dict[str, Topology] = field(default_factory=dict)
    model: Batched | None = None

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
                study.found[value["key"]] = value
            except (ValueError, KeyError):
                continue
        return study

    def run(self, name: str, spec: str, how: str, steps: int, words: str, **more: Any) -> Run:
        """Settings of a run. Raises ConfigError if the rule cannot run on the graph."""
        rule = method(name)
        if rule.graph != COMPLETE:
            rule.check(self.graphs[spec])
        return Run(
            rule=rule.to_config(),
            graph=spec,
            digest=self.graphs[spec].digest,
            split=how,
            steps=steps,
            optimizer=words,
            rounds=ROUNDS[steps],
            every=EVERY[steps],
            **more,
        )

    def result(self, run: Run, *, at_most: float = NEVER) -> dict[str, Any]:
        """Result of a run, done now if it is not there.

        at_most: rounds after which the run is of no interest if the mean agent has not
        reached the last target. A run that was cut off by this is not kept.
        """
        if run.key in self.found:
            return self.found[run.key]
        began = time.process_time()
        reached, last, done = self._do(run, at_most)
        value = {
            "key": run.key,
            "run": asdict(run),
            "reached": reached,
            "last": last,
            "done": done,
            "seconds": round(time.process_time() - began, 3),
        }
        if done >= 0:
            with (self.folder / "runs.jsonl").open("a") as file:
                file.write(json.dumps(value) + "\n")
            self.found[run.key] = value
        return value

    def _do(self, run: Run, at_most: float) -> tuple[dict[str, int], dict[str, float], int]:
        data = load_digits()
        test = run.part == "test"
        x = data.test_x if test else data.validation_x
        y = data.test_y if test else data.validation_y
        engine = Engine(
            self._problem(run), self.graphs[run.graph], _rule(run), learning_rate=run.rate
        )
        reached: dict[str, int] = {}
        last = dict.fromkeys(KINDS, 0.0)
        for k in range(run.every, run.rounds + 1, run.every):
            engine.run(run.every)
            if not engine.finite:
                return reached, dict.fromkeys(KINDS, 0.0), k
            agents = _accuracy(engine.problem, engine.agents, x, y)
            average = _accuracy(engine.problem, engine.average(), x, y)
            values = (float(average[0]), float(agents.mean()), float(agents.min()))
            last = dict(zip(KINDS, values, strict=True))
            for kind, value in last.items():
                for target in TARGETS:
                    if value >= target:
                        reached.setdefault(f"{kind} {target}", k)
            if len(reached) == len(KINDS) * len(TARGETS) or (
                not test and f"mean {TARGETS[-1]}" in reached
            ):
                return reached, last, k
            if k >= at_most:
                return reached, last, -1
        return reached, last, run.rounds

    def _problem(self, run: Run) -> Supervised:
        key = (run.split, run.seed, run.steps, run.optimizer)
        if key not in self.problems:
            if len(self.problems) >= 6:
                self.problems.pop(next(iter(self.problems)))
            data, module = load_digits(), make_model("mlp", run.seed)
            self.model = self.model or Batched(module)
            self.problems[key] = Supervised(
                module,
                data.train_x,
                data.train_y,
                split(data.train_y.numpy(), AGENTS, run.split, run.seed),
                local_steps=run.steps,
                seed=run.seed,
                optimizer=run.optimizer,
                model=self.model,
            )
        return self.problems[key]

    def tuned(self, name: str, how: str, steps: int, words: str) -> float:
        """The rate of a rule for an optimizer, a number of steps and a kind of split."""
        ladder, spec = LADDERS[words], GRAPHS[0]
        results: dict[int, tuple[float, float]] = {}

        def cost(place: int) -> tuple[float, float]:
            """Rounds to the target, then inaccuracy: less is better."""
            if place not in results:
                best = min((rounds for rounds, _ in results.values()), default=NEVER)
                more = {"rate": ladder[place], "seed": TUNING_SEED, "part": "validation"}
                run = self.run(name, spec, how, steps, words, **more)
                found = self.result(run, at_most=best)
                rounds = found["reached"].get(f"mean {TARGETS[-1]}", NEVER)
                results[place] = (rounds, -found["last"]["mean"])
            return results[place]

        here = len(ladder) // 2 - 1
        for direction in (1, -1):
            while 0 <= here + direction < len(ladder) and cost(here + direction) < cost(here):
                here += direction
            if here != len(ladder) // 2 - 1:
                break
        return ladder[here]


def _rule(run: Run) -> Any:
    from flower_dhb.algorithms import algorithm_from_config

    return algorithm_from_config(run.rule)


def settings() -> Iterator[tuple[int, str, str, str]]:
    """Local steps, split, optimizer and graph, the most interesting first."""
    for steps in STEPS:
        for how in SPLITS:
            for spec in GRAPHS:
                for words in LADDERS:
                    yield steps, how, words, spec


def rules(study: Study, spec: str) -> list[str]:
    """Names of the rules that run on a graph; the centralized ones, once, beside the ring."""
    found = []
    for name in METHODS:
        rule = method(name)
        try:
            if rule.graph == COMPLETE:
                if spec != GRAPHS[0]:
                    continue
            else:
                rule.check(study.graphs[spec])
        except ConfigError:
            continue
        found.append(name)
    return found


def run_all(folder: Path) -> None:
    """Do all runs that are not there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "runs.jsonl"
    if path.exists() and not path.read_bytes().endswith(b"\n"):
        with path.open("a") as file:  # a kill has cut the last line off
            file.write("\n")
    study = Study.open(folder)
    torch.set_num_threads(1)
    print(f"{len(study.found)} runs are there", flush=True)
    for steps, how, words, spec in settings():
        began, before = time.process_time(), len(study.found)
        for name in rules(study, spec):
            rate = study.tuned(name, how, steps, words)
            for seed in SEEDS:
                run = study.run(name, spec, how, steps, words, rate=rate, seed=seed, part="test")
                study.result(run)
        seconds = time.process_time() - began
        print(
            f"{steps} steps, {how}, {words}, {spec}: {len(study.found) - before} runs, "
            f"{seconds:.0f} s",
            flush=True,
        )
    print("complete", flush=True)


def cells(study: Study) -> dict[tuple[int, str, str, str, str], list[dict[str, Any]]]:
    """Test runs by steps, split, optimizer, graph and rule."""
    names = {json.dumps(method(name).to_config(), sort_keys=True): name for name in METHODS}
    found: dict[tuple[int, str, str, str, str], list[dict[str, Any]]] = {}
    for value in study.found.values():
        run = value["run"]
        name = names.get(json.dumps(run["rule"], sort_keys=True))
        if run["part"] != "test" or name is None or run["format"] != FORMAT:
            continue
        key = (run["steps"], run["split"], run["optimizer"], run["graph"], name)
        found.setdefault(key, []).append(value)
    return found


def middle(runs: list[dict[str, Any]], kind: str, target: float) -> float:
    """Median of the rounds to a target; infinite where most runs never had it."""
    return median(value["reached"].get(f"{kind} {target}", NEVER) for value in runs)


def words_of(runs: list[dict[str, Any]], target: float) -> str:
    """`average/mean/worst`."""
    values = [middle(runs, kind, target) for kind in KINDS]
    return "/".join("–" if v == NEVER else f"{v:.0f}" for v in values)


def table(study: Study) -> None:
    """One row for each optimizer and rule: all graphs and seeds together."""
    found = cells(study)
    there = {(steps, how) for steps, how, *_ in found}
    columns = [(s, how) for s in sorted(STEPS) for how in reversed(SPLITS) if (s, how) in there]
    full = len(GRAPHS) * len(SEEDS)
    print(
        "Rounds until the average model / the mean agent / the worst agent has 95 % "
        f"(in brackets 90 %): medians over up to {full} runs (three graphs, three seeds).\n"
    )
    heads = [f"{steps} local step{'s' * (steps > 1)}, {how}" for steps, how in columns]
    print("| optimizer | rule | " + " | ".join(heads) + " |")
    print("|---|---|" + "---|" * len(columns))
    best: dict[tuple[str, int, str], list[tuple[float, str]]] = {}
    lacking = 0
    for words in LADDERS:
        for name in METHODS:
            row = []
            for steps, how in columns:
                runs = [
                    value
                    for spec in GRAPHS
                    for value in found.get((steps, how, words, spec, name), [])
                ]
                wanted = full // len(GRAPHS) if method(name).graph == COMPLETE else full
                if not runs:
                    row.append("")
                else:
                    mark = "" if len(runs) >= wanted else f" *{len(runs)}*"
                    row.append(f"{words_of(runs, 0.95)} ({words_of(runs, 0.9)}){mark}")
                    best.setdefault((words, steps, how), []).append(
                        (middle(runs, "worst", 0.95), name)
                    )
                lacking += max(0, wanted - len(runs))
            if any(row):
                print(f"| {words} | {name} | " + " | ".join(row) + " |")
    print("\nOf a cell with a number in italics only so many runs are there.")
    print(f"Runs that are not there in these columns: {lacking}.\n")
    for (words, steps, how), ranked in best.items():
        first = [f"{name} {v:.0f}" for v, name in sorted(ranked)[:4] if v != NEVER]
        print(f"- {steps} steps, {how}, {words}: {', '.join(first) or 'none'}")


def write_cells(study: Study) -> None:
    """Every setting by itself, as CSV."""
    out = csv.writer(sys.stdout)
    wanted = [(kind, target) for target in TARGETS for kind in KINDS]
    out.writerow(
        ["steps", "split", "optimizer", "graph", "rule", "rate", "runs"]
        + [f"{kind} {target}" for kind, target in wanted]
        + [f"last {kind}" for kind in KINDS]
    )
    for key, runs in sorted(cells(study).items()):
        last = [np.mean([value["last"][kind] for value in runs]) for kind in KINDS]
        out.writerow(
            [*key, runs[0]["run"]["rate"], len(runs)]
            + [middle(runs, kind, target) for kind, target in wanted]
            + [f"{v:.4f}" for v in last]
        )


def estimate() -> None:
    """Measure a round of each kind and count the runs."""
    torch.set_num_threads(1)
    study = Study(Path(), graphs={spec: Topology.parse(spec) for spec in GRAPHS})
    total, counted = 0.0, {}
    for words, ladder in LADDERS.items():
        for steps in STEPS:
            more = {"rate": ladder[2], "seed": 0, "part": "test"}
            run = study.run("dmsgd", GRAPHS[0], SPLITS[0], steps, words, **more)
            engine = Engine(study._problem(run), study.graphs[GRAPHS[0]], _rule(run))
            engine.run(2)
            began = time.process_time()
            engine.run(10)
            round_s = (time.process_time() - began) / 10 + 0.003 / EVERY[steps]
            runs = sum(
                (3.5 if spec == GRAPHS[0] else 0) + len(SEEDS)
                for spec in GRAPHS
                for _ in rules(study, spec)
            ) * len(SPLITS)
            counted[words, steps] = runs
            total += runs * round_s * ROUNDS[steps]
            print(f"{words}, {steps} steps: {1e3 * round_s:.1f} ms a round, {runs:.0f} runs")
    print(f"{sum(counted.values()):.0f} runs, at most {total / 3600:.1f} hours; they end early")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=_Plain)
    parser.add_argument("what", choices=["run", "table", "cells", "estimate"])
    parser.add_argument("folder", type=Path, nargs="?")
    arguments = parser.parse_args()
    if arguments.what == "estimate":
        estimate()
        return
    if arguments.folder is None:
        parser.error("which FOLDER?")
    if arguments.what == "run":
        run_all(arguments.folder)
    else:
        show = table if arguments.what == "table" else write_cells
        show(Study.open(arguments.folder))


class _Plain(argparse.RawDescriptionHelpFormatter):
    """The description as it is written."""


if __name__ == "__main__":
    main()
