"""How long one end waits for another, and what ends the wait."""

from dataclasses import replace

import pytest

from flower_dhb.peer.protocol.edge import Stage
from tests.support.protocol import TIMING, End, after

CEILING, RECONNECT = TIMING.ceiling_s, TIMING.reconnect_s


def left(end):
    """Seconds until the open round ends though nothing more is heard."""
    assert end.phase == "waiting"
    return end.agent.next_deadline() - end.now


def at_pace(seconds, rounds=6, **made):
    """An end and its neighbors after some rounds of so many seconds each, the next one shared."""
    end = after(*[f"round {seconds}"] * rounds, "share", **made)
    end.said()
    return end


# --- by the neighbor's pace ---------------------------------------------------------------------


def test_without_their_payload_the_wait_is_a_multiple_of_their_usual_time():
    end = at_pace(2.0)
    assert left(end) == pytest.approx(6.0)
    end.do("wait 4")
    assert left(end) == pytest.approx(2.0)
    assert end.do("wait 1.9") == []
    assert end.do("wait 0.2") == ["b: release 7", "combine 7: nobody"]
    assert end.edge().doubts == []


def test_it_is_no_shorter_than_the_least_and_no_longer_than_the_ceiling():
    assert left(at_pace(0.1)) == pytest.approx(TIMING.least_s)
    assert left(at_pace(90.0)) == pytest.approx(CEILING)


def test_a_tick_that_comes_late_or_early_does_no_harm():
    end = at_pace(2.0)
    for _ in range(5):
        assert end.do("wait 1") == []
        assert left(end) == pytest.approx(6.0 - (end.now - end.agent.near._shared_at))
    assert end.do("wait 500") == ["b: release 7", "combine 7: nobody"]


def test_with_their_payload_and_no_acknowledgment_it_is_the_ceiling():
    end = at_pace(2.0)
    end.do("wait 1", "payload b7 +")
    assert left(end) == pytest.approx(CEILING - 1.0)
    assert end.do(f"wait {CEILING - 1.5}") == []
    assert end.do("wait 0.5") == ["b: release 7", "combine 7: nobody"]
    assert (end.edge().doubts, end.count("in-doubt")) == ([7], 1)


def test_who_misses_rounds_is_waited_for_less_and_who_returns_gets_half():
    end = at_pace(2.0)
    waits = []
    for k in range(7, 13):
        waits.append(left(end))
        end.do("wait 6")
        assert end.said()[-1] == f"combine {k}: nobody"
        end.do("next", "share")
    assert waits == pytest.approx([6.0, 3.0, 1.5, 0.75, 0.375, 0.1875])
    assert end.edge().patience.deadline_s == 0.0  # no time any more: the usual pace is kept
    assert left(end) == pytest.approx(6.0)
    end.do("wait 6", "next", "down b", "up b round=13 closed=13", "share")
    assert left(end) == pytest.approx(3.0)


def test_being_in_time_once_forgives_half_of_what_was_missed():
    end = at_pace(2.0)
    for _ in range(4):
        end.do("wait 6", "next", "share")
    assert left(end) == pytest.approx(6.0 / 2**4)
    end.do("payload b11 + ack=a11", "next", "share")
    assert left(end) == pytest.approx(6.0 / 2**2)


def test_the_longest_wait_decides_and_a_shorter_one_that_is_over_asks_for_no_tick():
    end = at_pace(2.0, neighbors="bc")
    end.do("wait 1", "payload c7 +")
    assert end.do("wait 7") == []  # b's time is over; c is in doubt
    assert left(end) == pytest.approx(CEILING - 8.0)
    assert end.do(f"wait {CEILING - 8.0}") == [
        "b: release 7", "c: release 7", "combine 7: nobody",
    ]  # fmt: skip


def test_the_round_time_that_counts_is_that_of_rounds_in_a_row():
    """A round that was missed says nothing about the neighbor's pace."""
    end = at_pace(2.0, rounds=2)
    end.do("wait 6", "next", "round 1", "share")  # round 4 came 7 s after round 2
    assert left(end) == pytest.approx(6.0)


# --- when it is not connected -------------------------------------------------------------------


