"""One edge in one round: what its end does, given what it hears and in which order.

Everything that goes out is part of each case, in its order.
"""

from dataclasses import replace

import pytest

from flower_dhb.peer.protocol.edge import TRANSITIONS, Edge, Stage, Step
from tests.support.protocol import TIMING, End, after

# --- the stages ---------------------------------------------------------------------------------

TABLE = """
    idle     vote        voted
    idle     give up     released
    idle     told        lost
    bound    vote        voted
    bound    give up     doubt
    bound    told        lost
    voted    count       counted
    voted    give up     doubt
    voted    told        lost
    voted    forgotten   idle
"""


def test_the_table_of_stages():
    """Whoever changes the table reads this one too: after a vote no way leads to `released`."""
    rows = [line.rsplit(None, 1) for line in TABLE.strip().splitlines()]
    drawn = {tuple(left.split(None, 1)): to for left, to in rows}
    assert drawn == {(at.value, by.value): to.value for (at, by), to in TRANSITIONS.items()}
    assert {stage for stage in Stage if stage.open} == {at for at, _ in TRANSITIONS}


# Steps that lead along each row of the table.
WAYS = {
    ("idle", "vote"): "share, payload b1",
    ("idle", "give up"): "share, wait 100",
    ("idle", "told"): "share, release b 1",
    ("bound", "vote"): "share, crash, up b, payload b1",
    ("bound", "give up"): "share, crash, wait 100",
    ("bound", "told"): "share, crash, up b round=2 digest=b2 closed=1",
    ("voted", "count"): "share, payload b1 ack=a1",
    ("voted", "give up"): "share, payload b1, wait 100",
    ("voted", "told"): "share, payload b1, release b 1",
    ("voted", "forgotten"): "share, payload b1, up b",
}


@pytest.mark.parametrize("row", WAYS, ids=" + ".join)
def test_every_row_of_the_table_is_gone(row, monkeypatch):
    gone = []
    take = Edge.take

    def watched(edge, step):
        before = edge.stage
        taken = take(edge, step)
        gone.append((before.value, step.value, edge.stage.value))
        return taken

    monkeypatch.setattr(Edge, "take", watched)
    end = End()
    for step in WAYS[row].split(", "):
        if step == "crash":
            end = end.reborn()
        else:
            end.do(step)
    to = TRANSITIONS[Stage(row[0]), Step(row[1])].value
    assert (*row, to) in gone
    assert end.edge().stage.value == to
    assert set(WAYS) == {(at.value, by.value) for at, by in TRANSITIONS}


# --- which edges count, and what is said about it -----------------------------------------------

