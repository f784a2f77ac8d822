"""Who was away begins again from its neighbors; who was alone says so; epochs of memory."""

import pytest

from flower_dhb.peer.protocol.rounds import EPOCH_BITS
from tests.support.protocol import TIMING, End, after


def epoch(round, vertex=0):
    return (round << EPOCH_BITS) + 2 * vertex


# --- whether an agent was away ------------------------------------------------------------------


@pytest.mark.parametrize(("ahead", "seeks"), [(11, False), (12, True)])
@pytest.mark.parametrize("when", ["before training", "once the model is there"])
def test_absence_is_decided_in_one_way_before_training_and_after(ahead, seeks, when):
    """It had missed more than ten rounds: which of both finds it out makes no difference."""
    end = after("share", "payload b1 ack=a1")
    news = f"up b round={1 + ahead} digest=b{1 + ahead} closed={ahead} counted=1:b1:a1"
    steps = (news, "combined") if when == "before training" else ("combined", news, "trained")
    words = end.do(*steps)
    assert ("b: seek" in words) is seeks
    assert (end.phase == "rejoining") is seeks
    if not seeks:
        assert words[-1] == ("train 12" if when == "before training" else "journal 12 trained as 2")


def test_who_begins_late_and_late_enough_begins_from_its_neighbors():
    end = End(connected=False)
    assert end.do("up b round=20 digest=b20 closed=19") == ["b: hello", "b: seek"]
    end = End(connected=False, away_rounds=19)
    assert end.do("up b round=20 digest=b20 closed=19") == ["b: hello", "train 20"]


@pytest.mark.parametrize(("rounds", "seeks"), [(5, True), (4, False)])
def test_who_finds_only_finished_neighbors_and_would_end_alone_begins_again(rounds, seeks):
    """Its last part with a neighbor was in round 1, and nobody shares a round any more."""
    end = after("share", "payload b1 ack=a1", rounds=rounds)
    end.do(f"up b closed={rounds} done counted=1:b1:a1", "combined")
    assert end.agent.mixed == 1
    assert end.phase == ("rejoining" if seeks else "training")
    end = after("share", "payload b1 ack=a1", rounds=rounds)
    end.do(f"up b closed={rounds} counted=1:b1:a1", "combined")
    assert end.phase == "training"


def test_in_the_last_rounds_too_who_would_end_alone_takes_the_final_model():
    """It was a round behind, no more: the neighbors did not wait for it in four."""
    end = after("share", "payload b1 ack=a1", rounds=5)
    end.do("combined", "down b")
    for k in (2, 3, 4):
        end.do("trained", "journaled", "wait 100")
        assert end.agent.closed == k
        if k == 4:
            end.do("up b closed=5 done counted=1:b1:a1")
        end.do("combined")
    assert end.phase == "rejoining"
    assert end.do("payload b6 final")[-1] == "rejoin 5: b6@6"


def test_who_never_had_a_neighbor_begins_from_the_finished_ones_in_however_short_a_run():
    end = End("bc", connected=False, rounds=2)
    end.do("up b closed=2 done", "up c closed=2 done")
    assert end.phase == "rejoining"
    end = End("bc", connected=False, rounds=2)
    end.do("up b closed=2 done", "up c closed=2")
    assert end.phase == "training"


def test_who_is_alone_is_not_away():
    end = after("down b", "share", "wait 100")
    assert end.said()[-1] == "combine 1: nobody"
    assert end.do("combined")[-1] == "train 2"


# --- to begin again -----------------------------------------------------------------------------


def away(neighbors="bc", **made):
    """An end whose neighbors are in round 30."""
    end = End(neighbors, connected=False, **made)
    end.do(*(f"up {j} round=30 digest={j}30 closed=29" for j in neighbors))
    assert end.phase == "rejoining"
    return end


def test_who_was_away_takes_the_newest_of_each_neighbor_and_goes_on_with_them():
    end = away()
    assert end.said()[-2:] == ["b: seek", "c: seek"]
    assert end.do("payload c30 closed=29") == []
    assert end.do("payload b32 closed=31") == ["rejoin 32: b32@32 c30@30"]
    assert end.phase == "combining"
    assert end.noted("rejoined") == [{"round": 32, "missed": 31, "neighbors": [1, 2]}]
    assert end.do("rejoined") == ["b: release 32", "c: release 32", "save 32", "train 33"]
    assert (end.agent.closed, end.agent.mixed) == (32, 32)
    assert end.counts["rejoined", ""] == 1
    assert [sorted(edge.held) for edge in end.agent.edges.values()] == [[], []]