def test_a_neighbor_that_is_not_connected_has_the_time_to_come_back():
    end = at_pace(10.0)
    assert left(end) == pytest.approx(30.0)
    end.do("wait 1", "down b")
    assert left(end) == pytest.approx(RECONNECT)
    end.do(f"wait {RECONNECT - 1}")
    assert left(end) == pytest.approx(1.0)
    assert end.do("wait 1") == ["combine 7: nobody"]
    end.do("next", "trained")
    assert end.do("journaled") == ["free 7"]  # it has had its time; the pace is the usual one
    assert left(end) == pytest.approx(10.0)
    assert end.do("wait 10") == ["combine 8: nobody"]


def test_a_neighbor_that_is_in_doubt_has_that_time_in_this_round():
    """Gone for long; but its payload is here and acknowledged, so the answer is worth a wait."""
    end = after(*["round 30"] * 6, "payload b7 +", "down b", f"wait {5 * RECONNECT}", "share")
    assert end.edge().stage is Stage.VOTED
    assert left(end) == pytest.approx(RECONNECT)
    assert end.do(f"wait {RECONNECT}") == ["combine 7: nobody"]
    assert end.edge().doubts == [7]


def test_a_neighbor_that_says_hello_has_the_time_for_it():
    end = at_pace(30.0)
    end.do("down b", f"wait {RECONNECT - 0.5}")
    assert left(end) == pytest.approx(0.5)
    end.do("dial b")
    assert left(end) == pytest.approx(5.0)
    assert end.do("wait 4") == []
    end.do("hello b round=7 digest=b7 closed=6 counted=6:b6:a6")
    assert left(end) > 5.0  # it is here again


def test_after_a_restart_neighbors_have_longer_to_come_back():
    """They must notice the restart first; what was voted for is with them to decide."""
    end = at_pace(30.0).reborn()
    assert end.said() == []
    assert left(end) == pytest.approx(TIMING.resume_s)
    assert end.do(f"wait {TIMING.resume_s - 0.5}") == []
    assert end.do("wait 0.5") == ["combine 7: nobody"]
    assert (end.edge().stage, end.edge().doubts) == (Stage.DOUBT, [7])
    end.do("next", "share", "wait 1")
    assert end.said()[-1] == "free 7"  # nobody is waited for a second time ...
    assert end.do("wait 29") == ["combine 8: nobody"]  # ... but the pace is kept, as before


def test_a_restarted_end_waits_the_ceiling_for_one_that_is_connected():
    end = at_pace(2.0).reborn()
    end.do("wait 1", "up b round=7 digest=b7 closed=6 counted=6:b6:a6")
    assert left(end) == pytest.approx(CEILING - 1.0)


def test_a_neighbor_that_never_came_costs_the_time_to_connect_once():
    end = End(connected=False)
    assert end.do("wait 199") == []
    assert end.do("wait 1") == ["train 1"]
    end.said()
    end.do("share")
    assert end.said() == ["journal 1"]  # nobody is there, so nobody sets the pace
    assert left(end) == pytest.approx(1.0)
    assert end.do("wait 1") == ["combine 1: nobody"]


# --- what ends a wait at once -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("steps", "combined"),
    [
        ("release b 7", "nobody"),
        ("bye b done", "nobody"),
        ("offer b8 closed=7", "nobody"),
        ("payload b7 + ack=a7", "b7"),
        ("payload b7 +, ack b a7", "b7"),
        ("down b, up b round=8 digest=b8 closed=7 counted=6:b6:a6", "nobody"),
        ("down b, up b closed=7 counted=6:b6:a6", "nobody"),
        ("down b, up b closed=50 counted=6:b6:a6 done", "nobody"),
        ("payload b7 +, down b, up b closed=7 counted=7:b7:a7", "b7"),
        ("payload b7 +, down b, up b round=7 digest=b7 closed=6 counted=6:b6:a6 holds=a7", "b7"),
    ],
)
def test_what_ends_the_wait_at_once(steps, combined):
    end = at_pace(2.0)
    end.do("wait 3")
    assert left(end) > 0.0
    end.do(*steps.split(", "))
    assert f"combine 7: {combined}" in end.said()
    assert end.phase == "combining"


def test_a_round_that_ends_early_without_anybody_keeps_the_usual_pace():
    """An agent that is left alone would else run ahead through all rounds."""
    end = at_pace(2.0)
    assert end.do("release b 7") == []
    assert left(end) == pytest.approx(2.0)
    assert end.do("wait 1.9") == []
    assert end.do("wait 0.1") == ["combine 7: nobody"]


