"""Connections: down, greeting, up; what a Hello says, and what it settles."""

from dataclasses import replace

import pytest

from flower_dhb.peer.protocol.edge import Connection, Stage
from tests.support.protocol import TIMING, End, after

# --- from one state to the next -----------------------------------------------------------------


def test_a_connection_begins_with_a_hello_and_nothing_leaves_before_the_others():
    end = End(connected=False)
    assert end.edge().connection is Connection.DOWN
    assert end.do("dial b") == ["b: hello"]
    assert end.edge().connection is Connection.GREETING
    end.do("wait 4")
    assert end.said() == ["b: hello"]
    assert end.do("hello b") == ["train 1"]
    assert end.edge().connection is Connection.UP
    assert end.do("down b") == []
    assert end.edge().connection is Connection.DOWN


def test_who_shares_while_a_neighbor_greets_sends_when_it_has_greeted():
    end = after("down b", "dial b", "trained")
    assert end.said() == ["b: hello", "journal 1"]
    assert end.do("journaled") == []
    assert end.do("hello b") == ["b: payload a1"]


def test_who_shares_while_a_neighbor_greets_is_not_held_by_it():
    """The neighbor lets go of a payload that the Hello did not name, though it is made again."""
    end = after("down b", "dial b", "trained", "journaled")
    assert end.said() == ["b: hello", "journal 1"]
    assert end.do("hello b round=1 digest=b1 holds=a1") == ["b: payload a1"]
    assert not end.edge().acked
    end = after("share", "down b", "dial b")
    end.do("hello b round=1 digest=b1 holds=a1")
    assert end.edge().acked


def test_nothing_is_said_before_the_others_hello():
    end = after("down b", "dial b")
    end.said()
    assert end.do("failed") == ["save 1 failed: why"]
    assert end.do("hello b round=1 digest=b1")[0] == "b: release 1"


@pytest.mark.parametrize(
    "step",
    ["offer b1", "whole b1", "ack b a1", "release b 1", "seek b", "bye b done"],
)
def test_what_comes_before_the_hello_is_dropped(step):
    end = after("share", "down b", "dial b")
    end.said()
    assert end.do(step) == []
    assert end.do("hello b round=1 digest=b1") == ["b: payload a1"]
    assert (end.edge().stage, end.edge().acked, end.edge().held) == (Stage.IDLE, False, {})
    assert end.phase == "waiting"


def test_a_second_hello_on_a_connection_is_refused():
    end = after("share", "payload b1")
    end.said()
    assert end.do("hello b closed=9 done") == ["b: refuse malformed 0"]
    assert end.effects[-1].text == "a second Hello"
    assert (end.edge().stage, end.edge().done, end.edge().wants) == (Stage.VOTED, False, 1)


def test_a_newer_connection_takes_the_place_of_an_older_one():
    end = after("share")
    end.said()
    assert end.do("dial b") == [
        "b: close: replaced by a newer connection (old link)",
        "b: hello round=1 digest=a1",
    ]
    assert end.do("hello b round=1 digest=b1") == ["b: payload a1"]


STALE = ["hello b done closed=50", "offer b1", "whole b1", "payload b1 ack=a1", "ack b a1",
         "release b 1", "seek b", "bye b done", "heard b", "down b"]  # fmt: skip


@pytest.mark.parametrize("step", STALE)
def test_what_comes_from_an_older_connection_changes_nothing(step):
    end = after("share", "payload b1")
    new, old = after("share", "payload b1"), end.links["b"]
    for other in (end, new):
        other.do("up b round=1 digest=b1", "later 1")
        other.said()
    end.links["b"] = old
    assert end.do(step) == []
    assert end.edge() == replace(new.edge(), patience=end.edge().patience)
    assert (end.phase, end.said()) == ("waiting", [])


def test_the_end_of_an_older_connection_does_not_end_the_newer():
    end = End()
    older = end.links["b"]
    end.do("up b")
    newer, end.links["b"] = end.links["b"], older
    end.do("down b")
    assert end.edge().up
    end.links["b"] = newer
    end.do("down b")
    assert not end.edge().up


def test_a_stranger_is_not_heard():
    end = End("b")
    edges = dict(end.agent.edges)
    assert end.do("dial c") == ["c: close: no neighbor"]
    assert end.do("hello c", "payload c1", "bye c done") == []
    assert end.said() == ["c: close: no neighbor"]
    assert end.agent.edges == edges


# --- limits -------------------------------------------------------------------------------------

STRICT = replace(TIMING, dead_after_s=8.0, transfer_s=30.0)


