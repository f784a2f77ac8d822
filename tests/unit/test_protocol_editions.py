"""Editions of the mesh: which edges a round has, who joins and leaves, and when the run ends."""

import json

import pytest

from flower_dhb.errors import ConfigError
from flower_dhb.peer.protocol import effects as fx
from flower_dhb.peer.protocol.edition import Edition, Editions
from flower_dhb.peer.protocol.rounds import epoch_of, part_of, round_of
from tests.support.protocol import End, after, edition_from

SECOND = "announce 2 begins=4 neighbors=bc"


def of(number, *said):
    return edition_from(str(number), list(said))


# --- editions by themselves ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("made", "says"),
    [
        ((0, 1, 5, (1,)), "edition 0 begins in round 1"),
        ((2, 0, 5, (1,)), "begins in round 0"),
        ((2, 6, 5, (1,)), "after its last round 5"),
        ((2, 1, 5, (2, 1)), "not in ascending order"),
        ((2, 1, 5, (1, 1)), "not in ascending order"),
        ((2, 1, 5, (1,), False), "no member has neighbors"),
        ((2, 1, 5, (1,), True, 3), "members-since is 3, expected 1 to 2"),
        ((2, 1, 5, (1,), True, 0), "members-since is 0"),
    ],
)
def test_an_edition_that_contradicts_itself_is_refused(made, says):
    with pytest.raises(ConfigError, match=says):
        Edition(*made)


def test_an_agent_knows_one_edition_at_least_and_each_number_once():
    with pytest.raises(ConfigError, match="needs to know an edition"):
        Editions(())
    with pytest.raises(ConfigError, match=r"one number: \[2, 2\]"):
        Editions((of(2, "neighbors=b"), of(2, "neighbors=c")))


def test_the_newest_edition_that_has_begun_holds():
    known = Editions((of(3, "begins=5", "neighbors=c"), of(1, "neighbors=b")))
    assert not known.learn(of(2, "begins=2", "neighbors=d"))  # an older one changes nothing
    assert not known.learn(of(3, "begins=2", "neighbors=d"))
    assert [known.at(r).number for r in (1, 4, 5, 50)] == [1, 1, 3, 3]
    assert known.learn(of(4, "begins=3", "rounds=9"))
    assert [known.at(r).number for r in (1, 2, 3, 5, 50)] == [1, 1, 4, 4, 4]
    assert known.rounds == 9
    late = Editions((of(4, "begins=3", "neighbors=b"),))
    assert late.at(2) is None
    assert late.then(2).number == late.then(3).number == 4


@pytest.mark.parametrize(
    ("editions", "rounds"),
    [
        ((of(1, "neighbors=b", "rounds=3"),), [1, 2, 3]),
        ((of(2, "neighbors=b", "begins=3", "rounds=4"),), [3, 4]),
        ((of(1, "neighbors=b"), of(2, "begins=3", "rounds=9")), [1, 2]),
        (
            (
                of(1, "neighbors=b"),
                of(2, "begins=2"),
                of(3, "begins=4", "neighbors=b", "rounds=5"),
            ),
            [1, 4, 5],
        ),
        ((of(1, "neighbors=b", "rounds=9"), of(2, "neighbors=c", "begins=2", "rounds=2")), [1, 2]),
        ((of(1, "neighbors=b"), of(2, "neighbors=b", "begins=4", "rounds=4")), [1, 2, 3, 4]),
    ],
)  # fmt: skip
def test_rounds_are_those_in_which_the_agent_is_a_member(editions, rounds):
    known, found, r = Editions(editions), [], 0
    while (r := known.next(r) or 0) > 0:
        found.append(r)
    assert found == rounds


# --- an edge counts in one edition -----------------------------------------------------------


def test_an_edition_holds_from_the_round_in_which_it_begins():
    end = after("round", "round", SECOND)
    assert end.said()[-1] == "neighbors bc"
    assert end.do("up c") == ["c: hello closed=2"]
    assert end.do("share")[-1] == "c: release 3"  # not due yet: it hears how far this end is
    assert "combine 3: b3" in end.do("payload b3 + ack=a3")  # nobody waits for c
    end.do("next")
    assert end.do("trained") == ["journal 4 edition 2"]
    assert end.do("journaled") == [
        "b: payload a4 closed=3 counted=3:a3:b3 edition=2",
        "c: payload a4 closed=3 edition=2",
    ]
    assert end.do("payload b4 + ack=a4 edition=2") == ["free 3", "b: ack b4"]
    assert end.do("payload c4 + ack=a4 edition=2")[-1] == "combine 4 edition 2: b4 c4"
    assert [e.edition for e in end.effects if isinstance(e, fx.Combine)] == [1, 1, 1, 2]
    end.do("next")
    assert [e.edition for e in end.effects if isinstance(e, fx.Save)] == [1, 1, 1, 2]


