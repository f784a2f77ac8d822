"""Apps of Flower's quickstart families, as their authors wrote them and with two lines changed.

The changes are those that `docs/existing-apps.md` prints, so that what a reader copies is
what the tests run.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

from flwr.app import ArrayRecord, ConfigRecord, Context, RecordDict
from flwr.serverapp.strategy import Result, Strategy

from flower_dhb import ServerlessResult, ServerlessStrategy
from flower_dhb.algorithms import Algorithm

from .grid import LocalGrid

ROOT = Path(__file__).parents[2]
APPS = ROOT / "tests" / "families"
PAGE = ROOT / "docs" / "existing-apps.md"

N = 8  # the agents of the ring in the docs


@dataclass(frozen=True, kw_only=True)
class Family:
    """One app: its name and package, its heading in the docs, what it needs, how it is run."""

    name: str
    package: str
    heading: str
    run_config: dict[str, object]
    examples: int = 1437  # to train from, over all clients
    needs: tuple[str, ...] = ()  # heavy packages
    final: str = "final_model.npz"


FAMILIES = {
    family.name: family
    for family in (
        Family(
            name="pytorch_digits",
            package="pytorch_digits",
            heading="PyTorch",
            run_config={"learning-rate": 0.1, "local-epochs": 1, "batch-norm": False},
            final="final_model.pt",
        ),
        Family(
            name="pytorch_batch_norm",
            package="pytorch_digits",
            heading="PyTorch",
            run_config={"learning-rate": 0.05, "local-epochs": 1, "batch-norm": True},
            final="final_model.pt",
        ),
        Family(
            name="sklearn_digits",
            package="sklearn_digits",
            heading="scikit-learn",
            run_config={"local-epochs": 1},
        ),
        Family(
            name="numpy_cancer",
            package="numpy_cancer",
            heading="NumPy",
            examples=398,
            run_config={"learning-rate": 0.1, "local-epochs": 1},
        ),
        Family(
            name="lightning_digits",
            package="lightning_digits",
            heading="Lightning",
            run_config={"learning-rate": 0.003, "max-epochs": 1},
            needs=("lightning",),
            final="final_model.pt",
        ),
        Family(
            name="jax_digits",
            package="jax_digits",
            heading="JAX",
            run_config={"learning-rate": 0.5, "local-steps": 10},
            needs=("jax",),
        ),
        Family(
            name="keras_digits",
            package="keras_digits",
            heading="Keras and TensorFlow",
            run_config={"learning-rate": 0.003, "local-epochs": 1},
            needs=("keras",),
            final="final_model.weights.h5",
        ),
        Family(
            name="transformers_lora",
            package="transformers_lora",
            heading="Hugging Face",
            examples=784,
            run_config={"local-epochs": 1, "lr-max": 0.01, "lr-min": 0.001},
            needs=("transformers", "peft"),
            final="final_adapter",
        ),
        Family(
            name="pytorch_personal",
            package="pytorch_personal",
            heading="An app that keeps something in its context",
            examples=3022,
            run_config={"learning-rate": 0.1},
            final="final_body.pt",
        ),
        Family(
            name="xgboost_cancer",
            package="xgboost_cancer",
            heading="XGBoost",
            run_config={},
            needs=("xgboost",),
            final="final_model.json",
        ),
    )
}


# --- the changes of the docs --------------------------------------------------------------


@dataclass(frozen=True)
class Hunk:
    """One change in a file: the text that goes and the text that comes in its place."""

    file: str
    old: str
    new: str


def hunks(heading: str) -> list[Hunk]:
    """The changes of the diff under a heading of the docs."""
    page = PAGE.read_text(encoding="utf-8")
    section = re.search(rf"^### {re.escape(heading)}\n(.*?)(?=^#{{2,3}} |\Z)", page, re.M | re.S)
    if section is None:
        raise LookupError(f"{PAGE.name} has no heading '{heading}'")
    found: list[Hunk] = []
    for block in re.findall(r"^```diff\n(.*?)^```", section[1], re.M | re.S):
        file = ""
        for line in block.splitlines(keepends=True):
            if line.startswith(("--- ", "+++ ")):
                file = line[4:].strip()
            elif line.startswith("@@"):
                found.append(Hunk(file, "", ""))
            else:
                last = found.pop()
                old = last.old + line[1:] * (line[0] in " -")
                found.append(Hunk(last.file, old, last.new + line[1:] * (line[0] in " +")))
    return found


def wrapper() -> str:
    """The module of the docs that wraps a ClientApp of somebody else."""
    page = PAGE.read_text(encoding="utf-8")
    (block,) = [b for b in re.findall(r"^```python\n(.*?)^```", page, re.M | re.S) if "(their" in b]
    return block


def copy_of(family: Family, folder: Path, changes: list[Hunk] | None = None) -> Path:
    """A copy of the app in `folder`; each change must fit exactly one place in its file."""
    target = folder / family.package
    shutil.copytree(APPS / family.package, target, ignore=shutil.ignore_patterns("__pycache__"))
    for change in changes or []:
        text = (target / change.file).read_text(encoding="utf-8")
        if not change.old or text.count(change.old) != 1:
            raise LookupError(f"{family.package}/{change.file} does not hold once:\n{change.old}")
        (target / change.file).write_text(text.replace(change.old, change.new), encoding="utf-8")
    return folder


# --- a run --------------------------------------------------------------------------------


@dataclass
class Outcome:
    """What a run of a ServerApp left: its result, its folder, and the app's own functions."""

    result: Result
    folder: Path
    task: Any
    client_app: Any
    run_config: dict[str, object]
    grid: LocalGrid
    strategy: Any
    initial_arrays: ArrayRecord
    train_config: ConfigRecord | None
    average: dict[int, float] = field(default_factory=dict)  # accuracy by round
    own: dict[int, list[float]] = field(default_factory=dict)  # of each agent, by round

    def final_model(self, name: str) -> ArrayRecord:
        """The model that the ServerApp saved, read as its author would."""
        record: ArrayRecord = self.task.load_final(self.folder / name)
        return record


