"""The phases of an agent's life, and the order of its rounds."""

import pytest

from tests.support.protocol import TIMING, End, after

# --- to begin -----------------------------------------------------------------------------------


def test_an_agent_does_nothing_before_it_is_told_to_begin():
    end = End(started=False)
    assert (end.phase, end.agent.next_deadline()) == ("loading", None)
    assert end.do("wait 1000") == []
    assert end.do("start") == []
    assert (end.phase, end.agent.next_deadline()) == ("connecting", end.now + TIMING.start_s)
    assert end.agent.alone_since == -1  # no round has ended


def test_the_first_round_begins_when_all_neighbors_are_there():
    end = End("bc", connected=False)
    assert end.do("up b") == ["b: hello"]
    assert end.do("dial c") == ["c: hello"]
    assert end.do("hello c") == ["train 1"]
    assert end.phase == "training"


def test_or_when_their_time_is_up():
    end = End("bc", connected=False)
    end.do("up b", f"wait {TIMING.start_s - 0.5}")
    assert end.phase == "connecting"
    end.said()
    assert end.do("wait 0.5") == ["train 1"]
    assert end.noted("starting-without") == [{"neighbors": [2]}]


def test_who_comes_back_needs_one_neighbor_to_go_on():
    end = after("round", neighbors="bc").reborn()
    assert (end.phase, end.said()) == ("connecting", [])
    assert end.do("up c closed=1 counted=1:c1:a1")[1:] == ["train 2"]


# --- one round after the other ------------------------------------------------------------------


def test_a_round_from_training_to_training():
    end = End()
    assert end.phase == "training"
    assert end.do("trained") == ["journal 1"]
    assert end.phase == "journaling"
    assert end.do("journaled") == ["b: payload a1"]
    assert end.phase == "waiting"
    assert end.do("payload b1 ack=a1") == ["b: ack b1", "combine 1: b1"]
    assert (end.phase, end.agent.round, end.agent.closed) == ("combining", 1, 1)
    assert end.do("combined") == ["save 1", "train 2"]  # the next trains while it is saved
    assert end.phase == "training"
    assert end.do("saved") == []


def test_a_state_may_be_saved_late_or_by_the_next_payload():
    early = after("share", "payload b1 ack=a1", "combined", "saved", "trained")
    late = after("share", "payload b1 ack=a1", "combined", "trained", "saved")
    never = after("share", "payload b1 ack=a1", "combined", "trained")
    for end in (early, late, never):
        assert end.do("journaled") == ["b: payload a2 closed=1 counted=1:a1:b1"]
        assert end.do("saved 1") == []
        assert len(end.agent._pending) == 0


def test_the_last_round_is_saved_before_the_model_is_written():
    end = after("round", "share", "payload b2 + ack=a2", rounds=2)
    end.said()
    assert end.do("combined") == ["save 2"]
    assert end.phase == "finishing"
    assert end.do("saved 1") == []
    assert end.do("saved") == ["finish"]
    assert end.do("finished") == ["b: goodbye done counted=2:a2:b2"]
    assert end.phase == "lingering"


def test_what_a_phase_does_not_wait_for_changes_nothing():
    answers = ("trained", "failed", "combined", "rejoined", "rejoined it failed", "saved 7")
    for steps, meant in (
        ("", ("trained", "failed")),
        ("trained", ()),
        ("share", ()),
        ("share, payload b1 ack=a1", ("combined", "rejoined", "rejoined it failed")),
        ("round, round", ()),
    ):
        for answer in answers:
            end = after(*filter(None, steps.split(", ")), rounds=2)
            phase = end.phase
            if answer not in meant:
                assert end.do(answer) == []
                assert end.phase == phase


# --- the label of a payload ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("steps", "planned"),
    [
        ("", 2),
        ("offer b4", 4),
        ("offer b4, down b", 2),
        ("release b 5", 2),  # it has failed in a round: no reason to follow
        ("payload b4, release b 4", 5),
        ("payload b12, release b 12", 12),
        ("up b round=9 digest=b9 closed=8 counted=1:b1:a1", 9),
        ("up b closed=9 counted=1:b1:a1", 9),
        ("up b round=3 digest=b3 closed=9 counted=1:b1:a1", 9),
        ("up b round=99 digest=b99 closed=98 counted=1:b1:a1", 12),
        ("bye b done counted=1:b1:a1", 12),
        ("bye b", 2),
    ],
)
def test_the_round_to_take_part_in_next(steps, planned):
    """It is the one that neighbors are in, within the run."""
    end = after("share", "payload b1 ack=a1", rounds=12, away_rounds=20)
    end.do(*filter(None, steps.split(", ")))
    assert end.agent.near.target(end.now) == planned
    assert end.edge().wants <= 12


