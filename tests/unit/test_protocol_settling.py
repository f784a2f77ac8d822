"""How a round ended at the other end: what is remembered, asked, answered, and given again."""

import pytest

from flower_dhb.peer.protocol.edge import Stage
from tests.support.protocol import End, after

COUNTED = "share", "payload b1 ack=a1", "next"  # round 1 counted here; nothing is known of there
IN_DOUBT = "share", "payload b1", "wait 100", "next"  # given up here after the vote


def one_sided(end, j="b"):
    """The rounds that are one-sided, and that each was counted and noted once."""
    rounds = end.edge(j).one_sided
    assert end.count("one-sided", j) == len(rounds) == end.edge(j).one_sided_total
    assert sorted(r for noted in end.noted("one-sided") for r in noted["rounds"]) == rounds
    return rounds


# --- headers, releases, goodbyes ----------------------------------------------------------------


def test_a_release_of_a_round_that_was_counted_is_one_sided():
    end = after("share", "payload b1 ack=a1", "release b 1")
    assert end.count("one-sided") == 1
    assert end.noted("one-sided") == [{"neighbor": 1, "rounds": [1]}]
    end.do("release b 1", "release b 2")
    assert end.count("one-sided") == 1  # it is the same round
    assert end.edge().one_sided == [1]
    assert end.edge().unknown == 0


def test_a_release_after_both_said_that_they_counted_changes_nothing():
    end = after("share", "payload b1 ack=a1", "next", "offer b2 +", "release b 1")
    assert (end.count("one-sided"), end.edge().settled) == (0, True)


SETTLED = {
    # what the neighbor says in a header after round 1 counted here
    "it counted": ("b2 closed=1 counted=1:b1:a1", True, 0),
    "it has not yet said": ("b1 closed=0", False, 0),
    "it did not count": ("b2 closed=1", True, 1),
    "it counted another of its payloads": ("b2 closed=1 counted=1:b1':a1", True, 1),
    "it counted another of ours": ("b2 closed=1 counted=1:b1:a1'", True, 1),
    # It had our payload of that round, which said that we counted this one.
    "it counted a later one": ("b3 closed=2 counted=2:b2:a2", True, 1),
    "it has passed it by": ("b3 closed=0", True, 1),
}


@pytest.mark.parametrize("case", SETTLED)
def test_a_round_that_counted_is_settled_when_the_neighbor_says_how_it_ended(case):
    said, settled, one_sided = SETTLED[case]
    end = after("share", "payload b1 ack=a1")
    assert end.edge().unknown == 1
    end.do("next", f"offer {said}")
    assert end.edge().settled is settled
    assert end.edge().unknown == (not settled)
    assert end.count("one-sided") == one_sided == len(end.edge().one_sided)


DOUBTS = {
    # what is heard of round 1, which was given up here after the vote
    "they did not count it": ("offer b2 closed=1", [], 0),
    "they counted it": ("offer b2 closed=1 counted=1:b1:a1", [], 1),
    "they have not ended it": ("offer b1 closed=0", [1], 0),
    "they have passed it by": ("offer b3 closed=0", [], 0),
    # If they had counted it, their payload of round 2 would have said so.
    "they counted a later one": ("offer b3 closed=2 counted=2:b2:a1", [], 1),
    "they counted a later one, and say hello": ("up b closed=2 counted=2:b2:a1", [], 1),
    "they say so as they finish": ("bye b done counted=1:b1:a1", [], 1),
    "they finished without it": ("bye b done", [], 0),
}


@pytest.mark.parametrize("case", DOUBTS)
def test_a_doubt_is_kept_until_the_neighbor_says_how_the_round_ended(case):
    said, doubts, one_sided = DOUBTS[case]
    end = after("share", "payload b1", "wait 100")
    assert end.edge().doubts == [1]
    end.do(said)
    assert end.edge().doubts == doubts
    assert end.count("one-sided") == one_sided
    assert end.edge().doubts_total == 1


def test_a_round_that_is_known_to_be_one_sided_is_no_doubt():
    edge = End().edge()
    edge.doubt(1)
    edge.doubt(2)
    assert edge.disagree(1)
    assert (edge.doubts, edge.one_sided, edge.doubts_total) == ([2], [1], 2)


