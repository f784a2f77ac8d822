"""What of a fleet needs somebody: judged from what devices answer, and from what they do not."""

import re

import pytest

from flower_dhb.peer.mesh.findings import KINDS, findings
from flower_dhb.peer.mesh.sights import SIGHTS, Sight, read_sights, seen, write_sights
from tests.support.fleets import NOW, Troubled, answer, path

DAY = 86400


def fails(fleet):
    fleet[3].failures, fleet[3].last_error = 4, "ValueError: no camera"


def fails_to_evaluate(fleet):
    fleet[3].evaluation_error = "KeyError: 'test'"


def is_killed(fleet):
    fleet.silence(3)


def is_stopped(fleet):
    fleet.silence(3, "10.0.0.3:9440 takes connections and does not answer")


def is_off(fleet):
    fleet.silence(3, "10.0.0.3:9440: no answer: the device is off or away")


def stalls_in_the_app(fleet):
    fleet[3].stalled_s = 700.0


def stalls_in_waiting(fleet):
    fleet[3].stalled_s, fleet[3].phase = 700.0, "waiting"
    fleet[3].waits_for.append(4)


def is_alone(fleet):
    fleet[3].alone_since = 97


def has_a_full_disk(fleet):
    fleet[3].disk = "No space left on device: free space on this disk"


def is_too_slow(fleet):
    fleet[3].lately, fleet[3].took_part, fleet[3].train_s = 9, 1, 4.0


def is_left_out(fleet):
    fleet[3].lately, fleet[3].took_part = 20, 3


def has_few_days(fleet):
    fleet[3].certificate_ends = int(NOW) + 12 * DAY + 5


def has_expired(fleet):
    fleet[3].certificate_ends = int(NOW) - 5


def has_an_old_authority(fleet):
    fleet[3].authority_ends = int(NOW) + 20 * DAY + 5


def has_a_wrong_clock(fleet):
    fleet[3].clock_s = NOW - 3 * 3600


def lies(fleet):
    fleet.end(2, 3).quarantined_until = 130
    fleet[2].ago_s["quarantined.3"] = 4.0
    fleet[4].ago_s["screened.3"] = 4.0


def is_doubled(fleet):
    fleet[2].ago_s["two-devices.3"] = 30.0


def loses_a_link(fleet):
    fleet.down(3, 4, why="no network leads there")


def is_of_another_run(fleet):
    fleet.down(3, 4, why="refused what vertex 4 sent (agreement): neighbor 4 is in run 'x'")


def has_another_start(fleet):
    fleet.down(3, 4, why="refused: 'vertex 4 has another start; copy one start.safetensors to all'")


def is_behind_a_link_too_slow(fleet):
    fleet[3].ago_s["slow-link.4"] = 20.0


NEEDED = [
    (fails, "app-failing", r"vertex 3: .*4 times in a row: “ValueError: no camera”. Mend the app"),
    (fails_to_evaluate, "evaluation-failing", r"vertex 3: .*'test'.*mend the app's evaluate"),
    (is_killed, "silent", r"vertex 3: last seen 3 min ago; nothing listens .*vertices 2 and 4 "
     r"cannot hear it.* start its peer"),
    (is_stopped, "silent", r"does not answer; .*stopped or hangs.*restart it"),
    (is_off, "silent", r"no answer.*See whether it has power and network"),
    (stalls_in_the_app, "stalled", r"no round has ended for 11 min 40 s, where one takes 0.42 s; "
     r"it is training, so its app hangs in round 119\. .*restart the peer"),
    (stalls_in_waiting, "stalled", r"it is waiting for vertex 4. See to these neighbors"),
    (is_alone, "alone", r"vertex 3: trains alone since round 97: .*See to its edges"),
    (has_a_full_disk, "disk", r"No space left on device: free space on this disk"),
    (is_too_slow, "left-out", r"took part in 1 of the last 9 rounds: it trains 4 s, its "
     r"neighbors' rounds take 0.4 s. Give it fewer local steps"),
    (is_left_out, "left-out", r"took part in 3 of the last 20 rounds. See to its edges"),
    (has_few_days, "certificate", r"its certificate ends in 12 d. Renew it: flower-dhb mesh renew"),
    (has_expired, "certificate", r"its certificate has ended. Renew it"),
    (has_an_old_authority, "authority", r"authority that it trusts ends in 20 d"),
    (has_a_wrong_clock, "clock", r"its clock is 3 h behind this computer's. Set it"),
    (lies, "liar", r"absurd, say vertices 2 and 4, which leave it aside until round 130"),
    (is_doubled, "double", r"two devices show its certificate, say vertex 2, .*Stop one of them"),
    (loses_a_link, "edge-down", r"edge 3-4: down for 3 min; vertex 3, which dials, says: no "
     r"network leads there. See to the network"),
    (is_of_another_run, "edge-down", r"run 'x'. Both ends need files of one and the same mesh"),
    (has_another_start, "edge-down", r"copy one start.* Do so, and start again"),
    (is_behind_a_link_too_slow, "too-slow", r"edge 3-4: .*does not come whole.*larger timing"),
]  # fmt: skip


