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

from clients.agents import parts_of, samples_of
from clients.settings import Settings
from clients.workload import evaluate, put, shared
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
    settings = Settings.of(values)
    parts = parts_of(settings, config.topology.n_agents)
    if before:
        folder = RunFolder.resume(before, config.topology)
    else:
        runs = get_text(values, "runs-dir", "runs")
        folder = RunFolder(runs, config.name, config.topology, values)
        folder.draw_split(samples_of(settings.workload, train=True).y.numpy(), parts)
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
        compression=config.compression,
        bind_nodes=config.bind_nodes,
        on_round=folder.append,
        checkpoint=folder.checkpoint,
    )
    result = strategy.start(
        grid,
        initial_arrays=ArrayRecord(shared(settings.new_model())),
        num_rounds=config.rounds,
        evaluate_fn=_observer(settings) if config.observe_average else None,
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


def _observer(settings: Settings) -> Callable[[int, ArrayRecord], MetricRecord]:
    """Test the average model, which no agent ever has."""
    model, device = settings.new_model(), settings.device_of(0)

    def observe(round: int, arrays: ArrayRecord) -> MetricRecord:  # noqa: ARG001
        test = samples_of(settings.workload, train=False)
        put(arrays.to_torch_state_dict(), model.to(device))
        loss, accuracy = evaluate(model, settings.workload, test, device)
        return MetricRecord({"loss": loss, "accuracy": accuracy})

    return observe


def _numpy(record: ArrayRecord) -> dict[str, Any]:
    return {name: array.numpy() for name, array in record.items()}
