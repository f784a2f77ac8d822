"""Apps that treat `context.state` as their own: the agent's state is kept beside it."""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg
from support.apps import flat, numpy_app, quadratic, quadratic_step, start_arrays
from support.grid import LocalGrid
from support.law import trajectory

from flower_dhb import HeavyBall, ServerlessStrategy, Topology, consensus_mod, decentralize
from flower_dhb.flower import mod

N, D, ROUNDS, RATE = 4, 4, 6, 0.05
GRAPH = Topology.star(N)

Treat = Callable[[Context], None]


def count(context: Context) -> None:
    """What apps do by the book: keep a counter in the state."""
    record = context.state.get("mine", MetricRecord({"calls": 0}))
    assert isinstance(record, MetricRecord)
    context.state["mine"] = MetricRecord({"calls": int(record["calls"]) + 1})  # type: ignore[call-overload]


def assign(context: Context) -> None:
    count(context)
    context.state = RecordDict({"mine": context.state["mine"]})


def clear(context: Context) -> None:
    record = context.state.get("mine")
    context.state.clear()
    if record is not None:
        context.state["mine"] = record
    count(context)


def copy(context: Context) -> None:
    count(context)
    context.state = RecordDict(dict(context.state.items()))


def assign_and_raise(context: Context) -> None:
    assign(context)
    calls = context.state["mine"]["calls"]
    if calls == 3:
        raise ValueError("after the state was replaced")


def treated(treat: Treat) -> ClientApp:
    """The NumPy app with a mod inside ours, which is as much the app as its train function."""

    def inside(message: Message, context: Context, call_next):
        seen.append(sorted(context.state))
        reply = call_next(message, context)
        treat(context)
        return reply

    seen: list[list[str]] = []
    app = numpy_app(N, D, rate=RATE, mods=[consensus_mod, inside])
    app.seen = seen  # type: ignore[attr-defined]
    return app


def law(**away: dict[int, set[int]]) -> np.ndarray:
    curvature, center = quadratic(N, D)
    step = lambda x, _: quadratic_step(x, curvature, center, RATE)  # noqa: E731
    return trajectory(HeavyBall(), GRAPH, start_arrays(D)[1], step, ROUNDS, **away)[-1]


def start(grid: LocalGrid, **options: object):
    strategy = ServerlessStrategy(GRAPH, HeavyBall(), collect_models=True, **options)  # type: ignore[arg-type]
    return strategy.start(grid, start_arrays(D)[0], ROUNDS)


@pytest.mark.parametrize("treat", [count, assign, clear, copy])
@pytest.mark.parametrize("in_files", [False, True])
def test_whatever_the_app_makes_of_its_state_the_momentum_is_kept(
    treat: Treat, in_files: bool, tmp_path
) -> None:
    config = {"state-dir": str(tmp_path)} if in_files else {}
    app = treated(treat)
    grid = LocalGrid(app, N, node_config=lambda i: {"partition-id": i, **config})
    result = start(grid, evaluate_every=2)
    found = np.stack([flat(result.models[i]) for i in range(N)])
    np.testing.assert_allclose(found, law(), rtol=0, atol=1e-13)
    assert all(r.events == [] and r.rejoined == [] for r in result.history)
    for context in grid.contexts.values():
        # Six times trained, and evaluated in rounds 2, 4 and 6.
        assert context.state.metric_records["mine"]["calls"] == ROUNDS + 3
    assert {name for names in app.seen for name in names} <= {"mine"}, "ours are out of sight"  # type: ignore[attr-defined]


def test_an_app_that_raises_after_replacing_its_state_loses_the_round_alone() -> None:
    result = start(LocalGrid(treated(assign_and_raise), N), evaluate_every=0)
    assert [r.missing for r in result.history] == [[], [], list(range(N)), [], [], []]
    found = np.stack([flat(result.models[i]) for i in range(N)])
    everybody = {3: set(range(N))}
    np.testing.assert_allclose(found, law(frozen=everybody), rtol=0, atol=1e-13)
    assert all(r.rejoined == [] for r in result.history)


