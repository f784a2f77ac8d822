"""What a peer has seen of its last rounds, from the events of an agent driven by hand."""

import pytest

from flower_dhb.peer.watch.lately import Lately
from tests.support.protocol import TIMING, End

A, B, C = range(3)


class Seen(End):
    """An agent that is watched."""

    def __init__(self, neighbors="bc", **config):
        self.lately = None
        super().__init__(neighbors, started=False, **config)
        self.lately = Lately(self.agent, self.now)
        self.do("start")
        self.said()

    def handle(self, event):
        before = len(self.effects)
        super().handle(event)
        self.lately.saw(event, self.effects[before:], self.now)

    def round(self, k, counts="bc", train_s=2):
        """Train and share round k, and close it with these neighbors."""
        self.do(f"later {train_s}", "trained", "journaled")
        for j in counts:
            self.do(f"payload {j}{k} + ack=a{k}")
        if set(counts) != set("bc"):
            self.do("wait 150")
        return self.do("combined", "saved")


def begun(**config):
    seen = Seen(**config)
    seen.do("up b", "up c")
    return seen


def test_rounds_in_which_a_neighbor_counted():
    seen = begun()
    assert (len(seen.lately.rounds()), seen.lately.took_part()) == (0, 0)
    seen.round(1)
    seen.round(2, "b")
    seen.round(3, "")
    look = seen.lately
    assert list(look.rounds()) == [1, 2, 3]
    assert (look.took_part(), look.took_part(B), look.took_part(C)) == (2, 2, 1)
    for k in range(4, 31):
        seen.round(k)
    assert list(look.rounds()) == list(range(11, 31))
    assert (look.took_part(), look.took_part(C)) == (20, 20)


def test_rounds_that_neighbors_had_without_this_agent_count_against_it():
    """A slow one, in its first round: the others are in the tenth."""
    seen = begun()
    seen.do("later 30", "payload b10 closed=9", "payload c10 closed=9")
    assert list(seen.lately.rounds()) == list(range(1, 10))
    assert seen.lately.took_part() == 0
    seen.do("down b", "down c")  # what they said is no more to be relied upon
    assert list(seen.lately.rounds()) == []


def test_what_was_before_the_process_is_not_held_against_it():
    first = begun()
    first.round(1)
    _, _, record, _ = first.writes[-1]
    seen = Seen(record=record, life=1)
    seen.do("up b round=40 closed=39", "up c round=40 closed=39")
    assert list(seen.lately.rounds()) == list(range(20, 40))  # until it has begun again
    seen.do("payload b40 closed=39", "payload c40 closed=39", "wait 1")
    assert any(text.startswith("rejoin 40") for text in seen.said())
    assert seen.lately.took_part() == len(seen.lately.rounds()) == 0


def test_how_long_a_link_takes_is_seen_at_the_end_that_does_not_wait_for_training():
    """From sharing an own payload until the neighbor holds it, and its own is here."""
    seen = begun()
    for k in (1, 2, 3):
        seen.do("later 5", "trained", "journaled")
        seen.do("later 0.5", f"payload b{k} + ack=a{k}")
        seen.do("later 0.5", f"payload c{k} +", "later 1", f"ack c a{k}")
        seen.do("combined", "saved")
    assert seen.lately.agreed_s(B) == pytest.approx(0.5)
    assert seen.lately.agreed_s(C) == pytest.approx(2.0)  # the last of all ends the round
    assert Seen().lately.agreed_s(B) is None


def test_an_edge_that_misses_says_nothing_of_its_link():
    seen = begun()
    seen.round(1, "b")
    assert (seen.lately.agreed_s(B), seen.lately.agreed_s(C)) == (0.0, None)


def test_whom_it_waits_for():
    seen = Seen()
    assert seen.lately.waits_for(seen.now) == [B, C]  # before it begins
    seen.do("up b", "up c")
    assert seen.lately.waits_for(seen.now) == []  # it trains
    seen.do("trained", "journaled", "payload c1 + ack=a1")
    assert seen.lately.waits_for(seen.now) == [B]
    seen.do("payload b1 + ack=a1")
    assert seen.lately.waits_for(seen.now) == []


def test_failures_in_a_row_and_the_last_error():
    seen = begun()
    seen.do("failed no camera")
    assert (seen.lately.failures, seen.lately.last_error) == (1, "no camera")
    seen.do("saved", "wait 150", "failed no light")
    assert (seen.lately.failures, seen.lately.last_error) == (2, "no light")
    seen.do("saved", "wait 150", "trained")
    assert (seen.lately.failures, seen.lately.last_error) == (0, "")


def test_a_round_that_takes_far_longer_than_usual_stalls():
    timing = TIMING
    seen = begun()
    look = seen.lately
    seen.do("later 700")  # the first one loads and compiles
    assert look.stalled_s(0.0, seen.now) == 0.0
    assert look.stalled_s(0.0, seen.now + timing.start_s) == pytest.approx(700 + timing.start_s)
    seen.round(1)
    assert look.since_round_s(seen.now) == 0.0
    least = 30.0 + timing.ceiling_s
    assert look.stalled_s(2.0, seen.now + least) == 0.0
    assert look.stalled_s(2.0, seen.now + least + 1.0) == pytest.approx(least + 1.0)
    assert look.stalled_s(60.0, seen.now + least + 1.0) == 0.0  # its rounds take a minute
    assert look.stalled_s(60.0, seen.now + 401.0) == pytest.approx(401.0)
    seen.do("stop")
    assert look.stalled_s(2.0, seen.now + 1e6) == 0.0  # nobody expects a round any more


def test_when_a_neighbor_was_heard_last():
    seen = Seen()
    assert seen.lately.heard_s(B, seen.now) is None
    seen.do("up b", "later 7")
    assert seen.lately.heard_s(B, seen.now) == 7.0
    seen.do("heard b")
    assert seen.lately.heard_s(B, seen.now) == 0.0


def test_an_attempt_to_connect_is_no_sign_of_life_and_no_end_of_an_absence():
    seen = Seen()
    seen.do("later 3")
    assert seen.lately.down_s(B, seen.now) == 3.0  # since the process began
    seen.do("up b", "later 2")
    assert seen.lately.down_s(B, seen.now) == 0.0
    seen.do("down b", "later 4", "dial b", "later 1", "down b", "later 1")
    assert seen.lately.down_s(B, seen.now) == 6.0
    assert seen.lately.heard_s(B, seen.now) == 8.0