def test_at_an_unknown_pace_it_is_a_second():
    end = after("share", "release b 1")
    assert left(end) == pytest.approx(1.0)
    end.do("wait 0.9")
    assert end.phase == "waiting"
    assert end.do("wait 0.1") == ["combine 1: nobody"]


@pytest.mark.parametrize(("ahead", "rests"), [(6, True), (7, False)])
def test_who_falls_back_does_not_rest(ahead, rests):
    """Ten rounds away it would begin again from its neighbors, rest again, and so on."""
    end = after("share", "release b 1", away_rounds=10)
    end.do(f"offer b{ahead} closed={ahead - 1}")
    assert end.phase == ("waiting" if rests else "combining")


def test_where_the_own_pace_is_unknown_it_is_the_neighbors():
    end = End()
    end.do("share", "release b 1", "payload b2", "wait 0.4")
    assert left(end) == pytest.approx(0.6)  # unknown
    end.do("payload b3")
    assert end.phase == "combining"  # 0.4 s, and they have passed


def test_who_rests_is_not_woken_by_what_comes_and_takes_what_comes():
    end = at_pace(2.0)
    end.do("release b 7")
    assert end.do("heard b") == []
    assert end.do("offer b8 closed=7") == ["b: reserve b8", "free 6"]
    assert end.do("whole b8 closed=7") == []
    assert end.do("wait 2") == ["combine 7: nobody"]
    end.do("combined", "trained", "journaled")
    assert "b: payload a8 closed=7 counted=6:a6:b6 ack=b8" in end.said()


def test_no_time_is_lost_with_a_neighbor_that_has_ended_the_round_before():
    end = after("round 2", "bye b done counted=1:b1:a1", "trained", rounds=3)
    assert end.said()[-1] == "journal 3 trained as 2"
    assert end.do("journaled") == ["free 1"]
    assert end.edge().stage is Stage.LOST
    assert end.do("wait 2") == ["combine 3: nobody"]


# --- before a pace is known ---------------------------------------------------------------------


def begun(seconds, *steps, **made):
    """An end whose first round took so many seconds to train, and has been shared."""
    end = End(**made)
    end.do(f"wait {seconds}", "share", *steps)
    return end


def test_in_a_run_that_begins_all_get_the_time_to_start():
    """A first step may take long: whoever has loaded its libraries waits for who has not."""
    end = begun(5.0)
    assert left(end) == pytest.approx(CEILING)  # which comes before 200 + 15 - 5
    short = begun(5.0, timing=replace(TIMING, start_s=30.0))
    assert left(short) == pytest.approx(30.0 + 15.0 - 5.0)


def test_once_the_run_has_begun_it_is_the_own_pace():
    """Nothing is known of the neighbor; 3 times 5 s, and half of it for each miss."""
    end = begun(5.0, timing=replace(TIMING, start_s=0.0))
    assert left(end) == pytest.approx(15.0 - 5.0 + 5.0)
    end.do("wait 15", "next", "wait 1", "share")
    assert left(end) == pytest.approx(3 * 20.0 / 2)  # the round before took 20 s


def test_once_two_rounds_in_a_row_were_seen_it_is_theirs():
    end = begun(5.0, "payload b1 + ack=a1", "next", "wait 2", "share")
    assert left(end) == pytest.approx(CEILING)  # still coming together
    end.do("payload b2 + ack=a2", "next", "share")
    assert left(end) == pytest.approx(6.0)


def test_who_comes_late_gets_no_time_to_start_from_those_that_run():
    """The others have shared many rounds when it greets: it is waited for by their own pace."""
    end = End(neighbors="bc", timing=replace(TIMING, start_s=1.0), connected=False)
    end.do("up b", "wait 30")
    for k in range(1, 6):
        end.do("wait 2", "share", f"payload b{k} + ack=a{k}", "next")
    end.do("up c", "wait 2", "share", "payload b6 + ack=a6")
    assert left(end) == pytest.approx(6.0 / 2 ** end.edge("c").patience.misses)
    assert end.edge("c").patience.misses <= 1