@pytest.mark.parametrize(
    ("steps", "after_s", "why"),
    [
        ("dial b", 5.0, "half-open"),
        ("dial b, later 3, heard b", 2.0, "half-open"),
        ("up b", 8.0, "silent"),
        ("up b, later 5, heard b", 8.0, "silent"),
        ("up b, later 5, offer b1", 8.0, "silent"),
        ("up b, later 5, release b 0", 8.0, "silent"),
        ("up b, offer b1" + 4 * ", later 7, heard b", 2.0, "slow-sender"),
        ("up b, offer b1" + 4 * ", later 7, heard b" + ", whole b1", 8.0, "silent"),
        ("up b" + 2 * (", offer b1" + 3 * ", later 7, heard b"), 8.0, "silent"),
    ],
)  # fmt: skip
def test_a_connection_that_serves_nobody_is_ended(steps, after_s, why):
    end = End(connected=False, timing=STRICT)
    end.do(*steps.split(", "))
    end.said()
    assert end.agent.next_deadline() == pytest.approx(end.now + after_s)
    end.do(f"wait {after_s - 0.1}")
    assert not any("close" in said for said in end.said())
    assert end.do("wait 0.1")[0] == f"b: close at once: {why}"
    assert end.count(f"cut-off.{why}") == 1
    assert end.noted("cut-off") == [{"neighbor": 1, "why": why}]
    assert end.edge().connection is Connection.DOWN
    assert end.do("down b") == []  # the shell says so too: no harm


@pytest.mark.parametrize(
    ("steps", "after_s"),
    [
        # 100,000 bytes at a thousand a second are worth 100 s.
        ("offer b1, later 7, arriving b 100000 9000000" + 4 * ", later 7, heard b", 2.0),
        (
            "offer b1" + "".join(f", later 7, arriving b {k} 9000000" for k in range(1, 5)),
            30.004 - 28.0,
        ),
        (
            "offer b1" + "".join(f", later 7, arriving b {7000 * k} 9000000" for k in range(1, 9)),
            8.0,
        ),
    ],
)
def test_a_payload_is_cut_off_where_it_stops_or_trickles(steps, after_s):
    end = after(*steps.split(", "), timing=STRICT)
    end.said()
    assert end.agent.next_deadline() == pytest.approx(end.now + after_s)
    end.do(f"wait {after_s}")
    assert end.count("cut-off.slow-sender") == (after_s != 8.0)
    assert end.count("cut-off.silent") == (after_s == 8.0)


def test_who_was_told_to_keep_the_rest_of_a_payload_is_not_cut_off_for_it():
    """With long rounds, or few exchanges, nothing follows for longer than `transfer-s`."""
    end = after("share", "offer b1", "wait 3", "later 5", timing=replace(STRICT, ceiling_s=6.0))
    assert end.do("heard b", "wait 1")[0] == "b: release 1"
    assert end.edge().in_vain == 1
    for _ in range(8):
        end.do("later 7", "heard b", "wait 0")
    assert end.count("cut-off.slow-sender") == 0
    assert end.edge().up


def test_a_connection_that_is_cut_may_come_back():
    end = after("share", timing=STRICT)
    end.said()
    assert end.do("wait 8") == ["b: close at once: silent"]
    assert end.agent.next_deadline() == pytest.approx(end.now + TIMING.reconnect_s)
    assert end.do("up b round=1 digest=b1")[1:] == ["b: payload a1"]
    assert end.do("payload b1 ack=a1") == ["b: ack b1", "combine 1: b1"]


def test_a_new_connection_begins_its_own_transfer():
    end = after("offer b1", timing=STRICT)
    end.do(*(4 * ["later 7", "heard b"]), "up b", "later 7", "heard b")
    assert end.edge().up
    assert end.agent.next_deadline() == pytest.approx(end.now + 8.0)


def test_any_event_notices_that_a_connection_is_dead():
    end = after("later 8", "trained", timing=STRICT)
    assert end.said() == ["journal 1", "b: close at once: silent"]


# --- what a Hello says --------------------------------------------------------------------------


def hello(end, j="b"):
    """What it says of itself to one who connects now."""
    end.do("later 0")
    said = end.do(f"dial {j}")
    return said[-1].partition("hello")[2].strip()


def test_a_hello_says_where_the_disk_stands():
    end = after("trained", neighbors="bc")
    assert hello(end) == ""  # the payload is not on the disk
    end = after("trained", "payload b1", "journaled", neighbors="bc")
    assert hello(end, "c") == "round=1 digest=a1"
    assert hello(end, "b") == "round=1 digest=a1 holds=b1"
    end = after("share", "payload b1 ack=a1")
    assert end.said()[-1] == "combine 1: b1"
    assert hello(end) == "round=1 digest=a1 holds=b1"  # that it counted is not on the disk
    end.do("hello b round=1 digest=b1", "combined")
    assert hello(end) == "round=1 digest=a1 holds=b1"
    end.do("saved")
    assert hello(end) == "closed=1 counted=1:a1:b1"


def test_what_a_hello_says_of_the_round_before_is_in_the_next_journal_too():
    """The state of a round's end may reach the disk with the next payload only."""
    end = after("share", "payload b1 ack=a1", "combined", "trained")
    assert hello(end) == "round=1 digest=a1 holds=b1"
    end.do("journaled")
    assert hello(end) == "round=2 digest=a2 closed=1 counted=1:a1:b1"
    end.do("saved 1")  # late: a later record has said it
    assert hello(end) == "round=2 digest=a2 closed=1 counted=1:a1:b1"