def test_who_learns_late_uses_it_from_its_next_payload_on():
    end = after("round", "round", "round", "round", "share", "announce 2 begins=2 neighbors=b")
    assert "combine 5: b5" in end.do("payload b5 + ack=a5")
    assert end.do("next", "trained") == ["journal 6 edition 2"]


@pytest.mark.parametrize("number", ["", "edition=3"])
def test_a_payload_of_another_edition_does_not_count(number):
    end = after("round", "announce 2 begins=2 neighbors=b", "share")
    assert end.do(f"payload b2 + ack=a2 {number}")[:2] == ["b: release 2", "b: refuse edition 2"]
    assert end.phase == "waiting"  # it rests, as nobody has a part
    assert end.count("other-edition") == 1
    assert "combine 2 edition 2: nobody" in end.do("wait 1")
    assert end.edge().doubts == end.edge().one_sided == []
    assert end.edge().rounds_missed == 0  # its neighbor is not late


def test_a_payload_of_another_edition_that_came_first_does_not_count():
    end = after("round", "payload b2 +", "announce 2 begins=2 neighbors=b")
    said = end.do("share")
    assert "b: release 2" in said
    assert not any(text.startswith(("b: payload", "b: ack")) for text in said)


def test_one_that_came_first_of_the_same_edition_counts():
    end = after("round", "announce 2 begins=2 neighbors=b", "payload b2 + edition=2", "share")
    assert end.do("ack b a2")[-1] == "combine 2 edition 2: b2"


def test_a_hello_with_a_payload_of_another_edition_loses_the_edge():
    end = after("round", "share", "down b")
    said = end.do("up b round=2 digest=b2 closed=1 counted=1:b1:a1 edition=2")
    assert "b: release 2" in said
    assert end.edge().stage.value == "lost"
    end = after("round", "announce 2 begins=2 neighbors=b", "share", "down b")
    said = end.do("up b round=2 digest=b2 closed=1 counted=1:b1:a1 edition=2")
    assert said[1].startswith("b: payload a2")
    end.do("down b")
    assert end.do("dial b") == ["b: hello round=2 digest=a2 closed=1 counted=1:a1:b1 edition=2"]


def test_older_editions_are_no_news():
    end = after("announce 3 begins=9 neighbors=bc")
    end.said()
    assert end.do("announce 2 begins=2 neighbors=bd") == []
    assert end.do("announce 3 begins=2 neighbors=bd") == []
    assert list(end.agent.edges) == [1, 2]


# --- restarts --------------------------------------------------------------------------------


def test_a_restart_shares_the_same_payload_in_the_same_edition():
    end = after("round", "share")
    editions = (of(1, "neighbors=b"), of(2, "begins=2", "neighbors=bc"))
    again = end.reborn(editions=editions)
    assert list(again.agent.edges) == [1, 2]
    said = again.do("up b round=2 digest=b2 closed=1 counted=1:b1:a1")
    assert said[:2] == [
        "b: hello round=2 digest=a2 closed=1 counted=1:a1:b1",
        "b: payload a2 closed=1 counted=1:a1:b1",
    ]
    assert again.edge("c").stage.value == "apart"
    assert "combine 2: b2" in again.do("payload b2 + ack=a2")
    assert again.do("next", "trained") == ["journal 3 edition 2"]


def test_a_record_says_the_edition_of_each_payload():
    end = after("round", "announce 2 begins=2 neighbors=b", "share")
    record = json.loads(end.writes[-1][2])
    assert (record["open"]["edition"], record["editions"]) == (2, [1])
    editions = (of(1, "neighbors=b"), of(2, "begins=2", "neighbors=b"))
    again = end.reborn(editions=editions)
    said = again.do("up b round=1 digest=b1")
    assert again.agent.near.numbers == {1: 1, 2: 2}
    assert "b: ack b1" in said  # it lacks the payload of round 1, which counted here
    assert "b: payload a1 closed=1 counted=1:a1:b1" in said


