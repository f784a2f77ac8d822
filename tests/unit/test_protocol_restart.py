"""An agent that starts from its disk: the same payload, the same promises, the same doubts.

`reborn` takes the newest whole write, through real JSON, and what earlier ones keep.
"""

import json

import pytest

from flower_dhb.peer.protocol.agent import Agent
from flower_dhb.peer.protocol.edge import Stage
from flower_dhb.peer.protocol.edition import Edition
from flower_dhb.peer.protocol.settings import Config
from tests.support.protocol import End, after, payload


def kept(end):
    return {k: p.handle for k, p in end.agent.near.kept.items()}


# --- from the state of a round's end ------------------------------------------------------------


def test_a_saved_state_is_where_a_run_goes_on():
    end = after("round", "round", "round").reborn()
    assert (end.phase, end.said()) == ("connecting", [])
    assert (end.agent.closed, end.agent.round) == (3, 3)
    assert end.do("dial b") == ["b: hello closed=3 counted=3:a3:b3"]
    assert end.do("hello b closed=3 counted=3:b3:a3") == ["train 4"]
    assert end.do("payload b3") == ["b: refuse stale 3"]
    assert end.do("trained") == ["journal 4"]


def test_without_a_disk_it_begins_anew():
    end = after("round", "round").reborn(0)
    assert (end.agent.closed, kept(end)) == (0, {})
    assert end.do("dial b") == ["b: hello"]
    assert end.do("hello b round=3 digest=b3 closed=2 counted=2:b2:a2") == ["train 3"]
    assert end.edge().one_sided == [2]  # it counts at the other end alone now


def test_after_a_round_that_failed_too():
    end = after("round", "failed").reborn()
    assert (end.agent.closed, end.agent.round) == (2, 1)
    assert end.do("dial b") == ["b: hello closed=2 counted=1:a1:b1"]
    assert end.do("hello b round=2 digest=b2 closed=1 counted=1:b1:a1") == [
        "b: release 2", "train 3",
    ]  # fmt: skip


def test_a_finished_run_is_finished_at_once_and_nobody_is_waited_for():
    end = after("round", "round", rounds=2).reborn()
    assert (end.phase, end.said()) == ("finishing", ["finish"])
    assert end.do("finished") == []
    assert end.do("up b closed=2 counted=2:b2:a2 done") == [
        "b: hello closed=2 counted=2:a2:b2 done",
        "b: goodbye done counted=2:a2:b2",
        "b: close: stopping",
        "end done",
    ]


def test_what_was_alone_is_alone_after_a_restart():
    end = after("round", "down b", rounds=6)
    for _ in range(5):
        end.do("share", "wait 100", "next")
    assert end.said()[-1] == "finish alone since 1"
    assert end.reborn().said() == ["finish alone since 1"]


# --- from a payload that may have left ----------------------------------------------------------


def test_the_same_payload_is_sent_again_and_not_trained_anew():
    end = after("round", "share").reborn()
    assert (end.phase, end.said()) == ("waiting", [])
    assert (end.agent.closed, end.agent.round) == (1, 2)
    assert end.do("dial b") == ["b: hello round=2 digest=a2 closed=1 counted=1:a1:b1"]
    assert end.do("hello b round=2 digest=b2 closed=1 counted=1:b1:a1") == [
        "b: payload a2 closed=1 counted=1:a1:b1", "free 1",
    ]  # fmt: skip
    assert end.do("payload b2 + ack=a2") == ["b: ack b2", "combine 2: b2"]
    assert end.do("combined") == ["save 2", "train 3"]


def test_the_label_is_what_it_was():
    end = after("offer b6 closed=5", "share").reborn()
    assert end.do("up b round=6 digest=b6 closed=5")[1:] == ["b: payload a6"]
    assert end.do("payload b6 ack=a6") == ["b: ack b6", "combine 6: b6"]
    assert end.effects[-1].trained_as == 1


def test_it_may_have_voted_so_it_gives_no_edge_up_by_itself():
    end = after("share", "payload b1").reborn()
    assert end.edge().stage is Stage.BOUND
    end.do("up b round=1 digest=b1", "wait 100")
    assert end.edge().stage is Stage.DOUBT
    assert (end.edge().doubts, end.count("in-doubt")) == ([1], 1)
    assert end.said()[-2:] == ["b: release 1", "combine 1: nobody"]