def test_a_neighbor_that_counted_with_us_is_in_the_next_round():
    end = after("round", "round", rounds=2)
    assert end.edge().wants == 2  # the last there is
    end = after("round", "round")
    assert end.edge().wants == 3


def test_a_payload_is_labelled_with_the_round_that_neighbors_are_in():
    end = after("round", "offer b6 closed=5 counted=1:b1:a1")
    assert end.do("trained") == ["journal 6 trained as 2"]
    assert end.noted("caught-up") == [{"round": 6, "trained_as": 2}]
    end.do("whole b6")
    assert end.do("journaled") == ["b: payload a6 closed=1 counted=1:a1:b1 ack=b6", "free 1"]
    assert end.do("ack b a6") == ["combine 6: b6"]
    assert end.do("combined") == ["save 6", "train 7"]


def test_a_plan_that_neighbors_gave_up_meanwhile_stays_the_label():
    end = after("share", "payload b1 ack=a1", "offer b4 closed=3 counted=1:b1:a1", "combined")
    assert end.said()[-1] == "train 4"
    end.do("down b")
    assert end.do("trained") == ["journal 4"]


def test_the_plan_is_made_when_training_begins():
    end = after("share", "payload b1 ack=a1", "offer b4 closed=3 counted=1:b1:a1", "combined")
    assert end.said()[-1] == "train 4"
    assert end.do("trained") == ["journal 4"]
    assert end.noted("caught-up") == []


# --- known before training ----------------------------------------------------------------------


def test_a_payload_that_is_known_early_is_shared_while_its_round_trains():
    end = End(early=True, connected=False)
    assert end.do("up b") == ["b: hello", "journal 1 early"]
    assert end.do("journaled") == ["b: payload a1", "train 1"]
    assert end.do("payload b1 ack=a1") == ["b: ack b1"]  # not without our own training
    assert end.do("trained") == ["combine 1: b1"]
    assert end.do("combined") == ["save 1", "journal 2 early"]
    assert end.do("saved") == []
    assert end.do("journaled") == ["b: payload a2 closed=1 counted=1:a1:b1", "train 2"]
    assert end.do("trained") == []
    assert end.do("payload b2 + ack=a2") == ["free 1", "b: ack b2", "combine 2: b2"]


def test_early_neighbors_wait_from_when_the_payload_was_sent():
    end = after("journaled", early=True)
    end.do("later 99", "trained")
    assert end.phase == "waiting"
    assert end.agent.next_deadline() == pytest.approx(end.now + 1.0)
    assert end.do("wait 1") == ["b: release 1", "combine 1: nobody"]


def test_an_early_label_is_that_of_the_plan():
    end = after("offer b5 closed=4", "journaled", early=True)
    assert end.do("trained") == []
    assert end.noted("caught-up") == []
    end = after("offer b5 closed=4", early=True, connected=False, started=False)
    end = End(early=True, connected=False)
    assert end.do("up b round=5 digest=b5 closed=4")[1:] == ["journal 5 early"]


# --- training that fails ------------------------------------------------------------------------


def test_a_round_that_fails_is_released_and_the_state_stays():
    end = after("round")
    end.said()
    assert end.do("failed out of memory") == ["b: release 2", "save 2 failed: out of memory"]
    assert end.counts["app-failed", ""] == 1
    assert end.noted("app-failed") == [{"round": 2, "why": "out of memory"}]
    assert (end.agent.closed, end.agent.round) == (2, 1)
    assert end.do("saved") == []
    assert end.do("up b round=2 digest=b2 closed=1 counted=1:b1:a1")[1:] == [
        "b: hello closed=2 counted=1:a1:b1", "b: release 2",
    ]  # fmt: skip


def test_failing_rounds_come_at_the_usual_pace():
    end = after("round 3", "round 3", "round 3", "failed")
    end.said()
    assert end.agent.next_deadline() == pytest.approx(end.now + 3.0)
    assert end.do("wait 2.9") == []
    assert end.do("wait 0.1") == ["train 5"]
    assert end.do("failed")[0] == "b: release 5"
    assert end.do("wait 3") == ["train 6"]
    end = after("failed")
    assert end.do("wait 0.9") == []
    assert end.do("wait 0.1") == ["train 2"]  # a second where no pace is known