def test_the_edition_of_an_open_round_must_be_known():
    end = after("round", "announce 2 begins=2 neighbors=b", "share")
    with pytest.raises(ValueError, match="of edition 2 of the mesh, which is missing"):
        end.reborn(editions=(of(1, "neighbors=b"), of(3, "begins=9", "neighbors=b")))


def test_a_record_of_a_version_without_editions_is_of_the_first():
    end = after("round", "share")
    record = json.loads(end.writes[-1][2])
    del record["editions"], record["open"]["edition"]
    again = End("b", record=json.dumps(record), open="a2", kept=("a1",), connected=False)
    assert again.agent.near.numbers == {1: 1, 2: 1}


# --- edges that go ---------------------------------------------------------------------------


def parting():
    """Edge b ends with round 1; round 2 is that of c alone."""
    end = after("announce 2 begins=2 neighbors=c", "up c", "share")
    assert end.edge().parted_at is None
    assert end.do("payload b1 + ack=a1")[-1] == "combine 1: b1"
    assert end.edge().parted_at == end.now
    end.said()
    return end


def test_an_edge_ends_once_both_ends_know_how_its_last_round_ended():
    end = parting()
    assert end.do("combined")[-1] == "train 2"  # nothing is said that the disk does not say
    assert end.do("saved") == ["b: goodbye counted=1:a1:b1"]
    sent = next(e.message for e in reversed(end.effects) if isinstance(e, fx.Send))
    assert (sent.closed, sent.done) == (1, False)
    assert end.do("bye b counted=1:b1:a1 closed=1") == [
        "b: close: no neighbor any more",
        "neighbors c",
    ]
    assert list(end.agent.edges) == [2]
    assert end.edge("c").parted_at is None
    assert end.do("dial b") == ["b: close: no neighbor"]


def test_an_edge_whose_end_is_not_heard_of_is_kept_for_a_while():
    end = parting()
    end.do("next", "down b")
    assert end.agent.next_deadline() <= end.now + 50
    assert list(end.agent.edges) == [1, 2]
    assert "neighbors c" in end.do("wait 50")
    assert end.noted("edge-gone") == [{"neighbor": 1, "unsettled": 1}]


def test_what_counted_on_an_edge_is_remembered_when_it_comes_back():
    end = parting()
    end.do("next", "bye b counted=1:b1:a1 closed=1", "announce 3 begins=3 neighbors=bc")
    assert end.edge().counted.round == 1
    end.do("trained")
    record = json.loads(end.writes[-1][2])
    assert record["edges"]["1"]["counted"][0] == 1
    editions = (of(2, "begins=2", "neighbors=c"), of(3, "begins=3", "neighbors=bc"))
    again = end.reborn(editions=editions)
    assert again.edge().counted.round == 1


def test_a_restart_still_has_an_edge_that_is_not_settled():
    end = parting()
    end.do("next")
    again = end.reborn(editions=(of(2, "begins=2", "neighbors=c"),))
    assert list(again.agent.edges) == [1, 2]
    assert "b: ack b1" in again.do("up b round=1 digest=b1 closed=0")
    settled = End("c", record=end.writes[-1][2].replace('"settled": false', '"settled": true'))
    assert list(settled.agent.edges) == [2]


def test_an_edge_that_is_not_due_leads_nobody_while_others_are_there():
    end = after("round", "announce 2 begins=9 neighbors=bc", "up c round=5 digest=c5 closed=4")
    assert end.do("trained") == ["journal 2"]
    alone = after("round", "announce 2 begins=9 neighbors=bc", "down b")
    alone.do("up c round=5 digest=c5 closed=4")
    assert alone.do("trained") == ["journal 5 trained as 2"]


# --- who joins -------------------------------------------------------------------------------


def joining(**made):
    return End("bc", editions=(of(2, "begins=20", "neighbors=bc", "since=2"),), **made)


