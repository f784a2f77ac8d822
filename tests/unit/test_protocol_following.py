"""Whom an agent follows to a later round, and whom it does not believe."""

import pytest

from tests.support.protocol import End, after


def in_step(seconds=2.0, rounds=10, neighbors="bc", **made):
    """An end and its neighbors after some rounds of so many seconds each."""
    made = {"rounds": 5000, "away_rounds": 10_000, **made}
    return after(*[f"round {seconds}"] * rounds, neighbors=neighbors, **made)


def target(end):
    """The label that its payload gets now."""
    word, label, *_ = end.do("trained")[-1].split()
    assert word == "journal"
    return int(label)


@pytest.mark.parametrize(
    ("seconds", "waited", "ahead", "follows"),
    [
        (2.0, 0.0, 10, True),  # ten rounds are believed at once
        (2.0, 0.0, 12, False),
        (2.0, 2.0, 20, True),  # and ten more for each usual time of a round
        (2.0, 2.0, 21, False),
        (2.0, 20.0, 110, True),
        (2.0, 20.0, 111, False),
    ],
)
def test_a_neighbor_is_believed_as_far_as_its_pace_allows(seconds, waited, ahead, follows):
    end = in_step(seconds)
    end.do(f"later {waited}", f"payload b{10 + ahead} closed=10 counted=10:b10:a10")
    assert target(end) == (10 + ahead if follows else 11)
    assert end.count("not-followed") == (not follows)


@pytest.mark.parametrize(
    "how",
    ["payload b5000 closed=4999", "up b round=5000 digest=b5000 closed=4999", "up b closed=5000"],
)
def test_who_lies_about_its_round_is_not_followed(how):
    """In step for ten rounds of two seconds; then one message from the end of the run."""
    end = in_step()
    end.do(how)
    end.said()
    assert end.do("trained") == ["journal 11"]
    assert end.count("not-followed") == 1
    end.do("journaled", "payload c11 + ack=a11")
    assert end.do("combined")[-1] == "train 12"


def test_a_release_leads_nobody_to_another_round():
    end = in_step()
    end.do("release b 4999")
    assert target(end) == 11
    assert end.count("not-followed") == 0


def test_at_first_contact_a_neighbor_may_be_anywhere_and_later_it_may_not():
    """Whoever begins late finds a run under way."""
    end = End("bc", connected=False, rounds=5000, away_rounds=10_000)
    end.do("up c round=1 digest=c1", "up b round=4000 digest=b4000 closed=3999")
    assert end.said()[-1] == "train 4000"
    end = in_step()
    end.do("up b round=4000 digest=b4000 closed=3999")
    assert target(end) == 11


@pytest.mark.parametrize(("other", "follows"), [(1000, True), (990, True), (989, False)])
def test_two_who_say_nearly_the_same_are_believed(other, follows):
    """As after a pause of the whole machine, which no clock of it has seen."""
    end = in_step()
    end.do("payload b1000 closed=999", f"payload c{other} closed=999")
    assert (target(end) >= 1000) is follows


def test_who_is_gone_says_nothing_for_or_against_others():
    end = in_step()
    end.do("payload c1000 closed=999", "down c", "payload b1000 closed=999")
    assert target(end) == 1000  # nobody else is connected
    end = in_step(neighbors="bcd")
    end.do("payload c1000 closed=999", "down c", "payload b1000 closed=999")
    assert target(end) == 11  # d is, and c says nothing for b


def test_the_only_neighbor_is_followed():
    """A slow starter at the end of a path would else never find its way into the run."""
    end = in_step(neighbors="b")
    end.do("payload b4000 closed=3999")
    assert target(end) == 4000


def test_who_was_cut_off_follows_as_far_as_time_allows():
    end = in_step(1.0)
    end.do("down b", "later 100", "up b round=110 digest=b110 closed=109 counted=10:b10:a10")
    assert target(end) == 110
    assert end.count("not-followed") == 0


def test_a_burst_of_payloads_is_no_pace():
    """Its rounds seem to take no time; ours say that they cannot."""
    end = in_step(10.0)
    for k in range(11, 31):
        end.do("later 0.000001", f"payload b{k} closed={k - 1}")
    end.do("later 1", "payload b2000 closed=1999")
    assert target(end) == 11


def test_without_a_pace_it_is_the_shortest_deadline():
    """One second here: ten rounds more for each, since the first contact in round 1."""
    end = End("bc", rounds=5000, away_rounds=10_000)
    end.do("later 2", "payload b30 closed=29")
    assert target(end) == 30
    end = End("bc", rounds=5000, away_rounds=10_000)
    end.do("later 2", "payload b31 closed=30")
    assert target(end) == 1


def test_who_is_behind_is_not_in_question():
    end = in_step()
    end.do("up b round=3 digest=b3 closed=2", "up c round=11 digest=c11 closed=10")
    assert target(end) == 11
    assert end.count("not-followed", "b") == end.count("not-followed", "c") == 0


def test_who_catches_up_takes_the_earlier_of_two_rounds_that_neighbors_are_in():
    """From the later one it would lead away from the earlier who is about to begin it."""
    end = in_step(neighbors="bcd")
    end.do("payload b15 closed=14", "payload c14 closed=13")
    assert target(end) == 14
    end = in_step(neighbors="bcd")
    end.do("payload b15 closed=14", "payload c13 closed=12")
    assert target(end) == 15


def test_who_is_in_step_with_some_follows_those_that_are_one_round_ahead():
    """Two groups that are a round apart would else never share one."""
    end = in_step(neighbors="bcd")
    end.do("payload b12 closed=11", "up c round=11 digest=c11 closed=10")
    assert target(end) == 12


def test_a_label_is_never_after_the_last_round():
    end = in_step(rounds=4, neighbors="b")
    end.agent.edges[1].wants = 7000
    assert target(end) == 5000