def test_what_is_remembered_is_bounded():
    edge = End().edge()
    for k in range(1, 201):
        edge.doubt(k)
        assert edge.disagree(k + 1000)
    assert edge.doubts == list(range(137, 201))
    assert edge.one_sided == list(range(1137, 1201))
    assert (edge.doubts_total, edge.one_sided_total) == (200, 200)
    assert not edge.disagree(1136)  # so old that it may have been counted before
    assert not edge.disagree(1137)
    assert edge.one_sided_total == 200


# --- Hellos -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("steps", "said", "rounds"),
    [
        (COUNTED, "closed=1 doubts=1", [1]),
        (COUNTED, "closed=3 doubts=2,3", [1]),  # it says that nothing counted
        (COUNTED, "closed=1 counted=1:b1:a1 doubts=2", []),
        (COUNTED, "closed=1 counted=1:b1:a1", []),
        (COUNTED, "closed=1 counted=1:b1':a1", [1]),
        (COUNTED, "closed=2 counted=2:b2:a2", [2]),  # it knew of round 1 by then
        (COUNTED, "closed=2 counted=2:b2:a2 doubts=1", [1, 2]),
        (COUNTED, "round=1 digest=b1", []),
        (COUNTED, "round=1 digest=b1'", [1]),  # the payload that counted here is lost
        (COUNTED, "", [1]),  # everything is
        (COUNTED, "round=1 digest=b1 one_sided=1", [1]),
        (COUNTED, "closed=1 counted=1:b1:a1 one_sided=40", [40]),
        (COUNTED, "closed=1 counted=1:b1:a1 one_sided=0,51", []),  # there are no such rounds
        (IN_DOUBT, "closed=1", []),
        (IN_DOUBT, "closed=1 counted=1:b1:a1", [1]),
        (IN_DOUBT, "closed=1 one_sided=1", [1]),
        (IN_DOUBT, "round=1 digest=b1", []),
        (IN_DOUBT, "", []),  # it lost the payload: it can never count it
        (IN_DOUBT, "closed=1 doubts=1", []),
    ],
)
def test_what_a_hello_settles(steps, said, rounds):
    end = after(*steps, "down b", f"up b {said}")
    assert one_sided(end) == rounds
    assert end.edge().unknown == (said == "round=1 digest=b1")
    for _ in range(2):  # said again, it is not news
        end.do("down b", f"up b {said}")
        assert one_sided(end) == rounds


def test_the_same_round_is_one_sided_once_however_often_it_is_said():
    end = after(*COUNTED, "release b 1", "up b closed=1 doubts=1", "up b closed=1 one_sided=1")
    assert one_sided(end) == [1]


def test_who_had_said_that_it_counted_may_lose_it_again():
    """Its disk was set back to an older state: the edge counts here alone now."""
    end = after(*COUNTED, "offer b2 +")
    assert end.edge().settled
    end.do("up b closed=1 counted=1:b1:a1")
    assert (end.edge().settled, one_sided(end)) == (True, [])
    end.do("up b closed=0")
    assert one_sided(end) == [1]


@pytest.mark.parametrize(
    "said",
    [
        "closed=1",  # it ended round 1 again, without us
        "closed=1 doubts=1",  # in doubt
        "closed=1 counted=1:b1':a1",  # with another payload
        "closed=0",
        "round=1 digest=b1'",
        "round=3 digest=b3 closed=2",
    ],
)
def test_who_had_said_that_it_counted_and_says_so_no_more_has_lost_it(said):
    end = after(*COUNTED, "offer b2 +", f"up b {said}")
    assert one_sided(end) == [1]


def test_who_had_said_that_it_counted_may_stand_in_that_round_again():
    end = after(*COUNTED, "offer b2 +", "down b", "dial b")
    assert end.do("hello b round=1 digest=b1") == [
        "b: ack b1", "b: payload a1 closed=1 counted=1:a1:b1",
    ]  # fmt: skip
    assert (end.edge().settled, one_sided(end)) == (False, [])
    # Once our next payload is on the disk, the last is gone: it had said that it had it.
    end = after(*COUNTED, "offer b2 +", "share", "down b", "dial b")
    assert end.do("hello b round=1 digest=b1") == [
        "b: release 1", "b: payload a2 closed=1 counted=1:a1:b1",
    ]  # fmt: skip
    assert (end.edge().settled, one_sided(end)) == (True, [1])


# --- a neighbor that was restarted in a round that counted here ---------------------------------