ROUND = {
    # what happens after `journal 1` is asked for: (steps, what is wanted, the edge's stage)
    "nothing leaves before the disk has it": ((), [], "idle"),
    "their payload is not acknowledged before ours is on the disk": (
        ("payload b1",),
        [],
        "idle",
    ),
    "all in order": (
        ("journaled", "payload b1", "ack b a1"),
        ["b: payload a1", "b: ack b1", "combine 1: b1"],
        "counted",
    ),
    "theirs first": (
        ("payload b1", "journaled", "ack b a1"),
        ["b: payload a1 ack=b1", "combine 1: b1"],
        "counted",
    ),
    "their acknowledgment first": (
        ("journaled", "ack b a1", "payload b1"),
        ["b: payload a1", "b: ack b1", "combine 1: b1"],
        "counted",
    ),
    "their payload acknowledges along": (
        ("journaled", "payload b1 ack=a1"),
        ["b: payload a1", "b: ack b1", "combine 1: b1"],
        "counted",
    ),
    "released by them before their payload": (
        ("journaled", "release b 1", "wait 1"),
        ["b: payload a1", "combine 1: nobody"],
        "lost",
    ),
    "released by them after our acknowledgment": (
        ("journaled", "payload b1", "release b 1", "wait 1"),
        ["b: payload a1", "b: ack b1", "combine 1: nobody"],
        "lost",
    ),
    "they passed it by, and leave a later round": (
        ("journaled", "payload b1", "release b 3", "wait 1"),
        ["b: payload a1", "b: ack b1", "combine 1: nobody"],
        "lost",
    ),
    "they hold our payload, and leave a later round": (
        ("journaled", "ack b a1", "release b 3", "wait 1"),
        ["b: payload a1"],
        "idle",
    ),
    "their release is of the round before": (
        ("journaled", "payload b1", "release b 0"),
        ["b: payload a1", "b: ack b1"],
        "voted",
    ),
    "they acknowledge another payload than ours": (
        ("journaled", "payload b1", "ack b a1'"),
        ["b: payload a1", "b: ack b1"],
        "voted",
    ),
    "they acknowledge another payload along": (
        ("journaled", "payload b1 ack=a1'"),
        ["b: payload a1", "b: ack b1"],
        "voted",
    ),
    "they acknowledge the round before": (
        ("journaled", "payload b1", "ack b a1 0"),
        ["b: payload a1", "b: ack b1"],
        "voted",
    ),
    "they were a round further before they heard of this": (
        ("journaled", "payload b2 closed=1", "wait 1"),
        ["b: payload a1", "combine 1: nobody"],
        "lost",
    ),
    "they were a round further, though they hold our payload": (
        ("journaled", "ack b a1", "payload b2 closed=1", "wait 1"),
        ["b: payload a1", "combine 1: nobody"],
        "lost",
    ),
    "they counted it, as their next payload says": (
        ("journaled", "payload b1", "payload b2 closed=1 counted=1:b1:a1"),
        ["b: payload a1", "b: ack b1", "combine 1: b1"],
        "counted",
    ),
    "they have finished without it": (
        ("journaled", "bye b done", "wait 1"),
        ["b: payload a1", "combine 1: nobody"],
        "lost",
    ),
    "they have finished with it": (
        ("journaled", "payload b1", "bye b done counted=1:b1:a1"),
        ["b: payload a1", "b: ack b1", "combine 1: b1"],
        "counted",
    ),
    "they only stop": (
        ("journaled", "payload b1", "bye b"),
        ["b: payload a1", "b: ack b1"],
        "voted",
    ),
    "no payload in time": (
        ("journaled", "ack b a1", "wait 100"),
        ["b: payload a1", "b: release 1", "combine 1: nobody"],
        "released",
    ),
    "no acknowledgment in time": (
        ("journaled", "payload b1", "wait 100"),
        ["b: payload a1", "b: ack b1", "b: release 1", "combine 1: nobody"],
        "doubt",
    ),
    "nothing in time": (
        ("journaled", "wait 100"),
        ["b: payload a1", "b: release 1", "combine 1: nobody"],
        "released",
    ),
}


@pytest.mark.parametrize("case", ROUND)
def test_a_round_with_one_neighbor(case):
    steps, wanted, stage = ROUND[case]
    end = after("trained")
    assert end.said() == ["journal 1"]
    end.do(*steps)
    assert end.said() == wanted
    edge = end.edge()
    assert edge.stage.value == stage
    assert end.phase == {"idle": end.phase, "voted": "waiting"}.get(stage, "combining")
    gave_up = stage in ("released", "doubt")
    assert edge.rounds_missed == gave_up
    assert edge.doubts == ([1] if stage == "doubt" else [])
    assert end.count("in-doubt") == edge.doubts_total == (stage == "doubt")
    assert end.count("stale-ack") == ("another payload" in case)
    if stage != "idle" and not edge.stage.open:
        assert 1 not in edge.held  # its memory is free


def test_each_neighbor_is_agreed_with_by_itself():
    end = after("share", neighbors="dbc")
    end.said()
    end.do("payload d1 ack=a1", "payload b1 ack=a1")
    assert end.do("release c 1") == ["combine 1: b1 d1"]  # by vertex, whoever came first
    assert end.said() == ["d: ack d1", "b: ack b1", "combine 1: b1 d1"]


def test_an_edge_whose_payload_breaks_off_is_given_up_at_once():
    """It is as bad if it is sent again, and its sender does not know: nobody waits for it."""
    end = after("share", "offer b1", timing=replace(TIMING, transfer_s=30.0))
    end.said()
    assert end.do("broken b") == ["b: release 1"]
    assert (end.edge().stage, end.edge().receiving_since) == (Stage.RELEASED, None)
    assert end.do("wait 1") == ["combine 1: nobody"]
    end.do("next", "share")
    assert end.do("payload b2 closed=1 ack=a2") == ["b: ack b2", "combine 2: b2"]


def test_an_acknowledgment_after_a_release_in_the_open_round_comes_too_late():
    end = after("share", "offer b1", "broken b", neighbors="bc")
    end.said()
    assert end.do("ack b a1") == []
    assert (end.phase, end.edge("b").acked) == ("waiting", False)
    assert end.do("payload c1 ack=a1") == ["c: ack c1", "combine 1: c1"]