def test_who_begins_again_leads_nobody_past_the_round_that_it_is_about_to_begin():
    """c has yet to begin round 31, and b waits there for it."""
    end = away()
    end.do("payload c30 closed=29")
    assert end.do("payload b31 closed=30") == ["rejoin 30: b31@31 c30@30"]
    assert end.do("rejoined")[-2:] == ["save 30", "train 31"]


def test_all_who_are_ahead_are_waited_for_and_once_one_is_here_not_for_long():
    end = away()
    assert end.agent.next_deadline() == pytest.approx(end.now + TIMING.ceiling_s)
    end.do("later 5", "payload b30 closed=29")
    assert end.agent.next_deadline() == pytest.approx(end.now + TIMING.reconnect_s)
    end.said()
    assert end.do(f"wait {TIMING.reconnect_s}") == ["rejoin 30: b30@30"]


def test_who_is_as_far_behind_is_not_waited_for():
    """Two that come back side by side would else wait for each other."""
    end = End("bc", connected=False)
    end.do("up c round=2 digest=c2 closed=1", "up b round=30 digest=b30 closed=29")
    assert end.said()[-2:] == ["b: seek", "c: seek"]
    assert end.do("payload b30 closed=29") == ["rejoin 30: b30@30"]


def test_who_is_asked_while_it_begins_again_says_that_it_does():
    """It may have counted a round with the one that asks, which would else wait for its next."""
    end = End("bc", connected=False)
    end.do("up c round=2 digest=c2 closed=1", "up b round=30 digest=b30 closed=29")
    end.do("up c round=2 digest=c2 closed=1")  # it knows nothing of what was asked before
    assert end.do("seek c") == ["c: seek"]
    assert end.do("seek c") == []


def test_who_begins_again_too_is_not_waited_for_and_leads_nobody():
    """It says that it is in round 30, and has nothing to give."""
    end = away()
    end.do("seek b")
    end.said()
    assert end.do("payload c30 closed=29") == ["rejoin 30: c30@30"]
    end = away("b")
    end.said()
    assert end.do("seek b") == ["train 1"]
    end = away()
    end.do("seek b", "payload b30 closed=29")  # it has begun again
    assert end.phase == "rejoining"
    assert end.do("payload c30 closed=29") == ["rejoin 30: b30@30 c30@30"]


def test_who_has_begun_again_leads_once_it_shares_what_is_new():
    end = after("round", "up b round=9 digest=b9 closed=8 counted=1:b1:a1", "seek b")
    assert end.do("trained") == ["journal 2"]
    end = after("round", "up b round=9 digest=b9 closed=8 counted=1:b1:a1", "seek b")
    end.do("offer b1 closed=8 counted=1:b1:a1")  # old, on its way before
    assert end.do("trained") == ["journal 2"]
    end = after("round", "up b round=9 digest=b9 closed=8 counted=1:b1:a1", "seek b")
    end.do("offer b10 closed=9 counted=1:b1:a1")
    assert end.do("trained") == ["journal 10 trained as 2"]


def test_a_new_connection_of_one_that_began_again_is_a_new_attempt():
    end = away("b")
    end.do("seek b", "down b", "trained", "up b round=30 digest=b30 closed=29")
    assert end.agent.near.target(end.now) == 30


def test_what_they_hold_is_not_taken():
    end = End("bc", connected=False)
    end.do("up c round=2 digest=c2 closed=1", "up b round=30 digest=b30 closed=29")
    end.do("payload c2 closed=1")
    assert end.do("payload b30 closed=29") == ["rejoin 30: b30@30"]


@pytest.mark.parametrize(("old", "taken"), [(20, True), (19, False)])
def test_sources_are_no_older_than_an_absence_may_be(old, taken):
    end = End("bc", connected=False)
    end.do(f"up c round={old} digest=c{old} closed={old - 1}", "up b round=30 digest=b30 closed=29")
    end.do(f"payload c{old} closed={old - 1}")
    sources = f"b30@30 c{old}@{old}" if taken else "b30@30"
    assert end.do("payload b30 closed=29") == [f"rejoin 30: {sources}"]