def test_doubts_are_told_once_they_are_on_the_disk():
    end = after("share", "payload b1", "wait 100")
    assert hello(end) == "round=1 digest=a1"  # the vote is not told any more
    end.do("combined", "saved")
    assert hello(end) == "closed=1 doubts=1"


def test_a_vote_that_was_taken_back_is_not_told():
    end = after("share", "payload b1", "release b 1")
    assert hello(end) == "round=1 digest=a1"


def test_one_sided_rounds_are_told_once_they_are_on_the_disk():
    end = after("share", "payload b1 ack=a1", "release b 1")
    assert "one_sided" not in hello(end)
    end.do("combined", "saved")
    assert hello(end) == "closed=1 counted=1:a1:b1 one_sided=1"


def test_a_hello_after_the_end_says_so():
    end = after("round", "round", rounds=2)
    assert end.said()[-1] == "finish"
    assert hello(end) == "closed=2 counted=2:a2:b2"
    end.do("hello b closed=2 counted=2:b2:a2", "finished")
    assert hello(end) == "closed=2 counted=2:a2:b2 done"


# --- what it settles ----------------------------------------------------------------------------

IN_ROUND_2 = "round=2 digest=b2 closed=1 counted=1:b1:a1"
HELLOS = {
    # what happened before, the Hello, what is said, the stage of the open round
    "nothing was open": ("", "", [], "idle"),
    "they have not our payload": (
        "share",
        "round=1 digest=b1",
        ["b: payload a1"],
        "idle",
    ),
    "they hold our payload": (
        "share",
        "round=1 digest=b1 holds=a1",
        [],
        "idle",
    ),
    "they hold another payload": (
        "share",
        "round=1 digest=b1 holds=a1'",
        ["b: payload a1"],
        "idle",
    ),
    "they hold an older one": (
        "round, share",
        "round=1 digest=b1 holds=a1",
        ["b: ack b1", "b: payload a2 closed=1 counted=1:a1:b1"],
        "idle",
    ),
    "we hold theirs": (
        "share, payload b1",
        "round=1 digest=b1 holds=a1",
        ["b: ack b1", "combine 1: b1"],
        "counted",
    ),
    "we hold theirs and they have not ours": (
        "share, payload b1",
        "round=1 digest=b1",
        ["b: ack b1", "b: payload a1 ack=b1"],
        "voted",
    ),
    "we hold theirs, and they have lost it": (
        "share, payload b1",
        "",
        ["b: payload a1"],
        "idle",
    ),
    "we hold theirs, and they have trained it again": (
        "share, payload b1",
        "round=1 digest=b1'",
        ["b: payload a1"],
        "idle",
    ),
    "they had acknowledged, and have lost it": (
        "share, ack b a1",
        "",
        ["b: payload a1"],
        "idle",
    ),
    "we gave the edge up": (
        "share, wait 100",
        "round=1 digest=b1",
        ["b: release 1"],
        "released",
    ),
    "we gave it up in doubt, and they hold our payload": (
        "share, payload b1, wait 100",
        "round=1 digest=b1 holds=a1",
        ["b: release 1"],
        "doubt",
    ),
    "they gave it up before": (
        "share, release b 1",
        "round=1 digest=b1",
        ["b: release 1"],
        "lost",
    ),
    "they ended it without us": (
        "share, payload b1",
        "closed=1",
        [],
        "lost",
    ),
    "they ended it with us": (
        "share, payload b1",
        "closed=1 counted=1:b1:a1",
        ["combine 1: b1"],
        "counted",
    ),
    "they ended it with us, and are further": (
        "share, payload b1",
        IN_ROUND_2,
        ["combine 1: b1"],
        "counted",
    ),
    "they ended it with another payload of ours": (
        "share, payload b1",
        "closed=1 counted=1:b1:a1'",
        [],
        "lost",
    ),
    "they gave it up after their vote": (
        "share, payload b1",
        "closed=1 doubts=1",
        [],
        "lost",
    ),
    "they gave it up after their vote, and are in the round again": (
        "share, payload b1",
        "round=1 digest=b1 doubts=1",
        ["b: release 1"],
        "lost",
    ),
    "they know that it is one-sided": (
        "share, payload b1",
        "round=1 digest=b1 holds=a1 one_sided=1",
        ["b: release 1"],
        "lost",
    ),
    "they have finished": (
        "share",
        "closed=50 done",
        ["combine 1: nobody"],
        "lost",
    ),
    "it counted here, and they are in it still": (
        "round",
        "round=1 digest=b1",
        ["b: ack b1", "b: payload a1 closed=1 counted=1:a1:b1"],
        "counted",
    ),
}


@pytest.mark.parametrize("case", HELLOS)
def test_what_is_said_after_a_new_connection(case):
    steps, said, wanted, stage = HELLOS[case]
    end = after(*filter(None, steps.split(", ")))
    end.do("down b", "dial b")
    words = end.do(f"hello b {said}")
    assert words == wanted
    assert end.edge().stage.value == stage
    known = "another payload of ours" in case or "they know that" in case
    assert end.edge().one_sided == ([1] if known else [])