BOUND = {
    # what the neighbor says to one that was restarted in round 1: (Hello, words, stage)
    "it holds our payload": (
        "round=1 digest=b1 holds=a1",
        [],
        "bound",
    ),
    "it counted": (
        "closed=1 counted=1:b1:a1",
        [],
        "bound",
    ),
    "it ended the round without us": (
        "closed=1",
        [],
        "lost",
    ),
    "it counted another payload": (
        "closed=1 counted=1:b1:a1'",
        [],
        "lost",
    ),
    "it gave us up in doubt": (
        "closed=1 doubts=1",
        [],
        "lost",
    ),
    "it is a round further": (
        "round=2 digest=b2 closed=1",
        [],
        "lost",
    ),
    "it is in the round too": (
        "round=1 digest=b1",
        ["b: payload a1"],
        "bound",
    ),
    "it is not yet in the round": (
        "",
        ["b: payload a1"],
        "bound",
    ),
}


@pytest.mark.parametrize("case", BOUND)
def test_what_the_neighbor_says_to_one_that_was_restarted(case):
    said, wanted, stage = BOUND[case]
    end = after("share", "payload b1").reborn()
    end.do("dial b")
    assert end.do(f"hello b {said}") == wanted
    assert end.edge().stage.value == stage


def test_what_counted_there_counts_here_once_its_payload_has_come_again():
    end = after("share", "payload b1").reborn()
    end.do("up b round=2 digest=b2 closed=1 counted=1:b1:a1")
    assert end.edge().acked
    end.said()
    assert end.do("ack b a1") == []
    assert end.do("payload b1 closed=1 counted=1:b1:a1") == ["b: ack b1", "combine 1: b1"]
    assert end.edge().settled  # it has said so


def test_what_counted_there_and_never_comes_again_is_one_sided():
    end = after("share", "payload b1").reborn()
    end.do("up b round=2 digest=b2 closed=1 counted=1:b1:a1", "wait 100")
    assert end.edge().stage is Stage.DOUBT
    assert (end.edge().doubts, end.edge().one_sided) == ([], [1])
    assert (end.count("in-doubt"), end.count("one-sided")) == (0, 1)


def test_it_gives_up_nothing_while_the_others_notice_that_it_is_back():
    end = after("share", "payload b1").reborn()
    assert end.do("wait 29") == []
    assert end.do("up b round=1 digest=b1 holds=a1")[1:] == []
    assert end.do("payload b1") == ["b: ack b1", "combine 1: b1"]


def test_a_second_crash_in_the_same_round_changes_nothing():
    end = after("share", "payload b1").reborn().reborn()
    assert end.do("up b round=1 digest=b1")[1:] == ["b: payload a1"]
    assert end.do("payload b1 ack=a1") == ["b: ack b1", "combine 1: b1"]


def test_a_payload_that_is_known_early_is_trained_again():
    """The state is that before training, and the payload has left."""
    end = after("journaled", early=True).reborn()
    assert (end.phase, end.said()) == ("training", ["train 1"])
    assert end.do("up b round=1 digest=b1")[1:] == ["b: payload a1"]
    assert end.do("payload b1 ack=a1") == ["b: ack b1"]
    assert end.do("trained") == ["combine 1: b1"]


def test_the_record_of_an_open_round_needs_its_payload():
    record = json.loads(after("share").writes[-1][2])
    with pytest.raises(ValueError, match="its payload is needed"):
        Agent(Config(vertex=0, editions=(Edition(1, 1, 50, (1,)),)), 0.0, record=record)


# --- which write it starts from -----------------------------------------------------------------


def test_a_write_that_is_lost_takes_back_what_it_said_and_nothing_else():
    """Round 2 was combined, and its state did not reach the disk: the payload did."""
    end = after("round", "share", "payload b2 + ack=a2", "combined")
    assert [w[:2] for w in end.writes] == [
        ("journal", 1), ("save", 1), ("journal", 2), ("save", 2),
    ]  # fmt: skip
    again = end.reborn(3)
    assert again.edge().stage is Stage.BOUND
    assert again.do("dial b") == ["b: hello round=2 digest=a2 closed=1 counted=1:a1:b1"]
    assert again.do("hello b closed=2 counted=2:b2:a2") == ["free 1"]
    assert again.edge().acked
    again = end.reborn(2)  # the payload had not left
    assert again.do("up b round=2 digest=b2 closed=1 counted=1:b1:a1")[1:] == ["train 2"]
    again.do("trained", "journaled", "payload b2 +")
    assert again.said()[-1] == "b: ack b2"
    assert again.agent.near.kept[2] == payload("a2'")


