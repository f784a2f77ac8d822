"""What is compared on: a problem for any number of agents, and how good its models are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from flower_dhb.compare.sources import digest_of_code
from flower_dhb.compare.torch_task import TorchTask
from flower_dhb.compare.training import USUAL, VALIDATION, Scores, Training
from flower_dhb.engine.engine import Engine
from flower_dhb.engine.problem import Analytic, Problem
from flower_dhb.errors import ConfigError, unknown
from flower_dhb.problems.averaging import Averaging
from flower_dhb.problems.digits import load_digits
from flower_dhb.problems.logistic import LogisticRegression
from flower_dhb.problems.models import MODELS, new_model
from flower_dhb.problems.quadratic import Quadratic
from flower_dhb.references import imported, is_reference

__all__ = ["TASKS", "VALIDATION", "AnalyticTask", "Scores", "Task", "check_task", "make_task"]


class Task(Protocol):
    """A problem to compare methods on.

    metric: name of the score. rising: whether more is better. share: whether scores are shares
    of 1, shown in percent. targets: scores to reach. grid: learning rates to begin tuning with.
    rounds: of a run. splits: whether it has data to split among agents.
    """

    name: str
    metric: str
    rising: bool
    share: bool
    targets: tuple[float, ...]
    grid: tuple[float, ...]
    rounds: int
    splits: bool

    @property
    def digest(self) -> str:
        """What it is, to tell it from another problem of the same name."""

    def problem(self, n_agents: int, how: str, seed: int, training: Training = USUAL) -> Problem:
        """The problem for a number of agents, a split, a seed, and local training."""

    def scores(self, engine: Engine, part: str) -> Scores:
        """Scores after the engine's last round, on `validation` or on `test` data."""


@dataclass
class AnalyticTask:
    """A problem with a known optimum: the distance to it, over that of the common start.

    There is no data to hold out: validation and test are the same number.
    """

    name: str
    build: Callable[[int, str, int], Any] = field(repr=False)
    metric: str = "error"
    rising: bool = False
    share: bool = False
    targets: tuple[float, ...] = (1e-2, 1e-6)
    grid: tuple[float, ...] = (0.1, 0.2, 0.4, 0.8)
    rounds: int = 500
    splits: bool = False
    _optima: dict[int, Any] = field(default_factory=dict, repr=False)

    @property
    def digest(self) -> str:
        """Of the code that builds it, which its seed determines."""
        return digest_of_code(self.build)

    def problem(self, n_agents: int, how: str, seed: int, training: Training = USUAL) -> Analytic:
        """The problem with learning rates in units of 1 / its largest curvature.

        Raises ConfigError for several local steps or another optimizer than `sgd`.
        """
        if training.local_steps != 1 or training.optimizer != "sgd":
            raise ConfigError(
                f"problem '{self.name}' takes one gradient step a round: it has neither local "
                f"steps nor optimizers, got {training.local_steps} steps of "
                f"'{training.optimizer}'"
            )
        source = self.build(n_agents, how, seed)
        scale = 1.0 / getattr(source, "largest_curvature", 1.0)
        found = Analytic(
            source.start, lambda x, _round: scale * source.gradient(x), n_agents=n_agents
        )
        optimum = source.optimum()
        start = np.broadcast_to(source.start, (n_agents, len(optimum)))
        distance = float(np.sqrt(np.mean(np.sum((start - optimum) ** 2, axis=1))))
        self._optima[id(found)] = (found, optimum, distance)
        return found

    def scores(self, engine: Engine, part: str) -> Scores:  # noqa: ARG002
        """Relative distance to the optimum."""
        _, optimum, scale = self._optima[id(engine.problem)]
        x = engine.parameters.double().cpu().numpy()
        with np.errstate(over="ignore"):  # a run may diverge
            error: NDArray[np.float64] = np.linalg.norm(x - optimum, axis=1) / scale
            middle = x[engine.honest].mean(axis=0)
            return Scores(float(np.linalg.norm(middle - optimum)) / scale, error)


def _digits(model: str) -> TorchTask:
    """Handwritten digits: accuracy of an agent's own model on held-out digits.

    Split, initial values and batches are those of the Flower app with the same seed.
    """
    data = load_digits()
    return TorchTask(
        partial(new_model, model),
        (data.train_x, data.train_y),
        validation=(data.validation_x, data.validation_y),
        test=(data.test_x, data.test_y),
        name=f"digits-{model}",
        targets=(0.9, 0.95),
        grid=(0.05, 0.1, 0.2, 0.4, 0.8),
        rounds=300,
    )


def _quadratic(n: int, _how: str, seed: int) -> Quadratic:
    return Quadratic.random(n, condition=50.0, heterogeneity=1.0, seed=seed)


def _logistic(n: int, _how: str, seed: int) -> LogisticRegression:
    return LogisticRegression.synthetic(n, seed=seed)


def _breast_cancer(n: int, how: str, seed: int) -> LogisticRegression:
    return LogisticRegression.breast_cancer(n, how, seed=seed)


def _averaging(n: int, _how: str, seed: int) -> Averaging:
    return Averaging.random(n, seed=seed)


TASKS: Mapping[str, Callable[[], Task]] = {
    **{f"digits-{model}": partial(_digits, model) for model in MODELS},
    "quadratic": partial(AnalyticTask, "quadratic", _quadratic),
    "logistic": partial(AnalyticTask, "logistic", _logistic),
    "breast-cancer": partial(AnalyticTask, "breast-cancer", _breast_cancer, splits=True),
    "averaging": partial(AnalyticTask, "averaging", _averaging, grid=(1.0,)),
}


def make_task(name: str) -> Task:
    """Task by name, or what `package.module:make` returns, called without arguments.

    Raises ConfigError with the nearest name, or that says what is wrong with one's own.
    """
    if is_reference(name):
        made = imported(name)
        if isinstance(made, TorchTask):
            return made
        if not callable(made):
            raise ConfigError(
                f"problem '{name}' is a {type(made).__name__}; write a function without arguments "
                "that returns a TorchTask, or another object with what a Task has"
            )
        try:
            task = made()
        except TypeError as error:
            raise ConfigError(f"problem '{name}' cannot be made without arguments: {error}") from (
                error
            )
        return check_task(task, f"problem '{name}'")
    if name not in TASKS:
        raise ConfigError(unknown("problem", name, TASKS) + "; or your own, as package.module:make")
    return TASKS[name]()


def check_task(task: Any, what: str) -> Task:
    """The task, if it is one; raises ConfigError that names the first thing that it lacks."""
    wanted = ("name", "metric", "rising", "share", "targets", "grid", "rounds", "splits", "digest")
    for name in (*wanted, "problem", "scores"):
        if not hasattr(task, name):
            raise ConfigError(
                f"{what} is {task!r:.80}, which has no '{name}': return a TorchTask, or an object "
                f"with {', '.join(wanted)} and the functions problem and scores"
            )
    return task  # type: ignore[no-any-return]
