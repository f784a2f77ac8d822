"""A whole comparison: tune every method, run it on every seed, and keep what is finished."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeAlias

from flower_dhb.algorithms import Algorithm
from flower_dhb.compare.report import Results
from flower_dhb.compare.results import Outcome, Trial
from flower_dhb.compare.runs import Curves
from flower_dhb.compare.settings import Case, Comparison
from flower_dhb.compare.store import Store
from flower_dhb.compare.training import VALIDATION
from flower_dhb.compare.tuning import Point, Search, learning_score, search
from flower_dhb.compare.workers import Work, Workers, workers

__all__ = ["Progress", "compare"]

# Called with the number of runs done so far and the number known to be needed.
Progress: TypeAlias = Callable[[int, int], None]
Cell: TypeAlias = tuple[Case, str]


def compare(
    comparison: Comparison,
    folder: str | Path | Store = "runs/compare",
    *,
    jobs: int = 1,
    ray: str = "",
    progress: Progress | None = None,
) -> Results:
    """Do what is not done yet, and return the outcome of every method on every case.

    Parameters
    ----------
    folder : str, Path or Store
        Where finished runs are kept, a file each; the same comparison goes on from there.
    jobs : int
        Processes that share the runs. ray: a Ray cluster that does: its address, `auto`, or
        `local`. The numbers depend on neither.

    Raises
    ------
    ConfigError
        If the problem cannot be sent to other processes, or there is no such cluster.
    """
    store = folder if isinstance(folder, Store) else Store(Path(folder) / "runs")
    with workers(comparison.bench, jobs, ray) as crew:
        course = _Course(comparison, store, crew, progress or (lambda _done, _total: None))
        return Results(comparison, course.outcomes())


class _Course:
    """What is known so far: results of runs, and what tuning has tried, by method and case."""

    def __init__(
        self, comparison: Comparison, store: Store, crew: Workers, progress: Progress
    ) -> None:
        self.comparison, self.store, self.crew, self.progress = comparison, store, crew, progress
        self.cells: list[Cell] = [(c, m) for c in comparison.cases for m in comparison.rules]
        self.seeds = range(comparison.seeds)
        self.tried: dict[Cell, dict[Point, list[float]]] = {cell: {} for cell in self.cells}
        self.results: dict[str, Curves] = {}
        self.total = 0

    def outcomes(self) -> list[Outcome]:
        """Tune, then run each method with what was found, on test data."""
        chosen = self._tuned()
        final: dict[Cell, list[Work]] = {}
        for cell, point in chosen.items():
            rule = self.comparison.rule_at(*cell, point) or self.comparison.rules[cell[1]]
            final[cell] = [self._work(cell, rule, point, seed) for seed in self.seeds]
        needed = [work for works in final.values() for work in works]
        self.total = len(self.results) + len(needed)
        self._finish(needed)
        return [
            Outcome(
                case=cell[0],
                method=cell[1],
                learning_rate=chosen[cell].learning_rate,
                settings=dict(chosen[cell].settings),
                tried=[
                    Trial(point.learning_rate, dict(point.settings), _mean(scores))
                    for point, scores in sorted(self.tried[cell].items())
                ],
                runs=[self.results[work.run.key] for work in works],
            )
            for cell, works in final.items()
        ]

    def _tuned(self) -> dict[Cell, Point]:
        comparison = self.comparison
        cost = comparison.cost()
        self.total = cost.least + cost.final
        chosen: dict[Cell, Point] = {}
        searches: dict[Cell, Search] = {}
        for cell in self.cells:
            rates, axes = comparison.rates(cell[0]), comparison.axes(cell[1])
            start = comparison.start(cell[1])
            if comparison.tune and (len(rates) > 1 or axes):
                searches[cell] = search(rates, start, axes, comparison.how)
            else:
                chosen[cell] = Point(rates[0], tuple(start.items()))
        wanted = {cell: next(each) for cell, each in searches.items()}
        while wanted:
            self._try(wanted)
            following = {}
            for cell in wanted:
                try:
                    following[cell] = searches[cell].send(self.tried[cell])
                except StopIteration as end:
                    chosen[cell] = end.value
            wanted = following
            missing = sum(len(points) for points in wanted.values()) * len(self.seeds)
            self.total = max(self.total, len(self.results) + missing + cost.final)
        return {cell: chosen[cell] for cell in self.cells}

    def _try(self, wanted: dict[Cell, list[Point]]) -> None:
        """Score points on validation data; those that rule or graph refuse score -infinity."""
        comparison = self.comparison
        trials: dict[tuple[Cell, Point], list[Work]] = {}
        for cell, points in wanted.items():
            for point in points:
                rule = comparison.rule_at(*cell, point)
                if rule is None:
                    self.tried[cell][point] = [-math.inf] * len(self.seeds)
                    continue
                trials[cell, point] = [
                    self._work(cell, rule, point, seed, VALIDATION) for seed in self.seeds
                ]
        self._finish([work for works in trials.values() for work in works])
        for (cell, point), works in trials.items():
            self.tried[cell][point] = [
                learning_score(
                    self.results[work.run.key], comparison.rounds, comparison.task.rising
                )
                for work in works
            ]

    def _work(
        self, cell: Cell, rule: Algorithm, point: Point, seed: int, part: str = "test"
    ) -> Work:
        return self.comparison.work(cell[0], rule, point.learning_rate, seed, part)

    def _finish(self, works: Sequence[Work]) -> None:
        """Have the curves of these runs, from the store where they are there."""
        fresh = {}
        for work in works:
            key = work.run.key
            found = self.results.get(key) or self.store.get(work.run)
            if found is None:
                fresh[key] = work
            else:
                self.results[key] = found
        self._say()
        for work, curves in self._done(fresh.values()):
            self.store.put(work.run, curves)
            self.results[work.run.key] = curves
            self._say()

    def _done(self, works: Iterable[Work]) -> Iterable[tuple[Work, Curves]]:
        return self.crew.do(works)

    def _say(self) -> None:
        self.progress(len(self.results), max(self.total, len(self.results)))


def _mean(scores: Sequence[float]) -> float:
    return sum(scores) / len(scores)
