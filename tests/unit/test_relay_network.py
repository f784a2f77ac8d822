"""What a network does to messages and nodes, by value: refused, lost, late, twice, restarted."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Message
from support.apps import flat, numpy_app, quadratic, quadratic_step, start_arrays
from support.grid import LocalGrid
from support.law import trajectory

from flower_dhb import (
    DSGD,
    Algorithm,
    ConfigError,
    HeavyBall,
    RoundError,
    ServerlessStrategy,
    Topology,
    consensus_mod,
)
from flower_dhb.flower import members, relay

pytestmark = pytest.mark.thorough

N, D, ROUNDS, RATE = 6, 4, 9, 0.05
GRAPH = Topology.from_edges([(0, 1), (0, 2), (0, 3), (3, 4), (4, 5), (5, 0)])
VICTIM, OTHER = 3, 5
NEW = 4242
RULES = [HeavyBall(), HeavyBall(form="tracking"), DSGD()]
EVERYBODY = pytest.mark.parametrize("rule", RULES, ids=str)

# float64 on both sides, sums of at most five terms in another order.
TOLERANCE = 1e-13


@pytest.fixture(autouse=True)
def _patience_is_counted_in_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounds of this grid pass in milliseconds."""
    monkeypatch.setattr(relay, "_PATIENCE_LIMITS", 0.0)


def is_round(number: int, kind: str = "train") -> Callable[[int, Message], bool]:
    """Whether a message is the victim's of a round."""

    def match(vertex: int, message: Message) -> bool:
        about = message.metadata
        return (vertex, about.group_id, about.message_type) == (VICTIM, str(number), kind)

    return match


def grid_of(**options: object) -> LocalGrid:
    return LocalGrid(numpy_app(N, D, rate=RATE, mods=[consensus_mod]), N, **options)  # type: ignore[arg-type]


def run(grid: LocalGrid, rule: Algorithm | None = None, rounds: int = ROUNDS, **options: object):
    options = {"evaluate_every": 0, "round_timeout_s": 0.03, **options}
    strategy = ServerlessStrategy(GRAPH, rule or HeavyBall(), collect_models=True, **options)  # type: ignore[arg-type]
    return strategy.start(grid, start_arrays(D)[0], rounds)


def assert_law(result, rule: Algorithm | None = None, **away: dict[int, set[int]]) -> None:
    """The final models are those of the law, with the victim out as the test says."""
    curvature, center = quadratic(N, D)
    step = lambda x, _: quadratic_step(x, curvature, center, RATE)  # noqa: E731
    rounds = len(result.history)
    expected = trajectory(rule or HeavyBall(), GRAPH, start_arrays(D)[1], step, rounds, **away)
    found = np.stack([flat(result.models[i]) for i in range(N)])
    np.testing.assert_allclose(found, expected[-1], rtol=0, atol=TOLERANCE)


def events(result) -> list[tuple[int, int, str]]:
    return [(r.round, vertex, text) for r in result.history for vertex, text in r.events]


def missing(result) -> dict[int, list[int]]:
    return {r.round: r.missing for r in result.history if r.missing}


# --- messages -----------------------------------------------------------------------


@EVERYBODY
def test_a_refused_message_costs_the_agent_its_round(rule: Algorithm) -> None:
    result = run(grid_of(refuse=is_round(4)), rule)
    assert missing(result) == {4: [VICTIM]}
    assert events(result) == [(4, VICTIM, "Flower did not accept the message for its node")]
    assert_law(result, rule, frozen={4: {VICTIM}})


@EVERYBODY
def test_a_reply_that_is_lost_costs_three_rounds_and_then_the_agent_is_asked_anew(
    rule: Algorithm,
) -> None:
    """It has trained, its neighbors went on without: it combines that round alone."""
    result = run(grid_of(lose=is_round(4)), rule)
    assert missing(result) == {4: [VICTIM], 5: [VICTIM], 6: [VICTIM]}
    assert events(result) == [
        (4, VICTIM, "no answer to 'train' within 0.03 s"),
        (5, VICTIM, "still busy with an earlier message"),
        (6, VICTIM, "still busy with an earlier message"),
        (7, VICTIM, "its message or its answer seems to be lost; it is asked anew"),
    ]
    assert_law(result, rule, alone={4: {VICTIM}}, frozen={5: {VICTIM}, 6: {VICTIM}})