def test_payloads_that_neighbors_may_still_ask_for_outlive_the_process():
    end = after("share", "payload b1 ack=a1", "next", "share", "wait 100", "next")
    assert kept(end) == {1: "a1", 2: "a2"}
    again = end.reborn()
    assert kept(again) == {1: "a1", 2: "a2"}
    again.do("dial b")
    assert again.do("hello b round=1 digest=b1") == [
        "b: ack b1", "b: payload a1 closed=2 counted=1:a1:b1", "train 3",
    ]  # fmt: skip


def test_what_the_disk_has_lost_of_them_is_not_offered():
    end = after("share", "payload b1 ack=a1", "next", "share", "wait 100", "next")
    again = end.reborn(kept=("a2",))
    assert kept(again) == {2: "a2"}
    assert again.do("up b round=1 digest=b1")[1:] == ["b: release 1", "train 3"]
    assert again.edge().one_sided == [1]


# --- what must outlive the process --------------------------------------------------------------


def test_doubts_and_one_sided_rounds_outlive_the_process():
    end = after("share", "payload b1", "wait 100", "next")
    end.do("share", "payload b2 closed=1 ack=a2")
    end.do("release b 2", "next")
    again = end.reborn()
    before, now = end.edge(), again.edge()
    assert (now.doubts, now.one_sided) == (before.doubts, before.one_sided)
    assert now.record() == before.record()
    assert now.one_sided == [2]
    assert again.do("dial b")[0].endswith("one_sided=2")


def test_a_doubt_is_settled_after_a_restart():
    again = after("share", "payload b1", "wait 100", "next").reborn()
    assert again.do("dial b") == ["b: hello closed=1 doubts=1"]
    again.do("hello b closed=1 counted=1:b1:a1")
    assert (again.edge().doubts, again.edge().one_sided) == ([], [1])


def test_an_open_question_stays_open():
    again = after("share", "payload b1 ack=a1", "next").reborn()
    assert again.edge().unknown == 1
    again.do("up b closed=1 counted=1:b1:a1")
    assert (again.edge().unknown, again.edge().one_sided) == (0, [])


def test_a_record_is_plain_json_and_is_the_same_after_a_restart():
    end = after("round", "share", "payload b2 + ack=a2", "next", neighbors="b", conserves=True)
    for again in (end.reborn(), end.reborn(3), end.reborn(2)):
        found = json.loads(json.dumps(again.agent._record()))
        record = json.loads(again.writes[-1][2])
        record["open"] = None
        if again.writes[-1][0] == "journal":
            record["label"] = record["kept"][-1] + 1 if record["kept"] else 1
            record["kept"], found["kept"] = [], []
            record["epochs"], found["epochs"] = [], []
            record["editions"], found["editions"] = [], []
            record["label"] = found["label"]
        assert found == record


def test_what_a_record_has():
    end = after("round", "share", neighbors="b")
    record = json.loads(end.writes[-1][2])
    assert record == {
        "open": {"round": 2, "trained_as": 2, "early": False, "edition": 1},
        "closed": 1,
        "label": 1,
        "mixed": 1,
        "pace": 0.0,
        "epoch": 0,
        "epoch_began": 0,
        "broken": False,
        "kept": [1],
        "epochs": [0],
        "editions": [1],
        "edges": {
            "1": {
                "counted": [1, payload("a1").digest, payload("b1").digest],
                "settled": False,
                "doubts": [],
                "one_sided": [],
                "doubts_total": 0,
                "one_sided_total": 0,
                "rounds_missed": 0,
            }
        },
    }


def test_a_neighbor_that_the_mesh_has_no_more_is_left_out():
    end = after("round", neighbors="bc")
    again = End("b", record=end.writes[-1][2], kept=("a1",), connected=False)
    assert list(again.agent.edges) == [1, 2]  # it has not said how round 1 ended there
    again.do("wait 50")
    assert list(again.agent.edges) == [1]
    assert again.do("up b closed=1 counted=1:b1:a1")[-1] == "train 2"
    again = End("bcd", record=end.writes[-1][2], kept=("a1",), connected=False)
    assert again.do("dial d") == ["d: hello closed=1"]
