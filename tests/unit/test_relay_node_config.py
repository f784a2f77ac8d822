"""What a SuperNode's config must name, and what a user is told who has left some of it out."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from support.grid import LocalGrid

from flower_dhb import ConfigError, RoundError, ServerlessStrategy, consensus_mod

N = 3


def hub_app() -> ClientApp:
    """As Flower's templates and the apps of its Hub find their part of the data."""
    app = ClientApp(mods=[consensus_mod])

    def load(context: Context) -> np.ndarray:
        partition_id = context.node_config["partition-id"]
        num_partitions = context.node_config["num-partitions"]
        return np.arange(12.0)[partition_id::num_partitions]

    @app.train()
    def train(message: Message, context: Context) -> Message:
        (x,) = message.content["arrays"].to_numpy_ndarrays()
        x = x + 0.1 * (load(context).mean() - x)
        metrics = MetricRecord({"num-examples": 4})
        return Message(
            RecordDict({"arrays": ArrayRecord([x]), "metrics": metrics}), reply_to=message
        )

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        metrics = MetricRecord({"num-examples": len(load(context))})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    return app


def run(*configs: dict[str, object], rounds: int = 2):
    grid = LocalGrid(hub_app(), N, node_config=lambda v: dict(configs[v]))
    strategy = ServerlessStrategy(f"star:{N}", share_every=2)
    return strategy.start(grid, ArrayRecord([np.zeros(2)]), rounds)


BOTH = {"partition-id": 0, "num-partitions": N}


def test_both_keys_do_with_and_without_a_vertex() -> None:
    result = run(*({**BOTH, "partition-id": v} for v in range(N)))
    beside = run(*({**BOTH, "partition-id": v, "vertex": v} for v in range(N)))
    assert not any(record.missing or record.events for record in result.history)
    assert [r.train for r in beside.history] == [r.train for r in result.history]


@pytest.mark.parametrize(
    ("config", "text"),
    [
        (
            lambda v: {"vertex": v},
            r"reads 'partition-id' in its node config, which has vertex: start the SuperNode with "
            "partition-id and num-partitions beside what it has, as in --node-config",
        ),
        (
            lambda v: {"vertex": v, "partition-id": v},
            "reads 'num-partitions' in its node config, which has partition-id, vertex: start the "
            "SuperNode with num-partitions beside",
        ),
        (lambda v: {"vertex": v, "num-partitions": N}, "with partition-id beside what it has"),
        (lambda v: {"partition-id": v}, "reads 'num-partitions' in its node config"),
    ],
)
def test_an_app_that_finds_one_of_them_nowhere_ends_the_run_and_names_it(config, text) -> None:
    with pytest.raises(RoundError, match=r"^name what the app reads in each node") as found:
        run(*(config(v) for v in range(N)))
    assert found.match(text)


def test_without_a_vertex_the_run_does_not_begin() -> None:
    with pytest.raises(ConfigError, match=r"'vertex' or 'partition-id'; got None.*--node-config"):
        run(*({"num-partitions": N} for _ in range(N)))


def test_one_node_that_lacks_a_key_misses_the_rounds_and_is_told_of() -> None:
    configs = [{**BOTH, "partition-id": v} for v in range(N)]
    del configs[2]["num-partitions"]
    result = run(*configs)
    assert [record.missing for record in result.history] == [[2], [2]]
    for record in result.history:
        told = [text for vertex, text in record.events if vertex == 2]
        assert told
        assert all("start the SuperNode with num-partitions" in text for text in told)


def test_another_key_error_of_the_app_is_its_own() -> None:
    app = ClientApp(mods=[consensus_mod])

    @app.train()
    def train(message: Message, context: Context) -> Message:
        raise KeyError("partition-id")  # of something else: the node config has it

    grid = LocalGrid(app, N)
    with pytest.raises(RoundError, match="KeyError: 'partition-id'"):
        ServerlessStrategy(f"star:{N}").start(grid, ArrayRecord([np.zeros(2)]), 1)