def test_it_gets_our_acknowledgment_and_our_payload_again():
    end = after(*COUNTED, "share", "down b")
    end.said()
    words = end.do("up b round=1 digest=b1")
    assert words == [
        "b: hello round=2 digest=a2 closed=1 counted=1:a1:b1",
        "b: ack b1",
        "b: payload a1 closed=1 counted=1:a1:b1",
    ]
    assert end.do("payload b1") == ["b: refuse stale 1"]
    # It counts round 1 now, and goes on to the one that is open here.
    assert end.do("payload b2 +") == [
        "b: payload a2 closed=1 counted=1:a1:b1", "free 1", "b: ack b2",
    ]  # fmt: skip
    assert (end.edge().settled, one_sided(end)) == (True, [])


@pytest.mark.parametrize("acks", [False, True])
def test_a_round_that_counts_while_the_payload_is_on_its_way_again_lets_it_arrive(acks):
    """The payload of the next round takes its place only once the neighbor has it."""
    end = after("share", "offer b1", "ack b a1", "down b", "up b round=1 digest=b1")
    assert end.said()[-1] == "b: payload a1"
    if acks:
        end.do("ack b a1")
    end.do("payload b1", "combined", "saved", "trained", "journaled")
    assert ("b: payload a2 closed=1 counted=1:a1:b1" in end.said()) is acks
    words = end.do("payload b2 closed=1 counted=1:b1:a1")
    assert any("payload a2" in word for word in words) is not acks


@pytest.mark.parametrize("heard", ["ack b a1", "ack b a2", "ack b a1 2", "ack b a1' 1"])
def test_once_it_has_that_payload_it_gets_the_open_rounds(heard):
    """It may say nothing of round 1 for long: whoever is behind has nothing to offer."""
    end = after(*COUNTED, "share", "down b", "up b round=1 digest=b1")
    end.said()
    words = end.do(heard)
    served = words == ["b: payload a2 closed=1 counted=1:a1:b1"]
    assert served is (heard == "ack b a1")
    assert not end.edge().settled  # its disk does not say so yet
    assert end.do("down b", "up b round=1 digest=b1")[1:] == [
        "b: ack b1", "b: payload a1 closed=1 counted=1:a1:b1",
    ]  # fmt: skip


def test_it_gets_no_payload_that_it_holds():
    end = after(*COUNTED, "share", "down b", "dial b")
    assert end.do("hello b round=1 digest=b1 holds=a1")[0] == "b: ack b1"
    assert not any("payload a1" in said for said in end.said()[-2:])
    end = after(*COUNTED, "down b", "dial b")
    assert end.do("hello b round=1 digest=b1 holds=a1'") == [
        "b: ack b1", "b: payload a1 closed=1 counted=1:a1:b1",
    ]  # fmt: skip


def test_it_is_served_on_the_connection_that_asks_and_once():
    end = after(*COUNTED, "up b round=1 digest=b1")
    end.said()
    assert not any("payload" in w for w in end.do("payload b1"))
    assert end.do("up b round=1 digest=b1")[2:] == [
        "b: ack b1", "b: payload a1 closed=1 counted=1:a1:b1",
    ]  # fmt: skip
    assert end.do("up b closed=1 counted=1:b1:a1") == [
        "b: close: replaced by a newer connection (old link)",
        "b: hello closed=1 counted=1:a1:b1",
    ]


def test_if_the_payload_is_gone_the_round_is_one_sided():
    """The disk has lost it; nobody else has it."""
    end = after(*COUNTED).reborn(kept=())
    assert end.do("up b round=1 digest=b1")[1:] == ["b: release 1", "train 2"]
    assert one_sided(end) == [1]


def test_whoever_shares_a_round_again_that_is_one_sided_by_now_is_told():
    """It has lost that round with its disk, and found out after our Hello."""
    end = after(*COUNTED, "up b")
    assert one_sided(end) == [1]
    assert end.do("offer b1") == ["b: release 1", "b: refuse stale 1"]


def test_what_was_given_up_is_not_given_again():
    end = after(*IN_DOUBT, "down b", "dial b")
    assert end.do("hello b round=1 digest=b1") == ["b: release 1"]
    end = after("round", "failed", "down b", "dial b")
    assert end.do("hello b round=2 digest=b2 closed=1 counted=1:b1:a1") == ["b: release 2"]


# --- own payloads are kept until nobody can ask for them ----------------------------------------


def kept(end):
    return sorted(end.agent.near.kept)