def test_who_joins_begins_from_neighbors_that_are_about_to_begin_its_first_round():
    end = joining()
    assert end.phase == "joining"
    assert end.do("wait 1000") == []  # it has nothing to begin alone with
    end.do("down b")
    assert end.do("up b round=17 digest=b17 closed=16") == ["b: hello"]
    assert end.do("release b 18") == []
    assert end.do("release b 19") == ["b: seek", "c: seek"]
    assert end.do("payload b19 closed=18")[0] == "rejoin 19 edition 2: b19@19"
    assert end.do("rejoined")[-2:] == ["save 19 edition 2", "train 20"]
    assert end.do("share")[-1] == "c: payload a20 closed=19 edition=2"


def own_rejoins(end):
    return [e for e in end.effects if isinstance(e, fx.Rejoin)]


def test_who_joins_late_begins_where_its_neighbors_are():
    end = joining(connected=False)
    assert end.do("up b round=31 digest=b31 closed=30 edition=2")[-1] == "b: seek"
    assert "rejoin 31 edition 2: b31@31" in end.do("payload b31 closed=30 edition=2")
    end.do("rejoined")
    assert end.agent.closed == 31


def test_who_finds_nobody_ahead_any_more_waits_on():
    end = joining(connected=False)
    end.do("up b round=19 digest=b19 closed=18")
    assert end.phase == "rejoining"
    end.do("down b")
    assert end.phase == "joining"
    assert own_rejoins(end) == []


def test_who_was_away_for_an_edition_begins_again():
    """A member again from round 20 on, and not in rounds 3 to 19."""
    editions = "announce 2 begins=3 since=2", "announce 3 begins=20 neighbors=b since=3"
    end = after("round", *editions, "round")
    assert end.phase == "joining"
    assert end.do("release b 19") == ["b: seek"]
    assert "rejoin 19 edition 2: b19@19" in end.do("payload b19 closed=18 edition=2")
    assert end.do("rejoined")[-1] == "train 20"


# --- who leaves ------------------------------------------------------------------------------


def test_who_is_no_member_any_more_ends_before():
    end = after("round", "announce 2 begins=3", "round")
    assert [e.last for e in end.effects if isinstance(e, fx.Save)] == [False, True]
    assert end.said()[-2:] == [
        "finish removed after 2",
        "b: goodbye done counted=2:a2:b2",
    ]
    end = after("round", "announce 2 begins=3", "share", "payload b2 + ack=a2", "combined")
    end.do("saved")
    assert "b: close: no neighbor any more" in end.do("bye b counted=2:b2:a2 closed=2")
    assert end.do("finished") == ["end done"]


def test_who_learns_while_it_trains_that_it_is_no_member_does_not_share():
    end = after("round", "announce 2 begins=2")
    end.said()
    assert end.do("trained") == ["finish removed after 1"]
    end = after("round", "share", "payload b2 + ack=a2", "combined", "announce 2 begins=2")
    said = end.do("trained")  # the save of round 2 may never be written: it was not the last
    assert said == ["save 2"]
    assert [(e.last, e.again) for e in end.effects if isinstance(e, fx.Save)][-2:] == [
        (False, False),
        (True, True),
    ]
    assert end.do("saved")[0] == "finish removed after 2"
    assert end.do("saved") == []  # both saves of it were answered


def test_who_is_no_member_where_the_others_are_ends_there():
    end = after("round", "announce 2 begins=5", "payload b9 closed=8 edition=1")
    assert end.do("trained")[:2] == ["b: release 8", "save 8"]
    assert end.do("saved")[0] == "finish removed after 8"


def test_a_neighbor_that_has_left_is_neither_waited_for_nor_followed():
    end = after("round", "bye b done counted=1:b1:a1 closed=1", neighbors="bc")
    end.said()
    assert end.do("share") == ["journal 2", "c: payload a2 closed=1 counted=1:a1:c1"]
    assert end.edge().stage.value == "lost"
    assert end.agent.round == 2
    assert end.do("payload c2 + ack=a2")[-1] == "combine 2: c2"


def test_a_neighbor_that_leaves_in_the_open_round_is_not_waited_for():
    end = after("round", "share", neighbors="bc")
    end.do("payload c2 + ack=a2")
    assert end.phase == "waiting"
    assert "combine 2: c2" in end.do("bye b done counted=1:b1:a1 closed=1")


# --- more rounds, and fewer ------------------------------------------------------------------


def at_the_end(*more):
    return after("round", "share", "payload b2 + ack=a2", "combined", "saved", *more, rounds=2)


