"""How a run ends: as planned, early because its user says so, or with an error that is told."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from support.apps import flat, numpy_app, start_arrays
from support.grid import LocalGrid

from flower_dhb import DSGD, ConfigError, RoundError, ServerlessStrategy, Topology, consensus_mod
from flower_dhb.flower.failures import Failure, Failures

pytestmark = pytest.mark.thorough

N, D = 6, 4
GRAPH = Topology.from_edges([(0, 1), (0, 2), (0, 3), (3, 4), (4, 5)])


def failing(how) -> ClientApp:
    """The NumPy app; `how(vertex, round)` may raise, or return what to send in its place."""

    def spoil(message: Message, context, call_next):
        vertex = int(context.node_config["partition-id"])
        number = int(message.content.config_records["config"]["server-round"])
        reply = call_next(message, context)
        if message.metadata.message_type == "train":
            records = how(vertex, number, reply)
            if records is not None:
                return Message(records, reply_to=message)
        return reply

    return numpy_app(N, D, mods=[consensus_mod, spoil])


def start(app: ClientApp | None = None, rounds: int = 8, grid: LocalGrid | None = None, **options):
    strategy = ServerlessStrategy(GRAPH, DSGD(), collect_models=True, **options)
    grid = grid or LocalGrid(app or numpy_app(N, D, mods=[consensus_mod]), N)
    return strategy, lambda **kw: strategy.start(grid, start_arrays(D)[0], rounds, **kw)


# --- early, because the user says so -------------------------------------------------------


@pytest.mark.parametrize("evaluate_every", [0, 1, 5])
@pytest.mark.parametrize("answer", [True, np.True_])
def test_on_round_ends_the_run_with_its_results(evaluate_every: int, answer: object) -> None:
    options = {"evaluate_every": evaluate_every}
    _, go = start(on_round=lambda record: answer if record.round == 3 else False, **options)
    stopped = go()
    _, go = start(rounds=3, **options)
    whole = go()
    assert [record.round for record in stopped.history] == [1, 2, 3]
    assert sorted(stopped.models) == list(range(N))
    assert np.array_equal(flat(stopped.arrays), flat(whole.arrays))
    assert set(stopped.train_metrics_clientapp) == {1, 2, 3}


@pytest.mark.parametrize("answer", [None, False, np.False_, 1, "yes", [0]])
def test_on_round_goes_on_unless_it_says_true(answer: object) -> None:
    """A callback such as `rows.append` or a lambda returns whatever it returns."""
    _, go = start(rounds=3, on_round=lambda record: answer)
    assert len(go().history) == 3


def test_early_stopping_on_a_metric() -> None:
    """The example of the docs: stop once the worst agent has not improved for two rounds."""
    best, waited = float("inf"), 0

    def patience(record) -> bool:
        nonlocal best, waited
        norm = record.evaluate_summary["norm"].mean
        best, waited = (norm, 0) if norm < best else (best, waited + 1)
        return waited == 2

    _, go = start(rounds=40, on_round=patience, measure_consensus=False)
    history = go().history
    norms = [record.evaluate_summary["norm"].mean for record in history]
    assert len(history) < 40
    assert min(norms) == norms[-3]


# --- an error in the user's own code ----------------------------------------------------------


@pytest.mark.parametrize("kind", [ZeroDivisionError, KeyboardInterrupt])
@pytest.mark.parametrize("where", ["on_round", "evaluate_fn"])
def test_what_there_is_by_then_is_kept(kind: type[BaseException], where: str) -> None:
    def raise_in_round_3(k: int) -> None:
        if k == 3:
            raise kind("mine")

    observe = None
    options = {"on_round": lambda record: raise_in_round_3(record.round)}
    if where == "evaluate_fn":
        options, observe = {}, lambda k, arrays: raise_in_round_3(k)
    strategy, go = start(**options)
    with pytest.raises(kind) as caught:
        go(evaluate_fn=observe)
    kept = strategy.result
    assert [record.round for record in kept.history] == [1, 2, 3]
    assert set(kept.evaluate_metrics_clientapp) == {1, 2, 3}
    assert kept.history[2].consensus_distance > 0
    # Ctrl-C waits for nobody: there is an average then if one was formed to be observed.
    assert kept.has_arrays == (kind is ZeroDivisionError or where == "evaluate_fn")
    if kept.has_arrays:
        _, go = start(rounds=3)
        assert np.array_equal(flat(kept.arrays), flat(go().arrays))
    (note,) = caught.value.__notes__
    assert note.startswith("3 rounds are kept in strategy.result")
    assert len(kept.models) == (0 if kind is KeyboardInterrupt else N)


def test_models_are_collected_even_where_nothing_was_evaluated() -> None:
    def end(record) -> None:
        if record.round == 2:
            raise ValueError("mine")

    strategy, go = start(evaluate_every=0, on_round=end)
    with pytest.raises(ValueError, match="mine"):
        go()
    _, go = start(rounds=2)
    assert np.array_equal(flat(strategy.result.arrays), flat(go().arrays))


def test_an_error_before_any_round_leaves_a_result_that_says_so() -> None:
    def observe(k: int, arrays: ArrayRecord) -> None:
        raise ValueError("mine")

    strategy, go = start()
    with pytest.raises(ValueError, match="mine"):
        go(evaluate_fn=observe)
    assert strategy.result.history == []
    with pytest.raises(RoundError, match=r"ended with an error in round 0: ValueError\('mine'\)"):
        _ = strategy.result.arrays


def test_a_strategy_can_be_started_again_after_an_error() -> None:
    errors = [ValueError("mine")]

    def once(record) -> None:
        if errors:
            raise errors.pop()

    _, go = start(rounds=2, on_round=once)
    with pytest.raises(ValueError, match="mine"):
        go()
    assert len(go().history) == 2


# --- an app that fails in all agents ----------------------------------------------------------


def test_an_app_that_fails_everywhere_in_the_same_way_ends_the_run_at_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("flwr"), "propagate", True)

    def missing(vertex, round, reply):
        raise ModuleNotFoundError(f"No module named 'sonnet' (looked for {vertex} s)")

    strategy, go = start(failing(missing))
    with caplog.at_level(logging.WARNING, "flwr"), pytest.raises(RoundError) as caught:
        go()
    text = str(caught.value)
    first, second, *rest = text.splitlines()
    assert first.startswith("install what is missing where the agents run")
    assert "in round 1 every agent that answered failed" in first
    assert second.startswith(f"agents 0 to {N - 1}, in the same way: ModuleNotFoundError: No mod")
    assert rest[0] == "Traceback (most recent call last):"
    assert "in missing" in text, "in full"
    assert text.count("sonnet") == 3, "the line of the event, the source line, and the error"
    assert strategy.result.history == []
    with pytest.raises(RoundError, match="the run ended with an error in round 1"):
        _ = strategy.result.arrays


def test_two_array_records_in_all_agents() -> None:
    def two(vertex, round, reply):
        return RecordDict({**reply.content, "more": reply.content["arrays"]})

    _, go = start(failing(two))
    with pytest.raises(RoundError, match=r"^let the app's train return one ArrayRecord, and one"):
        go()


def test_all_but_the_absent_fail() -> None:
    """Two of six agents do not answer; the others fail alike: enough to know."""

    def broken(vertex, round, reply):
        raise ValueError("broken")

    app = failing(broken)
    grid = LocalGrid(app, N, hold=lambda v, m: 10**6 * (v < 2 and m.metadata.group_id == "1"))
    _, go = start(grid=grid, round_timeout_s=0.02)
    with pytest.raises(RoundError, match="agents 2 to 5, in the same way: ValueError: broken"):
        go()


def test_a_run_goes_on_if_one_agent_trains() -> None:
    def all_but_5(vertex, round, reply):
        if vertex != 5:
            raise ValueError("broken")

    _, go = start(failing(all_but_5), rounds=5)
    result = go()
    assert [record.missing for record in result.history] == [[0, 1, 2, 3, 4]] * 5
    assert result.history[0].grouped_events == [([0, 1, 2, 3, 4], "ValueError: broken")]


def test_different_failures_of_all_agents_end_it_after_three_rounds() -> None:
    kinds = [ValueError, TypeError, KeyError, OSError, IndexError, RuntimeError]

    def different(vertex, round, reply):
        if round != 2:
            raise kinds[vertex]("broken")

    strategy, go = start(failing(different))
    with pytest.raises(RoundError, match="in rounds 3 to 5 every agent that answered") as caught:
        go()
    assert str(caught.value).count("Traceback") == N, "each way once"
    assert [record.round for record in strategy.result.history] == [1, 2, 3, 4]


def test_a_run_that_diverges_everywhere_ends_and_keeps_its_models() -> None:
    def diverge(vertex, round, reply):
        if round >= 3:
            bad = [np.full_like(a, np.nan) for a in reply.content["arrays"].to_numpy_ndarrays()]
            return RecordDict({**reply.content, "arrays": ArrayRecord(bad)})
        return None

    strategy, go = start(failing(diverge))
    with pytest.raises(RoundError, match=r"^take a smaller learning rate in the app: in rounds 3 "):
        go()
    assert np.isfinite(flat(strategy.result.arrays)).all()


def test_a_run_in_which_nobody_ever_trains_is_no_success() -> None:
    grid = LocalGrid(
        numpy_app(N, D, mods=[consensus_mod]),
        N,
        hold=lambda v, m: 10**6 if m.metadata.group_id else 0,
    )
    strategy, go = start(grid=grid, rounds=2, round_timeout_s=0.02)
    with pytest.raises(RoundError, match=r"no agent trained in any round.*longer round_timeout_s"):
        go()
    assert len(strategy.result.history) == 2


def test_rounds_do_not_fly_by_while_all_agents_are_busy() -> None:
    """All agents need longer than a deadline for their first round: the second waits for them."""
    over: list[int] = []
    pulls: list[int] = []

    def slow(vertex: int, message: Message) -> int:
        return 10**6 if message.metadata.group_id == "1" else 0

    grid = LocalGrid(numpy_app(N, D, mods=[consensus_mod]), N, hold=slow)
    pull = grid.pull_messages

    def release(ids):
        if over:
            pulls.append(1)
        if len(pulls) == 3:  # while the second round waits
            grid._queue = {i: (m, 0) for i, (m, _) in grid._queue.items()}
        return pull(ids)

    grid.pull_messages = release
    _, go = start(
        grid=grid,
        rounds=4,
        round_timeout_s=0.2,
        evaluate_every=0,
        on_round=lambda record: over.append(record.round),
    )
    result = go()
    assert result.history[0].missing == list(range(N))
    late = [text for text in (t for _, t in result.history[1].grouped_events) if "late" in text]
    assert late == ["late answer to 'train' of round 1"]


def test_rounds_do_not_fly_by_while_nobody_is_connected() -> None:
    grid = LocalGrid(numpy_app(N, D, mods=[consensus_mod]), N)
    nodes, calls = dict(grid.vertex_of), []

    def away(record) -> None:
        if record.round == 2:
            grid.get_node_ids = lambda: calls.append(1) or (nodes if len(calls) > 3 else [])

    _, go = start(grid=grid, rounds=4, round_timeout_s=5.0, evaluate_every=0, on_round=away)
    result = go()
    assert [record.missing for record in result.history] == [[]] * 4


# --- weights --------------------------------------------------------------------------------


def without_weight(who) -> ClientApp:
    def strip(vertex, round, reply):
        if not who(vertex, round):
            return None
        metrics = MetricRecord({"train_loss": 1.0})
        return RecordDict({"arrays": reply.content["arrays"], "metrics": metrics})

    return failing(strip)


def test_agents_that_lack_their_weight_in_round_1_end_the_run_with_the_remedy() -> None:
    _, go = start(without_weight(lambda v, k: True))
    with pytest.raises(
        ConfigError, match=r"no agent's metrics hold 'num-examples'.*weighted_by_ke"
    ):
        go()


def test_later_and_by_a_minority_it_is_an_event() -> None:
    app = without_weight(lambda v, k: k == 3 or (k == 1 and v == 2))
    _, go = start(app, rounds=4)
    result = go()
    assert len(result.history) == 4
    lacking = "metrics lack 'num-examples', left out of the mean"
    assert result.history[0].grouped_events == [([2], lacking)]
    assert result.history[2].grouped_events == [
        (list(range(N)), lacking),
        ([0], "no agent has a 'num-examples' above 0, so all count alike"),
    ]
    assert result.train_metrics_clientapp[3]["train_loss"] == pytest.approx(1.0)


def test_the_only_agent_that_reports_lacks_it() -> None:
    def only_2(vertex, round, reply):
        if vertex != 2:
            raise ValueError("broken")
        return RecordDict({"arrays": reply.content["arrays"], "m": MetricRecord({"loss": 4.0})})

    _, go = start(failing(only_2), rounds=2)
    assert go().train_metrics_clientapp[1]["loss"] == 4.0


# --- the log ----------------------------------------------------------------------------------


def test_equal_events_of_many_agents_are_one_line(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("flwr"), "propagate", True)

    def broken(vertex, round, reply):
        if round == 2 and vertex in (0, 2, 5):
            raise ValueError("broken")

    _, go = start(failing(broken), rounds=3)
    with caplog.at_level(logging.WARNING, "flwr"):
        go()
    told = [r.getMessage() for r in caplog.records if r.getMessage().startswith("round 2, ")]
    assert told == ["round 2, agents 0, 2 and 5: ValueError: broken"]


# --- late is not failed -------------------------------------------------------------------------


def test_rounds_in_which_all_are_late_are_no_failures() -> None:
    watch, failed = Failures(4), {v: Failure("ValueError: broken") for v in range(4)}
    watch.look(1, {0}, {})
    for k in range(2, 20):
        watch.look(k, set(), {})
    for k, failures in ((20, failed), (21, failed), (22, {}), (23, failed), (24, failed)):
        watch.look(k, set(), failures)
    watch.end()
    with pytest.raises(RoundError, match="in rounds 23 to 25 every agent that answered failed"):
        watch.look(25, set(), failed)


def test_nodes_that_are_gone_in_round_1_may_come_back() -> None:
    def gone(vertex: int, message: Message) -> Exception | None:
        if message.metadata.group_id != "1":
            return None
        error = ConnectionError("node unavailable")
        error.code = ErrorCode.NODE_UNAVAILABLE  # type: ignore[attr-defined]
        return error

    grid = LocalGrid(numpy_app(N, D, mods=[consensus_mod]), N, intercept=gone)
    _, go = start(grid=grid, rounds=3)
    assert [record.missing for record in go().history] == [list(range(N)), [], []]


@pytest.mark.parametrize("failures", [{}, {0: Failure("ValueError: broken")}], ids=["late", "some"])
def test_nothing_of_anybody_in_the_first_rounds_ends_the_run(failures) -> None:
    watch = Failures(4)
    for k in range(1, 5):
        watch.look(k, set(), failures if k == 1 else {}, 50.0)
    with pytest.raises(RoundError) as error:
        watch.look(5, set(), {}, 50.0)
    assert "no agent delivered anything in the first 5 rounds (250 s)" in str(error.value)
    why = "ValueError: broken" if failures else "Set a longer round_timeout_s"
    assert why in str(error.value)


def test_the_first_rounds_are_no_less_than_two_minutes_and_count_only_before_any_payload() -> None:
    quick = Failures(4)
    for k in range(1, 40):
        quick.look(k, set(), {}, 3.0)
    with pytest.raises(RoundError, match=r"in the first 40 rounds \(120 s\)"):
        quick.look(40, set(), {}, 3.0)
    for one in (Failures(4), Failures(4, trained=True)):
        if one.end() is None:
            one.look(1, {2}, {}, 50.0)
        for k in range(2, 20):
            one.look(k, set(), {}, 50.0)
        one.end()


def test_a_result_that_lacks_agents_says_so_at_the_end(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("flwr"), "propagate", True)

    def lost(vertex: int, message: Message) -> Exception | None:
        return ConnectionError("lost") if message.metadata.group_id == "3" and vertex == 2 else None

    lacks = "the run has ended, but its result lacks agent 2: see the events of round 3"
    for collect in (True, False):
        grid = LocalGrid(numpy_app(N, D, mods=[consensus_mod]), N, intercept=lost)
        strategy = ServerlessStrategy(GRAPH, DSGD(), collect_models=collect, average=False)
        with caplog.at_level(logging.WARNING, "flwr"):
            result = strategy.start(grid, start_arrays(D)[0], 3)
        assert result.missing == [2]
        assert lacks in caplog.records[-1].getMessage()
        assert caplog.records[-1].levelname == "ERROR"
        with pytest.raises(RoundError, match=lacks):
            result.require_all()
    _, go = start(rounds=3)
    result = go()
    assert (result.missing, result.incomplete) == ([], "")
    result.require_all()


def test_who_did_not_report_at_the_last_evaluation_is_asked_once_more() -> None:
    def lost(vertex: int, message: Message) -> Exception | None:
        is_last = (message.metadata.group_id, message.metadata.message_type) == ("3", "evaluate")
        return ConnectionError("lost") if is_last and vertex == 2 else None

    grid = LocalGrid(numpy_app(N, D, mods=[consensus_mod]), N, intercept=lost)
    _, go = start(grid=grid, rounds=3)
    result = go()
    _, go = start(rounds=3)
    whole = go()
    assert sorted(result.history[2].evaluate) == [0, 1, 3, 4, 5]
    assert sorted(result.models) == list(range(N))
    assert np.array_equal(flat(result.arrays), flat(whole.arrays))
    assert result.warnings == []
