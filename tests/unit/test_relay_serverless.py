"""What the ServerApp's side sees and does: it relays along edges, and averages nothing."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from support.apps import flat, numpy_app, start_arrays
from support.grid import LocalGrid

from flower_dhb import ServerlessStrategy, Topology, consensus_mod
from flower_dhb.flower import reports as reports_module
from flower_dhb.metrics import consensus_distance, distance_from

N, D = 6, 4
STAR_AND_TAIL = Topology.from_edges([(0, 1), (0, 2), (0, 3), (3, 4), (4, 5)])


def start(strategy: ServerlessStrategy, rounds: int = 4, **kwargs: object):
    grid = LocalGrid(numpy_app(N, D, mods=[consensus_mod]), N)
    return grid, strategy.start(grid, start_arrays(D)[0], rounds, **kwargs)  # type: ignore[arg-type]


def test_a_message_holds_payloads_of_graph_neighbors_and_of_nobody_else() -> None:
    grid, _ = start(ServerlessStrategy(STAR_AND_TAIL, evaluate_every=0, average=False))
    frames: dict[int, set[bytes]] = {v: set() for v in range(N)}
    for vertex, reply in grid.replies:
        record = reply.content.array_records.get("flower_dhb.payload")
        if record is not None:
            frames[vertex].add(record["payload"].data)
    deliveries = 0
    for vertex, message in grid.messages:
        records = message.content.array_records
        record = records.get("flower_dhb.payloads", ArrayRecord())
        senders = {int(key) for key in record}
        assert senders <= set(STAR_AND_TAIL.neighbors(vertex))
        for sender, array in record.items():
            assert array.data in frames[int(sender)]
            deliveries += 1
        allowed = {"flower_dhb.payloads", "flower_dhb.start"}
        assert set(records) <= allowed, "nothing else may carry arrays"
    assert deliveries == 3 * 2 * len(STAR_AND_TAIL.edges)  # rounds 2 to 4, both ways


def test_a_message_holds_its_agents_row_and_no_other_weights() -> None:
    import json

    grid, _ = start(ServerlessStrategy(STAR_AND_TAIL))
    for vertex, message in grid.messages:
        document = json.loads(str(message.content.config_records["flower_dhb"]["json"]))
        if document["ask"] == "vertex":
            continue
        row = STAR_AND_TAIL.row(vertex)
        assert document["weights"] == [[j, row[j]] for j in np.flatnonzero(row)]


@pytest.mark.thorough
def test_one_average_is_formed_at_the_end_and_one_at_each_evaluation_that_is_watched(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    formed = []
    weighted_sum = reports_module.weighted_sum

    def count(*arguments: object) -> object:
        formed.append(1)
        return weighted_sum(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(reports_module, "weighted_sum", count)
    start(ServerlessStrategy(STAR_AND_TAIL, collect_models=True, average=False))
    assert formed == []
    start(ServerlessStrategy(STAR_AND_TAIL))
    assert len(formed) == 1
    start(ServerlessStrategy(STAR_AND_TAIL, average=False), evaluate_fn=lambda *_: None)
    assert len(formed) == 1 + 4


def test_parameters_are_reported_only_if_something_needs_them() -> None:
    def reports(**options: bool) -> list[str]:
        grid, result = start(ServerlessStrategy(STAR_AND_TAIL, measure_consensus=False, **options))
        assert result.history[-1].consensus_distance is None
        reported = [r for _, r in grid.replies if "flower_dhb.parameters" in r.content]
        return [reply.metadata.group_id for reply in reported]

    assert reports(average=False) == []
    assert reports() == ["4"] * N, "for the average, once, in the last round"


def test_how_far_agents_are_apart_is_known_from_projections_of_their_parameters() -> None:
    """The models that are collected at the end tell what is true of the last round."""
    d = 3000
    grid = LocalGrid(diagonal_app(N), N)
    start_record, origin = start_arrays(d)
    strategy = ServerlessStrategy(STAR_AND_TAIL, collect_models=True)
    result = strategy.start(grid, start_record, 3)
    models = [flat(result.models[v]) for v in range(N)]
    last = result.history[-1]
    # The squares have a relative standard deviation of sqrt(2 / 1024), the roots half of it.
    assert last.consensus_distance == pytest.approx(consensus_distance(models), rel=0.09)
    assert last.distance_from_start == pytest.approx(distance_from(models, origin), rel=0.09)
    assert last.consensus_distance != pytest.approx(consensus_distance(models), rel=1e-6)
    sizes = {len(r.content["flower_dhb"].get("sketch", b"")) for _, r in grid.replies}
    assert sizes == {0, 8 * 1024}


@pytest.mark.parametrize("numbers", [D - 1, D + 1, float("nan")])
def test_a_wrong_projection_costs_its_agent_a_part_in_the_distance_and_nothing_else(
    numbers: float,
) -> None:
    app = numpy_app(N, D, mods=[consensus_mod])

    class Liar(ClientApp):
        def __call__(self, message: Message, context: Context) -> Message:
            reply = app(message, context)
            if "sketch" in reply.content["flower_dhb"]:
                told = [numbers] * D if np.isnan(numbers) else [0.5] * int(numbers)
                reply.content["flower_dhb"]["sketch"] = np.array(told).tobytes()
            return reply

    liar = Liar()
    grid = LocalGrid(lambda vertex: liar if vertex == 1 else app, N)
    result = ServerlessStrategy(STAR_AND_TAIL).start(grid, start_arrays(D)[0], 2)
    for record in result.history:
        ((vertex, text),) = record.events
        assert vertex == 1
        assert "report refused: the projection of its parameters has" in text
        assert f"expected {D} finite ones" in text
        assert record.missing == []
        assert sorted(record.evaluate) == list(range(N))
        assert record.consensus_distance > 0


def diagonal_app(n: int) -> ClientApp:
    """Each agent goes to a point of its own."""
    app = ClientApp(mods=[consensus_mod])

    @app.train()
    def train(message: Message, context: Context) -> Message:
        i = int(context.node_config["partition-id"])
        arrays = message.content["arrays"].to_numpy_ndarrays()
        center = np.random.default_rng(i)
        moved = ArrayRecord([a + 0.1 * (center.normal(size=a.shape) - a) for a in arrays])
        content = {"arrays": moved, "metrics": MetricRecord({"num-examples": n})}
        return Message(RecordDict(content), reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        return Message(RecordDict({"m": MetricRecord({"num-examples": 1})}), reply_to=message)

    return app


def test_the_observer_sees_the_average_of_each_evaluated_round() -> None:
    seen = {}

    def observe(round: int, arrays: ArrayRecord) -> MetricRecord:
        seen[round] = flat(arrays)
        return MetricRecord({"norm": float(np.linalg.norm(seen[round]))})

    _, result = start(
        ServerlessStrategy(STAR_AND_TAIL, evaluate_every=2, average=True),
        rounds=5,
        evaluate_fn=observe,
    )
    assert sorted(seen) == [0, 2, 4, 5]
    assert np.array_equal(seen[0], start_arrays(D)[1])
    assert np.array_equal(seen[5], flat(result.arrays))
    observed = result.evaluate_metrics_serverapp
    assert observed[4]["norm"] == pytest.approx(np.linalg.norm(seen[4]))
    assert result.history[3].evaluate_average_model == {"norm": observed[4]["norm"]}


def test_the_users_config_reaches_the_app_with_the_round() -> None:
    from flwr.app import ConfigRecord, Message, RecordDict
    from flwr.clientapp import ClientApp

    seen = []
    app = ClientApp(mods=[consensus_mod])

    @app.train()
    def train(message: Message, context: object) -> Message:
        seen.append(dict(message.content.config_records["settings"].items()))
        assert list(message.content) == ["weights", "settings"]
        arrays = message.content.array_records["weights"]
        metrics = MetricRecord({"num-examples": 1})
        return Message(RecordDict({"weights": arrays, "m": metrics}), reply_to=message)

    strategy = ServerlessStrategy(
        Topology.path(2), evaluate_every=0, arrayrecord_key="weights", configrecord_key="settings"
    )
    grid = LocalGrid(app, 2)
    strategy.start(grid, start_arrays(D)[0], 2, train_config=ConfigRecord({"lr": 0.5}))
    assert seen == [{"lr": 0.5, "server-round": k} for k in (1, 1, 2, 2)]


def test_custom_aggregation_of_metrics_is_called_as_fedavg_calls_it() -> None:
    def count(records: list, key: str) -> MetricRecord:
        assert key == "num-examples"
        return MetricRecord({"agents": len(records), "norm": -1.0})

    _, result = start(ServerlessStrategy(STAR_AND_TAIL, evaluate_metrics_aggr_fn=count))
    metrics = result.evaluate_metrics_clientapp[2]
    assert (metrics["agents"], metrics["norm"]) == (N, -1.0)
    assert set(metrics) == {"agents", "norm"}, "it replaces the mean, as under FedAvg"
    assert result.history[1].evaluate_summary["norm"].best > 0


def test_on_round_is_called_once_a_round_in_order() -> None:
    rounds = []
    start(ServerlessStrategy(STAR_AND_TAIL, on_round=lambda record: rounds.append(record.round)))
    assert rounds == [1, 2, 3, 4]


def test_messages_of_other_strategies_pass_through_the_mod() -> None:
    from flwr.serverapp.strategy import FedAvg

    app = numpy_app(N, D, mods=[consensus_mod])
    result = FedAvg(min_available_nodes=N).start(LocalGrid(app, N), start_arrays(D)[0], 2)
    assert len(result.arrays) == 2
    assert "train_loss" in result.train_metrics_clientapp[2]