def test_one_that_breaks_off_before_its_round_is_given_up_when_the_round_has_come():
    end = after("offer b1", "broken b")
    end.said()
    assert end.do("trained", "journaled") == ["b: release 1"]
    assert end.edge().stage is Stage.RELEASED
    end = after("offer b1", "broken b", "up b round=1 digest=b1", "share")
    assert end.edge().stage is Stage.IDLE  # a new connection is a new attempt
    end = after("offer b1", "broken b", "payload b2 closed=1", "share")
    assert (end.agent.round, end.edge().stage) == (2, Stage.VOTED)


def test_one_that_breaks_off_when_the_payload_is_here_changes_nothing():
    end = after("share", "payload b1", "broken b")
    assert end.edge().stage is Stage.VOTED
    end = after("round", "offer b2 +", "broken b")
    assert end.edge().stage is Stage.COUNTED


@pytest.mark.parametrize("late", ["ack b a1", "release b 1"])
def test_what_was_given_up_is_not_used_though_it_is_answered_later(late):
    """Our release is on its way: what crossed it decides nothing."""
    end = after("share", "wait 100")
    end.said()
    assert end.do(late) == []
    assert end.do("payload b1 ack=a1") == ["b: release 1", "b: refuse stale 1"]
    assert (end.edge().acked, end.edge().stage) == (False, Stage.RELEASED)
    assert end.count("one-sided") == 0


def test_an_acknowledgment_of_the_past_changes_nothing():
    end = after("round", "share", "payload b2 +")
    end.said()
    assert end.do("ack b a1") == []
    assert (end.phase, end.edge().acked) == ("waiting", False)
    assert end.do("ack b a2") == ["combine 2: b2"]


def test_an_acknowledgment_is_of_a_round_that_was_shared():
    end = after("trained")
    end.said()
    assert end.do("ack b a1") == ["b: refuse ahead 1"]
    end.do("journaled", "payload b1", "ack b a1")
    end.said()
    assert end.do("ack b a2") == ["b: refuse ahead 2"]


@pytest.mark.parametrize("how", ["wait 100", "release b 1"])
def test_a_payload_that_is_complete_too_late_is_counted_and_dropped(how):
    end = after("share", "offer b1", how)
    end.said()
    assert end.do("whole b1") == []
    assert (end.count("late"), end.edge().held) == (1, {})
    assert end.edge().stage in (Stage.RELEASED, Stage.LOST)


def test_a_payload_ahead_is_acknowledged_when_its_round_has_come():
    end = after("payload b2 closed=1")
    assert end.said() == []
    assert end.do("trained") == ["journal 2 trained as 1"]  # they are in round 2 already
    assert end.do("journaled") == ["b: payload a2 ack=b2"]
    assert end.do("ack b a2") == ["combine 2: b2"]


def test_the_next_payload_may_come_while_this_round_is_open():
    """Whoever shares round 2 has ended round 1: with this edge, or without it."""
    end = after("share", "payload b1")
    assert end.do("offer b2 closed=1 counted=1:b1:a1") == ["b: reserve b2", "combine 1: b1"]
    end.do("whole b2", "combined", "trained")
    assert end.do("journaled") == ["b: payload a2 closed=1 counted=1:a1:b1 ack=b2", "free 1"]
    assert end.do("ack b a2") == ["combine 2: b2"]


def test_what_is_under_way_is_acknowledged_before_an_older_payload_is_sent():
    """A payload acknowledges its own round only."""
    end = after("share", "payload b1")
    end.said()
    assert end.do("seek b") == ["b: payload a1 ack=b1"]
    end = after("round", "share", "payload b2 +")
    end.said()
    assert end.do("seek b") == ["b: payload a2 closed=1 counted=1:a1:b1 ack=b2"]


# --- which payloads are taken -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("steps", "which", "answer"),
    [
        ("", "b0", "refuse ahead 0"),
        ("", "b51", "refuse ahead 51"),
        ("", "b50", "reserve b50"),
        ("", "b1", "reserve b1"),
        ("round", "b1", "refuse stale 1"),
        ("share, release b 1", "b1", "refuse stale 1"),
        ("share, release b 1", "b2", "reserve b2"),
        ("failed", "b1", "refuse stale 1"),
        ("failed", "b2", "reserve b2"),
        ("share, payload b1", "b1", "refuse repeated 1"),
        ("share, payload b1", "b1'", "refuse repeated 1"),  # it is acknowledged: too late
        ("payload b1", "b1", "refuse repeated 1"),
        ("payload b1", "b1'", "reserve b1'"),  # nobody has heard of the other
        ("share, payload b3", "b1", "refuse stale 1"),
        ("share, payload b3", "b2", "refuse stale 2"),
        ("share, payload b3", "b3", "refuse repeated 3"),
        ("share, payload b3", "b3'", "reserve b3'"),
        ("share, payload b3", "b4", "reserve b4"),
        ("payload b3, payload b5", "b4", "refuse stale 4"),
        ("payload b3, payload b5, trained, journaled", "b4", "refuse stale 4"),
    ],
)
def test_payloads_of_which_rounds_are_taken(steps, which, answer):
    end = after(*filter(None, steps.split(", ")))
    words = end.do(f"offer {which}")
    assert f"b: {answer}" in words
    assert sum("reserve" in w or "refuse" in w for w in words) == 1