def test_more_rounds_take_an_agent_out_of_its_linger():
    end = at_the_end("finished")
    assert end.phase == "lingering"
    assert end.do("announce 2 begins=2 rounds=4 neighbors=b") == ["b: close: the run goes on"]
    assert end.phase == "connecting"
    assert end.do("dial b") == ["b: hello closed=2 counted=2:a2:b2"]
    assert end.do("hello b closed=2 counted=2:b2:a2")[-1] == "train 3"
    assert end.do("trained") == ["journal 3 edition 2"]
    end.do("journaled", "payload b3 + edition=2 ack=a3", "next", "share")
    end.do("payload b4 + edition=2 ack=a4", "combined", "saved")
    assert [e.round for e in end.effects if isinstance(e, fx.Finish)] == [3, 5]


def test_a_payload_of_a_round_that_is_not_known_yet_is_kept():
    """Its sender knows of more rounds, and will not send it again on this connection."""
    end = after("round", "payload b3 closed=2 edition=2", "failed", rounds=2)
    assert sorted(end.edge().held) == [3]


def test_more_rounds_while_the_model_is_written():
    end = at_the_end()
    assert end.phase == "finishing"
    end.do("announce 2 begins=2 rounds=4 neighbors=b")
    assert end.do("finished")[-1] == "b: close: the run goes on"
    before = after("round", "share", "payload b2 + ack=a2", "combined", rounds=2)
    assert before.do("announce 2 begins=2 rounds=4 neighbors=b")[-1] == "train 3"


def test_one_that_is_started_again_goes_on():
    end = at_the_end("finished")
    editions = (of(1, "rounds=2", "neighbors=b"), of(2, "begins=2", "rounds=4", "neighbors=b"))
    again = end.reborn(editions=editions)
    assert again.phase == "connecting"
    assert again.do("up b closed=2 counted=2:b2:a2")[-1] == "train 3"


def test_fewer_rounds_end_the_run_there():
    end = after("round", "announce 2 begins=2 rounds=2 neighbors=b", "share")
    end.do("payload b2 + ack=a2 edition=2", "combined")
    assert end.do("saved")[-1] == "finish"
    assert end.agent.rounds == 2


def test_fewer_rounds_that_are_over_already_end_the_run_after_the_open_round():
    end = after("round", "round", "share", "announce 2 begins=2 rounds=2 neighbors=b")
    assert "combine 3: b3" in end.do("payload b3 + ack=a3")
    end.do("combined")
    assert end.do("saved")[-1] == "finish"
    end = after("round", "round", "share", "announce 2 begins=2 rounds=2 neighbors=b")
    end.do("bye b done counted=2:b2:a2 closed=2")
    assert "combine 3: nobody" in end.do("wait 1")


def test_a_late_save_does_not_end_a_run_with_an_open_round():
    end = after("round", "share", "payload b2 + ack=a2", "combined", "trained")
    end.do("announce 2 begins=2 rounds=2 neighbors=b", "saved 2")
    assert end.phase == "journaling"
    assert end.do("journaled")[0].startswith("b: payload a3")


def test_finished_neighbors_that_know_of_fewer_rounds_are_no_reason_to_begin_again():
    end = after("round", "announce 2 begins=2 rounds=60 neighbors=b")
    end.do("bye b done counted=1:b1:a1 closed=8")
    assert end.do("trained") == ["journal 8 trained as 2 edition 2"]


def test_a_payload_of_a_round_after_the_last_waits_for_its_edition():
    end = after("round", "share", rounds=2)
    assert "b: reserve b3" in end.do("offer b3 closed=2 edition=2")
    end.do("whole b3 closed=2 edition=2 counted=2:b2:a2")
    end.do("announce 2 begins=3 rounds=5 neighbors=b")
    assert end.do("offer b4 closed=3 edition=2") == ["b: reserve b4"]
    other = after("round", "share", rounds=2)
    assert "b: refuse ahead 3" in other.do("offer b3 closed=2")


# --- memory that the rule conserves ----------------------------------------------------------


def test_an_epoch_begins_where_the_members_change():
    second = of(2, "begins=2", "neighbors=b", "since=2")
    third = of(3, "begins=3", "neighbors=b", "since=2")
    assert epoch_of(of(1, "neighbors=b")) == 0
    assert epoch_of(second) == epoch_of(third) > 0
    assert (part_of(epoch_of(third)), round_of(epoch_of(third))) == (1, 0)
    end = after("round", "announce 2 begins=3 neighbors=b since=2", "round", conserves=True)
    assert end.said()[-1] == f"train 3 epoch {epoch_of(second)}"
    same = after("round", "announce 2 begins=3 neighbors=b", "round", conserves=True)
    assert same.said()[-1] == "train 3"


