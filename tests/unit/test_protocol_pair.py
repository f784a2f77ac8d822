"""Two ends of one edge: whatever happens, it counts for both or for none, or both know better."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.pair import Pair, pair

pytestmark = pytest.mark.thorough

SHARE_A, SHARE_B = ("app a", "disk a"), ("app b", "disk b")


def test_the_later_payload_takes_the_acknowledgment_along():
    both = pair(*SHARE_A, "to b", "to b")
    assert both["b"].phase == "training"  # it says nothing yet
    both["b"].said()
    both.do(*SHARE_B)
    assert both["b"].said() == ["journal 1", "a: payload b1 ack=a1"]
    both.do("to a")
    assert both["a"].edge("b").acked
    both.do("to a")
    assert both["a"].said()[-2:] == ["b: ack b1", "combine 1: b1"]
    both.do("to b")
    assert both["b"].said()[-1] == "combine 1: a1"


def test_both_use_the_edge_round_after_round():
    both = Pair(rounds=5)
    both.settle()
    assert both.used["a"] == {k: (f"a{k}", f"b{k}") for k in range(1, 6)}
    assert both.used["b"] == {k: (f"b{k}", f"a{k}") for k in range(1, 6)}
    assert both["a"].counts == both["b"].counts == {}


def test_no_acknowledgment_no_use():
    """a gives up before it has b's payload: b, who holds a's, may not use it either."""
    both = pair(*SHARE_A, "to b", "to b", "wait 100", *SHARE_B, "to a", "to a", "to b", "wait 1")
    both.settle()
    assert 1 not in both.used["a"]
    assert both.different() == both["a"].edge("b").doubts == both["b"].edge("a").doubts == []


def test_a_broken_connection_is_settled_by_the_next_hello():
    """b's acknowledgment is lost with the connection; the Hello says it again."""
    both = pair(*SHARE_A, *SHARE_B, "to b", "to b", "cut", "heal", *["to a", "to b"] * 4)
    assert both.used == {"a": {1: ("a1", "b1")}, "b": {1: ("b1", "a1")}}


VOTES = ("to a", "to a", "to b", "to b", "to b")  # b has counted; its acknowledgment is on its way


def test_given_up_in_doubt_and_one_sided_is_known_at_both_ends():
    both = pair(*SHARE_A, *SHARE_B, *VOTES, "cut", "wait 20", "app b", "disk b", "app a", "disk a")
    assert both["a"].edge("b").doubts == [1]
    assert both.different() == [1]
    both.do("heal", "to a", "to b")
    assert both["a"].edge("b").one_sided == both["b"].edge("a").one_sided == [1]
    assert both["a"].count("one-sided", "b") == both["b"].count("one-sided", "a") == 1


def test_one_killed_after_the_other_counted_counts_too():
    """Its vote had left: it sends the same payload again, and hears how the round ended."""
    both = pair(*SHARE_A, *SHARE_B, *VOTES, "crash a")
    both.settle()
    assert both.used["a"][1] == ("a1", "b1")
    assert both.different() == both["a"].edge("b").one_sided == []


def test_both_killed_at_once_count_the_same():
    """Neither had told its disk that the edge counts."""
    both = pair(*SHARE_A, *SHARE_B, *VOTES, "to a", "crash a", "crash b")
    assert both.used == {"a": {}, "b": {}}
    both.settle()
    assert both.used["a"][1] == ("a1", "b1")
    assert both.different() == both["a"].edge("b").one_sided == []


def test_one_killed_while_its_state_is_written():
    both = pair(*SHARE_A, *SHARE_B, *VOTES, "to a", "app a", "app b", "disk b", "crash a")
    assert both.used["b"] == {1: ("b1", "a1")}
    both.settle()
    assert both.used["a"][1] == ("a1", "b1")
    assert both.different() == both["a"].edge("b").one_sided == []


def test_a_lost_disk_is_known_at_both_ends():
    """The payload that counted is gone, with the model that grew from it."""
    both = pair(*SHARE_A, *SHARE_B, *VOTES, "to a", "app a", "app b", "disk a", "disk b", "lose a")
    both.settle()
    assert 1 not in both.used["a"]
    assert both.different() == both["a"].edge("b").one_sided == both["b"].edge("a").one_sided == [1]


def test_one_that_trains_again_is_counted_with_what_it_trained_last():
    """Killed before its journal was there: nobody had heard of the first payload."""
    both = pair("app a", "crash a", "heal", "to a", "to b", "app a", "disk a")
    both.settle()
    assert both.used["a"][1] == ("a1'", "b1")
    assert both.different() == []


def test_a_late_peer_labels_its_payload_with_the_neighbors_round():
    both = Pair()
    for _ in range(3):
        both.do("app a", "disk a", "wait 100", "app a", "disk a")
    both.do("app a", "disk a", *["to b"] * 12)
    both["b"].said()
    both.do("app b")
    assert both["b"].said() == ["journal 4 trained as 1"]
    both.do("disk b", *["to b", "to a"] * 5)
    assert both.used == {"a": {4: ("a4", "b4")}, "b": {4: ("b4", "a4")}}


# --- any order of anything ----------------------------------------------------------------------

MOVES = [
    *("to a", "to b", "app a", "app b", "disk a", "disk b"),
    *("go 1", "go 2", "go 3", "go 5", "go 9", "go 14"),
]
FAULTS = [
    *("cut", "heal", "part", "part", "wait 3", "wait 100"),
    *("crash a", "crash b", "crash a late", "crash b late"),
]


def orders(*faults):
    """Frames, apps and disks in any order, each a few times more likely than a fault."""
    return st.lists(st.sampled_from([*MOVES * 2, *faults]), min_size=1, max_size=50)


def check(both):
    """What differs is known, at both ends, and nothing else is."""
    before = both.different()
    both.settle()
    different = both.different()
    for end, j in ((both["a"], "b"), (both["b"], "a")):
        edge = end.edge(j)
        assert edge.one_sided == different, (edge.one_sided, different, before)
        assert (edge.doubts, edge.settled) == ([], True)


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(orders())
def test_without_faults_all_rounds_are_the_same_at_both_ends(steps):
    both = pair(*steps, rounds=6)
    check(both)
    assert both["a"].edge("b").doubts_total == both["b"].edge("a").doubts_total == 0
    assert both.different() == []


@settings(max_examples=250, deadline=None, derandomize=True, database=None)
@given(orders(*FAULTS))
def test_an_edge_counts_for_both_or_for_none_or_both_know(steps):
    check(pair(*steps, rounds=6))


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(orders(*FAULTS))
def test_so_it_is_for_payloads_that_are_known_early(steps):
    check(pair(*steps, rounds=6, early=True))


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(orders(*FAULTS))
def test_so_it_is_for_rules_with_memory(steps):
    check(pair(*steps, rounds=6, conserves=True, away_rounds=2))


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(orders(*FAULTS, "lose a", "lose b"))
def test_with_lost_disks_no_difference_is_unknown(steps):
    """What both lose, nobody can know: a round may be said to differ that both have lost."""
    both = pair(*steps, rounds=6)
    both.settle()
    for end, j in ((both["a"], "b"), (both["b"], "a")):
        assert set(both.different()) <= set(end.edge(j).one_sided)