def test_a_payload_is_kept_until_each_neighbor_has_said_how_its_round_ended():
    end = after("share", "payload b1 ack=a1", "payload c1 ack=a1", "next", "share", neighbors="bc")
    assert kept(end) == [1, 2]
    end.said()
    assert "free 1" not in end.do("payload b2 +")
    assert kept(end) == [1, 2]
    end.said()
    end.do("payload c2 +")
    assert end.said() == ["free 1", "c: ack c2"]
    assert kept(end) == [2]


def test_a_payload_that_is_given_again_is_of_its_own_epoch():
    end = after(*COUNTED[:2], "offer b1 closed=0 epoch=3145729", conserves=True)
    assert end.do("combined")[-1] == "train 2 epoch 3145729"
    end.do("share", "dial b")
    assert end.do("hello b round=1 digest=b1") == [
        "b: ack b1", "b: payload a1 closed=1 counted=1:a1:b1",
    ]  # fmt: skip


@pytest.mark.parametrize("how", ["up b closed=1", "release b 1", "up b", "bye b done"])
def test_however_it_ended(how):
    end = after(*COUNTED, "share")
    assert kept(end) == [1, 2]
    assert "free 1" in end.do(how)
    assert kept(end) == [2]


def test_a_payload_that_nobody_counted_is_kept_until_there_is_a_newer():
    end = after(*IN_DOUBT)
    assert kept(end) == [1]
    assert end.do("trained", "journaled")[-1] == "free 1"
    assert kept(end) == [2]


def test_no_more_payloads_are_kept_than_there_are_neighbors_and_one():
    end = End("bcd")
    for k in range(1, 20):
        end.do("share")
        j = "bcd"[k % 3]
        end.do(f"payload {j}{k} closed={k - 1} ack=a{k}", "wait 100", "next")
        assert len(kept(end)) <= 4


# --- what a neighbor has lost -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("steps", "said", "held"),
    [
        ("share, payload b1, payload b3", "round=1 digest=b1", [1]),
        ("payload b3", "round=3 digest=b3 closed=2", [3]),
        ("payload b3", "round=3 digest=b3' closed=2", []),
        ("payload b3", "round=4 digest=b4 closed=3", []),
        ("payload b3", "closed=2", []),
        ("payload b3", "closed=3", []),
        ("share, payload b1", "closed=1 counted=1:b1:a1", []),  # it is used, and gone
        ("share, payload b1", "closed=1", [1]),  # it is of no use, and goes with the round
    ],
)
def test_payloads_that_their_sender_knows_no_more_of_are_dropped(steps, said, held):
    end = after(*steps.split(", "), "down b", f"up b {said}")
    assert sorted(end.edge().held) == held


def test_an_acknowledgment_of_a_life_that_was_lost_counts_no_more():
    end = after("share", "ack b a1", "up b round=1 digest=b1'")
    assert not end.edge().acked
    assert end.do("payload b1'") == ["b: ack b1'"]
    assert end.phase == "waiting"
    assert end.do("ack b a1") == ["combine 1: b1'"]


def test_an_acknowledgment_is_not_lost_with_the_connection():
    end = after("share", "ack b a1")
    end.do("offer b1", "dial b")
    assert end.do("hello b round=1 digest=b1 holds=a1") == []
    assert end.edge().acked
    assert end.do("payload b1") == ["b: ack b1", "combine 1: b1"]


def test_a_vote_outlives_a_restart_and_the_payload_that_it_was_for_does_not():
    """The neighbor is bound by what it said, and its memory is empty: it gets the bytes again."""
    end = after("share", "offer b1", "ack b a1", "down b", "dial b")
    assert end.do("hello b round=1 digest=b1") == ["b: payload a1"]
    assert end.edge().acked
    assert end.do("payload b1") == ["b: ack b1", "combine 1: b1"]


def test_both_ends_agree_again_after_one_lost_its_payload():
    end = after("share", "payload b1", "up b round=1 digest=b1'")
    assert end.edge().stage is Stage.IDLE
    end.said()
    assert end.do("payload b1' ack=a1") == ["b: ack b1'", "combine 1: b1'"]


def test_a_payload_that_counted_there_and_is_not_the_one_here_is_asked_for_again():
    """It trained the round again after a loss, and counted the edge with the second payload."""
    end = after("share", "payload b1")
    end.said()
    assert end.do("offer b2 closed=1 counted=1:b1':a1") == ["b: reserve b2"]
    assert (end.edge().stage, end.edge().acked) == (Stage.IDLE, True)
    assert end.do("wait 100")[-1] == "combine 1: nobody"