def test_an_epoch_of_other_members_is_not_entered_before_its_edition():
    epoch = epoch_of(of(2, "neighbors=b", "since=2"))
    end = after("round", "announce 2 begins=9 neighbors=b since=2", conserves=True)
    end.do("share", f"payload b2 + ack=a2 epoch={epoch}")
    assert end.edge().stage.value == "released"  # it is of another epoch
    end.do("wait 1")
    assert end.do("next")[-1] == "train 3"


def test_a_neighbors_newer_epoch_of_the_same_members_is_taken():
    first = epoch_of(of(2, "neighbors=b", "since=2"))
    newer = first + (2 << 20)
    end = after("round", "announce 2 begins=2 neighbors=b since=2", conserves=True)
    end.do("trained", "journaled")
    end.do(f"payload b2 + edition=2 epoch={newer}", "wait 1")
    assert end.do("next")[-1] == f"train 3 epoch {newer}"


@pytest.mark.parametrize(("since", "opens"), [("since=2", False), ("since=1", True)])
def test_who_joins_a_new_epoch_has_broken_nothing(since, opens):
    editions = (of(2, "begins=20", "neighbors=b", since),)
    end = End("b", editions=editions, connected=False, conserves=True)
    end.do("up b round=19 digest=b19 closed=18")
    end.do("payload b19 closed=18")
    (rejoin,) = own_rejoins(end)
    assert rejoin.epoch == epoch_of(editions[0]) + opens * (19 << 20)


def test_who_has_lost_its_part_in_an_epoch_opens_another():
    editions = (of(2, "begins=20", "neighbors=b", "since=2"),)
    end = End("b", editions=editions, connected=False, conserves=True)
    end.do("up b round=31 digest=b31 closed=30 edition=2", "payload b31 closed=30 edition=2")
    (rejoin,) = own_rejoins(end)
    assert (rejoin.epoch, end.agent.near.broken) == (epoch_of(editions[0]), True)
    # There are `away_rounds` rounds between two epochs.
    assert end.agent._epoch_began == 31


def test_who_is_removed_before_it_was_in_a_round_has_no_model_to_give():
    """Its neighbors would else be led to the end, or begin again from a model of no round."""
    end = End("b", editions=(of(2, "begins=20", "neighbors=b", "since=2"),))
    end.do("announce 3 begins=20 since=3")
    assert end.do("finished") == ["end done"]
    said = [e.message for e in end.effects if isinstance(e, fx.Send)]
    assert not any(getattr(message, "done", False) for message in said)
    other = after("round", "bye b closed=0")
    assert other.do("trained") == ["journal 2"]
    seeking = joining()
    seeking.do("up b round=19 digest=b19 closed=18")
    seeking.do("payload b1 final round=1")
    assert own_rejoins(seeking) == []


def test_an_edge_that_comes_in_an_open_round_is_not_waited_for():
    end = after("share", "announce 2 begins=5 neighbors=bc")
    assert end.edge("c").stage.value == "apart"
    assert "combine 1: b1" in end.do("payload b1 + ack=a1")


def test_who_has_finished_takes_no_part_in_rounds_that_it_has_not_heard_of():
    end = after("round", "share", neighbors="bc", rounds=2)
    end.do("payload b2 + ack=a2", "payload c2 + ack=a2", "combined")
    end.do("bye b done counted=2:b2:a2 closed=2", "announce 2 begins=2 rounds=4 neighbors=bc")
    end.do("saved", "trained", "journaled")
    assert end.edge("b").stage.value == "lost"
    assert "combine 3 edition 2: c3" in end.do("payload c3 + ack=a3 edition=2")


def test_who_is_a_neighbor_again_greets_anew():
    """It has said goodbye on the connection: for its neighbor it takes part in no later round."""
    end = after("round", "announce 2 begins=2")
    assert end.said()[-1] == "b: goodbye done counted=1:a1:b1"
    assert "b: close: neighbors again" in end.do("announce 3 begins=2 neighbors=b")
    assert end.edge().parted_at is None
    assert end.do("dial b") == ["b: hello closed=1 counted=1:a1:b1"]
    assert end.do("hello b closed=1 counted=1:b1:a1", "trained") == ["journal 2 edition 3"]