@pytest.mark.parametrize(("what", "kind", "words"), NEEDED, ids=[f.__name__ for f, *_ in NEEDED])
def test_what_needs_somebody_is_told_in_words_that_say_what_to_do(what, kind, words):
    fleet = Troubled(7)
    assert findings(fleet.status()) == []  # nothing is, before
    what(fleet)
    (found,) = findings(fleet.status())
    assert (found.kind, found.needs) == (kind, True)
    assert re.search(words, found.text), found.text
    assert {3} <= set(found.vertices) <= {3, 4}


def gone_for_a_moment(fleet):
    for j in (2, 4):
        fleet.down(3, j, 4.0)
    del fleet.replies[3]
    fleet.failures[3] = "nothing listens at 10.0.0.3:9440"


def broken_for_a_moment(fleet):
    fleet.down(3, 4, 4.0, "the other end closed the connection")


def only_its_neighbors_hear_it(fleet):
    del fleet.replies[3]
    fleet.failures[3] = "10.0.0.3:9440: no answer"


def other_code(fleet):
    fleet.end(3, 4).differs.append("app")
    fleet.end(4, 3).differs.append("app")


def other_version(fleet):
    fleet[3].software = "0.2.0"


def behind(fleet):
    for v in range(7):
        fleet[v].bulletins["edition"] = 3 - (v == 3)


def one_sided(fleet):
    fleet.end(3, 4).one_sided = 2


def slow_link(fleet):
    for v, w in ((3, 4), (4, 3)):
        fleet.end(v, w).agreed_s = 0.3
        fleet[v].seconds_per_round = 0.75


def slow_device(fleet):
    fleet[3].train_s = 4.0
    for v in range(7):
        fleet[v].seconds_per_round = 4.1


def damaged_file(fleet):
    fleet[3].ago_s["damaged"] = 60.0


NOTED = [
    (gone_for_a_moment, "gone", "vertex 3: last seen 4 s ago"),
    (broken_for_a_moment, "edge-lost", "edge 3-4: down for 4 s"),
    (only_its_neighbors_hear_it, "unreachable", "trains, as vertices 2 and 4 can hear, but 10.0"),
    (other_code, "other-code", "edge 3-4: its two ends run different code of the app"),
    (other_version, "versions", "vertex 3: runs flower-dhb 0.2.0, most others 0.1.0"),
    (behind, "behind", "does not have yet: edition 3"),
    (one_sided, "one-sided", "vertex 3: 2 of its edges counted at one end only"),
    (slow_link, "slow-link", "edge 3-4: its link takes 0.3 s of each round of 0.75 s"),
    (slow_device, "slow-device", "vertex 3: trains 4 s a round, most others 0.4 s"),
    (damaged_file, "damaged", "vertex 3: a file of its state was damaged"),
]


@pytest.mark.parametrize(("what", "kind", "words"), NOTED, ids=[f.__name__ for f, *_ in NOTED])
def test_what_is_worth_knowing_needs_nobody(what, kind, words):
    fleet = Troubled(7)
    what(fleet)
    (found,) = findings(fleet.status())
    assert (found.kind, found.needs) == (kind, False)
    assert words in found.text


def test_each_kind_of_finding_can_be_found():
    """By one of the faults here, or by a test of its own below."""
    here = {kind for _, kind, _ in [*NEEDED, *NOTED]}
    assert KINDS.keys() - here == {"split", "ended", "unknown"}


def test_the_gravest_come_first_and_what_needs_nobody_last():
    fleet = Troubled(9)
    one_sided(fleet)
    has_few_days(fleet)
    fleet[5].failures = 1
    fleet.silence(7)
    fleet[1].disk = "full"
    kinds = [f.kind for f in findings(fleet.status())]
    assert kinds == ["silent", "app-failing", "disk", "certificate", "one-sided"]


