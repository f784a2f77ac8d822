"""FedAvg's interface: its arguments, subclasses as Flower's docs write them, loops of one's own."""

from __future__ import annotations

import inspect
import json

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import strategy as flower
from support.apps import flat, numpy_app, start_arrays
from support.grid import LocalGrid

from flower_dhb import DSGD, ConfigError, ServerlessStrategy, Topology, consensus_mod
from flower_dhb.algorithms import default_algorithm

N, D = 6, 4
GRAPH = Topology.from_edges([(0, 1), (0, 2), (0, 3), (3, 4), (4, 5)])


def grid_of(app: ClientApp | None = None) -> LocalGrid:
    return LocalGrid(app or numpy_app(N, D, mods=[consensus_mod]), N)


def start(strategy: ServerlessStrategy, rounds: int = 4, grid: LocalGrid | None = None, **kwargs):
    return strategy.start(grid or grid_of(), start_arrays(D)[0], rounds, **kwargs)


def asked(grid: LocalGrid, what: str, round: int) -> list[int]:
    """Vertices that were asked something in a round."""
    found = []
    for vertex, message in grid.messages:
        document = json.loads(str(message.content.config_records["flower_dhb"]["json"]))
        if (document["ask"], document.get("round")) == (what, round):
            found.append(vertex)
    return sorted(found)


# --- arguments ---------------------------------------------------------------------------


def test_every_argument_of_flowers_strategies_means_something_or_is_refused_by_name() -> None:
    ours = inspect.signature(ServerlessStrategy.__init__).parameters
    theirs = {
        name
        for cls in vars(flower).values()
        if inspect.isclass(cls)
        for name in inspect.signature(cls.__init__).parameters
        if name not in ("self", "args", "kwargs")
    }
    assert {"fraction_train", "eta", "proximal_mu", "num_malicious_nodes"} <= theirs
    result_fields = set(inspect.signature(flower.Result).parameters)
    for name in sorted(theirs - set(ours) - result_fields):
        with pytest.raises(ConfigError, match=f"^{name}=0.5: ") as error:
            ServerlessStrategy(GRAPH, **{name: 0.5})
        assert len(str(error.value)) > len(name) + 40, "a reason and a remedy"


def test_fedavgs_own_defaults_are_taken() -> None:
    fedavg = inspect.signature(flower.FedAvg.__init__).parameters.values()
    defaults = {p.name: p.default for p in fedavg if p.name != "self"}
    strategy = ServerlessStrategy(GRAPH, **defaults)
    assert (strategy.fraction_train, strategy.fraction_evaluate) == (1.0, 1.0)
    assert strategy.min_evaluate_nodes == 2


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"fraction_train": 0.5}, "fraction_train=0.5: in every round every agent trains.*FedAvg"),
        ({"fraction_train": 0.0}, "fraction_train=0.0: "),
        ({"fraction_train": float("nan")}, "fraction_train=nan: "),
        ({"fraction_train": True}, "fraction_train=True: "),
        ({"fraction_evaluate": 1.5}, r"fraction_evaluate must be a number in \[0, 1\], got 1.5"),
        ({"fraction_evaluate": float("nan")}, "fraction_evaluate must be"),
        ({"fraction_evaluate": "all"}, "fraction_evaluate must be"),
        ({"min_train_nodes": 7}, "min_train_nodes=7: the topology has 6 vertices"),
        ({"min_available_nodes": 10}, "min_available_nodes=10: the topology has 6 vertices"),
        ({"min_evaluate_nodes": -1}, "min_evaluate_nodes must be at least 0"),
        ({"min_evaluate_nodes": 2.0}, "min_evaluate_nodes must be an integer"),
        ({"proximal_mu": 0.1}, "the proximal term is the app's: send it with"),
        ({"eta": 0.1}, "an optimizer on the server"),
        ({"fraction_fit": 1.0}, "fraction_fit=1.0: it belongs to Flower's older strategies"),
        ({"on_fit_config_fn": print}, "in configure_train"),
        ({"num_rounds": 3}, r"it is an argument of start: strategy.start\(.*num_rounds=...\)"),
        ({"evaluate_evry": 3}, "unknown argument of ServerlessStrategy 'evaluate_evry', did you "),
    ],
)
def test_arguments_that_mean_nothing_here(options: dict[str, object], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        ServerlessStrategy(GRAPH, **options)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"num_rounds": -1}, "num_rounds must be at least 0, got -1"),
        ({"num_rounds": 2.0}, "num_rounds must be an integer, got 2.0"),
        ({"num_rounds": True}, "num_rounds must be an integer, got True"),
        ({"num_rounds": "3"}, "num_rounds must be an integer, got '3'"),
        ({"timeout": 0}, "timeout must be above 0"),
        ({"timeout": float("nan")}, "timeout must be above 0"),
        ({"timeout": "60"}, "timeout must be a number of seconds, got '60'"),
        ({"initial_arrays": {"w": np.ones(2)}}, "initial_arrays must be a flwr.app.ArrayRecord"),
        ({"train_config": {"lr": 0.1}}, r"train_config must be a flwr.app.ConfigRecord, got dict"),
        ({"evaluate_config": 3}, "evaluate_config must be a flwr.app.ConfigRecord, got int"),
        ({"evaluate_fn": 3}, "evaluate_fn must be callable, got int"),
    ],
)
def test_arguments_of_start_are_checked_before_anything_is_sent(options, told) -> None:
    grid = grid_of()
    arguments = {"initial_arrays": start_arrays(D)[0], "num_rounds": 2} | options
    with pytest.raises(ConfigError, match=told):
        ServerlessStrategy(GRAPH).start(grid, **arguments)
    assert grid.messages == []


