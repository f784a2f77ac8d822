"""Evaluations that come with the next round's training: the same numbers for fewer messages."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.superlink.grid.http_grid import HttpGrid
from flwr.superlink.grid.inmemory_grid import InMemoryGrid
from support.apps import flat, numpy_app, start_arrays
from support.grid import LocalGrid

from flower_dhb import HeavyBall, ServerlessStrategy, Topology, consensus_mod, decentralize
from flower_dhb.flower.relay import is_deployed

pytestmark = pytest.mark.thorough

N, D, ROUNDS = 6, 4, 5
GRAPH = Topology.from_edges([(0, 1), (0, 2), (0, 3), (3, 4), (4, 5)])


def run(app: Any = None, rounds: int = ROUNDS, grid: LocalGrid | None = None, **options: Any):
    observe = options.pop("evaluate_fn", None)
    options.setdefault("join_evaluation", True)
    strategy = ServerlessStrategy(GRAPH, HeavyBall(), collect_models=True, **options)
    grid = grid or LocalGrid(app or numpy_app(N, D, mods=[consensus_mod]), N)
    return grid, strategy.start(grid, start_arrays(D)[0], rounds, evaluate_fn=observe)


def asked(grid: LocalGrid) -> Counter[tuple[str, str]]:
    """How many messages of each kind there were in each round."""
    kinds = [(m.metadata.message_type, m.metadata.group_id) for _, m in grid.messages]
    return Counter((kind, k) for kind, k in kinds if k)


def told(result: Any) -> list[dict[str, Any]]:
    return [{**record.to_dict(), "seconds": 0.0, "profile": {}} for record in result.history]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"evaluate_every": 2},
        {"fraction_evaluate": 0.5},
        {"measure_consensus": False},
        {"evaluate_every": 2, "evaluate_fn": True},
        {"evaluate_every": 0, "evaluate_fn": True},
    ],
    ids=str,
)
def test_the_numbers_are_those_of_evaluations_by_themselves(options: dict[str, Any]) -> None:
    found = []
    for joined in (True, False):
        seen: dict[int, bytes] = {}

        def observe(k: int, arrays: ArrayRecord, seen: dict[int, bytes] = seen) -> MetricRecord:
            seen[k] = flat(arrays).tobytes()
            return MetricRecord({"norm": float(np.linalg.norm(flat(arrays)))})

        chosen = options | ({"evaluate_fn": observe} if "evaluate_fn" in options else {})
        _, result = run(join_evaluation=joined, **chosen)
        models = [flat(result.models[v]).tobytes() for v in range(N)]
        metrics = [
            {k: dict(m) for k, m in part.items()}
            for part in (
                result.train_metrics_clientapp,
                result.evaluate_metrics_clientapp,
                result.evaluate_metrics_serverapp,
            )
        ]
        found.append((told(result), models, metrics, seen, flat(result.arrays).tobytes()))
    assert found[0] == found[1]


def test_a_round_costs_one_message_an_agent() -> None:
    grid, result = run()
    wanted = {("train", str(k)): N for k in range(1, ROUNDS + 1)}
    assert asked(grid) == wanted | {("evaluate", str(ROUNDS)): N}
    assert all(len(record.evaluate) == N for record in result.history)
    separate, _ = run(join_evaluation=False)
    assert sum(asked(separate).values()) == 2 * N * ROUNDS
    reported = [
        r.metadata.group_id for _, r in grid.replies if "flower_dhb.parameters" in r.content
    ]
    assert reported == [str(ROUNDS)] * N, "models are uploaded once, for the result"


def test_a_round_is_told_when_its_evaluation_has_come_and_can_end_the_run_one_round_later() -> None:
    seen: list[tuple[int, int, int]] = []
    grid = LocalGrid(numpy_app(N, D, mods=[consensus_mod]), N)

    def look(record: Any) -> bool:
        trained = max(int(k) for kind, k in asked(grid) if kind == "train")
        seen.append((record.round, trained, len(record.evaluate)))
        return bool(record.round == 2)

    _, result = run(grid=grid, rounds=10, on_round=look)
    assert seen == [(1, 2, N), (2, 3, N), (3, 3, N)]
    assert [record.round for record in result.history] == [1, 2, 3]
    _, three = run(rounds=3)
    assert flat(result.arrays).tobytes() == flat(three.arrays).tobytes()
    assert told(result) == told(three)


def test_an_evaluation_that_fails_costs_its_agent_the_evaluation_alone() -> None:
    plain = numpy_app(N, D, mods=[consensus_mod])

    def spoil(message: Message, context: Context, call_next: Any) -> Message:
        if message.metadata.message_type == "evaluate" and context.node_config["partition-id"] == 1:
            raise ZeroDivisionError("mine")
        return call_next(message, context)  # type: ignore[no-any-return]

    failing = numpy_app(N, D, mods=[consensus_mod, spoil])
    _, result = run(lambda vertex: failing if vertex == 1 else plain, rounds=3)
    for record in result.history:
        assert record.missing == []
        assert sorted(record.evaluate) == [0, 2, 3, 4, 5]
        assert record.events == [(1, "ZeroDivisionError: mine")]
    _, well = run(rounds=3)
    assert flat(result.arrays).tobytes() == flat(well.arrays).tobytes()


def test_who_does_not_answer_the_next_message_is_not_evaluated_and_the_history_says_so() -> None:
    grid = LocalGrid(
        numpy_app(N, D, mods=[consensus_mod]),
        N,
        intercept=lambda v, m: (
            ConnectionError("gone") if (v, m.metadata.group_id) == (5, "2") else None
        ),
    )
    _, result = run(grid=grid, rounds=3)
    first, second, _ = result.history
    assert sorted(first.evaluate) == [0, 1, 2, 3, 4]
    assert first.missing == []
    assert (5, "not evaluated: no answer to the next round's message") in first.events
    assert second.missing == [5]


def test_an_error_in_on_round_keeps_the_round_that_was_trained_meanwhile() -> None:
    def look(record: Any) -> None:
        raise ValueError(f"round {record.round}")

    strategy = ServerlessStrategy(GRAPH, join_evaluation=True, on_round=look)
    grid = LocalGrid(numpy_app(N, D, mods=[consensus_mod]), N)
    with pytest.raises(ValueError, match="round 1"):
        strategy.start(grid, start_arrays(D)[0], ROUNDS)
    kept = strategy.result.history
    assert [(record.round, len(record.evaluate)) for record in kept] == [(1, N), (2, 0)]
    assert np.isfinite(flat(strategy.result.arrays)).all()


def test_ctrl_c_before_the_evaluation_has_come_keeps_the_round() -> None:
    grid = LocalGrid(
        numpy_app(N, D, mods=[consensus_mod]),
        N,
        hold=lambda v, m: LocalGrid.LATE if m.metadata.group_id == "2" else 0,
    )
    pull = grid.pull_messages

    def interrupted(ids: Any) -> Any:
        if ("train", "2") in asked(grid):
            raise KeyboardInterrupt
        return pull(ids)

    grid.pull_messages = interrupted  # type: ignore[method-assign]
    strategy = ServerlessStrategy(GRAPH, join_evaluation=True)
    with pytest.raises(KeyboardInterrupt):
        strategy.start(grid, start_arrays(D)[0], ROUNDS)
    assert [record.round for record in strategy.result.history] == [1]


def test_training_draws_the_same_random_numbers_with_an_evaluation_before_it() -> None:
    app = ClientApp(mods=[consensus_mod])
    trained: list[list[float]] = []

    def draws() -> list[float]:
        return [random.random(), float(np.random.random()), float(torch.rand(()))]  # noqa: S311

    @app.train()
    def train(message: Message, context: Context) -> Message:
        trained.append(draws())
        content = {"arrays": message.content["arrays"], "m": MetricRecord({"num-examples": 1})}
        return Message(RecordDict(content), reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        return Message(
            RecordDict({"m": MetricRecord({"draw": draws()[0], "num-examples": 1})}),
            reply_to=message,
        )

    for every in (0, 1):
        random.seed(7), np.random.seed(7), torch.manual_seed(7)
        run(app, rounds=3, evaluate_every=every)
    # The last evaluation comes by itself, after all training.
    assert len(trained) == 2 * 3 * N
    assert trained[: 3 * N] == trained[3 * N :]
    assert len({tuple(drawn) for drawn in trained}) == 3 * N


@pytest.mark.parametrize("wrap", [False, True])
def test_apps_of_every_form_are_evaluated_before_their_training(wrap: bool) -> None:
    app = numpy_app(N, D, mods=None if wrap else [consensus_mod])
    _, result = run(decentralize(app) if wrap else app, rounds=3)
    assert [sorted(r.evaluate) for r in result.history] == [list(range(N))] * 3
    assert not [r.events for r in result.history if r.events]
    _, inside = run(decentralize(numpy_app(N, D, mods=[consensus_mod])), rounds=3)
    assert [sorted(r.evaluate) for r in inside.history] == [list(range(N))] * 3


def test_an_app_that_cannot_evaluate_says_so_and_trains() -> None:
    app = ClientApp(mods=[consensus_mod])

    @app.train()
    def train(message: Message, context: Context) -> Message:
        content = {"arrays": message.content["arrays"], "m": MetricRecord({"num-examples": 1})}
        return Message(RecordDict(content), reply_to=message)

    _, result = run(app, rounds=4)
    assert [record.missing for record in result.history] == [[]] * 4
    assert "the app has no evaluate function" in result.history[0].grouped_events[0][1]
    assert any("no agent could evaluate its model" in text for text in result.warnings)


def test_a_subclass_with_evaluations_of_its_own_has_them_by_themselves() -> None:
    class Own(ServerlessStrategy):
        def aggregate_evaluate(self, server_round: int, replies: Any) -> Any:
            super().aggregate_evaluate(server_round, replies)
            return MetricRecord({"only": server_round})

    grid = LocalGrid(numpy_app(N, D, mods=[consensus_mod]), N)
    result = Own(GRAPH, join_evaluation=True).start(grid, start_arrays(D)[0], 3)
    assert result.evaluate_metrics_clientapp[2]["only"] == 2
    assert asked(grid)["evaluate", "2"] == N


def test_only_deployments_join_evaluations_unless_asked() -> None:
    assert is_deployed(HttpGrid.__new__(HttpGrid))
    assert not is_deployed(InMemoryGrid.__new__(InMemoryGrid))
    grid, _ = run(join_evaluation=None)
    assert asked(grid)["evaluate", "1"] == N
