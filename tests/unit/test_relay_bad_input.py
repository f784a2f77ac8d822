"""Bad input to the Flower runtime: each is refused where it enters, with its remedy."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from support.apps import numpy_app, start_arrays
from support.grid import LocalGrid

from flower_dhb import (
    ConfigError,
    HeavyBall,
    PayloadError,
    ServerlessStrategy,
    Topology,
    consensus_mod,
    decentralize,
)

D = 4


def start(grid: LocalGrid, topology: Topology, **options: object) -> None:
    strategy = ServerlessStrategy(topology, node_timeout_s=0.2, **options)  # type: ignore[arg-type]
    strategy.start(grid, start_arrays(D)[0], 1)


def grid_of(vertices: list[object]) -> LocalGrid:
    app = numpy_app(16, D, mods=[consensus_mod])
    return LocalGrid(app, len(vertices), node_config=lambda i: {"partition-id": vertices[i]})


def test_fewer_nodes_than_vertices() -> None:
    with pytest.raises(
        ConfigError, match="'ring:5' has 5 vertices, but 3 nodes are connected"
    ) as e:
        start(grid_of([0, 1, 2]), Topology.ring(5))
    assert "num-supernodes=5" in str(e.value)


def test_more_nodes_than_vertices() -> None:
    with pytest.raises(ConfigError, match=r"nodes on vertices that it does not have \[3, 4\]"):
        start(grid_of([0, 1, 2, 3, 4]), Topology.ring(3))


def test_doubled_and_missing_vertices_are_named() -> None:
    with pytest.raises(ConfigError) as e:
        start(grid_of([0, 1, 1, 3]), Topology.ring(4))
    assert "vertices without a node [2]" in str(e.value)
    assert "vertices with more than one node [1]" in str(e.value)


@pytest.mark.parametrize("vertex", ["three", -1, 2.0, True])
def test_a_vertex_that_is_no_number(vertex: object) -> None:
    with pytest.raises(ConfigError, match="node config must name its vertex as an integer >= 0"):
        start(grid_of([0, 1, vertex]), Topology.ring(3))


def test_an_app_without_the_mod_is_told_the_remedy() -> None:
    with pytest.raises(ConfigError, match="consensus_mod must be the first of ClientApp"):
        start(LocalGrid(numpy_app(3, D), 3), Topology.ring(3))


def test_an_app_that_cannot_be_loaded_is_not_blamed_on_the_mod() -> None:
    missing = ImportError("No module named 'sonnet'")
    missing.code = ErrorCode.LOAD_CLIENT_APP_EXCEPTION  # type: ignore[attr-defined]
    app = numpy_app(3, D, mods=[consensus_mod])
    with pytest.raises(ConfigError, match=r"^correct the app's imports, or install") as error:
        start(LocalGrid(app, 3, intercept=lambda *_: missing), Topology.ring(3))
    assert "cannot load its ClientApp: No module named 'sonnet'" in str(error.value)
    assert "consensus_mod" not in str(error.value)


def test_an_app_that_answers_something_else() -> None:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: object) -> Message:
        return Message(RecordDict(), reply_to=message)

    with pytest.raises(ConfigError, match="did not answer as an agent"):
        start(LocalGrid(app, 3), Topology.ring(3))


def test_a_rule_that_diverges_on_the_graph_is_refused_when_made() -> None:
    with pytest.raises(ConfigError, match="diverges for every step size") as e:
        ServerlessStrategy(Topology.torus(4, 4), HeavyBall(momentum_mixing=1.0))
    assert "momentum_mixing <= 0.5" in str(e.value)
    assert "lazy" in str(e.value)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"round_timeout_s": 0.0}, "round_timeout_s must be above 0"),
        ({"round_timeout_s": float("nan")}, "round_timeout_s must be above 0"),
        ({"round_timeout_s": True}, "round_timeout_s must be a number of seconds, got True"),
        ({"node_timeout_s": -1}, "node_timeout_s must be at least 0"),
        ({"node_timeout_s": float("nan")}, "node_timeout_s must be at least 0"),
        ({"evaluate_every": -1}, "evaluate_every must be at least 0"),
        ({"evaluate_every": 1.5}, "evaluate_every must be an integer, got 1.5"),
        ({"evaluate_every": True}, "evaluate_every must be an integer, got True"),
        ({"evaluate_every": float("inf")}, "evaluate_every must be an integer, got inf"),
        ({"average": "no"}, "average must be True or False, got 'no'"),
        ({"measure_consensus": 1}, "measure_consensus must be True or False, got 1"),
        ({"collect_models": None}, "collect_models must be True or False, got None"),
        ({"on_round": 3}, "on_round must be callable, got int"),
        ({"train_metrics_aggr_fn": {}}, "train_metrics_aggr_fn must be callable, got dict"),
        ({"weighted_by_key": ""}, "weighted_by_key must be a text"),
        ({"arrayrecord_key": "flower_dhb.payloads"}, "arrayrecord_key must be a text"),
        ({"configrecord_key": "arrays"}, "must differ, both are 'arrays'"),
        ({"lower_is_better": "loss"}, "lower_is_better must be a sequence of name patterns"),
        ({"lower_is_better": [1]}, "lower_is_better must hold name patterns"),
    ],
)
def test_settings_out_of_range(options: dict[str, object], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        ServerlessStrategy(Topology.ring(3), **options)  # type: ignore[arg-type]


def test_a_topology_that_is_none() -> None:
    with pytest.raises(
        ConfigError, match="topology must be a Topology, Turns, or their name, such as"
    ):
        ServerlessStrategy(8)  # type: ignore[arg-type]


def test_initial_arrays_that_are_not_finite() -> None:
    bad = ArrayRecord([np.array([[1.0, np.inf]]), np.zeros(2)])
    grid = LocalGrid(numpy_app(3, D, mods=[consensus_mod]), 3)
    with pytest.raises(PayloadError, match="initial_arrays: '0' holds 1 values"):
        ServerlessStrategy(Topology.ring(3)).start(grid, bad, 1)


def test_initial_arrays_without_parameters() -> None:
    grid = LocalGrid(numpy_app(3, D, mods=[consensus_mod]), 3)
    with pytest.raises(ConfigError, match="no floating-point parameters"):
        ServerlessStrategy(Topology.ring(3)).start(grid, ArrayRecord([np.arange(3)]), 1)


def test_metrics_without_their_weight() -> None:
    app = ClientApp(mods=[consensus_mod])

    @app.train()
    def train(message: Message, context: object) -> Message:
        records = RecordDict(
            {"arrays": message.content.array_records["arrays"], "m": MetricRecord({"loss": 1.0})}
        )
        return Message(records, reply_to=message)

    with pytest.raises(ConfigError, match="no agent's metrics hold 'num-examples'") as e:
        start(LocalGrid(app, 3), Topology.ring(3))
    assert "weighted_by_key" in str(e.value)


def test_decentralize_wants_a_client_app() -> None:
    with pytest.raises(ConfigError, match="wraps a flwr ClientApp, got function"):
        decentralize(lambda message, context: message)  # type: ignore[arg-type]


def test_relay_and_agent_of_different_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    from flower_dhb.flower import records

    to_records = records.Question.to_records

    def from_the_future(self: object) -> RecordDict:
        content = to_records(self)  # type: ignore[arg-type]
        text = str(content.config_records["flower_dhb"]["json"])
        content.config_records["flower_dhb"]["json"] = text.replace(
            f'"version": {records.PROTOCOL_VERSION}', '"version": 99'
        )
        return content

    monkeypatch.setattr(records.Question, "to_records", from_the_future)
    with pytest.raises(
        ConfigError, match=f"protocol version 99, expected {records.PROTOCOL_VERSION}"
    ):
        start(LocalGrid(numpy_app(3, D, mods=[consensus_mod]), 3), Topology.ring(3))