def test_topology_and_rule_by_their_names() -> None:
    named = ServerlessStrategy("ring:8", "dsgd")
    assert (named.topology.name, named.algorithm) == ("ring:8", DSGD())
    assert ServerlessStrategy("ring:8").algorithm == default_algorithm()
    for wrong, told in (
        (("rign:8",), "unknown topology 'rign', did you mean 'ring'"),
        (("ring:8", "dsgdd"), "'dsgdd', did you mean 'dsgd'"),
        (("ring:8", DSGD), r"algorithm must be a rule or its name.*did you mean DSGD\(\)\?"),
        (("ring:8", 0.9), "algorithm must be a rule or its name, such as .* got 0.9"),
        ((GRAPH.mixing_matrix,), "topology must be a Topology, Turns, or their name.* got ndarray"),
    ):
        with pytest.raises(ConfigError, match=told):
            ServerlessStrategy(*wrong)


def test_no_rounds_give_the_initial_arrays_and_their_evaluation() -> None:
    seen = []
    result = start(
        ServerlessStrategy(GRAPH, collect_models=True),
        rounds=0,
        evaluate_fn=lambda k, arrays: seen.append((k, flat(arrays))),
    )
    np.testing.assert_allclose(flat(result.arrays), start_arrays(D)[1], rtol=1e-15)
    assert all(np.array_equal(flat(m), start_arrays(D)[1]) for m in result.models.values())
    assert (result.history, [k for k, _ in seen]) == ([], [0])


# --- fractions that evaluate --------------------------------------------------------------


@pytest.mark.parametrize(
    ("fraction", "least", "count"), [(0.5, None, 3), (0.6, None, 3), (0.1, None, 2), (0.1, 4, 4)]
)
@pytest.mark.thorough
def test_a_fraction_evaluates_as_many_as_under_fedavg(fraction, least, count) -> None:
    grid = grid_of()
    result = start(
        ServerlessStrategy(GRAPH, fraction_evaluate=fraction, min_evaluate_nodes=least), grid=grid
    )
    evaluating = [sorted(record.evaluate) for record in result.history]
    assert [len(who) for who in evaluating] == [count] * 4
    assert len({tuple(who) for who in evaluating}) > 1, "drawn anew"
    # All agents report, so that the consensus distance is that of all.
    everyone = start(ServerlessStrategy(GRAPH))
    for one, other in zip(result.history, everyone.history, strict=True):
        assert one.consensus_distance == other.consensus_distance
        assert asked(grid, "evaluate", one.round) == sorted(one.evaluate)
        assert sorted(asked(grid, "report", one.round) + sorted(one.evaluate)) == list(range(N))
    metrics = result.evaluate_metrics_clientapp[1]
    weights = [v + 1 for v in evaluating[0]]
    assert metrics["vertex"] == pytest.approx(np.average(evaluating[0], weights=weights))
    again = start(ServerlessStrategy(GRAPH, fraction_evaluate=fraction, min_evaluate_nodes=least))
    assert [sorted(record.evaluate) for record in again.history] == evaluating


def test_who_does_not_evaluate_is_left_alone_if_nobody_needs_its_parameters() -> None:
    grid = grid_of()
    strategy = ServerlessStrategy(GRAPH, fraction_evaluate=0.5, measure_consensus=False)
    result = start(strategy, grid=grid)
    assert [len(asked(grid, "report", k)) for k in (1, 2, 3, 4)] == [0, 0, 0, 3]
    assert result.has_arrays