def test_a_slow_agent_is_asked_anew_ever_more_seldom() -> None:
    """Its messages pile up at its node, so there must not be one every third round."""
    late = lambda v, m: grid.LATE if v == VICTIM and m.metadata.group_id else 0  # noqa: E731
    grid = grid_of(hold=late)
    result = run(grid, rounds=24, round_timeout_s=0.004)
    asked = [int(m.metadata.group_id) for v, m in grid.messages if v == VICTIM and late(v, m)]
    assert asked == [1, 4, 10, 22]
    assert all(r.missing == [VICTIM] for r in result.history)


@EVERYBODY
def test_a_message_that_is_lost_leaves_the_state_as_it_was(rule: Algorithm) -> None:
    grid = grid_of(hold=lambda v, m: LocalGrid.LATE if is_round(4)(v, m) else 0)
    result = run(grid, rule)
    assert missing(result) == {4: [VICTIM], 5: [VICTIM], 6: [VICTIM]}
    assert_law(result, rule, frozen={k: {VICTIM} for k in (4, 5, 6)})


@EVERYBODY
def test_a_lost_reply_to_evaluate_is_no_lost_round(rule: Algorithm) -> None:
    """The round was delivered before: both ends of its edges have combined it."""
    result = run(grid_of(lose=is_round(4, "evaluate")), rule, evaluate_every=4)
    assert missing(result) == {5: [VICTIM], 6: [VICTIM]}
    assert_law(result, rule, frozen={5: {VICTIM}, 6: {VICTIM}})


@EVERYBODY
def test_a_reply_that_is_late_by_two_rounds_is_heard_and_noted(rule: Algorithm) -> None:
    grid = grid_of(hold_reply=lambda v, m: LocalGrid.LATE if is_round(4)(v, m) else 0)
    result = run(grid, rule, on_round=lambda r: grid.release() if r.round == 5 else None)
    assert missing(result) == {4: [VICTIM], 5: [VICTIM], 6: [VICTIM]}
    assert (6, VICTIM, "late answer to 'train' of round 4") in events(result)
    assert_law(result, rule, alone={4: {VICTIM}}, frozen={5: {VICTIM}, 6: {VICTIM}})


def test_an_answer_that_comes_after_the_agent_was_asked_anew_changes_nothing() -> None:
    grid = grid_of(hold_reply=lambda v, m: LocalGrid.LATE if is_round(4)(v, m) else 0)
    result = run(grid, on_round=lambda r: grid.release() if r.round == 7 else None)
    assert missing(result) == {4: [VICTIM], 5: [VICTIM], 6: [VICTIM]}
    assert_law(result, alone={4: {VICTIM}}, frozen={5: {VICTIM}, 6: {VICTIM}})


def test_replies_that_come_twice_count_once() -> None:
    result = run(grid_of(duplicate=lambda v, m: True), evaluate_every=2)
    assert events(result) == []
    assert missing(result) == {}
    assert_law(result)


def test_a_message_that_comes_twice_is_refused_the_second_time() -> None:
    """To combine for it would spoil the round that the agent is in."""
    grid = grid_of()
    app = grid.app_of(VICTIM)

    def again(record) -> None:
        if record.round == 5:
            node = grid.node_of(VICTIM)
            for number in (4, 5):
                (old,) = [m for v, m in grid.messages if is_round(number)(v, m)]
                app(old, grid.contexts[node])

    result = run(grid, on_round=again)
    assert events(result) == []
    assert_law(result)


# --- the grid itself ----------------------------------------------------------------


@pytest.mark.parametrize("call", ["nodes", "push", "pull"])
def test_a_grid_that_fails_for_a_moment_changes_nothing(
    call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay, "_RETRY_MIN_S", 0.001)
    grid = grid_of()

    def fail(record) -> None:
        grid.failing[call] = 2 if record.round in (3, 4) else 0

    grid.failing[call] = 1
    result = run(grid, on_round=fail, round_timeout_s=5.0)
    assert events(result) == []
    assert_law(result)


