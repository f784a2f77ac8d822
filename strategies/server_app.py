"""The ServerApp: it starts the relay and writes down what happens. It averages nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from logging import INFO
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.common import log
from flwr.serverapp import Grid, ServerApp

from clients.client_app import load_workload
from clients.workload import Workload, evaluate
from flower_dhb import RunConfig, RunFolder, ServerlessStrategy
from flower_dhb.files import read_toml
from flower_dhb.runs.config import get_text
from flower_dhb.runs.resuming import folder_to_resume, resumed

__all__ = ["app"]

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the rounds that the run config asks for."""
    values: Mapping[str, Any] = context.run_config
    before = get_text(values, "resume", "")
    if before:
        values = resumed(folder_to_resume(before), values, _defaults())
    config = RunConfig.of(values)
    workload = load_workload(values, config.topology.n_agents)
    if before:
        folder = RunFolder.resume(before, config.topology)
    else:
        runs = get_text(values, "runs-dir", "runs")
        folder = RunFolder(runs, config.name, config.topology, values)
    log(INFO, "this run leaves its results in %s", folder.path.resolve())
    strategy = ServerlessStrategy(
        config.topology,
        config.algorithm,
        round_timeout_s=config.round_timeout_s or math.inf,
        evaluate_every=config.evaluate_every,
        transport=config.transport,
        average=False,
        collect_models=config.encryption == "none",
        encryption=config.encryption,
        bind_nodes=config.bind_nodes,
        on_round=folder.append,
        checkpoint=folder.checkpoint,
    )
    result = strategy.start(
        grid,
        initial_arrays=ArrayRecord(workload.make_model().state_dict()),
        num_rounds=config.rounds,
        evaluate_fn=_observer(workload) if config.observe_average else None,
    )
    models = {v: _numpy(record) for v, record in result.models.items()}
    folder.finish(models, f"{config.name}: {config.algorithm.name} on {config.topology.name}")
    for line in folder.table():
        log(INFO, "%s", line)
    result.require_all()


def _defaults() -> dict[str, Any]:
    """The app's own run config, before anybody has said anything."""
    document = read_toml(Path(__file__).parents[1] / "pyproject.toml", "install the app anew")
    return dict(document["tool"]["flwr"]["app"]["config"])


def _observer(workload: Workload) -> Callable[[int, ArrayRecord], MetricRecord]:
    """Test the average model, which no agent ever has."""

    def observe(round: int, arrays: ArrayRecord) -> MetricRecord:  # noqa: ARG001
        model = workload.make_model()
        model.load_state_dict(arrays.to_torch_state_dict())
        loss, accuracy = evaluate(model, workload.test_x, workload.test_y)
        return MetricRecord({"loss": loss, "accuracy": accuracy})

    return observe


def _numpy(record: ArrayRecord) -> dict[str, Any]:
    return {name: array.numpy() for name, array in record.items()}
