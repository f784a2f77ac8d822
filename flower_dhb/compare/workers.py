"""Who does the runs: this process, several of them, or a Ray cluster; with the same numbers.

Pickled is only what this process sends to its own workers.
"""

from __future__ import annotations

import os
import pickle  # nosec B403
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing import get_context, parent_process
from typing import Any, Self

from flower_dhb.algorithms import Algorithm
from flower_dhb.compare.runs import Curves, Run, execute
from flower_dhb.compare.tasks import Task, make_task
from flower_dhb.errors import ConfigError
from flower_dhb.extras import load
from flower_dhb.topology.turns import AnyGraph

__all__ = ["Bench", "Work", "Workers", "workers"]


@dataclass(frozen=True)
class Work:
    """A run, and the rule that it tries."""

    run: Run
    algorithm: Algorithm


@dataclass
class Bench:
    """What runs are done on, too large to be sent with each of them.

    problem: a task's name or reference, from which each process makes it, or the task itself.
    graphs: by what they are called. digest: of the task; a process that makes another one
    refuses to run it.
    """

    problem: str | Task
    graphs: Mapping[str, AnyGraph]
    digest: str
    _task: Task | None = field(default=None, repr=False)

    @property
    def task(self) -> Task:
        """The task, made when it is first asked for."""
        if self._task is None:
            self._task = make_task(self.problem) if isinstance(self.problem, str) else self.problem
            if self._task.digest != self.digest:
                raise ConfigError(
                    f"problem '{self._task.name}' is another one in another process: data and "
                    "model must be the same whenever they are made, so draw from a seed; and "
                    "leave its module alone while a comparison runs"
                )
        return self._task

    @property
    def key(self) -> tuple[str, ...]:
        """What it is: benches of one key do the same."""
        return (self.digest, *(graph.digest for graph in self.graphs.values()))

    def do(self, work: Work) -> Curves:
        """Do a run."""
        return execute(work.run, self.task, self.graphs[work.run.topology], work.algorithm)

    def __getstate__(self) -> dict[str, Any]:
        """Without the task that a name stands for."""
        return self.__dict__ | {"_task": None}


class Workers(ABC):
    """Does runs; to be used in a `with` block."""

    @abstractmethod
    def do(self, works: Iterable[Work]) -> Iterator[tuple[Work, Curves]]:
        """Runs and their curves, as they are finished."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return


def workers(bench: Bench, jobs: int = 1, ray: str = "") -> Workers:
    """Workers for a bench: `jobs` processes, or those of the Ray cluster at an address.

    ray: `auto`, `local`, or a cluster's address. Raises ConfigError if the bench cannot be sent
    to other processes, or Ray is not installed or not there.
    """
    if ray:
        return _Cluster(bench, ray)
    return _Processes(bench, jobs) if jobs > 1 else _Here(bench)


class _Here(Workers):
    def __init__(self, bench: Bench) -> None:
        self.bench = bench

    def do(self, works: Iterable[Work]) -> Iterator[tuple[Work, Curves]]:
        for work in works:
            yield work, self.bench.do(work)


class _Processes(Workers):
    def __init__(self, bench: Bench, jobs: int) -> None:
        _check_sendable(bench)
        # A fresh interpreter per process: forking one that has torch's threads may hang.
        self._pool = ProcessPoolExecutor(
            jobs, mp_context=get_context("spawn"), initializer=_begin_as_child, initargs=(bench,)
        )

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def do(self, works: Iterable[Work]) -> Iterator[tuple[Work, Curves]]:
        futures = {self._pool.submit(_do, work): work for work in works}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BrokenProcessPool as error:
            raise ConfigError(
                "a process that did runs has ended: it could not import this program (a script "
                "needs `if __name__ == '__main__':` around what it does), or it was killed. What "
                "is finished is kept; the same command goes on from there"
            ) from error


_bench: Bench | None = None


def _begin_as_child(bench: Bench) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _begin(bench)


def _end_with_parent() -> None:
    """A parent that is killed can tell nobody: its children would wait for work for ever."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _begin(bench: Bench) -> None:
    global _bench
    _bench = bench


def _do(work: Work) -> Curves:
    if _bench is None:  # pragma: no cover (the pool begins with it)
        raise RuntimeError("this process has no bench")
    return _bench.do(work)


class _Cluster(Workers):
    """One run a task of Ray's, on one core each; no more in flight than the cluster has cores."""

    def __init__(self, bench: Bench, address: str) -> None:
        _check_sendable(bench)
        # What Ray says it will do in future: tasks without GPUs keep what they find.
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        self._ray = load("ray", "a comparison on a Ray cluster")
        self._own = not self._ray.is_initialized()
        if self._own:
            variables = {"OMP_NUM_THREADS": "1"}
            if address == "local":  # elsewhere these folders are not
                variables["PYTHONPATH"] = os.pathsep.join(path or os.getcwd() for path in sys.path)
            try:
                self._ray.init(
                    address=None if address == "local" else address,
                    log_to_driver=False,
                    include_dashboard=False if address == "local" else None,
                    runtime_env={"env_vars": variables},
                )
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise ConfigError(
                    f"--ray: no cluster at '{address}': {error}. Start one with 'ray start "
                    "--head', or take 'local' for this machine alone"
                ) from error
        self._bench = self._ray.put(bench)
        self._do = self._ray.remote(_remotely).options(num_cpus=1, max_retries=3)

    def __exit__(self, *_: object) -> None:
        if self._own:
            self._ray.shutdown()

    def do(self, works: Iterable[Work]) -> Iterator[tuple[Work, Curves]]:
        most = max(1, int(self._ray.cluster_resources().get("CPU", 1)))
        waiting = list(works)[::-1]
        running: dict[Any, Work] = {}
        while waiting or running:
            while waiting and len(running) < 2 * most:
                work = waiting.pop()
                running[self._do.remote(self._bench, work)] = work
            done, _ = self._ray.wait(list(running), num_returns=1)
            yield running.pop(done[0]), self._result(done[0])

    def _result(self, reference: Any) -> Curves:
        try:
            curves: Curves = self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause if isinstance(error.cause, ConfigError) else error from None
        return curves


def _remotely(bench: Bench, work: Work) -> Curves:
    """On a worker of the cluster, which keeps the bench that it had last."""
    if _bench is None or _bench.key != bench.key:
        _begin(bench)
    return _do(work)


def _check_sendable(bench: Bench) -> None:
    try:
        pickle.dumps(bench)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ConfigError(
            f"the problem cannot be sent to other processes: {error}. Define module, loss and "
            "metric at the top of a module (no lambdas), name the problem as package.module:make, "
            "or use one process (jobs=1)"
        ) from error