def test_a_neighbor_that_connects_meanwhile_is_asked_too():
    end = away("bc")
    end.do("down c", "payload b30 closed=29")
    assert end.phase == "combining"  # nobody else is there
    end = away("bc")
    end.do("down c", "up c round=30 digest=c30 closed=29")
    assert end.said()[-1] == "c: seek"
    assert end.do("wait 1") == []  # once
    end.do("payload b30 closed=29")
    assert end.do("payload c30 closed=29") == ["rejoin 30: b30@30 c30@30"]


def test_a_payload_that_is_here_already_is_enough():
    end = after("share", "payload b1 ack=a1", "payload b30 closed=29 counted=1:b1:a1")
    assert end.do("combined") == ["save 1", "b: seek", "rejoin 30: b30@30"]


def test_who_has_nothing_to_give_is_cut_off_and_the_run_goes_on():
    end = away("b")
    end.said()
    assert end.do(f"wait {TIMING.ceiling_s}") == ["b: close at once: no-payload", "train 1"]
    assert end.count("cut-off.no-payload") == 1


def test_if_whoever_was_ahead_is_gone_training_goes_on():
    end = away("b")
    assert end.do("down b") == ["train 1"]
    end = away("bc")
    end.do("payload b30 closed=29", "down b")
    assert end.phase == "rejoining"  # c is there
    assert end.do("down c") == ["train 1"]


def test_a_model_that_the_app_cannot_take_ends_the_run_here():
    end = away("b")
    end.do("payload b30 closed=29")
    end.said()
    assert end.do("rejoined its shapes differ") == [
        "b: close: stopping",
        "fail: could not begin again from the neighbors: its shapes differ",
    ]
    assert end.agent.stopped


def test_who_began_again_is_at_that_round_after_a_crash_too():
    end = away("b")
    end.do("payload b30 closed=29", "rejoined")
    again = end.reborn()
    assert (again.agent.closed, again.agent.mixed) == (30, 30)
    assert again.do("up b round=31 digest=b31 closed=30")[-1] == "train 31"


# --- to give ------------------------------------------------------------------------------------


def test_who_is_asked_gives_its_newest_payload():
    end = End()
    assert end.do("seek b") == []  # it has none yet
    end = after("round", "share")
    end.said()
    assert end.do("seek b") == ["b: payload a2 closed=1 counted=1:a1:b1"]
    end = after("share", "payload b1 ack=a1")  # that it counted is not on the disk
    end.said()
    assert end.do("seek b") == ["b: payload a1"]
    end = after("round")  # the next is in training
    end.said()
    assert end.do("seek b") == ["b: payload a1 closed=1 counted=1:a1:b1"]


def test_a_finished_agent_gives_its_final_model():
    end = after("round", "round", "finished", rounds=2)
    end.do("up b")
    end.said()
    assert end.do("seek b") == ["b: final a51 closed=2"]


def test_who_returns_after_the_end_takes_the_final_model():
    end = End(connected=False, rounds=20)
    assert end.do("up b closed=20 done") == ["b: hello", "b: seek"]
    assert end.do("payload b20 closed=20 final") == ["rejoin 20: b20@21"]
    assert end.do("rejoined") == ["b: release 20", "save 20"]
    assert end.do("saved") == ["finish"]  # not alone: it has its neighbor's model
    assert end.edge().held == {}


@pytest.mark.parametrize(
    ("steps", "offer", "answer"),
    [
        ("up b round=1 digest=b1", "b20 final", "refuse stale 21"),  # nobody asked
        ("up b closed=20 done", "b20 final round=20", "reserve b20"),
        ("up b closed=20 done", "b20 final round=22", "refuse stale 22"),
        ("up b closed=20 done", "b20 final", "reserve b20"),
        ("up b closed=20 done, payload b20 final, rejoined", "b20 final", "refuse stale 21"),
    ],
)
def test_a_final_model_is_taken_by_who_seeks(steps, offer, answer):
    end = End(connected=False, rounds=20)
    end.do(*steps.split(", "))
    assert f"b: {answer}" in end.do(f"offer {offer}")


# --- who was alone ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("together", "alone", "said"),
    [
        (4, 0, ""),
        (4, 3, ""),
        (4, 4, " alone since 4"),
        (0, 1, " alone since 0"),
        (0, 4, " alone since 0"),
    ],
)
def test_who_had_no_neighbor_in_its_last_rounds_says_so(together, alone, said):
    """A few rounds are nothing to speak of."""
    rounds = together + alone
    end = after(*["round"] * together, "down b", rounds=rounds)
    for _ in range(alone):
        end.do("share", "wait 100", "next")
    assert end.said()[-1] == f"finish{said}"
    assert end.noted("alone") == ([{"since": together}] if said else [])