def test_what_was_long_ago_is_over():
    fleet = Troubled(7)
    fleet[2].ago_s["two-devices.3"] = 3600.0
    fleet[2].ago_s["screened.3"] = 3600.0
    fleet[3].ago_s["damaged"] = 3600.0
    fleet[3].ago_s["slow-link.4"] = 3600.0
    assert findings(fleet.status()) == []


def test_a_device_behind_nat_is_shown_through_its_neighbors_and_is_no_fault():
    fleet = Troubled(7)
    fleet.hide(3)
    found = fleet.status()
    assert findings(found) == []
    assert (found.state(3), found.round(3), found.seen_s(3)) == ("heard", 118, 0.1)
    for j in (2, 4):
        fleet.down(3, j, 200.0)
    (finding,) = findings(fleet.status())
    assert (finding.kind, finding.vertices) == ("silent", (3,))


def test_a_device_of_which_nobody_could_know_is_no_fault_of_its_own():
    fleet = Troubled(3, path(3))
    fleet.hide(0)
    fleet.silence(1)
    assert [f.kind for f in findings(fleet.status())] == ["silent", "unknown"]
    assert fleet.status().state(0) == "unknown"


def test_one_trouble_of_a_device_is_told_once():
    """Whose disk is full stalls, and takes part in nothing; whoever lies is left alone.

    Rounds in which an app fails end as well, and no neighbor has a part in them.
    """
    fleet = Troubled(9)
    fleet[3].disk, fleet[3].stalled_s, fleet[3].took_part = "full", 99.0, 0
    fleet[5].failures, fleet[5].took_part, fleet[5].alone_since = 5, 0, 90
    fleet[7].alone_since, fleet[7].took_part = 90, 0
    fleet.end(6, 7).quarantined_until = 140
    kinds = [(f.kind, f.vertices) for f in findings(fleet.status())]
    assert kinds == [("app-failing", (5,)), ("disk", (3,)), ("liar", (7,))]


def test_who_has_finished_and_gone_is_no_fault():
    fleet = Troubled(7)
    fleet[2].phase = "finished"
    fleet.silence(3)
    fleet.end(4, 3).done = True  # it said so when it left
    found = fleet.status()
    assert findings(found) == []
    assert (found.state(2), found.state(3)) == ("finished", "finished")
    lost = Troubled(3, path(3))
    lost.silence(0)
    del lost.replies[1]
    lost.failures[1] = "x"
    sights = {0: Sight(NOW - 60, 500, 500, "finished")}  # it was seen to be
    assert lost.status(sights=sights).state(0) == "finished"
    assert lost.status().state(0) == "silent"


def test_who_may_have_finished_while_nobody_looked():
    fleet = Troubled(7)
    sights = seen({}, fleet.replies, NOW)
    for v in range(7):
        fleet.silence(v)
    for after_s, may in ((100.0, False), (200.0, True)):
        found = findings(fleet.status(sights=sights, now_s=NOW + after_s))
        assert [f.kind for f in found] == ["silent"] * 7
        assert ("so it may have finished" in found[0].text) == may


def test_an_edge_to_somebody_who_is_gone_is_told_of_once():
    fleet = Troubled(7)
    fleet.silence(3)
    assert [f.kind for f in findings(fleet.status())] == ["silent"]
    found = fleet.status(gone={3: "its process has ended with status 1"}, failures={})
    (finding,) = findings(found)
    assert (finding.kind, found.state(3)) == ("ended", "ended")


def test_a_split_network_with_its_parts():
    fleet = Troubled(8)
    fleet.down(0, 7)
    fleet.down(3, 4)
    found = findings(fleet.status())
    assert [f.kind for f in found] == ["split", "edge-down", "edge-down"]
    assert "split into 2 parts that cannot agree (0 to 3; 4 to 7)" in found[0].text
    assert fleet.status().parts == [[0, 1, 2, 3], [4, 5, 6, 7]]
    fleet.down(0, 7, 3.0)
    fleet.down(3, 4, 3.0)  # a moment ago: it may heal
    assert {f.needs for f in findings(fleet.status())} == {False}


def test_parts_are_told_by_size_and_an_edge_holds_if_either_end_says_so():
    fleet = Troubled(5, path(5))
    fleet.end(0, 1).up = False
    assert fleet.status().parts == [[0, 1, 2, 3, 4]]
    fleet.down(0, 1)
    fleet.down(3, 4)
    assert fleet.status().parts == [[1, 2, 3], [0], [4]]
    del fleet.replies[2]  # who did not answer belongs to those who see it
    assert fleet.status().parts == [[1, 2, 3], [0], [4]]