def test_after_ten_failures_in_a_row_the_run_cannot_go_on_here():
    end = End()
    for _ in range(9):
        end.do("failed", "wait 1")
    assert end.phase == "training"
    end.do("round")
    for _ in range(9):
        end.do("failed", "wait 1")
    end.said()
    assert end.do("failed out of memory") == [
        "b: release 20",
        "save 20 failed: out of memory",
        "b: close: stopping",
        "fail: the app failed in 10 rounds in a row, last in round 20: out of memory",
    ]
    assert end.agent.stopped


def test_a_round_that_trains_forgives_failures_with_an_early_payload_too():
    end = after("journaled", early=True)
    for again in range(2):
        for _ in range(9):
            end.do("failed", "wait 1", "journaled")
        end.do("trained", "wait 100", "combined", "journaled")
        assert end.phase == "training", again


def test_the_last_round_may_fail_too():
    end = after("round", "failed", rounds=2)
    end.said()
    assert end.do("saved") == ["finish"]
    end = after("round", "failed", "wait 1", rounds=2)
    end.said()
    assert (end.phase, end.do("saved")) == ("finishing", ["finish"])


def test_a_failure_after_the_payload_was_shared_takes_it_back():
    end = after("journaled", "payload b1", early=True)
    end.said()
    assert "b: release 1" in end.do("failed")
    assert (end.edge().stage.value, end.edge().doubts) == ("doubt", [1])
    assert end.said()[-1] == "save 1 failed: why"
    assert end.do("wait 1") == ["journal 2 early"]


def test_nobody_follows_an_agent_whose_app_fails():
    """It leaves its rounds at once; a neighbor that is slower still goes on with its own."""
    end = after("release b 1", "trained")
    assert end.said() == ["journal 1"]
    end.do("journaled", "wait 1", "next", "release b 2")
    end.said()
    assert end.do("trained") == ["journal 2"]


# --- the end ------------------------------------------------------------------------------------


def finished(*steps, **made):
    return after("round", "round", "finished", *steps, rounds=2, **made)


def test_a_finished_agent_lingers_until_its_neighbors_have_finished():
    end = finished(neighbors="bc")
    assert end.agent.next_deadline() == pytest.approx(end.now + TIMING.linger_s)
    end.said()
    assert end.do("bye b done counted=2:b2:a2") == []
    assert end.do("bye c") == []  # it only goes away
    assert end.do("bye c done counted=2:c2:a2") == [
        "b: close: stopping", "c: close: stopping", "end done",
    ]  # fmt: skip
    assert end.agent.stopped
    assert (end.do("wait 1"), end.agent.next_deadline()) == ([], None)


def test_or_until_its_time_is_up():
    end = finished("down b")
    end.said()
    assert end.do(f"wait {TIMING.linger_s - 0.1}") == []
    assert end.do("wait 0.1") == ["end done"]


def test_who_connects_to_a_finished_agent_is_told():
    end = finished("down b", "dial b")
    assert end.said()[-1] == "b: hello closed=2 counted=2:a2:b2 done"
    assert end.do("hello b closed=1 counted=1:b1:a1") == ["b: goodbye done counted=2:a2:b2"]
    assert end.do("bye b done")[-1] == "end done"


@pytest.mark.parametrize(
    ("steps", "said"),
    [("", "end"), ("share", "end"), ("share, payload b1 ack=a1", "end")],
)
def test_an_agent_can_be_stopped_at_any_time(steps, said):
    end = after(*filter(None, steps.split(", ")))
    end.said()
    released = ["b: release 1"] if steps == "share" else []
    assert end.do("stop") == [*released, "b: close: stopping", said]
    for step in ("wait 1", "trained", "up b", "stop"):
        assert end.do(step) == []


def test_a_stop_does_not_come_between_two_votes():
    """This end has voted: the other one's vote, or its word that it has none, is waited for."""
    end = after("share", "payload b1")
    end.said()
    assert (end.do("stop"), end.phase) == ([], "stopping")
    assert end.agent.next_deadline() == end.now + TIMING.reconnect_s
    assert end.do("trained", "wait 1") == []
    assert end.do("ack b a1") == ["b: close: stopping", "end"]
    end = after("share", "payload b1", "stop")
    end.said()
    assert end.do("release b 1") == ["b: close: stopping", "end"]
    end = after("share", "payload b1", "stop")
    end.said()
    assert end.do("down b") == ["end"]


