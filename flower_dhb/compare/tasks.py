"""What is compared on: a problem for any number of agents, and how good its models are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray

from flower_dhb.engine.batched import Batched
from flower_dhb.engine.engine import Engine
from flower_dhb.engine.problem import Agents, Analytic, Problem
from flower_dhb.engine.supervised import Supervised
from flower_dhb.errors import ConfigError, unknown
from flower_dhb.problems.averaging import Averaging
from flower_dhb.problems.digits import load_digits
from flower_dhb.problems.logistic import LogisticRegression
from flower_dhb.problems.models import MODELS, make_model
from flower_dhb.problems.quadratic import Quadratic
from flower_dhb.problems.splits import split

__all__ = ["TASKS", "AnalyticTask", "DigitsTask", "Scores", "Task", "make_task"]

VALIDATION, TEST = "validation", "test"


@dataclass(frozen=True)
class Scores:
    """How good models are: the average's of the honest agents, and each agent's own, `(n,)`."""

    average: float
    agents: NDArray[np.float64]


class Task(Protocol):
    """A problem to compare methods on.

    metric: name of the score. rising: whether more is better. targets: scores to reach.
    grid: learning rates to begin tuning with. rounds: of a run. splits: whether it has
    data to split among agents.
    """

    name: str
    metric: str
    rising: bool
    targets: tuple[float, ...]
    grid: tuple[float, ...]
    rounds: int
    splits: bool

    def problem(self, n_agents: int, how: str, seed: int) -> Problem:
        """The problem for a number of agents, a split and a seed."""

    def scores(self, engine: Engine, part: str) -> Scores:
        """Scores after the engine's last round, on validation or on test data."""


@dataclass
class DigitsTask:
    """Handwritten digits: accuracy of an agent's own model on held-out digits."""

    model: str
    batch_size: int = 32
    local_steps: int = 1
    name: str = ""
    metric: str = "accuracy"
    rising: bool = True
    targets: tuple[float, ...] = (0.9, 0.95)
    grid: tuple[float, ...] = (0.05, 0.1, 0.2, 0.4, 0.8)
    rounds: int = 300
    splits: bool = True
    _batched: Batched | None = field(default=None, repr=False)
    _problems: dict[tuple[int, str, int], Supervised] = field(default_factory=dict, repr=False)

    def problem(self, n_agents: int, how: str, seed: int) -> Supervised:
        """Split, initial values and batches of the Flower app with the same seed."""
        key = (n_agents, how, seed)
        if key not in self._problems:
            data = load_digits()
            module = make_model(self.model, seed)
            self._batched = self._batched or Batched(module)
            self._problems[key] = Supervised(
                module,
                data.train_x,
                data.train_y,
                split(data.train_y.numpy(), n_agents, how, seed),
                batch_size=self.batch_size,
                local_steps=self.local_steps,
                seed=seed,
                model=self._batched,
            )
        return self._problems[key]

    def scores(self, engine: Engine, part: str) -> Scores:
        """Accuracy on the validation or the test digits."""
        data = load_digits()
        x, y = (
            (data.validation_x, data.validation_y)
            if part == VALIDATION
            else (data.test_x, data.test_y)
        )
        problem = cast(Supervised, engine.problem)
        found = [accuracy(problem, agents, x, y) for agents in (engine.average(), engine.agents)]
        return Scores(float(found[0][0]), found[1])


@dataclass
class AnalyticTask:
    """A problem with a known optimum: the distance to it, over that of the common start.

    There is no data to hold out: validation and test are the same number.
    """

    name: str
    build: Callable[[int, str, int], Any] = field(repr=False)
    metric: str = "error"
    rising: bool = False
    targets: tuple[float, ...] = (1e-2, 1e-6)
    grid: tuple[float, ...] = (0.1, 0.2, 0.4, 0.8)
    rounds: int = 500
    splits: bool = False
    _optima: dict[int, Any] = field(default_factory=dict, repr=False)

    def problem(self, n_agents: int, how: str, seed: int) -> Analytic:
        """The problem with learning rates in units of 1 / its largest curvature."""
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
            error = np.linalg.norm(x - optimum, axis=1) / scale
            middle = x[engine.honest].mean(axis=0)
            return Scores(float(np.linalg.norm(middle - optimum)) / scale, error)


def accuracy(
    problem: Supervised, agents: Agents, x: torch.Tensor, y: torch.Tensor
) -> NDArray[np.float64]:
    """Share of samples that each agent's own model gets right, `(n,)`."""
    device = agents.parameters.device
    x, y = x.to(device), y.to(device)
    right = [(output.argmax(-1) == y).double().mean(-1) for _, output in problem.outputs(agents, x)]
    return torch.cat(right).cpu().numpy()


def _digits(model: str) -> Callable[..., Task]:
    def make(batch_size: int, local_steps: int) -> Task:
        return DigitsTask(model, batch_size, local_steps, name=f"digits-{model}")

    return make


def _analytic(name: str, build: Callable[[int, str, int], Any], **settings: Any) -> Any:
    return lambda _batch_size, _local_steps: AnalyticTask(name, build, **settings)


TASKS: Mapping[str, Callable[[int, int], Task]] = {
    **{f"digits-{model}": _digits(model) for model in MODELS},
    "quadratic": _analytic(
        "quadratic",
        lambda n, _how, seed: Quadratic.random(n, condition=50.0, heterogeneity=1.0, seed=seed),
    ),
    "logistic": _analytic(
        "logistic", lambda n, _how, seed: LogisticRegression.synthetic(n, seed=seed)
    ),
    "breast-cancer": _analytic(
        "breast-cancer",
        lambda n, how, seed: LogisticRegression.breast_cancer(n, how, seed=seed),
        splits=True,
    ),
    "averaging": _analytic(
        "averaging", lambda n, _how, seed: Averaging.random(n, seed=seed), grid=(1.0,)
    ),
}


def make_task(name: str, batch_size: int = 32, local_steps: int = 1) -> Task:
    """Task by name; raises ConfigError with the nearest one."""
    if name not in TASKS:
        raise ConfigError(unknown("problem", name, TASKS))
    return TASKS[name](batch_size, local_steps)