@contextlib.contextmanager
def importable(folder: Path, package: str) -> Iterator[None]:
    """The app in `folder` is the one that is imported; nothing of it stays loaded."""

    def forget() -> None:
        for name in [m for m in sys.modules if m.split(".")[0] == package]:
            del sys.modules[name]

    forget()
    importlib.invalidate_caches()
    sys.path.insert(0, str(folder))
    here = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(here)
        sys.path.remove(str(folder))
        forget()


def run_app(
    family: Family,
    folder: Path,
    *,
    rounds: int,
    seed: int = 1,
    algorithm: Algorithm | None = None,
    evaluate_every: int = 1,
    client: str = "client_app",
    **run_config: object,
) -> Outcome:
    """Run an app's ServerApp with eight clients in this process, as Flower would run it.

    The strategy that it starts is watched, and how often it evaluates is set, which
    changes nothing that it trains. algorithm: a rule in place of the default one. client: the
    module of the ClientApp, if it is not the usual one.
    """
    config = {**family.run_config, **run_config, "num-server-rounds": rounds, "seed": seed}
    runs: list[Any] = []

    def watched(original: Any) -> Any:
        def start(self: Any, *args: Any, **kwargs: Any) -> Result:
            if isinstance(self, ServerlessStrategy):
                self.evaluate_every = evaluate_every
                self.collect_models = True
                self.algorithm = algorithm or self.algorithm
            elif evaluate_every != 1 and "evaluate_fn" in kwargs:
                self.fraction_evaluate = 0.0
            given = kwargs["initial_arrays"], kwargs.get("train_config")
            runs.append((original(self, *args, **kwargs), self, *given))
            return runs[-1][0]

        return start

    with (
        importable(folder, family.package),
        mock.patch.object(Strategy, "start", watched(Strategy.start)),
        mock.patch.object(ServerlessStrategy, "start", watched(ServerlessStrategy.start)),
    ):
        client_app = importlib.import_module(f"{family.package}.{client}").app
        server_app = importlib.import_module(f"{family.package}.server_app").app
        task = importlib.import_module(f"{family.package}.task")
        grid = LocalGrid(client_app, N, run_config=config)
        server_app(grid, Context(grid.run_id, 1, {}, RecordDict(), dict(config)))
    ((result, *given),) = runs
    outcome = Outcome(result, folder, task, client_app, config, grid, *given)
    observed = result.evaluate_metrics_serverapp or result.evaluate_metrics_clientapp
    for k, metrics in observed.items():
        outcome.average[k] = float(metrics["accuracy"])  # type: ignore[arg-type]
    if isinstance(result, ServerlessResult):
        for record in result.history:
            if record.evaluate:
                outcome.own[record.round] = [
                    float(record.evaluate[v]["accuracy"]) for v in sorted(record.evaluate)
                ]
    return outcome