def test_a_stop_waits_for_a_payload_whose_sender_has_voted_and_takes_the_edge_back_in_time():
    """Else the round would be in doubt there, until this agent is started again."""
    end = after("share", "ack b a1", "stop")
    end.said()
    assert end.do("payload b1") == ["b: ack b1", "b: close: stopping", "end"]
    end = after("share", "ack b a1", "stop", f"wait {TIMING.reconnect_s - 0.1}")
    end.said()
    assert end.do("wait 0.1") == ["b: release 1", "b: close: stopping", "end"]
    end = after("share", "ack b a1", "stop")
    end.said()
    assert end.do("stop") == ["b: release 1", "b: close: stopping", "end"]


def test_a_stop_takes_no_edge_back_for_which_an_earlier_life_may_have_voted():
    first = after("share")
    kind, _, record, mine = first.writes[-1]
    assert kind == "journal"
    end = End(record=record, open=mine)
    end.do("up b round=1 digest=b1", "ack b a1", "stop")
    assert (end.edge().stage.value, end.edge().acked, end.phase) == ("bound", True, "stopping")
    end.said()
    assert end.do(f"wait {TIMING.reconnect_s}") == ["b: close: stopping", "end"]


def test_with_no_vote_that_is_half_given_a_stop_is_at_once():
    end = after("share", neighbors="bc")
    end.do("payload b1 ack=a1")  # both have voted on the edge to b, and nobody on the one to c
    end.said()
    assert end.do("stop") == ["c: release 1", "b: close: stopping", "c: close: stopping", "end"]


def test_one_that_is_stopped_while_it_lingers_has_done_its_work():
    end = finished()
    end.said()
    assert end.do("stop") == ["b: close: stopping", "end done"]


# --- a run that begins after any round ----------------------------------------------------------


def test_a_run_begins_after_any_round():
    """Whoever is there from its first round on waits for all neighbors, as in round 1."""
    end = End("bc", origin=20, connected=False)
    assert end.do("up b closed=20") == ["b: hello closed=20"]
    assert (end.phase, end.agent.next_deadline()) == ("connecting", end.now + TIMING.start_s)
    assert end.do("up c closed=20")[-1] == "train 21"
    end.do("trained", "journaled", "payload b21 closed=20 ack=a21")
    assert end.do("payload c21 closed=20 ack=a21")[-1] == "combine 21: b21 c21"
    assert end.agent.alone_since == -1


def test_a_neighbor_in_the_second_round_of_the_run_tells_that_it_is_under_way():
    first, second = (End("bc", origin=20, connected=False) for _ in range(2))
    first.do("up b round=21 digest=b21 closed=20")
    second.do("up b round=22 digest=b22 closed=21")
    assert first.agent.next_deadline() - first.now == TIMING.start_s
    assert second.agent.next_deadline() - second.now == TIMING.reconnect_s


@pytest.mark.parametrize("origin", [0, 20])
def test_only_who_is_there_from_the_first_round_waits_for_a_late_start(origin):
    first = End(origin=origin, connected=False)
    first.do(f"up b closed={origin} pace_s=2.0", "share")
    assert first.agent.next_deadline() - first.now == TIMING.ceiling_s
    r = origin + 1
    first.do(f"payload b{r} closed={origin} ack=a{r}", "next")
    record = first.writes[-1][2]
    later = End(origin=origin, record=record, kept=(f"a{r}",), connected=False)
    later.do(f"up b closed={r} counted={r}:b{r}:a{r} pace_s=2.0", "share")
    assert later.agent.next_deadline() - later.now == TIMING.factor * 2.0


def test_who_has_had_no_neighbor_since_the_run_began_was_alone_from_there():
    end = End(origin=20, rounds=22, connected=False)
    end.do(f"wait {TIMING.start_s}", "share", "wait 100", "next", "share", "wait 100", "next")
    assert end.said()[-1] == "finish alone since 20"


def test_who_was_in_no_round_of_the_run_has_ended_none():
    """Its goodbye does not say that it is done; that of one that was in a round does."""
    idle = End(origin=20, rounds=20)
    assert idle.do("finished") == ["b: goodbye"]
    busy = End(origin=20, rounds=21)
    busy.do("trained", "journaled", "payload b21 closed=20 ack=a21", "next")
    (goodbye,) = busy.do("finished")
    assert "done" in goodbye.split()


def test_the_memory_of_a_run_that_goes_on_is_of_its_epoch():
    end = End(origin=20, conserves=True, epoch=3, connected=False)
    assert end.do("up b closed=20")[-1] == "train 21 epoch 3"