def test_the_texts_of_refusals_say_where_this_end_is():
    end = after("failed", "payload b5")
    texts = []
    for step in ("offer b1", "offer b51", "offer b5", "offer b4", "ack b a4", "release b 51"):
        end.do(step)
        texts.append(end.effects[-1].text)
    assert texts == [
        "round 1, neighbor 1: agent 0 has closed round 1",
        "round 51, neighbor 1: the run has 50 rounds",
        "round 5, neighbor 1: a payload of this round is here already",
        "round 4, neighbor 1: came after its payload of round 5",
        "neighbor 1 acknowledges round 4, never sent",
        "neighbor 1 releases round 51 of 50",
    ]


def test_a_payload_that_comes_again_is_acknowledged_again():
    """A neighbor that has restarted sends it again and waits."""
    end = after("share", "payload b1")
    end.said()
    assert end.do("payload b1") == ["b: ack b1", "b: refuse repeated 1"]
    assert end.do("payload b1'") == ["b: ack b1", "b: refuse repeated 1"]
    end = after("share", "payload b3")  # not acknowledged yet
    end.said()
    assert end.do("payload b3") == ["b: refuse repeated 3"]


def test_a_payload_that_replaces_one_that_was_not_acknowledged_is_the_one_that_counts():
    end = after("payload b1", "payload b1'", "share")
    assert end.said()[-1] == "b: payload a1 ack=b1'"
    assert end.do("ack b a1") == ["combine 1: b1'"]


def test_at_most_the_open_rounds_payload_and_the_newest_are_kept():
    end = after("share", "payload b1", "payload b3", "payload b4", "payload b6")
    assert sorted(end.edge().held) == [1, 6]
    end = after("payload b1", "payload b3", "payload b4")  # round 1 is the next
    assert sorted(end.edge().held) == [1, 4]
    end = after("share", "payload b1", "payload b2")
    for k in range(3, 7):
        end.do(f"offer b{k}")
        assert len(end.edge().held) < 2  # while the next comes
        end.do(f"whole b{k}")
        assert sorted(end.edge().held) == [1, k]


def test_older_payloads_are_dropped_when_a_round_is_shared():
    end = after("payload b1", "payload c4", "trained", neighbors="bc")
    assert end.said() == ["journal 4 trained as 1"]
    end.do("journaled")
    assert end.edge("b").held == {}
    assert list(end.edge("c").held) == [4]
    assert end.said() == ["b: payload a4", "c: payload a4 ack=c4"]


def test_a_neighbor_that_is_gone_is_sent_nothing():
    end = after("down b", "bye c done", "share", "wait 100", neighbors="bcd")
    assert end.said() == [
        "journal 1", "d: payload a1", "d: release 1", "combine 1: nobody",
    ]  # fmt: skip


def test_a_payload_is_put_in_line_once_on_a_connection():
    end = after("share")
    end.said()
    for step in ("offer b1", "whole b1", "release b 0", "payload b1"):
        assert not any("payload" in said for said in end.do(step))


def test_an_early_payload_that_is_not_believed_costs_its_edge_the_round():
    """It waits for this agent's own: no vote for it, and the other end is told."""
    end = after("payload b1", "payload c1", "trained", neighbors="bc")
    end.said()
    assert end.do("screened b 1") == []
    assert end.do("journaled") == ["b: release 1", "c: payload a1 ack=c1"]
    assert end.edge("b").held == {}
    assert end.do("ack c a1") == ["combine 1: c1"]
    end.do("next", "share", "payload c2 + ack=a2")
    assert end.do("payload b2 + ack=a2")[-1] == "combine 2: b2 c2"  # it has its chance again


def test_what_is_screened_and_not_here_changes_nothing():
    end = after("share")
    end.said()
    assert end.do("screened b 1") == []
    assert end.do("payload b1 ack=a1") == ["b: ack b1", "combine 1: b1"]
