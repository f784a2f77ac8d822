"""Edges that take turns: who is due in which round, and ends that are some rounds apart."""

import json

import pytest

from flower_dhb.errors import ConfigError
from flower_dhb.peer.protocol.edition import NEVER_DUE, Edition, Editions
from flower_dhb.peer.protocol.patience import Patience
from tests.support.protocol import TIMING, End, vertex


def turns(*rounds, number=1, begins=1, last=50):
    """An edition in which these neighbors are due in turn: `b`, `bc`, or nobody."""
    near = tuple(tuple(vertex(j) for j in each) for each in rounds)
    together = tuple(sorted({j for each in near for j in each}))
    return Edition(number, begins, last, together, turns=near)


def alone_round(end):
    """A round in which nobody is due: train, write, combine, save."""
    return end.do("trained", "journaled"), end.do("combined", "saved")


def test_the_schedule_goes_by_rounds_from_one():
    schedule = turns("b", "", "bc", "c")
    assert [schedule.due(k) for k in (1, 2, 3, 4, 5, 6)] == [(1,), (), (1, 2), (2,), (1,), ()]
    for j, after, then, before in (
        (1, 0, 1, -1),
        (1, 1, 3, -1),
        (1, 3, 5, 1),
        (2, 1, 3, 0),
        (2, 4, 7, 3),
    ):
        assert (schedule.next_due(j, after), schedule.last_due(j, after)) == (then, before), (
            j,
            after,
        )
    assert [schedule.shared_rounds(a, b) for a, b in ((0, 4), (0, 1), (1, 2), (2, 7), (5, 6))] == [
        3, 1, 0, 4, 0,
    ]  # fmt: skip
    plain = Edition(1, 1, 9, (1, 2))
    assert (plain.due(7), plain.next_due(2, 7), plain.last_due(2, 7)) == ((1, 2), 8, 6)
    assert plain.shared_rounds(2, 7) == 5
    with pytest.raises(ConfigError, match=r"are \(1,\), and in turn it meets \[1, 2\]"):
        Edition(1, 1, 9, (1,), turns=((1,), (2,)))
    some = Edition(1, 1, 9, (1, 2), turns=((1,), ()))  # of a run's part: 2 is due in none of it
    assert (some.next_due(2, 4), some.last_due(2, 4), some.due(3)) == (NEVER_DUE, 0, (1,))


def test_on_an_edge_that_is_not_due_nothing_is_sent_and_nobody_waits():
    end = End("bc", editions=(turns("b", "c", ""),))
    assert end.do("trained", "journaled") == ["b: payload a1"]
    end.do("payload b1 +", "ack b a1")
    assert end.said()[-1] == "combine 1: b1"
    end.do("combined", "saved", "trained")
    assert end.do("journaled") == ["c: payload a2 closed=1"]
    assert end.do("payload c2 +", "ack c a2")[-1] == "combine 2: c2"
    end.do("combined", "saved", "trained")
    assert end.do("journaled")[0] == "combine 3: nobody"  # at once, without a rest
    assert not end.edge("b").rounds_missed
    assert end.agent.alone_since == -1


def test_a_neighbor_may_be_some_rounds_ahead_and_waits_in_the_round_that_both_share():
    """`b` shares round 4 while `a` trains round 2: no reason to leave out rounds 2 and 3."""
    end = End("b", editions=(turns("", "", "", "b"),))
    alone_round(end)
    end.do("payload b4 closed=3")
    assert list(end.edge("b").held) == [4]
    for k in (2, 3):
        assert end.do("trained") == [f"journal {k} in memory"]
        assert end.do("journaled")[0] == f"combine {k}: nobody"
        end.do("combined", "saved")
    assert end.do("trained") == ["journal 4"]
    assert end.do("journaled")[0] == "b: payload a4 closed=3 ack=b4"
    assert end.do("ack b a4")[-1] == "combine 4: b4"


def test_a_neighbor_that_has_passed_a_round_that_both_share_is_followed():
    end = End("b", editions=(turns("", "", "", "b"),))
    alone_round(end)
    end.do("payload b4 closed=3", "release b 4")  # it has ended round 4, and is in the next
    assert end.do("trained") == ["journal 5 trained as 2"]
    assert end.edge("b").wants == 5


@pytest.mark.parametrize(("passed", "seeks"), [(550, False), (600, True)])
@pytest.mark.parametrize("when", ["before training", "once the model is there"])
def test_an_absence_is_counted_in_exchanges_and_not_in_rounds(passed, seeks, when):
    """Every 50th round is shared: who misses one, or ten of them, joins in again as it is."""
    end = End("b", editions=(turns(*[""] * 49, "b", last=2000),))
    news = f"up b round={passed} digest=b{passed} closed={passed - 1}"
    alone_round(end)
    if when == "before training":
        end.do("trained", "journaled", news)
        words = end.do("combined")
    else:
        words = end.do(news, "trained")
    assert ("b: seek" in words) is seeks
    if not seeks:
        after = "train 550" if when == "before training" else "journal 550 trained as 2"
        assert words[-1] == after


