"""A whole comparison: tune every method, run it on every seed, and keep what is finished."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from typing import TypeAlias

from flower_dhb.compare.runs import Curves, Run, Store, execute
from flower_dhb.compare.settings import Case, Comparison
from flower_dhb.compare.tasks import VALIDATION
from flower_dhb.compare.tuning import best_rate, learning_score, widen

__all__ = ["Outcome", "Progress", "compare"]

# Called with the number of runs done so far and the number known to be needed.
Progress: TypeAlias = Callable[[int, int], None]
Cell: TypeAlias = tuple[Case, str]


@dataclass(frozen=True)
class Outcome:
    """One method on one case: its learning rate, what tuning tried, and a run per seed."""

    case: Case
    method: str
    learning_rate: float
    tried: dict[float, float]
    runs: list[Curves]


def compare(
    comparison: Comparison, store: Store, *, jobs: int = 1, progress: Progress | None = None
) -> list[Outcome]:
    """Do what is not done yet, and return the outcome of every method on every case.

    jobs: processes that share the runs; the numbers do not depend on it.
    """
    work = _Work(comparison, store, progress or (lambda _done, _total: None))
    with _executor(jobs) as pool:
        work.do_with(pool)
        return work.outcomes()


class _Work:
    def __init__(self, comparison: Comparison, store: Store, progress: Progress) -> None:
        self.comparison, self.store, self.progress = comparison, store, progress
        self.cells: list[Cell] = [(c, m) for c in comparison.cases for m in comparison.methods]
        self.seeds = range(comparison.seeds)
        self.scores: dict[Cell, dict[float, list[float]]] = {cell: {} for cell in self.cells}
        self.rates: dict[Cell, float] = {}
        self.results: dict[str, Curves] = {}
        self.total = 0

    def do_with(self, pool: Callable[[Iterable[Run]], Iterator[tuple[Run, Curves]]]) -> None:
        final = len(self.cells) * len(self.seeds)
        if self.comparison.tune and len(self.comparison.grid) > 1:
            self.total = final + final * len(self.comparison.grid)
            self._tune(pool)
        else:
            self.rates = dict.fromkeys(self.cells, self.comparison.grid[0])
        self.total = len(self.results) + final
        self._finish(pool, [run for cell in self.cells for run in self._final(cell)])

    def _tune(self, pool: Callable[[Iterable[Run]], Iterator[tuple[Run, Curves]]]) -> None:
        wanted = {cell: list(self.comparison.grid) for cell in self.cells}
        widenings = 0
        while wanted:
            trials = {
                (cell, rate): [self._run(cell, rate, seed, VALIDATION) for seed in self.seeds]
                for cell, rates in wanted.items()
                for rate in rates
            }
            self._finish(pool, [run for runs in trials.values() for run in runs])
            task = self.comparison.task
            for (cell, rate), runs in trials.items():
                self.scores[cell][rate] = [
                    learning_score(self.results[run.key], self.comparison.rounds, task.rising)
                    for run in runs
                ]
            following = {cell: widen(self.scores[cell], widenings) for cell in wanted}
            wanted = {cell: [rate] for cell, rate in following.items() if rate is not None}
            self.total += len(wanted) * len(self.seeds)
            widenings += 1
        self.rates = {cell: best_rate(self.scores[cell]) for cell in self.cells}

    def _finish(
        self, pool: Callable[[Iterable[Run]], Iterator[tuple[Run, Curves]]], runs: Sequence[Run]
    ) -> None:
        """Have the curves of these runs, from the store where they are there."""
        fresh = []
        for run in runs:
            found = self.store.get(run)
            if found is None:
                fresh.append(run)
            else:
                self.results[run.key] = found
        self.progress(len(self.results), max(self.total, len(self.results)))
        for run, curves in pool(fresh):
            self.store.put(run, curves)
            self.results[run.key] = curves
            self.progress(len(self.results), max(self.total, len(self.results)))

    def _final(self, cell: Cell) -> list[Run]:
        return [self._run(cell, self.rates[cell], seed) for seed in self.seeds]

    def _run(self, cell: Cell, rate: float, seed: int, part: str = "test") -> Run:
        return self.comparison.run(*cell, rate, seed, part)

    def outcomes(self) -> list[Outcome]:
        return [
            Outcome(
                case=cell[0],
                method=cell[1],
                learning_rate=self.rates[cell],
                tried={
                    rate: sum(scores) / len(scores)
                    for rate, scores in sorted(self.scores[cell].items())
                },
                runs=[self.results[run.key] for run in self._final(cell)],
            )
            for cell in self.cells
        ]


class _executor:  # noqa: N801 (used as a function: `with _executor(2) as pool`)
    """A function from runs to (run, curves) as they finish, in one process or several."""

    def __init__(self, jobs: int) -> None:
        # A fresh interpreter per process: forking one that has torch's threads may hang.
        self._pool = (
            ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) if jobs > 1 else None
        )

    def __enter__(self) -> Callable[[Iterable[Run]], Iterator[tuple[Run, Curves]]]:
        return self._several if self._pool else self._one

    def __exit__(self, *_: object) -> None:
        if self._pool:
            self._pool.shutdown(cancel_futures=True)

    def _one(self, runs: Iterable[Run]) -> Iterator[tuple[Run, Curves]]:
        for run in runs:
            yield run, execute(run)

    def _several(self, runs: Iterable[Run]) -> Iterator[tuple[Run, Curves]]:
        if self._pool is None:
            return
        futures = {self._pool.submit(execute, run): run for run in runs}
        for future in as_completed(futures):
            yield futures[future], future.result()
