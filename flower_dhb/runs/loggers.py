"""Rounds told to the tools that people watch their other runs in.

A logger is an `on_round` of the strategy:

    strategy = ServerlessStrategy(graph, on_round=TensorBoardLogger("logs"))

Each writes the same numbers under the same names (`scalars`), at the round's number, so that a
run that was taken up again goes on where it was. A tool that fails is named in the log, once, and
never ends a run.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from logging import getLogger
from pathlib import Path
from time import time_ns
from types import TracebackType
from typing import Any, Self

from flower_dhb.extras import load
from flower_dhb.metrics import RoundRecord, Summary, finite

__all__ = [
    "MLflowLogger",
    "RoundLogger",
    "TensorBoardLogger",
    "WandbLogger",
    "each",
    "scalars",
]

_log = getLogger(__name__)


def scalars(record: RoundRecord) -> dict[str, float]:
    """What is known of a round as numbers by name; what was not measured is left out.

    `evaluate/NAME/mean`, `/worst` and `/best` over the agents, the same for `train/`;
    `average_model/NAME`, which only an observer has; `consensus_distance`,
    `distance_from_start`, `bytes_sent`, `seconds`, `missing` and `rejoined` (how many agents),
    `profile/PART` in seconds.
    """
    found: dict[str, object] = {
        "consensus_distance": record.consensus_distance,
        "distance_from_start": record.distance_from_start,
        "bytes_sent": record.bytes_sent,
        "seconds": record.seconds,
        "missing": len(record.missing),
        "rejoined": len(record.rejoined),
    }
    found |= _summaries("evaluate", record.evaluate_summary)
    found |= _summaries("train", record.train_summary)
    found |= {f"average_model/{name}": value for name, value in record.average_model.items()}
    found |= {f"profile/{part}": seconds for part, seconds in record.profile.items()}
    return {name: number for name, value in found.items() if (number := finite(value)) is not None}


def _summaries(kind: str, summaries: Mapping[str, Summary]) -> dict[str, object]:
    return {
        f"{kind}/{name}/{which}": getattr(summary, which)
        for name, summary in summaries.items()
        for which in ("mean", "worst", "best")
    }


def each(*functions: Callable[[RoundRecord], object]) -> Callable[[RoundRecord], bool]:
    """Several functions as one `on_round`: all are called; one that returns True ends the run."""

    def on_round(record: RoundRecord) -> bool:
        answers = [function(record) for function in functions]
        return any(answer is True for answer in answers)

    return on_round


class RoundLogger(ABC):
    """Tells each round to a tool. Subclasses say how, in `write`.

    It may be used in a `with` statement, or closed by `close`; rounds are with the tool as soon as
    they have been told.
    """

    def __init__(self) -> None:
        self._warned = False

    @abstractmethod
    def write(self, numbers: Mapping[str, float], round: int) -> None:
        """Tell the numbers of a round. Whatever it raises is logged once, and ends nothing."""

    def close(self) -> None:  # noqa: B027, since most have nothing to let go of
        """Let go of the tool."""

    def __call__(self, record: RoundRecord) -> None:
        """Tell a finished round, as an `on_round` of the strategy."""
        try:
            self.write(scalars(record), record.round)
        except Exception as error:  # the tool's own: a full disk, no network, a server's refusal
            if not self._warned:
                self._warned = True
                name = type(self).__name__
                _log.warning("%s: round %s is not told: %s", name, record.round, error)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class TensorBoardLogger(RoundLogger):
    """Writes event files for `tensorboard --logdir FOLDER` (extra `tensorboard`).

    Raises ConfigError if TensorBoard or PyTorch, whose writer it is, is not installed.
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__()
        load("tensorboard", "TensorBoardLogger")
        self._writer = load("torch.utils.tensorboard", "TensorBoardLogger").SummaryWriter(
            str(folder)
        )

    def write(self, numbers: Mapping[str, float], round: int) -> None:
        """Append to the event file."""
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, round)
        self._writer.flush()

    def close(self) -> None:
        """Close the event file."""
        self._writer.close()


class WandbLogger(RoundLogger):
    """Logs to Weights & Biases (extra `wandb`): offline, unless `mode` says otherwise.

    project: its name there. folder: where the run's files lie, in `FOLDER/wandb`; `wandb sync`
    uploads them. mode: `"offline"` or `"online"`. settings: further arguments of `wandb.init`.
    Raises ConfigError if wandb is not installed.
    """

    def __init__(
        self, project: str, folder: str | Path = ".", *, mode: str = "offline", **settings: Any
    ) -> None:
        super().__init__()
        wandb = load("wandb", "WandbLogger")
        Path(folder).mkdir(parents=True, exist_ok=True)
        self.run = wandb.init(project=project, dir=str(folder), mode=mode, **settings)

    def write(self, numbers: Mapping[str, float], round: int) -> None:
        """Log at the round's step."""
        self.run.log(dict(numbers), step=round, commit=True)

    def close(self) -> None:
        """Finish the run."""
        self.run.finish()


class MLflowLogger(RoundLogger):
    """Logs to MLflow (extra `mlflow`), in a run of its own of an experiment.

    experiment: its name; it is made if it is not there. uri: of the tracking server or store, as
    MLflow takes it; None takes MLflow's own setting. settings: parameters of the run, by name.
    Raises ConfigError if MLflow is not installed, and what MLflow raises if there is no store.
    """

    def __init__(
        self,
        experiment: str,
        uri: str | None = None,
        settings: Mapping[str, object] | None = None,
    ) -> None:
        super().__init__()
        self._entities = load("mlflow.entities", "MLflowLogger")
        self._client = load("mlflow.tracking", "MLflowLogger").MlflowClient(uri)
        found = self._client.get_experiment_by_name(experiment)
        number = found.experiment_id if found else self._client.create_experiment(experiment)
        self.run_id: str = self._client.create_run(number).info.run_id
        for name, value in (settings or {}).items():
            self._client.log_param(self.run_id, name, value)

    def write(self, numbers: Mapping[str, float], round: int) -> None:
        """Log one batch at the round's step."""
        now = time_ns() // 1_000_000  # in milliseconds, as MLflow counts
        metrics = [self._entities.Metric(n, value, now, round) for n, value in numbers.items()]
        self._client.log_batch(self.run_id, metrics=metrics)

    def close(self) -> None:
        """Mark the run as finished."""
        self._client.set_terminated(self.run_id)