def test_of_exchanges_few_rounds_ago_a_payload_is_new_enough_to_begin_from():
    """The neighbor is in round 650 and has nothing newer than its payload of round 600."""
    end = End("b", editions=(turns(*[""] * 49, "b", last=2000),), connected=False)
    end.do("up b closed=649")
    assert end.phase == "rejoining"
    assert end.do("payload b600 closed=649")[-1] == "rejoin 600: b600@600"


def test_rounds_are_shared_by_the_edition_that_holds_in_each():
    known = Editions([turns("", "b"), turns("b", number=2, begins=5), turns("b", "", number=3)])
    assert known.shared_rounds(0, 8) == 4  # the third edition holds from the first round on
    known = Editions([turns("", "b"), turns("b", number=2, begins=5)])
    assert [known.shared_rounds(a, b) for a, b in ((0, 8), (0, 4), (3, 5), (5, 9), (4, 4))] == [
        6, 2, 2, 4, 0,
    ]  # fmt: skip


def test_who_jumps_over_a_round_in_which_an_edge_was_due_says_so():
    """`c` is ahead; `b` waits in round 2, which this agent never comes to."""
    end = End("bc", editions=(turns("c", "b", "c", ""),))
    end.do("payload c3 closed=2", "release c 3", "trained")  # the label is round 4
    assert end.said()[-1] == "journal 4 trained as 1"
    assert "b: release 2" in end.do("journaled")


def test_a_payload_of_a_round_in_which_nobody_is_due_is_not_written():
    """But for the first, where the end of the shared round before is not on the disk yet."""
    end = End("b", editions=(turns("b", "", "", ""),))
    end.do("trained", "journaled", "payload b1 +", "ack b a1", "combined")
    assert end.do("trained") == ["journal 2"]  # `saved` has not come
    end.do("journaled", "combined", "saved")
    assert [(kind, k) for kind, k, _, _ in end.writes][-3:] == [
        ("save", 1), ("journal", 2), ("save", 2),
    ]  # fmt: skip
    assert end.do("trained") == ["journal 3 in memory"]
    assert end.do("journaled")[0] == "combine 3: nobody"
    end.do("combined")
    assert json.loads(end.writes[-1][2])["kept"] == [1, 2]
    end.do("down b")
    assert end.do("up b")[0] == "b: hello closed=2 counted=1:a1:b1"  # as the disk has it


def test_it_is_given_to_who_begins_again():
    end = End("b", editions=(turns("b", "", "", ""),))
    end.do("trained", "journaled", "payload b1 +", "ack b a1", "combined", "saved")
    alone_round(end)
    end.do("trained", "journaled")
    assert end.do("seek b") == ["b: payload a3 closed=2 counted=1:a1:b1"]


def test_who_joins_from_a_payload_of_some_rounds_ago_joins_in_its_first_round():
    """Nobody was due since round 4, and edition 2, with this agent, begins in round 8."""
    end = End("b", editions=(turns("", "", "", "b", number=2, begins=8),), connected=False)
    end.do("up b round=4 digest=b4 closed=7")
    assert end.do("payload b4 closed=7")[-1].startswith("rejoin 7")
    assert end.do("rejoined")[-1] == "train 8"


def test_who_shares_a_round_by_another_edition_is_told_that_the_edge_is_not_due():
    old, new = turns("b", "b"), turns("", "b", number=2)
    end = End("b", editions=(old, new))
    end.do("payload b1", "trained")
    assert "b: release 1" in end.do("journaled")


def test_a_greeting_from_a_round_without_the_edge_is_not_answered_for_it():
    end = End("bc", editions=(turns("c", "b"),), connected=False)
    end.do("up c", "up b")
    end.do("trained", "journaled", "payload c1 +", "ack c a1", "combined", "saved")
    end.do("down b")
    end.said()
    assert "b: release 1" not in end.do("up b round=1 digest=b1")


def test_rounds_in_which_nobody_is_due_make_nobody_alone():
    end = End("b", editions=(turns(*[""] * 9, "b"),))
    for _ in range(9):
        alone_round(end)
        assert end.agent.alone_since == -1
    end.do("trained", "journaled", "release b 10")
    end.do("wait 200")
    assert end.agent.closed == 10
    assert end.agent.alone_since == 0  # one round was shared, and nobody had a part in it


def test_a_neighbor_is_waited_for_as_long_as_the_rounds_since_the_last_may_take():
    patience = Patience(factor=3.0, least_s=1.0, ceiling_s=100.0)
    patience.arrived(4, 0.0, since=0)
    assert not patience.known
    patience.arrived(8, 8.0, since=4)
    assert patience.usual_s == 2.0  # of one round
    patience.arrived(16, 90.0, since=12)  # it has missed one: that says nothing of its pace
    assert patience.usual_s == 2.0
    assert (patience.deadline_s, patience.deadline_after(4)) == (6.0, 24.0)
    assert patience.deadline_after(400) == 100.0
    end = End("b", editions=(turns("", "b"),), timing=TIMING)
    for k in (2, 4):
        end.do("wait 2")
        alone_round(end)
        end.do(
            "wait 2", "trained", "journaled", f"payload b{k} +", f"ack b a{k}", "combined", "saved"
        )
    assert end.edge("b").patience.usual_s == 2.0
    alone_round(end)
    end.do("trained", "journaled")
    assert end.agent.next_deadline() - end.now == 12.0  # 3 times 2 rounds of 2 seconds