def test_an_edge_is_kept_until_the_other_end_was_told():
    end = parting()
    end.do("bye b counted=1:b1:a1 closed=1")
    assert end.edge().settled
    end.do("combined")
    assert list(end.agent.edges) == [1, 2]  # it waits for this end's word, which the disk lacks
    assert "b: close: no neighbor any more" in end.do("saved")


def test_a_new_connection_is_told_again_that_the_edge_parts():
    end = parting()
    end.do("next", "down b", "dial b")
    assert "b: goodbye counted=1:a1:b1" in end.do("hello b round=1 digest=b1 closed=0")


def test_what_others_say_of_rounds_after_the_last_is_heard():
    end = after("round", "announce 2 begins=2 rounds=2 neighbors=b")
    assert "b: reserve b7" in end.do("offer b7 closed=6")  # it does not know that the run ends
    end = after("round", "share", "down b", rounds=2)
    end.do("up b round=3 digest=b3 closed=2 counted=1:b1:a1 edition=2")
    assert end.edge().wants == 3


def test_an_epoch_of_members_that_are_not_known_is_not_noted():
    epoch = epoch_of(of(2, "neighbors=b", "since=2"))
    end = after("round", f"payload b2 + epoch={epoch}", conserves=True)
    assert list(end.agent.near.epochs_seen) == [0]


def test_a_final_model_that_comes_too_late_is_dropped():
    end = joining(connected=False)
    end.do("up b closed=50 done", "up c round=45 digest=c45 closed=44 edition=2")
    end.do("offer b51 final round=51", "payload c45 closed=44 edition=2", "wait 20")
    assert end.agent.phase.value == "combining"
    end.do("whole b51 final round=51")
    assert end.edge("b").held == {}


def test_the_goodbye_of_a_connection_takes_nothing_back():
    end = after("round", "bye b done counted=1:b1:a1 closed=1", "bye b done", neighbors="bc")
    assert end.edge("b").wants == 1


def test_nobody_waits_to_begin_for_an_edge_that_is_not_due():
    editions = (of(1, "neighbors=b"), of(2, "begins=9", "neighbors=bc"))
    end = End("b", editions=editions, connected=False)
    assert end.do("up b")[-1] == "train 1"


def test_who_begins_again_as_the_members_change_has_broken_nothing():
    editions = (of(1, "neighbors=b"), of(2, "begins=20", "neighbors=b", "since=2"))
    end = End("b", editions=editions, connected=False, conserves=True)
    end.do("up b round=19 digest=b19 closed=18", "payload b19 closed=18")
    (rejoin,) = own_rejoins(end)
    assert (rejoin.epoch, end.agent.near.broken) == (epoch_of(editions[1]), False)


def test_what_was_broken_before_the_members_changed_is_mended():
    end = after("round", "announce 2 begins=3 neighbors=b since=2", "share", conserves=True)
    end.agent.near.broken, end.agent._epoch_began = True, 2
    end.do("payload b2 + ack=a2", "next")
    assert not end.agent.near.broken


def test_a_final_model_is_of_the_last_round_that_its_sender_knew_of():
    end = End(connected=False, rounds=60)
    end.do("up b closed=50 done")
    assert end.do("payload b51 final round=51")[-1] == "rejoin 50: b51@51"


def test_who_has_left_early_is_nobody_to_begin_from():
    end = joining(connected=False)
    end.do("up b closed=9 done")
    assert end.phase == "joining"
    end.do("up c round=7 digest=c7 closed=6", "bye c done closed=7")
    assert end.phase == "joining"


def test_a_payload_beyond_the_run_comes_again_when_the_run_is_longer():
    """`b` knows that the run goes on, and has sent a round that this agent does not know of yet."""
    end = End("b", rounds=4)
    assert end.do("payload b5 closed=4") == ["b: refuse ahead 5"]
    assert "b: close: the run goes on" in end.do("announce 2 begins=9 rounds=20 neighbors=b")
    end = End("b", rounds=4)
    end.do("payload b4 closed=3")
    assert "b: close: the run goes on" not in end.do("announce 2 begins=9 rounds=20 neighbors=b")