def test_what_a_neighbor_says_of_its_pace_is_believed_until_it_was_seen():
    end = End(connected=False, timing=replace(TIMING, start_s=0.0))
    end.do("up b pace_s=7", "share")
    assert left(end) == pytest.approx(21.0)
    end.do("payload b1 + ack=a1", "next", "wait 2", "share", "payload b2 + ack=a2", "next", "share")
    assert left(end) == pytest.approx(6.0)
    liar = End(connected=False, timing=replace(TIMING, start_s=0.0))
    liar.do("up b pace_s=100000", "share")
    assert left(liar) == pytest.approx(CEILING)


def test_the_pace_is_told():
    end = at_pace(2.0)
    end.do("down b", "dial b")
    assert "pace_s=2.0" in end.said()[-1]


# --- a run that is under way --------------------------------------------------------------------


def test_who_begins_late_waits_a_moment_only_for_those_that_are_not_there():
    end = End(neighbors="bc", connected=False)
    end.do("up b round=1 digest=b1", "wait 10")
    assert end.said()[-1:] != ["train 1"]  # its first round: that may be the start of all
    assert end.phase == "connecting"
    end.do("offer b2 closed=1")
    assert end.agent.next_deadline() - end.now == pytest.approx(RECONNECT)
    end.do(f"wait {RECONNECT - 1}")
    assert end.phase == "connecting"
    assert end.do("wait 1") == ["train 2"]


def test_who_begins_late_is_not_held_up_once_all_are_there():
    end = End(neighbors="bc", connected=False)
    end.do("up b closed=3")
    assert end.phase == "connecting"
    end.do("up c")
    assert end.phase == "training"


# --- while a payload comes ----------------------------------------------------------------------

SLOW = replace(TIMING, dead_after_s=8.0, start_s=0.0)


def arriving(end, *bytes_at_each_second, total=100):
    for come in bytes_at_each_second:
        end.do("later 1", f"arriving b {come} {total}")


def test_a_payload_that_comes_is_waited_for_past_its_deadline():
    end = at_pace(2.0, timing=SLOW)
    end.do("offer b7 closed=6 counted=6:b6:a6")
    arriving(end, *range(2, 42, 2))
    assert end.phase == "waiting"  # 20 s; the deadline was after 6
    assert left(end) == pytest.approx(8.0)
    assert end.count("slow-link") == 0  # it comes whole before the ceiling
    assert end.do("whole b7 closed=6 counted=6:b6:a6 ack=a7")[-1] == "b: ack b7"


def test_it_is_not_once_it_has_stopped():
    end = at_pace(2.0, timing=SLOW)
    end.do("offer b7 closed=6 counted=6:b6:a6")
    arriving(end, *range(2, 42, 2))
    end.do("wait 7.5", "heard b")
    assert end.phase == "waiting"
    assert end.do("wait 0.5") == ["b: release 7", "combine 7: nobody"]


def test_it_is_not_if_it_cannot_come_whole_before_the_ceiling_and_that_is_said_once():
    end = at_pace(2.0, timing=SLOW)
    end.do("offer b7 closed=6 counted=6:b6:a6")
    arriving(end, 10, 20, 30, 40, 50, 60, 70, total=2000)
    assert (end.phase, end.count("slow-link")) == ("waiting", 0)
    arriving(end, 80, total=2000)
    assert end.said()[-1] == "combine 7: nobody"
    (note,) = end.noted("slow-link")
    assert (note["neighbor"], note["bytes"], note["bytes_per_second"]) == (1, 2000, 10)
    assert (note["needs_s"], note["ceiling_s"]) == (200, CEILING)
    assert "larger timing.ceiling-s" in note["remedy"]
    arriving(end, 90, 100, total=2000)
    assert end.count("slow-link") == 1


def test_it_is_waited_for_no_longer_than_the_ceiling():
    end = at_pace(2.0, timing=SLOW)
    end.do("offer b7 closed=6 counted=6:b6:a6")
    arriving(end, *range(1, 99), total=99)
    assert end.phase == "waiting"
    assert left(end) == pytest.approx(CEILING - 98.0)


def test_one_that_breaks_off_again_and_again_is_waited_for_less():
    end = at_pace(0.1, timing=replace(SLOW, least_s=0.5))
    waits = []
    for k in range(7, 11):
        end.do(f"offer b{k} closed={k - 1}", "arriving b 1 100")
        waits.append(left(end))
        end.do(f"later {left(end) / 2}", "heard b")  # alive, and no more of the payload
        end.do(f"wait {left(end)}", "next", "share")
    assert waits == pytest.approx([8.0, 4.0, 2.0, 1.0])
