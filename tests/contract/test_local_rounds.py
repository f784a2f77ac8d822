"""Rounds without an exchange cost no message of their own, and nothing else is different.

Beside each run stands one whose strategy has a `configure_train` of its own, for which each round
has its own messages: both must have the same models, metrics and history, to the bit.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from support.apps import flat, numpy_app, quadratic, quadratic_step, start_arrays
from support.dying import DyingGrid, Killed
from support.grid import LocalGrid
from support.meshes import write_keys

from flower_dhb import (
    Algorithm,
    HeavyBall,
    RoundError,
    SafeguardedHeavyBall,
    ServerlessStrategy,
    Topology,
    consensus_mod,
)
from flower_dhb.algorithms import DSGD
from flower_dhb.metrics import RoundRecord
from flower_dhb.peer.mesh.certificates import Authority

N, D, ROUNDS, EVERY = 5, 6, 11, 4
STAR = Topology.star(N)

pytestmark = [pytest.mark.thorough, pytest.mark.usefixtures("unforced")]


class RoundByRound(ServerlessStrategy):
    """Each round has messages of its own, since the strategy has something to say about them."""

    def configure_train(self, *arguments: Any, **named: Any) -> list[Message]:
        return super().configure_train(*arguments, **named)


def app(rate: float = 0.05) -> ClientApp:
    """Halves its learning rate by the round that it is told."""
    curvature, center = quadratic(N, D)
    made = ClientApp(mods=[consensus_mod])

    @made.train()
    def train(message: Message, context: Context) -> Message:
        i, k = int(context.node_config["partition-id"]), message.content["config"]["server-round"]
        head, tail = message.content["arrays"].to_numpy_ndarrays()
        x = np.concatenate([head.ravel(), tail.ravel()])
        z = quadratic_step(x, curvature[i], center[i], rate * 0.9 ** int(k))
        records = {
            "arrays": ArrayRecord([z[:2].reshape(head.shape), z[2:]]),
            "metrics": MetricRecord({"loss": float(x @ x), "num-examples": i + 1, "told": int(k)}),
            "more": MetricRecord({"curve": [0.5, 1.5]}),
        }
        return Message(RecordDict(records), reply_to=message)

    @made.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        x = flat(message.content["arrays"])
        metrics = {
            "norm": float(x @ x),
            "num-examples": 3,
            "of": int(message.content["config"]["server-round"]),
        }
        return Message(RecordDict({"metrics": MetricRecord(metrics)}), reply_to=message)

    return made


def run(
    kind: type[ServerlessStrategy] = ServerlessStrategy,
    rule: Algorithm | None = None,
    *,
    rounds: int = ROUNDS,
    grid: LocalGrid | None = None,
    evaluate_fn: Any = None,
    **options: Any,
) -> tuple[LocalGrid, Any, ServerlessStrategy]:
    settings = {"share_every": EVERY, "collect_models": True, **options}
    strategy = kind(STAR, rule or HeavyBall(momentum=0.3), **settings)
    grid = LocalGrid(app(), N) if grid is None else grid
    result = strategy.start(grid, start_arrays(D)[0], rounds, evaluate_fn=evaluate_fn)
    return grid, result, strategy


def told(result: Any) -> list[dict[str, Any]]:
    """The history, but for what a clock says."""
    return [{**record.to_dict(), "seconds": 0.0, "profile": {}} for record in result.history]


def same(result: Any, expected: Any) -> None:
    for v in range(N):
        np.testing.assert_array_equal(flat(result.models[v]), flat(expected.models[v]))
    for name in ("train_metrics_clientapp", "evaluate_metrics_clientapp"):
        found, wanted = getattr(result, name), getattr(expected, name)
        assert {k: dict(m) for k, m in found.items()} == {k: dict(m) for k, m in wanted.items()}
    assert told(result) == told(expected)
    assert result.warnings == expected.warnings


def train_messages(grid: LocalGrid) -> list[int]:
    """The rounds for which agent 0 got a message to train."""
    return [
        int(message.metadata.group_id)
        for vertex, message in grid.messages
        if vertex == 0
        and message.metadata.message_type == "train"
        and message.metadata.group_id
        # The models at the end are asked for in a `train` message, too.
        and '"ask": "train"' in str(message.content["flower_dhb"]["json"])
    ]


TRACKING = HeavyBall(momentum=0.3, form="tracking")


def named(value: Any) -> str:
    """A rule by its name, options by theirs: what a function prints as differs in each process."""
    return " ".join(value) or "usual" if isinstance(value, dict) else str(value.name)


@pytest.mark.parametrize(
    ("rule", "options"),
    [
        (TRACKING, {}),
        (TRACKING, {"evaluate_every": 3, "fraction_evaluate": 0.5}),
        (DSGD(), {"join_evaluation": True}),
        (TRACKING, {"join_evaluation": True, "evaluate_every": 5}),
        (SafeguardedHeavyBall(), {"evaluate_every": 0}),
        (SafeguardedHeavyBall(), {"compression": "int8"}),
        (TRACKING, {"compression": "topk:0.5"}),
        (DSGD(), {"measure_consensus": False}),
        (
            DSGD(),
            {"train_metrics_aggr_fn": lambda m, key: MetricRecord({"n": len(m), "k": len(key)})},
        ),
    ],
    ids=named,
)
def test_one_message_for_each_exchange_and_the_same_run_to_the_bit(
    rule: Algorithm, options: dict[str, Any]
) -> None:
    grid, result, _ = run(rule=rule, **options)
    before, expected, _ = run(RoundByRound, rule, **options)
    assert train_messages(grid) == [4, 8, 11]
    assert train_messages(before) == list(range(1, ROUNDS + 1))
    same(result, expected)
    assert [record.round for record in result.history] == list(range(1, ROUNDS + 1))
    assert all(record.train.keys() == set(range(N)) for record in result.history)
    for record in result.history:
        assert record.train[0]["told"] == record.round
        if record.evaluate:
            assert next(iter(record.evaluate.values()))["of"] == record.round
        if record.profile:
            assert sum(record.profile.values()) == pytest.approx(record.seconds)


@pytest.mark.parametrize(
    ("options", "messages"),
    [
        ({"join_evaluation": False, "evaluate_every": 3}, [3, 4, 6, 8, 9, 11]),
        ({"evaluate_every": 3, "evaluate_fn": lambda k, arrays: None}, [3, 4, 6, 8, 9, 11]),
        ({"share_every": 1}, list(range(1, ROUNDS + 1))),
    ],
    ids=["evaluations of their own", "an observer", "each round"],
)
def test_who_waits_for_a_round_has_it_in_messages_of_its_own(
    options: dict[str, Any], messages: list[int]
) -> None:
    grid, result, _ = run(**options)
    _, expected, _ = run(RoundByRound, **options)
    assert train_messages(grid) == messages
    same(result, expected)


@pytest.mark.parametrize("options", [{}, {"compression": "topk:0.5"}], ids=named)
def test_sealed_payloads_are_those_of_the_same_run(tmp_path: Path, options: dict[str, Any]) -> None:
    homes = write_keys(Authority.create("m1", 30), tmp_path, N)

    def states(kind: type[ServerlessStrategy], encryption: str) -> list[dict[str, Any]]:
        node = {i: {"partition-id": i, "mesh": str(homes[i])} for i in range(N)}
        grid = LocalGrid(app(), N, node_config=node.__getitem__)
        hidden = {"encryption": encryption, "collect_models": False, "average": False}
        _, result, _ = run(kind, TRACKING, grid=grid, **hidden, **options)
        assert not any(record.missing for record in result.history)
        kept = [grid.contexts[grid.node_of(v)].state["flower_dhb.state"] for v in range(N)]
        return [{name: array.data for name, array in each.items()} for each in kept]

    sealed = states(ServerlessStrategy, "neighbors")
    assert sealed == states(ServerlessStrategy, "none") == states(RoundByRound, "neighbors")


def test_an_app_that_fails_in_a_round_costs_that_round_and_no_other() -> None:
    inner = app()

    def failing(message: Message, context: Context, call_next: Any) -> Message:
        reply = call_next(message, context)
        who, k = context.node_config["partition-id"], message.content["config"]["server-round"]
        if who == 2 and k in (2, 4, 7):
            raise ZeroDivisionError("no data today")
        return reply

    def grid() -> LocalGrid:
        outer = ClientApp(mods=[consensus_mod, failing])

        @outer.train()
        def train(message: Message, context: Context) -> Message:
            return inner._registered_funcs["train.default"](message, context)

        return LocalGrid(outer, N)

    _, result, _ = run(grid=grid(), evaluate_every=0)
    _, expected, _ = run(RoundByRound, grid=grid(), evaluate_every=0)
    assert {r.round: r.missing for r in result.history if r.missing} == {2: [2], 4: [2], 7: [2]}
    assert "no data today" in str(result.history[1].events)
    same(result, expected)


def test_all_agents_that_fail_alike_in_round_1_end_the_run() -> None:
    broken = ClientApp(mods=[consensus_mod])

    @broken.train()
    def train(message: Message, context: Context) -> Message:
        raise KeyError("no such column")

    with pytest.raises(RoundError, match="in round 1 every agent that answered failed"):
        run(grid=LocalGrid(broken, N), evaluate_every=0)


def test_an_agent_that_is_late_or_gone_misses_all_rounds_of_its_message() -> None:
    def intercept(vertex: int, message: Message) -> Exception | None:
        lost = vertex == 3 and message.metadata.group_id == "8"
        return ConnectionError("gone") if lost else None

    _, result, _ = run(grid=LocalGrid(app(), N, intercept=intercept), evaluate_every=0)
    missing = {r.round: r.missing for r in result.history if r.missing}
    assert missing == {k: [3] for k in range(5, 9)}
    assert all("events of round 8" in str(r.events) for r in result.history[4:7])
    assert "gone" in str(result.history[7].events)


def test_on_round_ends_the_run_with_the_rounds_that_are_trained() -> None:
    seen = []

    def second(record: RoundRecord) -> bool:
        seen.append(record.round)
        return record.round == 6

    _, result, _ = run(on_round=second)
    assert seen == list(range(1, 9))
    assert [record.round for record in result.history] == seen
    assert result.history[-1].evaluate

    def fails(record: RoundRecord) -> None:
        if record.round == 6:
            raise OSError("no disk")

    strategy = ServerlessStrategy(
        STAR, HeavyBall(momentum=0.3), share_every=EVERY, on_round=fails, collect_models=True
    )
    with pytest.raises(OSError, match="no disk"):
        strategy.start(LocalGrid(app(), N), start_arrays(D)[0], ROUNDS)
    assert [record.round for record in strategy.result.history] == list(range(1, 9))
    assert set(strategy.result.models) == set(range(N))  # of the round that they have reached


def dying_grid(folder: Path, dies_at: int | None = None) -> DyingGrid:
    """Of agents that keep their state in a folder."""
    where = {"state-dir": str(folder)}
    return DyingGrid(app(), N, node_config=lambda i: {"partition-id": i, **where}, dies_at=dies_at)


@pytest.mark.parametrize(
    "options",
    [
        {"evaluate_every": 2},
        {"evaluate_every": 1, "join_evaluation": True},
        {"evaluate_every": 3, "join_evaluation": True, "compression": "topk:0.5"},
    ],
    ids=str,
)
def test_a_serverapp_that_dies_anywhere_changes_no_bit(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    rule = HeavyBall(momentum=0.3, form="tracking")
    whole = dying_grid(tmp_path / "whole")
    _, expected, _ = run(rule=rule, grid=whole, **options)
    heard: list[int] = []
    last = whole.calls - 2  # then the agents remove their files: there is no way back from here
    for n in range(1, last + 1):
        here = tmp_path / str(n)
        kept = {"checkpoint": here / "run", "on_round": lambda r: heard.append(r.round)}
        heard.clear()
        with pytest.raises(Killed):
            run(rule=rule, grid=dying_grid(here / "agents", n), **kept, **options)
        goes_on = (here / "run" / "mailboxes.safetensors").exists()
        _, result, _ = run(rule=rule, grid=dying_grid(here / "agents"), **kept, **options)
        same(result, expected)
        assert heard == list(range(1, ROUNDS + 1))  # of each round once
        if goes_on:  # otherwise files of a run that was never heard of again are left for a day
            assert not list((here / "agents").iterdir())


@pytest.mark.parametrize("at", [1, 2, 3, 4, 5, 6, 7, 8])
def test_a_serverapp_that_dies_while_it_tells_of_the_rounds_tells_each_once(
    tmp_path: Path, at: int
) -> None:
    _, expected, _ = run(grid=dying_grid(tmp_path / "whole"))
    heard = []

    def die(record: RoundRecord) -> None:
        heard.append(record.round)
        if record.round == at and heard.count(at) == 1:
            raise Killed

    made = {"checkpoint": tmp_path / "run", "on_round": die}
    with pytest.raises(Killed):
        run(grid=dying_grid(tmp_path / "agents"), **made)
    _, result, _ = run(grid=dying_grid(tmp_path / "agents"), **made)
    same(result, expected)
    assert heard == list(range(1, ROUNDS + 1))


def test_an_agent_that_dies_among_the_rounds_goes_on_from_the_last_that_it_has_trained(
    tmp_path: Path,
) -> None:
    """And the same message once more, as Flower may hand it out, trains the others only."""
    trained: list[tuple[int, int]] = []
    inner = numpy_app(N, D)
    dies = {(1, 7)}

    def mod(message: Message, context: Context, call_next: Any) -> Message:
        k = int(message.content["config"]["server-round"])
        who = (int(context.node_config["partition-id"]), k)
        if message.metadata.message_type == "train":
            trained.append(who)
            if who in dies:
                dies.remove(who)
                raise Killed
        return call_next(message, context)

    made = ClientApp(mods=[consensus_mod, mod])

    @made.train()
    def train(message: Message, context: Context) -> Message:
        return inner(message, context)

    class Again(LocalGrid):
        def _execute(self, message: Message) -> Message:
            try:
                return super()._execute(message)
            except Killed:
                return super()._execute(message)

    where = {"state-dir": str(tmp_path)}
    grid = Again(made, N, node_config=lambda i: {"partition-id": i, **where})
    _, result, _ = run(grid=grid, evaluate_every=0)
    plain = LocalGrid(numpy_app(N, D, mods=[consensus_mod]), N)
    _, expected, _ = run(RoundByRound, grid=plain, evaluate_every=0)
    assert [k for v, k in trained if v == 1] == [1, 2, 3, 4, 5, 6, 7, 7, 8, 9, 10, 11]
    for v in range(N):
        np.testing.assert_array_equal(flat(result.models[v]), flat(expected.models[v]))
    assert not any(record.missing for record in result.history)


def test_the_deadline_is_that_of_all_rounds_of_a_message() -> None:
    """So is the patience with an answer that does not come: it counts messages, not rounds."""

    def held(vertex: int, message: Message) -> int:
        return LocalGrid.LATE if (vertex, message.metadata.group_id) == (2, "4") else 0

    def breathe(record: RoundRecord) -> None:
        if record.round == 4:
            time.sleep(0.3)  # more than three times as long as a message may take

    grid = LocalGrid(app(), N, hold_reply=held)
    options = {"evaluate_every": 0, "round_timeout_s": 0.02, "on_round": breathe}
    _, result, _ = run(grid=grid, rounds=16, **options)
    assert "no answer to 'train' within 0.08 s" in str(result.history[3].events)
    asked = [
        int(m.metadata.group_id)
        for v, m in grid.messages
        if v == 2 and '"ask": "train"' in str(m.content["flower_dhb"]["json"])
    ]
    assert asked == [4, 16]  # three messages later it counts as lost