def test_a_grid_that_only_cannot_list_its_nodes_goes_on_with_those_it_had(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    endured_s = 0.1  # a busy machine takes some milliseconds between two calls
    monkeypatch.setattr(relay, "_ENDURED_S", endured_s)
    grid, begin = grid_of(), time.monotonic()

    def slowly(record) -> None:
        grid.failing.update(nodes=10**9)
        time.sleep(endured_s / 4)

    result = run(grid, on_round=slowly)
    assert time.monotonic() - begin > 2 * endured_s  # all calls of one kind fail for longer
    assert events(result) == []
    assert_law(result)


@pytest.mark.parametrize("call", ["push", "pull"])
def test_a_grid_that_fails_for_long_ends_the_run_with_its_reason(
    call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay, "_RETRY_MIN_S", 0.001)
    monkeypatch.setattr(relay, "_ENDURED_S", 0.02)
    grid = grid_of()
    with pytest.raises(RoundError, match=r"for \d+ s: the grid cannot be reached") as e:
        run(
            grid,
            rounds=10**6,
            round_timeout_s=0.05,
            on_round=lambda r: grid.failing.update({call: 10**9}) if r.round == 3 else None,
        )
    assert isinstance(e.value.__cause__, ConnectionError)


# --- nodes --------------------------------------------------------------------------


def state_dir_grid(path: Path, **options: object) -> LocalGrid:
    return grid_of(
        node_config=lambda i: {"partition-id": i, "state-dir": str(path)},
        **options,
    )


def dies_with_a_message_open(grid: LocalGrid) -> None:
    """The victim's node dies in round 4, unheard, and another one is there at once."""

    def kill(vertex: int, message: Message) -> bool:
        if is_round(4)(vertex, message) and NEW not in grid.vertex_of:
            grid.kill(VICTIM)
            grid.add_node(VICTIM, NEW)
        return False

    grid.refuse = kill


@EVERYBODY
def test_a_node_that_dies_with_a_message_open_is_replaced_while_it_is_still_listed(
    rule: Algorithm, tmp_path: Path
) -> None:
    grid = state_dir_grid(tmp_path)
    dies_with_a_message_open(grid)
    old = grid.node_of(VICTIM)
    result = run(grid, rule)
    assert old in grid.get_node_ids(), "Flower lists it to the end"
    assert missing(result) == {4: [VICTIM], 5: [VICTIM]}
    assert [e for e in events(result) if e[0] >= 5] == [
        (5, VICTIM, "still busy with an earlier message"),
        (
            5,
            VICTIM,
            f"node {NEW} says vertex 3, where node {old} sits; it takes over if node {old} does "
            "not answer. If this is no restart, give each node a vertex of its own",
        ),
        (6, VICTIM, f"vertex 3 is back, on node {NEW}, since node {old} does not answer"),
    ]
    assert all(r.rejoined == [] for r in result.history), "its state lay in a file"
    assert_law(result, rule, frozen={4: {VICTIM}, 5: {VICTIM}})


@EVERYBODY
def test_a_returning_agent_without_its_state_rejoins_from_the_newest_payloads(
    rule: Algorithm,
) -> None:
    grid = grid_of()
    dies_with_a_message_open(grid)
    result = run(grid, rule)
    assert [r.round for r in result.history if r.rejoined] == [6]
    assert (6, VICTIM, "state was lost; rejoined at round 5") in events(result)
    assert_law(result, rule, frozen={4: {VICTIM}, 5: {VICTIM}}, back={6: {VICTIM}})


@EVERYBODY
def test_an_agent_that_lost_its_state_in_the_middle_rejoins_from_what_it_was_due(
    rule: Algorithm,
) -> None:
    grid = grid_of()
    result = run(grid, rule, on_round=lambda r: grid.lose_state(VICTIM) if r.round == 6 else None)
    assert [r.round for r in result.history if r.rejoined] == [7]
    assert (7, VICTIM, "state was lost; rejoined at round 6") in events(result)
    assert missing(result) == {}
    assert_law(result, rule, back={7: {VICTIM}})


def test_a_node_that_dies_between_two_messages_is_replaced_one_round_later(
    tmp_path: Path,
) -> None:
    grid = state_dir_grid(tmp_path)

    def restart(record) -> None:
        if record.round == 4:
            grid.kill(VICTIM)
            grid.add_node(VICTIM, NEW)

    result = run(grid, on_round=restart)
    assert missing(result) == {5: [VICTIM]}
    assert_law(result, frozen={5: {VICTIM}})


def test_a_second_node_on_a_vertex_takes_nothing_from_a_node_that_answers() -> None:
    grid = grid_of()
    result = run(grid, on_round=lambda r: grid.add_node(VICTIM, NEW) if r.round == 2 else None)
    ((number, vertex, text),) = events(result)  # once, not in every round
    assert (number, vertex) == (3, VICTIM)
    assert f"node {NEW} says vertex 3, where node" in text
    assert [m.metadata.group_id for _, m in grid.messages if m.metadata.dst_node_id == NEW] == [""]
    assert_law(result)


@pytest.mark.parametrize(
    ("vertex", "told"),
    [
        (99, "says vertex 99, which the topology does not have; ignored"),
        (True, "node config must name its vertex as an integer >= 0"),
        (2**70, f"'vertex' is {2**70}, expected an integer in [-1, {2**53}]"),
        ("3", "node config must name its vertex as an integer >= 0"),
    ],
)
def test_a_strangers_vertex_in_mid_run_is_said_once_and_ignored(vertex: object, told: str) -> None:
    names = dict(enumerate(range(N))) | {77: vertex}
    grid = grid_of(node_config=lambda i: {"partition-id": names[i]})
    result = run(grid, on_round=lambda r: grid.add_node(77, NEW) if r.round == 2 else None)
    ((number, _, text),) = events(result)
    assert number == 3
    assert told in text
    assert_law(result)


@EVERYBODY
def test_nodes_whose_ids_are_exchanged_find_their_vertices_again(rule: Algorithm) -> None:
    grid = grid_of()
    result = run(grid, rule, on_round=lambda r: grid.swap(VICTIM, OTHER) if r.round == 3 else None)
    both = {VICTIM, OTHER}
    assert missing(result) == {4: sorted(both), 5: sorted(both)}
    assert (4, VICTIM, "message is for vertex 3, this node is 5") in events(result)
    assert_law(result, rule, frozen={4: both, 5: both})


def test_the_newest_node_that_waits_is_taken_and_the_dead_one_last() -> None:
    grid = grid_of()
    dies_with_a_message_open(grid)
    more = NEW + 1

    def happen(record) -> None:
        if record.round == 4:
            grid.add_node(VICTIM, more)
        if record.round == 6:  # the newest sits now, and dies as the first did
            grid.dead.add(more)

    result = run(grid, rounds=10, on_round=happen)
    moved = [(k, text.split(",")[1]) for k, _, text in events(result) if " is back" in text]
    assert moved == [(6, f" on node {more}"), (8, f" on node {NEW}")]
    assert missing(result) == {k: [VICTIM] for k in (4, 5, 7)}


def test_a_node_that_was_late_once_keeps_its_vertex_when_another_one_names_it() -> None:
    grid = grid_of(hold_reply=lambda v, m: LocalGrid.LATE if is_round(2)(v, m) else 0)

    def happen(record) -> None:
        if record.round == 3:
            grid.release()
        if record.round == 6:
            grid.add_node(VICTIM, NEW)

    result = run(grid, on_round=happen)
    assert not any("is back" in text for _, _, text in events(result))
    assert missing(result) == {k: [VICTIM] for k in (2, 3, 4)}


def test_an_agent_that_has_answered_is_given_three_rounds_again() -> None:
    lost = lambda v, m: is_round(1)(v, m) or is_round(6)(v, m)  # noqa: E731
    result = run(grid_of(lose=lost), rounds=11)
    assert sorted(missing(result)) == [1, 2, 3, 6, 7, 8]


def test_a_node_that_has_moved_does_not_wait_at_its_former_vertex() -> None:
    grid = grid_of(lose=is_round(7))
    result = run(
        grid, rounds=12, on_round=lambda r: grid.swap(VICTIM, OTHER) if r.round == 3 else None
    )
    assert missing(result) == {4: [3, 5], 5: [3, 5], 7: [3], 8: [3], 9: [3]}
    assert not [e for e in events(result) if e[0] > 6 and "is back" in e[2]]


# --- enrolling ----------------------------------------------------------------------


class UnavailableError(ConnectionError):
    code = 5  # NODE_UNAVAILABLE


def test_a_dead_node_that_is_still_listed_does_not_keep_a_run_from_beginning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(members, "_SURPLUS_S", 0.05)
    grid = grid_of()
    grid.kill(VICTIM)
    grid.add_node(VICTIM, NEW)
    result = run(grid)
    assert events(result) == []
    assert_law(result)


def test_a_node_that_flower_finds_gone_is_replaced_before_the_run_begins() -> None:
    grid = grid_of()
    old = grid.node_of(VICTIM)
    asked: list[Message] = []

    def gone(vertex: int, message: Message) -> Exception | None:
        if message.metadata.dst_node_id != old:
            return None
        if not asked:
            grid.vertex_of[old] = -2
            grid.add_node(VICTIM, NEW)
        asked.append(message)
        return UnavailableError("no heartbeat")

    grid.intercept = gone
    result = run(grid)
    assert_law(result)
    assert events(result) == []


def test_an_app_without_the_mod_is_told_at_once_while_others_are_still_silent() -> None:
    plain, ours = numpy_app(N, D), numpy_app(N, D, mods=[consensus_mod])
    grid = LocalGrid(
        lambda vertex: plain if vertex == 2 else ours,
        N,
        hold=lambda v, _: 0 if v == 2 else LocalGrid.LATE,
    )
    begin = time.monotonic()
    with pytest.raises(ConfigError, match=r"consensus_mod must be the first of ClientApp\(mods="):
        run(grid)
    assert time.monotonic() - begin < 5.0, "not after the time that silent nodes are given"


def test_a_question_that_is_lost_is_put_again() -> None:
    """The new node does not hear the first question; its vertex waits for it all the same."""
    grid = grid_of(hold=lambda v, m: LocalGrid.LATE if m.metadata.dst_node_id in deaf else 0)
    deaf: set[int] = set()

    def restart(record) -> None:
        if record.round == 2:
            grid.remove_node(grid.node_of(VICTIM))
            grid.add_node(VICTIM, NEW)
            deaf.add(NEW)
        if record.round == 3:
            deaf.clear()

    result = run(grid, on_round=restart)
    out = sorted(missing(result))
    assert out[:2] == [3, 4], "it was not heard in round 3"
    assert out[-1] < ROUNDS
    assert (out[-1], VICTIM, f"vertex 3 is back, on node {NEW}") in events(result)
    back = {out[-1] + 1: {VICTIM}}
    assert_law(result, frozen={k: {VICTIM} for k in out}, back=back)


@pytest.mark.parametrize(("limits", "asked"), [(0.0, [1, 4]), (1e9, [1])])
def test_rounds_that_pass_quickly_do_not_make_a_message_old(limits, asked, monkeypatch) -> None:
    """An answer that is late by less than a few limits is waited for, and heard."""
    monkeypatch.setattr(relay, "_PATIENCE_LIMITS", limits)
    late = lambda v, m: grid.LATE if v == VICTIM and m.metadata.group_id else 0  # noqa: E731
    grid = grid_of(hold=late)
    run(grid, rounds=9, round_timeout_s=0.004)
    found = [int(m.metadata.group_id) for v, m in grid.messages if v == VICTIM and late(v, m)]
    assert found == asked


def test_a_message_is_never_waited_for_longer_than_a_minute(monkeypatch) -> None:
    monkeypatch.setattr(relay, "_PATIENCE_LIMITS", 3.0)
    monkeypatch.setattr(relay, "_PATIENCE_MOST_S", 0.0)
    late = lambda v, m: grid.LATE if v == VICTIM and m.metadata.group_id else 0  # noqa: E731
    grid = grid_of(hold=late)
    run(grid, rounds=9, round_timeout_s=0.004)
    found = [int(m.metadata.group_id) for v, m in grid.messages if v == VICTIM and late(v, m)]
    assert found == [1, 4]


@pytest.fixture
def awaited(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, set[int]]]:
    """The round, by its messages, and for whom it waited, each time that there was a deadline."""
    heard: list[tuple[int, set[int]]] = []
    collect = relay.Relay.collect

    def spy(self: relay.Relay, wait_for: set[int], *limits: float | None) -> list[Message]:
        if wait_for:
            newest = max(sent.round for sent in self._waiting.values())
            heard.append((newest, set(wait_for)))
        return collect(self, wait_for, *limits)

    monkeypatch.setattr(relay.Relay, "collect", spy)
    return heard