@pytest.mark.parametrize("value", [None, {}, [1]])
def test_a_state_that_is_no_record_is_refused_and_the_old_one_stays(value: object) -> None:
    def spoil(context: Context) -> None:
        count(context)
        if context.state.metric_records["mine"]["calls"] == 3:
            context.state = value  # type: ignore[assignment]

    grid = LocalGrid(treated(spoil), N)
    result = start(grid, evaluate_every=0)
    assert [r.missing for r in result.history] == [[], [], list(range(N)), [], [], []]
    assert (
        f"the app set context.state to {value!r}, expected a RecordDict"
        in (result.history[2].events[0][1])
    )
    found = np.stack([flat(result.models[i]) for i in range(N)])
    np.testing.assert_allclose(found, law(frozen={3: set(range(N))}), rtol=0, atol=1e-13)
    for context in grid.contexts.values():
        assert context.state.metric_records["mine"]["calls"] == ROUNDS


def test_metrics_under_our_own_keys_do_not_hide_the_answer() -> None:
    def rename(message: Message, context: Context, call_next):
        reply = call_next(message, context)
        for key in ("flower_dhb", "flower_dhb.payload"):
            reply.content[key] = MetricRecord({"stray": 1.0})
        return reply

    app = numpy_app(N, D, rate=RATE, mods=[consensus_mod, rename])
    result = start(LocalGrid(app, N), evaluate_every=0)
    assert all(r.missing == [] and r.events == [] for r in result.history)
    found = np.stack([flat(result.models[i]) for i in range(N)])
    np.testing.assert_allclose(found, law(), rtol=0, atol=1e-13)


# --- under another strategy ---------------------------------------------------------


@pytest.fixture
def warned(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the mod logs; a new process has told nothing yet."""
    lines: list[str] = []
    monkeypatch.setattr(mod, "_told", set())
    monkeypatch.setattr(
        mod,
        "log",
        lambda level, text, *a: lines.append(text % a) if level == logging.WARNING else 0,
    )
    return lines


def fedavg(app: ClientApp, rounds: int = 2) -> LocalGrid:
    grid = LocalGrid(app, N)
    result = FedAvg(min_available_nodes=N).start(grid, start_arrays(D)[0], rounds)
    assert len(result.arrays) == 2
    assert "train_loss" in result.train_metrics_clientapp[rounds]
    return grid


def test_under_fedavg_the_mod_says_once_that_the_run_is_not_decentralized(
    warned: list[str],
) -> None:
    grid = fedavg(treated(assign))
    (line,) = warned
    assert "this run is not decentralized" in line
    assert "Use ServerlessStrategy in the ServerApp, or take consensus_mod out" in line
    # Each message may come to a new process: the context remembers.
    mod._told.clear()
    message = next(m for _, m in grid.messages if m.metadata.message_type == "train")
    for node, context in grid.contexts.items():
        grid.app_of(grid.vertex_of[node])(message, context)
    assert len(warned) == 1
    fedavg(treated(count), 1)
    assert len(warned) == 2, "another run is told of, too"


def test_a_decentralized_run_says_nothing_of_the_kind(warned: list[str]) -> None:
    start(LocalGrid(decentralize(treated(count)), N))  # the mod is inside once more
    assert warned == []


def test_an_app_under_another_strategy_sees_what_it_always_saw(warned: list[str]) -> None:
    seen = []

    def inside(message: Message, context: Context, call_next):
        seen.append((sorted(message.content), sorted(context.state)))
        return call_next(message, context)

    fedavg(numpy_app(N, D, mods=[consensus_mod, inside]))
    assert {tuple(state) for _, state in seen} == {()}
    assert {tuple(content) for content, _ in seen} == {("arrays", "config")}


def test_an_app_may_answer_with_records_of_any_kind() -> None:
    def more(message: Message, context: Context, call_next):
        reply = call_next(message, context)
        reply.content["notes"] = ConfigRecord({"said": "hello", "blob": b"\x00"})
        return reply

    app = numpy_app(N, D, rate=RATE, mods=[consensus_mod, more])
    grid = LocalGrid(app, N)
    start(grid, evaluate_every=0)
    for _, reply in grid.replies:
        assert "notes" not in reply.content, "only metrics and payloads cross the relay"
    assert ArrayRecord not in {type(r) for r in grid.replies[0][1].content.values()}