def test_it_is_said_once_and_again_after_company():
    end = after("round", "down b")
    for _ in range(6):
        end.do("share", "wait 100", "next")
    end.do("up b round=8 digest=b8 closed=7 counted=1:b1:a1", "round", "down b")
    assert end.agent.alone_since == -1
    for _ in range(6):
        end.do("share", "wait 100", "next")
    assert end.noted("alone") == [{"since": 1}, {"since": 8}]
    assert end.agent.alone_since == 8


# --- memory that the rule conserves -------------------------------------------------------------


def test_a_loss_begins_an_epoch_in_the_next_round():
    end = after("share", "payload b1 ack=a1", "combined", "release b 1", conserves=True)
    assert end.said()[-1] == "train 2"  # it was under way
    end.do("trained", "journaled", "payload b2 closed=1 ack=a2")
    assert end.do("combined") == ["save 2", f"train 3 epoch {epoch(3)}"]
    assert end.noted("epoch") == [{"round": 3}]
    assert end.do("trained") == [f"journal 3 epoch {epoch(3)}"]


def test_so_does_a_payload_that_the_app_refused():
    """The other end has used it."""
    end = after("share", "payload b1 ack=a1", conserves=True)
    assert end.do("combined refused") == ["save 1", f"train 2 epoch {epoch(2)}"]
    end = after("share", "payload b1 ack=a1", conserves=True)
    assert end.do("combined") == ["save 1", "train 2"]


def test_an_epoch_has_the_number_of_who_began_it():
    """So two that begin in one round are not the same."""
    end = after("share", "payload a1 ack=b1", "release a 1", neighbors="a", me="b", conserves=True)
    assert end.do("combined")[-1] == f"train 2 epoch {epoch(2, 1)}"


def test_a_loss_begins_none_where_nothing_is_conserved():
    end = after("share", "payload b1 ack=a1", "release b 1", "combined")
    assert end.said()[-1] == "train 2"
    end.do("trained", "journaled", f"payload b2 closed=1 ack=a2 epoch={epoch(2, 1)}")
    assert end.said()[-1] == "combine 2: b2"


def test_whoever_hears_of_a_newer_epoch_takes_it_in_its_next_round():
    for news in (f"offer b2 closed=1 counted=1:b1:a1 epoch={epoch(2, 1)}",
                 f"up b closed=1 counted=1:b1:a1 epoch={epoch(2, 1)}"):  # fmt: skip
        end = after("share", "payload b1 ack=a1", news, conserves=True)
        end.said()
        assert end.do("combined")[-1] == f"train 2 epoch {epoch(2, 1)}"
        assert end.do("trained") == [f"journal 2 epoch {epoch(2, 1)}"]
        assert end.do("journaled")[0] == (
            f"b: payload a2 closed=1 counted=1:a1:b1 epoch={epoch(2, 1)}"
        )


@pytest.mark.parametrize("first", ["theirs", "ours"])
def test_an_edge_between_two_epochs_does_not_count(first):
    other = f"payload b1 epoch={epoch(1, 1)}"
    end = after(*(("trained", other, "journaled") if first == "theirs" else ("share", other)),
                conserves=True)  # fmt: skip
    assert end.edge().stage.value == "released"
    assert "b: release 1" in end.said()
    assert end.do("wait 1") == ["combine 1: nobody"]
    assert end.do("combined")[-1] == f"train 2 epoch {epoch(1, 1)}"


@pytest.mark.parametrize("first", ["theirs", "ours"])
def test_whoever_is_in_an_older_epoch_is_told_of_the_newer_one(first):
    """By the header of our payload: nothing else names it while the connection lasts."""
    newer, older = epoch(2, 1), f"payload b2 closed=1 epoch={epoch(1, 1)}"
    end = after("share", f"payload b1 epoch={newer}", "wait 1", "next", conserves=True)
    end.said()
    if first == "theirs":
        words = end.do("trained", older, "journaled")
    else:
        words = end.do("share")
        end.do(older)
    assert f"b: payload a2 closed=1 epoch={newer}" in words
    assert end.edge().stage.value == "released"