def test_no_fraction_means_no_evaluation_but_the_observer_sees_every_round() -> None:
    """As under FedAvg: a server-side evaluation does not depend on the agents'."""
    seen = {}

    def observe(k: int, arrays: ArrayRecord) -> MetricRecord:
        seen[k] = flat(arrays)
        return MetricRecord({"k": k})

    grid = grid_of()
    result = start(ServerlessStrategy(GRAPH, fraction_evaluate=0.0), grid=grid, evaluate_fn=observe)
    assert sorted(seen) == [0, 1, 2, 3, 4]
    assert result.evaluate_metrics_clientapp == {}
    assert asked(grid, "evaluate", 1) == []
    watched = {}
    start(ServerlessStrategy(GRAPH), evaluate_fn=lambda k, a: watched.update({k: flat(a)}))
    assert all(np.array_equal(seen[k], watched[k]) for k in seen)


# --- subclasses ------------------------------------------------------------------------------


def configured_app(seen: list[tuple[int, float]]) -> ClientApp:
    app = ClientApp(mods=[consensus_mod])

    @app.train()
    def train(message: Message, context: object) -> Message:
        config = message.content.config_records["config"]
        seen.append((int(config["server-round"]), float(config["lr"])))
        metrics = MetricRecord({"num-examples": 1})
        content = {"arrays": message.content["arrays"], "m": metrics}
        return Message(RecordDict(content), reply_to=message)

    return app


def test_a_schedule_in_configure_train_as_flowers_docs_show_it() -> None:
    class Decaying(ServerlessStrategy):
        def configure_train(self, server_round, arrays, config, grid):
            if server_round % 2 == 0:
                config["lr"] *= 0.5
            return super().configure_train(server_round, arrays, config, grid)

    seen: list[tuple[int, float]] = []
    grid = LocalGrid(configured_app(seen), N)
    start(
        Decaying(GRAPH, evaluate_every=0),
        grid=grid,
        train_config=ConfigRecord({"lr": 0.8}),
        rounds=5,
    )
    lr = {1: 0.8, 2: 0.4, 3: 0.4, 4: 0.2, 5: 0.2}
    assert sorted(set(seen)) == sorted(lr.items())
    assert len(seen) == 5 * N


def test_a_config_that_starts_empty_is_one_and_the_same_in_all_rounds() -> None:
    class Counting(ServerlessStrategy):
        def configure_train(self, server_round, arrays, config, grid):
            config["lr"] = config.get("lr", 0.0) + 1.0
            return super().configure_train(server_round, arrays, config, grid)

    seen: list[tuple[int, float]] = []
    start(Counting(GRAPH, evaluate_every=0), grid=LocalGrid(configured_app(seen), N), rounds=3)
    assert sorted(set(seen)) == [(1, 1.0), (2, 2.0), (3, 3.0)]


def test_a_subclass_sees_what_is_aggregated_and_may_change_the_metrics() -> None:
    class Watching(ServerlessStrategy):
        def aggregate_train(self, server_round, replies):
            arrays, metrics = super().aggregate_train(server_round, replies)
            assert arrays is None
            metrics["double"] = 2 * metrics["train_loss"]
            return arrays, metrics

        def aggregate_evaluate(self, server_round, replies):
            return MetricRecord({"only": server_round})

    result = start(Watching(GRAPH))
    trained = result.train_metrics_clientapp[3]
    assert trained["double"] == 2 * trained["train_loss"]
    assert result.evaluate_metrics_clientapp[3]["only"] == 3
    assert result.warnings == []


def test_arrays_that_a_subclass_returns_go_nowhere_and_the_run_says_so_once() -> None:
    class Averaging(ServerlessStrategy):
        def aggregate_train(self, server_round, replies):
            return start_arrays(D)[0], super().aggregate_train(server_round, replies)[1]

    (warning,) = start(Averaging(GRAPH)).warnings
    assert "aggregate_train returned arrays, which nobody gets" in warning


def test_a_subclass_may_leave_agents_out_or_answer_with_a_generator() -> None:
    class Lazy(ServerlessStrategy):
        def configure_train(self, server_round, arrays, config, grid):
            messages = super().configure_train(server_round, arrays, config, grid)
            return (message for message in messages[1:])

    result = start(Lazy(GRAPH, evaluate_every=0))
    assert [record.missing for record in result.history] == [[0]] * 4


def test_messages_of_a_subclass_that_are_not_ours_are_refused() -> None:
    class Foreign(ServerlessStrategy):
        def configure_train(self, server_round, arrays, config, grid):
            messages = super().configure_train(server_round, arrays, config, grid)
            return [Message(m.content, m.metadata.dst_node_id, "train") for m in messages]

    with pytest.raises(ConfigError, match=r"did not make; return messages of super\(\)"):
        start(Foreign(GRAPH))