def test_a_dead_node_costs_one_deadline_however_often_it_is_asked_anew(
    awaited: list[tuple[int, set[int]]],
) -> None:
    grid = grid_of()

    def at(record) -> None:
        if record.round == 2:
            grid.kill(VICTIM)
        if record.round == 14:  # it is back under its old id, and finds what it was sent
            (node,) = grid.dead
            grid.dead.clear()
            grid.vertex_of[node] = VICTIM

    result = run(grid, rounds=18, on_round=at)
    asked_anew = [k for k, v, text in events(result) if v == VICTIM and "asked anew" in text]
    assert asked_anew == [6, 12], "else this shows nothing"
    waited = {k for k, vertices in awaited if VICTIM in vertices}
    assert waited == {1, 2, 3, 16, 17, 18}, "the round in which it died was the last to wait"
    assert result.history[2].seconds >= 0.03
    assert [k for k, v, text in events(result) if "no round waits after" in text] == [6, 12]
    assert missing(result) == {k: [VICTIM] for k in range(3, 16)}


def test_those_who_are_all_silent_are_waited_for_all_the_same() -> None:
    grid = grid_of()
    dead: list[int] = []

    def at(record) -> None:
        if record.round == 1:
            dead.extend(grid.kill(vertex) for vertex in range(N))
        if record.round == 5:
            grid.dead.clear()
            grid.vertex_of |= dict(zip(dead, range(N), strict=True))

    result = run(grid, rounds=8, on_round=at)
    assert (5, 0, "its message or its answer seems to be lost; it is asked anew") in events(result)
    # It waits for the old messages before it asks, and for the new ones.
    assert result.history[4].seconds >= 2 * 0.03
    assert result.history[-1].missing == []