def test_an_older_epoch_takes_nobody_back():
    end = after("share", f"payload b1 epoch={epoch(2, 1)}", "wait 1", "next", conserves=True)
    end.do("share", f"payload b2 closed=1 epoch={epoch(1, 1)}", "wait 1")
    assert end.do("combined")[-1] == f"train 3 epoch {epoch(2, 1)}"


def test_an_epoch_of_a_round_that_there_is_not_is_nobodys():
    end = after("share", f"payload b1 epoch={epoch(53, 1)} ack=a1", "wait 1", conserves=True)
    assert end.do("combined")[-1] == "train 2"


def test_who_begins_again_begins_an_epoch():
    """Its share of the memory is lost."""
    end = End(connected=False, conserves=True)
    end.do("up b round=30 digest=b30 closed=29")
    assert end.do("payload b30 closed=29")[-1] == "rejoin 30: b30@30"
    assert end.effects[-1].epoch == epoch(30)
    assert end.do("rejoined")[-1] == f"train 31 epoch {epoch(30)}"


def test_epochs_do_not_follow_each_other_at_once():
    """One loss after another would leave no time for the memory to grow."""
    end = after("share", "payload b1 ack=a1", "release b 1", conserves=True, away_rounds=5)
    begun = []
    for k in range(2, 16):
        end.do("combined", "saved")
        begun.append(end.agent.near.epoch >> EPOCH_BITS)
        end.do("share", f"payload b{k} closed={k - 1} epoch={end.agent.near.epoch} ack=a{k}")
        end.do(f"release b {k}")
    assert sorted(set(begun)) == [2, 7, 12]


def test_one_loss_begins_one_epoch():
    end = after("share", "payload b1 ack=a1", "release b 1", "next", conserves=True, away_rounds=5)
    for _ in range(2, 16):
        k = end.agent.closed + 1
        counted = f"counted={k - 1}:b{k - 1}:a{k - 1}" if k > 2 else ""
        end.do("share", f"payload b{k} closed={k - 1} epoch={epoch(2)} {counted} ack=a{k}", "next")
    assert (end.agent.closed, end.agent.near.epoch) == (15, epoch(2))


def test_a_restart_does_not_begin_the_next_epoch_sooner():
    end = after("share", "payload b1 ack=a1", "release b 1", "next", conserves=True, away_rounds=5)
    end.do("share", f"payload b2 closed=1 epoch={epoch(2)} ack=a2", "release b 2", "next")
    again = end.reborn()
    assert again.do("up b round=3 digest=b3 closed=2")[-1] == f"train 3 epoch {epoch(2)}"


def test_an_epoch_is_newer_than_any_that_was_heard_of():
    end = after("share", f"payload b1 epoch={epoch(9, 1)}", "wait 1", "combined", conserves=True)
    assert end.said()[-1] == f"train 2 epoch {epoch(9, 1)}"
    end.agent.near.broken, end.agent._epoch_began = True, 0
    end.do("share", "wait 100")
    assert end.do("combined")[-1] == f"train 3 epoch {epoch(10)}"


def test_an_epoch_outlives_the_process_and_so_does_a_loss():
    new = epoch(1, 1)
    end = after("share", f"payload b1 epoch={new}", "wait 1", "next", "share", conserves=True)
    again = end.reborn()
    assert again.do("dial b") == [f"b: hello round=2 digest=a2 closed=1 epoch={new}"]
    assert again.do("hello b closed=1")[0] == f"b: payload a2 closed=1 epoch={new}"
    again.do("payload b2 closed=1 epoch=1 ack=a2")
    assert again.edge().stage.value == "doubt"  # it may have voted for one of this epoch
    assert again.do("wait 1", "combined")[-1] == f"train 3 epoch {new}"
    end = after("share", "payload b1 ack=a1", "release b 1", "combined", conserves=True)
    again = end.reborn(2)
    assert again.do("up b closed=1")[-1] == f"train 2 epoch {epoch(2)}"


def test_a_neighbor_that_has_finished_is_asked_though_it_looked_for_a_model_before():
    """It began again from a final model, and so has finished; now it has one to give."""
    end = End()
    end.do("seek b", "bye b done", "trained")
    assert end.phase == "rejoining"
    end.said()
    assert end.do("offer b51 final closed=50") == ["b: reserve b51"]
    end.do("whole b51 final closed=50")
    assert end.phase == "combining"