# --- a loop of one's own ----------------------------------------------------------------------


def test_a_loop_of_ones_own_gives_the_trajectory_of_start() -> None:
    expected = start(ServerlessStrategy(GRAPH))
    strategy, grid = ServerlessStrategy(GRAPH), grid_of()
    arrays, config = start_arrays(D)[0], ConfigRecord()
    for k in range(1, 5):
        messages = strategy.configure_train(k, arrays, config, grid)
        none, metrics = strategy.aggregate_train(k, grid.send_and_receive(messages))
        assert none is None
        assert dict(metrics) == dict(expected.train_metrics_clientapp[k])
        messages = strategy.configure_evaluate(k, arrays, config, grid)
        evaluated = strategy.aggregate_evaluate(k, grid.send_and_receive(messages))
        assert dict(evaluated) == dict(expected.evaluate_metrics_clientapp[k])


def test_flowers_own_loop_runs_it_too() -> None:
    expected = start(ServerlessStrategy(GRAPH))
    strategy = ServerlessStrategy(GRAPH)
    result = flower.Strategy.start(strategy, grid_of(), start_arrays(D)[0], 4)
    for k in range(1, 5):
        found, wanted = result.evaluate_metrics_clientapp[k], expected.evaluate_metrics_clientapp[k]
        assert dict(found) == dict(wanted)


def test_in_a_loop_of_ones_own_an_agent_that_does_not_answer_is_missing_and_may_rejoin() -> None:
    strategy, grid = ServerlessStrategy(GRAPH), grid_of()
    arrays, config = start_arrays(D)[0], ConfigRecord()
    for k in (1, 2, 3):
        replies = grid.send_and_receive(strategy.configure_train(k, arrays, config, grid))
        if k == 2:
            replies = [r for r in replies if grid.vertex_of[r.metadata.src_node_id] != 4]
            grid.lose_state(4)
        strategy.aggregate_train(k, replies)
        record = strategy._opened().record
        assert record.missing == ([4] if k == 2 else [])
        assert record.rejoined == ([4] if k == 3 else [])
        if k == 2:
            assert (4, "no answer to 'train'") in record.events


def test_calls_in_the_wrong_order_are_refused_with_a_word() -> None:
    strategy, grid = ServerlessStrategy(GRAPH), grid_of()
    arrays, config = start_arrays(D)[0], ConfigRecord()
    with pytest.raises(ConfigError, match="no run yet; call start, or configure_train first"):
        strategy.aggregate_train(1, [])
    strategy.configure_train(1, arrays, config, grid)
    with pytest.raises(ConfigError, match="aggregate_train: round 2, but configure_train was"):
        strategy.aggregate_train(2, [])
    with pytest.raises(ConfigError, match="configure_evaluate: round 3"):
        strategy.configure_evaluate(3, arrays, config, grid)
    with pytest.raises(ConfigError, match=r"round 0 after round 1; rounds must rise"):
        strategy.configure_train(0, arrays, config, grid)
    with pytest.raises(ConfigError, match=r"arrays must be a flwr.app.ArrayRecord"):
        ServerlessStrategy(GRAPH).configure_train(1, None, config, grid)


def test_a_message_that_waits_keeps_the_config_of_its_round() -> None:
    strategy, config = ServerlessStrategy(GRAPH), ConfigRecord({"lr": 0.5})
    messages = strategy.configure_train(1, start_arrays(D)[0], config, grid_of())
    config["lr"] = 0.1
    assert {m.content["config"]["lr"] for m in messages} == {0.5}
    assert config["server-round"] == 1, "as under FedAvg"


def test_a_custom_aggregation_gets_those_that_have_their_weight_or_all_if_none_has() -> None:
    def lacking(who: set[int]) -> ClientApp:
        def strip(message: Message, context, call_next):
            reply = call_next(message, context)
            if int(context.node_config["partition-id"]) in who:
                reply.content["metrics"] = MetricRecord({"train_loss": 1.0})
            return reply

        return numpy_app(N, D, mods=[consensus_mod, strip])

    for who, count in (({1, 4}, N - 2), (set(range(N)), N)):
        strategy = ServerlessStrategy(
            GRAPH,
            evaluate_every=0,
            train_metrics_aggr_fn=lambda records, key: MetricRecord({"agents": len(records)}),
        )
        result = start(strategy, rounds=1, grid=grid_of(lacking(who)))
        assert result.train_metrics_clientapp[1]["agents"] == count