def test_the_consensus_distance_is_of_those_who_sent_a_sketch():
    fleet = Troubled(3, path(3))
    assert fleet.status().consensus_distance is None
    fleet[0].sketch.extend([0.0, 3.0])
    assert fleet.status().consensus_distance is None
    fleet[1].sketch.extend([0.0, -3.0])
    assert fleet.status().consensus_distance == pytest.approx(3.0)


def test_a_link_is_told_from_a_neighbor_that_trains_long():
    """Whoever shares first waits for the other's training; the other waits for the link alone."""
    fleet = Troubled(7)
    fleet.end(3, 4).agreed_s = 2.0  # 4 trains two seconds longer
    fleet.end(4, 3).agreed_s = 0.01
    fleet[4].train_s, fleet[4].seconds_per_round = 2.4, 2.45
    found = fleet.status()
    assert (found.pace.vertex, found.pace.edge, found.pace.part_s) == (4, None, 2.4)
    assert found.links[0].way_s == pytest.approx(0.01)
    for v, w in ((3, 4), (4, 3)):
        fleet.end(v, w).agreed_s = 3.0
    found = fleet.status()
    assert (found.pace.edge, found.pace.part_s) == ((3, 4), 3.0)
    assert found.links[0].round_s == 2.45


def test_who_takes_part_in_few_rounds_sets_nobodys_pace():
    fleet = Troubled(7)
    fleet[3].train_s, fleet[3].seconds_per_round = 9.0, 9.0
    fleet[3].took_part = 2
    pace = fleet.status().pace
    assert (pace.round_s, pace.part_s) == (0.42, 0.4)
    assert fleet.status(replies={}).pace is None


def test_time_left_is_that_of_the_slowest_who_trains():
    fleet = Troubled(4)
    fleet[1].left_s = 300.0
    fleet[2].left_s, fleet[2].phase = 900.0, "finished"
    assert fleet.status().left_s == 300.0
    assert fleet.status(replies={}).left_s is None


@pytest.mark.parametrize(
    ("change", "state"),
    [
        ({}, "training"),
        ({"failures": 2}, "failing"),
        ({"stalled_s": 99.0}, "stalled"),
        ({"stalled_s": 99.0, "disk": "full"}, "no disk"),
        ({"alone_since": 0}, "alone"),
        ({"phase": "removed", "alone_since": 3}, "removed"),
        ({"phase": "finished", "failures": 1}, "finished"),
    ],
)
def test_the_state_of_a_device_is_the_worst_of_it(change, state):
    fleet = Troubled(4)
    fleet.replies[2] = answer(2, fleet.edges, **change)
    assert fleet.status().state(2) == state


# --- last sights --------------------------------------------------------------------------


def test_last_sights_are_of_devices_themselves_or_of_whom_a_neighbor_heard(tmp_path):
    fleet = Troubled(7)
    fleet.hide(3)
    fleet.end(2, 3).heard_s, fleet.end(4, 3).heard_s = 3.0, 2.5
    fleet.end(2, 3).closed = 120
    sights = seen({}, fleet.replies, NOW)
    assert sights[0] == Sight(NOW, 118, 500, "training", "0.1.0", left_s=160.0)
    assert sights[3] == Sight(NOW - 3.0, 120, 500, "heard", "", (2, 4))
    write_sights(tmp_path, sights)
    assert read_sights(tmp_path) == sights
    fleet.silence(0)
    later = seen(sights, fleet.replies, NOW + 60.0)
    assert later[0].at == NOW  # no earlier than it was seen itself, by what others remember
    assert later[1].at == NOW + 60.0
    found = fleet.status(sights=later, now_s=NOW + 60.0)
    assert found.seen_s(0) == pytest.approx(60.0)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"x": {}}', '{"1": {"at": 3}}', "\xff"])
def test_a_memory_that_cannot_be_read_is_none(tmp_path, text):
    assert read_sights(tmp_path) == {}
    (tmp_path / SIGHTS).write_text(text, encoding="latin-1")
    assert read_sights(tmp_path) == {}


def test_a_folder_that_takes_nothing_is_no_reason_to_stop(tmp_path):
    write_sights(tmp_path / "none", {0: Sight(NOW, 1, 2, "training")})
    assert not (tmp_path / "none").exists()
