"""What one end of an edge does and says, given what it hears and in which order.

The tests speak of messages and of time alone: what comes in, what goes out, how long the end
would wait, and which payloads it uses.
"""

import threading
import time
from dataclasses import dataclass, field

import numpy as np
import pytest

from flower_dhb.agent import codec
from flower_dhb.agent.codec import Header, VectorSpec
from flower_dhb.peer.monitor import Monitor
from flower_dhb.peer.protocol.exchange import Exchange, Timing
from flower_dhb.peer.wire import relay_pb2 as pb
from flower_dhb.peer.wire.frames import RefusedError
from tests.support.events import Events

SPECS = (VectorSpec("folded", "float64", 3),)
CEILING, LEAST, RECONNECT = 100.0, 1.0, 20.0


@pytest.fixture(autouse=True)
def events():
    with Events() as heard:
        yield heard


def frame(vertex, round, value=0.0):
    vector = np.full(3, value + vertex)
    return codec.encode({"folded": vector}, run="r", round=round, vertex=vertex)


@dataclass
class Line:
    """A connection; what was put on it, in words."""

    sent: list = field(default_factory=list)

    def send(self, message):
        kind = message.WhichOneof("kind")
        said = getattr(message, kind)
        self.sent.append(f"{kind} {said.text if kind == 'goodbye' else said.round}")

    def send_payload(self, payload, ack=0):
        self.sent.append(f"payload {payload.header.round}" + (f" +ack {ack}" if ack else ""))

    def close(self, text):
        self.sent.append(f"close: {text}")


class End:
    """Vertex 0 and its neighbors; all of them connected, unless told otherwise."""

    def __init__(self, neighbors=(1,), *, rounds=50, after=0, connected=True):
        self.now = 1000.0
        self.monitor = Monitor(0)
        timing = Timing(ceiling_s=CEILING, least_s=LEAST, factor=3.0, reconnect_s=RECONNECT)
        self.exchange = Exchange(
            0, neighbors, rounds=rounds, timing=timing, monitor=self.monitor,
            clock=lambda: self.now,
        )  # fmt: skip
        if after:
            self.exchange.resume(after)
        self.lines = {}
        for j in neighbors if connected else ():
            self.connect(j, round=after, closed=after)

    # What happens.

    def connect(self, j=1, **hello):
        self.lines[j] = Line()
        self.exchange.joined(j, self.lines[j], pb.Hello(vertex=j, neighbor=0, **hello))

    def cut(self, j=1):
        self.exchange.parted(j, self.lines[j])

    def share(self, k):
        return self.exchange.share(k, frame(0, k))

    def payload(self, k, j=1, value=0.0):
        self.exchange.admit(j, Header("r", k, j, SPECS))
        self.exchange.accept(j, k, frame(j, k, value))

    def ack(self, k, j=1):
        self.exchange.acknowledged(j, k)

    def release(self, k, j=1):
        self.exchange.freed(j, k)

    def goodbye(self, done, j=1):
        self.exchange.left(j, done)

    def skip(self, k):
        self.exchange.skip(k)

    def wait(self, seconds):
        self.now += seconds

    # What can be seen.

    def sent(self, j=1):
        """What went out since the last look."""
        said, self.lines[j].sent = self.lines[j].sent, []
        return said

    def left(self, j=1):
        """Seconds that the neighbor may still keep the open round open."""
        return self.exchange._wait_s(self.exchange.edges[j], self.exchange.round)

    def close(self):
        """End the open round, which nothing keeps open any more: whose payloads count."""
        assert all(self.left(j) == 0.0 for j in self.exchange.edges)
        return {j: codec.read_header(f).round for j, f in
                self.exchange.close(self.exchange.round).items()}  # fmt: skip

    def hello(self, j=1):
        said = self.exchange.hello(j)
        return {f.name: value for f, value in said.ListFields() if f.name != "neighbor"}

    def count(self, name, j=1):
        return self.monitor.counts().get((name, j), 0)

    def refusal(self, call, *arguments, **named):
        with pytest.raises(RefusedError) as error:
            call(*arguments, **named)
        return error.value.kind, error.value.round, str(error.value)


def after(*steps, **made):
    """An end to which all of this has happened; each step is a word and what belongs to it."""
    end = End(**made)
    for step in steps:
        word, *arguments = step.split()
        getattr(end, word)(*[float(a) if "." in a else int(a) for a in arguments])
    return end


# --- which edges count, and what is said about it ------------------------------------------

ROUND = {
    # steps: (used, what went out)
    "all in order": (
        ("share 1", "payload 1", "ack 1"),
        {1: 1},
        ["payload 1", "ack 1"],
    ),
    "theirs first": (
        ("payload 1", "share 1", "ack 1"),
        {1: 1},
        ["payload 1 +ack 1"],
    ),
    "their acknowledgment first": (
        ("share 1", "ack 1", "payload 1"),
        {1: 1},
        ["payload 1", "ack 1"],
    ),
    "released by them before their payload": (
        ("share 1", "release 1"),
        {},
        ["payload 1", "release 1"],
    ),
    "released by them after our acknowledgment": (
        ("share 1", "payload 1", "release 1"),
        {},
        ["payload 1", "ack 1", "release 1"],
    ),
    "released by them after both acknowledgments": (
        ("share 1", "payload 1", "ack 1", "release 1"),
        {},
        ["payload 1", "ack 1", "release 1"],
    ),
    "they were a round further before they heard of this": (
        ("share 1", "payload 2"),
        {},
        ["payload 1", "release 1"],
    ),
    "they have finished": (
        ("share 1", "goodbye 1"),
        {},
        ["payload 1", "release 1"],
    ),
    "they have finished with this round": (
        ("share 1", "payload 1", "ack 1", "goodbye 1"),
        {1: 1},
        ["payload 1", "ack 1"],
    ),
    "their release is of the round before": (
        ("share 1", "payload 1", "ack 1", "release 0"),
        {1: 1},
        ["payload 1", "ack 1"],
    ),
    "their acknowledgment is of the round before": (
        ("share 1", "payload 1", "ack 0", "wait 100.0"),
        {},
        ["payload 1", "ack 1", "release 1"],
    ),
    "no payload in time": (
        ("share 1", "ack 1", "wait 100.0"),
        {},
        ["payload 1", "release 1"],
    ),
    "nothing in time": (
        ("share 1", "wait 100.0"),
        {},
        ["payload 1", "release 1"],
    ),
}


@pytest.mark.parametrize("case", ROUND)
def test_a_round_with_one_neighbor(case):
    steps, used, sent = ROUND[case]
    end = after(*steps)
    assert end.close() == used
    assert end.sent() == sent
    assert 1 not in dict(end.exchange.newest(0.0).values())  # its memory is free
    missed = not used
    assert end.exchange.edges[1].rounds_missed == missed
    assert end.count("in-doubt") == (missed and "ack 1" in sent)


def test_a_payload_is_used_as_it_came():
    end = after("share 1")
    end.payload(1, value=0.25)
    end.ack(1)
    assert bytes(end.exchange.close(1)[1]) == frame(1, 1, 0.25)


def test_each_neighbor_is_agreed_with_by_itself():
    end = End(neighbors=(3, 1, 2))
    end.share(1)
    for j in (3, 1):
        end.payload(1, j)
        end.ack(1, j)
    end.release(1, 2)
    assert list(end.close()) == [1, 3]  # by vertex, whoever came first
    assert [end.sent(j)[-1] for j in (1, 2, 3)] == ["ack 1", "release 1", "ack 1"]
    assert (end.left(1), end.exchange.closed) == (0.0, 1)


def test_what_was_given_up_is_not_used_though_it_is_acknowledged_later():
    """Our release is on its way: their acknowledgment crossed it, and decides nothing."""
    end = after("share 1", "wait 100.0")
    assert end.close() == {}
    end.ack(1)
    assert end.refusal(end.payload, 1)[0] == "stale"
    assert end.exchange.edges[1].acked == 0


def test_an_acknowledgment_of_the_past_changes_nothing():
    end = after("share 1", "payload 1", "ack 1")
    end.close()
    end.share(2)
    end.payload(2)
    end.ack(1)
    assert end.left() == CEILING
    end.ack(2)
    assert end.left() == 0.0


def test_a_payload_that_is_complete_too_late_is_counted_and_dropped():
    end = after("share 1")
    end.exchange.admit(1, Header("r", 1, 1, SPECS))
    end.wait(100.0)
    end.close()
    end.sent()
    end.exchange.accept(1, 1, frame(1, 1))
    assert (end.count("late"), end.sent()) == (1, [])
    assert end.hello() == {"round": 1, "closed": 1}


def test_a_payload_that_is_complete_after_their_release_is_dropped():
    end = after("share 1")
    end.exchange.admit(1, Header("r", 1, 1, SPECS))
    end.release(1)
    end.sent()
    end.exchange.accept(1, 1, frame(1, 1))
    assert (end.count("late"), end.sent()) == (1, [])
    assert end.close() == {}


def test_a_payload_ahead_is_acknowledged_when_its_round_has_come():
    end = after("payload 2")
    assert end.sent() == []
    assert "holds" not in end.hello()
    assert end.share(1) == 2  # they are in round 2 already
    assert end.sent() == ["payload 2 +ack 2"]
    assert end.hello()["holds"] == 2


def test_the_next_payload_may_come_while_this_round_is_open():
    end = after("share 1", "payload 1", "payload 2", "ack 1")
    assert end.close() == {1: 1}
    assert end.share(2) == 2
    end.ack(2)
    assert end.close() == {1: 2}
    assert end.sent() == ["payload 1", "ack 1", "payload 2 +ack 2"]


# --- how long --------------------------------------------------------------------------------


def at_pace(seconds, rounds=6, **made):
    """An end and its neighbors after some rounds of so many seconds each."""
    end = End(**made)
    for k in range(1, rounds + 1):
        end.share(k)
        end.wait(seconds)
        for j in end.exchange.edges:
            end.payload(k, j)
            end.ack(k, j)
        assert set(end.close()) == set(end.exchange.edges)
    return end


def test_without_their_payload_the_wait_is_a_multiple_of_their_usual_time():
    end = at_pace(2.0)
    end.share(7)
    assert end.left() == pytest.approx(6.0)
    end.wait(4.0)
    assert end.left() == pytest.approx(2.0)
    end.wait(2.5)
    assert end.left() == 0.0


def test_with_their_payload_and_no_acknowledgment_it_is_the_ceiling():
    end = at_pace(2.0)
    end.share(7)
    end.wait(1.0)
    end.payload(7)
    assert end.left() == pytest.approx(CEILING - 1.0)
    end.wait(CEILING - 1.5)
    assert end.left() == pytest.approx(0.5)
    end.wait(0.5)
    assert end.close() == {}
    assert end.count("in-doubt") == 1


def test_a_neighbor_that_is_not_connected_has_the_time_to_come_back():
    end = at_pace(30.0)
    end.share(7)
    assert end.left() == pytest.approx(90.0)
    end.wait(1.0)
    end.cut()
    assert end.left() == pytest.approx(RECONNECT)
    end.wait(RECONNECT - 1.0)
    assert end.left() == pytest.approx(1.0)
    end.wait(1.0)
    assert end.close() == {}
    end.share(8)  # it has had its time
    assert end.left() == 0.0


def test_a_neighbor_that_is_in_doubt_has_that_time_in_this_round():
    """Gone for long; but its payload is here and acknowledged, so the answer is worth a wait."""
    end = at_pace(30.0)
    end.payload(7)
    end.cut()
    end.wait(5 * RECONNECT)
    end.share(7)
    assert end.left() == pytest.approx(RECONNECT)
    end.wait(RECONNECT)
    assert end.close() == {}
    assert end.count("in-doubt") == 1


def test_a_neighbor_that_never_came_costs_the_time_to_connect_once():
    end = End(connected=False)
    end.wait(1.0)
    end.share(1)
    assert end.left() == pytest.approx(RECONNECT - 1.0)
    end.wait(RECONNECT)
    assert end.close() == {}
    end.share(2)
    assert end.left() == 0.0


@pytest.mark.parametrize(
    "steps",
    [
        ("release 7",),
        ("goodbye 1",),
        ("payload 8",),
        ("payload 7", "ack 7"),
    ],
)
def test_what_ends_the_wait_at_once(steps):
    end = at_pace(2.0)
    end.share(7)
    assert end.left() > 0.0
    for step in steps:
        word, k = step.split()
        getattr(end, word)(int(k))
    assert end.left() == 0.0


@pytest.mark.parametrize("hello", [{"round": 8, "closed": 7}, {"round": 7, "closed": 7}])
def test_a_hello_that_says_it_is_over_ends_the_wait(hello):
    end = at_pace(2.0)
    end.share(7)
    end.cut()
    end.connect(1, **hello)
    assert end.left() == 0.0


def test_who_misses_rounds_is_waited_for_less_and_who_returns_gets_half():
    end = at_pace(2.0)
    waits = []
    for k in range(7, 12):
        end.share(k)
        waits.append(end.left())
        end.wait(6.0)
        end.close()
    assert waits == pytest.approx([6.0, 3.0, 1.5, 0.75, 0.375])
    end.cut()
    end.connect(1, round=11, closed=11)
    end.share(12)
    assert end.left() == pytest.approx(3.0)


def test_a_close_waits_for_what_is_said_and_for_no_longer():
    """The one blocking call, with a real clock: it ends with the release, or at its time."""
    monitor = Monitor(0)
    timing = Timing(ceiling_s=0.2, least_s=0.2)
    exchange = Exchange(0, (1, 2), rounds=9, timing=timing, monitor=monitor)
    for j in (1, 2):
        exchange.joined(j, Line(), pb.Hello(vertex=j))
    exchange.share(1, frame(0, 1))
    begin = time.monotonic()
    assert exchange.close(1) == {}
    assert time.monotonic() - begin >= 0.19
    exchange.share(2, frame(0, 2))
    said = threading.Timer(0.02, lambda: [exchange.freed(j, 2) for j in (1, 2)])
    said.start()
    assert exchange.close(2) == {}
    said.join()


@pytest.mark.parametrize("call", ["close", "wait_for", "wait_for_finish", "newest"])
def test_to_stop_ends_all_waiting(call):
    timing = Timing(ceiling_s=600.0, least_s=600.0)
    exchange = Exchange(0, (1,), rounds=9, timing=timing, monitor=Monitor(0))
    exchange.joined(1, Line(), pb.Hello(vertex=1))
    if call == "wait_for":
        exchange = Exchange(0, (1,), rounds=9, timing=timing, monitor=Monitor(0))
    exchange.share(1, frame(0, 1))
    arguments = {"close": (1,), "wait_for": (1, 600.0)}.get(call, (600.0,))
    waiter = threading.Thread(target=getattr(exchange, call), args=arguments)
    waiter.start()
    waiter.join(0.02)
    assert waiter.is_alive()
    exchange.stop()
    waiter.join(10)
    assert not waiter.is_alive()


# --- what is refused -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("steps", "k", "reason"),
    [
        ((), 0, "stale"),
        ((), 51, "ahead"),
        ((), 50, None),
        ((), 1, None),
        (("share 1", "payload 1", "ack 1", "skip 1"), 1, "stale"),
        (("share 1", "release 1"), 1, "stale"),
        (("share 1", "release 1"), 2, None),
        (("skip 3",), 3, "stale"),
        (("skip 3",), 4, None),
        (("share 1", "payload 1"), 1, "repeated"),
        (("share 1", "payload 3"), 2, "stale"),
        (("share 1", "payload 3"), 3, "repeated"),
        (("share 1", "payload 3"), 4, None),
        (("payload 3", "payload 5"), 4, "stale"),
    ],
)
def test_payloads_of_which_rounds_are_taken(steps, k, reason):
    end = after(*steps)
    if reason is None:
        end.payload(k)
        assert k in end.exchange.edges[1].held
    else:
        kind, of, text = end.refusal(end.payload, k)
        assert (kind, of) == (reason, k)
        assert text.startswith(f"round {k}, neighbor 1: ")


def test_the_texts_of_refusals_say_where_this_end_is():
    end = after("skip 3", "payload 5")
    assert "agent 0 has closed round 3" in end.refusal(end.payload, 2)[2]
    assert "the run has 50 rounds" in end.refusal(end.payload, 51)[2]
    assert "a payload of this round is here already" in end.refusal(end.payload, 5)[2]
    assert "came after its payload of round 5" in end.refusal(end.payload, 4)[2]
    assert end.refusal(end.ack, 4)[1:] == (4, "neighbor 1 acknowledges round 4, never sent")
    assert end.refusal(end.release, 51) == ("ahead", 51, "neighbor 1 releases round 51 of 50")


def test_a_payload_that_comes_again_is_acknowledged_again():
    """A neighbor that has restarted sends it again and waits."""
    end = after("share 1", "payload 1")
    end.sent()
    assert end.refusal(end.payload, 1)[0] == "repeated"
    assert end.sent() == ["ack 1"]
    end = after("share 1", "payload 3")  # not acknowledged yet
    end.sent()
    assert end.refusal(end.payload, 3)[0] == "repeated"
    assert end.sent() == []


def test_at_most_the_open_rounds_payload_and_the_newest_are_kept():
    end = after("share 1", "payload 1", "payload 3", "payload 4", "payload 7")
    assert sorted(end.exchange.edges[1].held) == [1, 7]
    end = after("payload 1", "payload 3", "payload 4")  # round 1 is the next
    assert sorted(end.exchange.edges[1].held) == [1, 4]


# --- connections -----------------------------------------------------------------------------


def test_a_hello_says_where_one_stands():
    end = End(neighbors=(1, 2))
    assert end.hello() == {}
    end.share(1)
    assert end.hello() == {"round": 1}
    end.payload(1)
    assert (end.hello(1), end.hello(2)) == ({"round": 1, "holds": 1}, {"round": 1})
    end.ack(1)
    end.wait(100.0)
    end.close()
    assert end.hello(1) == {"round": 1, "closed": 1, "holds": 1}
    end.share(2)
    end.payload(2)
    end.wait(100.0)
    end.close()
    # The vote is taken back, and the doubt told.
    assert end.hello(1) == {"round": 2, "closed": 2, "doubts": 2}
    end.exchange.finish()
    assert end.hello(2) == {"round": 2, "closed": 2, "done": True}
    assert end.exchange.hello(2).neighbor == 2


CONNECTED_AGAIN = {
    # steps, hello: what goes out
    "nothing was open": ((), {}, []),
    "they have not our payload": (("share 1",), {"round": 1}, ["payload 1"]),
    "they hold our payload": (("share 1",), {"round": 1, "holds": 1}, []),
    "they hold an older one": (("share 2",), {"round": 2, "holds": 1}, ["payload 2"]),
    "we hold theirs": (
        ("share 1", "payload 1"),
        {"round": 1, "holds": 1},
        ["ack 1"],
    ),
    "we hold theirs and they have not ours": (
        ("share 1", "payload 1"),
        {"round": 1},
        ["payload 1", "ack 1"],
    ),
    "we hold theirs, and they have gone back": (("share 1", "payload 1"), {}, ["payload 1"]),
    "we gave the edge up": (("share 1", "skip 1"), {"round": 1}, []),
    "they gave it up before": (("share 1", "release 1"), {"round": 1}, ["payload 1"]),
}


@pytest.mark.parametrize("case", CONNECTED_AGAIN)
def test_what_is_said_after_a_new_connection(case):
    steps, hello, sent = CONNECTED_AGAIN[case]
    end = after(*steps)
    end.cut()
    end.connect(1, **hello)
    assert end.sent() == sent


def test_an_acknowledgment_in_a_hello_counts():
    end = after("share 1", "payload 1")
    end.cut()
    end.connect(1, round=1, holds=1)
    assert end.close() == {1: 1}


def test_a_hello_says_whether_its_sender_has_finished():
    end = after("share 1")
    end.cut()
    end.connect(1, round=1, done=True)
    assert end.left() == 0.0
    end.connect(1, round=1)  # a later one decides
    assert end.left() > 0.0


@pytest.mark.parametrize("holds", [0, 2])
def test_what_a_hello_holds_of_another_round_is_no_acknowledgment(holds):
    end = after("share 1", "payload 1")
    end.cut()
    end.connect(1, round=1, holds=holds)
    assert end.left() > 0.0


def test_a_payload_that_was_not_acknowledged_is_forgotten_with_its_connection():
    end = after("share 1", "payload 1", "payload 2")
    end.cut()
    end.connect(1, round=1)
    assert sorted(end.exchange.edges[1].held) == [1]
    end.payload(2, value=0.5)  # the neighbor has restarted, and trained it again
    end.ack(1)
    end.close()
    end.share(2)
    end.ack(2)
    assert bytes(end.exchange.close(2)[1]) == frame(1, 2, 0.5)


@pytest.mark.parametrize(
    ("used", "doubts", "one_sided"), [(True, 1, 1), (True, 2, 0), (True, 0, 0), (False, 1, 0)]
)
def test_an_edge_that_only_one_end_counted_is_told(events, used, doubts, one_sided):
    end = after("share 1", "payload 1", "ack 1") if used else after("share 1", "release 1")
    end.close()
    end.cut()
    end.connect(1, round=3, closed=2, doubts=doubts)
    assert end.count("one-sided") == one_sided
    told = [{"vertex": 0, "round": 1, "neighbor": 1}] if one_sided else []
    assert events.named("one-sided") == told


def test_a_release_of_a_round_that_was_counted_is_one_sided(events):
    end = after("share 1", "payload 1", "ack 1")
    end.close()
    end.release(1)
    assert end.count("one-sided") == 1
    assert events.named("one-sided") == [{"vertex": 0, "round": 1, "neighbor": 1}]
    end.release(1)
    end.release(2)
    assert end.count("one-sided") == 2


def test_a_newer_connection_takes_the_place_of_an_older_one():
    end = End()
    old = end.lines[1]
    end.connect(1)
    new = end.lines[1]
    assert old.sent == ["close: replaced by a newer connection"]
    end.exchange.joined(1, new, pb.Hello(vertex=1))
    assert new.sent == []
    end.exchange.parted(1, old)  # the old one ends now: nothing is lost
    assert end.exchange.up() == (1,)
    end.exchange.parted(1, new)
    assert end.exchange.up() == ()


def test_who_is_connected():
    end = End(neighbors=(1, 2, 3))
    assert end.exchange.up() == (1, 2, 3)
    end.cut(2)
    assert end.exchange.up() == (1, 3)
    assert end.exchange.wait_for(2, 0.0) == (2,)
    assert end.exchange.wait_for(3, 0.0) == (2,)
    end.connect(2)
    assert end.exchange.wait_for(3, 600.0) == ()


def test_waiting_for_neighbors_ends_when_enough_are_there():
    exchange = Exchange(0, (1, 2, 3), rounds=9, timing=Timing(), monitor=Monitor(0))
    found = []
    waiter = threading.Thread(target=lambda: found.append(exchange.wait_for(2, 600.0)))
    waiter.start()
    for j in (1, 2):
        waiter.join(0.01)
        assert waiter.is_alive()
        exchange.joined(j, Line(), pb.Hello(vertex=j))
    waiter.join(10)
    assert found == [(3,)]


def test_a_neighbor_that_is_gone_is_sent_nothing():
    end = End(neighbors=(1, 2))
    end.cut(1)
    end.goodbye(True, 2)
    end.share(1)
    assert (end.sent(1), end.sent(2)) == ([], [])
    end.wait(100.0)
    end.close()
    assert (end.sent(1), end.sent(2)) == ([], ["release 1"])


# --- rounds ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("steps", "planned"),
    [
        ((), 1),
        (("payload 3",), 3),
        (("payload 3", "cut"), 1),
        (("skip 6",), 7),
        (("release 4",), 1),
        (("skip 3", "payload 5", "release 5"), 6),
        (("payload 50", "release 50"), 50),
        (("share 1", "payload 1", "ack 1"), 2),
    ],
)
def test_the_round_to_take_part_in_next(steps, planned):
    assert after(*steps).exchange.next_round() == planned


def test_a_hello_tells_the_round_its_sender_is_in_within_the_run():
    for hello, planned in (
        ({"round": 9, "closed": 8}, 9),
        ({"round": 9, "closed": 9}, 9),
        ({"round": 3, "closed": 9}, 9),
        ({"round": 99, "closed": 98}, 50),
    ):
        end = End(connected=False)
        end.connect(1, **hello)
        assert end.exchange.next_round() == planned


def test_a_neighbor_whose_payload_was_used_is_in_the_next_round():
    end = after("share 50", "payload 50", "ack 50")
    end.close()
    assert end.exchange.edges[1].wants == 50  # the last there is
    end = after("share 4", "payload 4", "ack 4")
    end.close()
    assert end.exchange.edges[1].wants == 5


def test_a_payload_of_an_earlier_round_is_labelled_with_the_one_neighbors_are_in(events):
    end = after("payload 6")
    assert end.exchange.share(2, frame(0, 2, 0.5)) == 6
    assert events.named("caught-up") == [{"vertex": 0, "round": 6, "trained_as": 2}]
    assert end.sent() == ["payload 6 +ack 6"]
    end.ack(6)
    assert end.close() == {1: 6}
    assert end.exchange.share(7, frame(0, 7)) == 7
    assert len(events.named("caught-up")) == 1


def test_a_label_is_never_after_the_last_round():
    end = after(rounds=5)
    end.skip(4)
    assert end.share(9) == 5


def test_older_payloads_are_dropped_when_a_round_is_shared():
    end = End(neighbors=(1, 2))
    end.payload(1, 1)
    end.payload(4, 2)
    assert end.share(1) == 4
    assert end.exchange.edges[1].held == {}
    assert list(end.exchange.edges[2].held) == [4]


def test_a_round_without_a_payload_of_ones_own_gives_all_edges_up():
    end = End(neighbors=(1, 2))
    end.payload(3, 1)
    end.payload(4, 2)
    end.skip(3)
    assert (end.sent(1), end.sent(2)) == (["release 3"], ["release 3"])
    assert end.hello() == {"round": 3, "closed": 3}
    assert end.exchange.edges[1].held == {}
    assert list(end.exchange.edges[2].held) == [4]
    assert end.count("in-doubt", 1) == 0
    assert [e.rounds_missed for e in end.exchange.edges.values()] == [1, 1]
    end.cut(1)
    end.connect(1, round=3)
    assert end.sent(1) == []  # there is nothing to send again


def test_to_skip_an_open_round_leaves_what_was_acknowledged_in_doubt():
    end = after("share 1", "payload 1", "skip 1")
    assert end.count("in-doubt") == 1
    assert end.hello() == {"round": 1, "closed": 1, "doubts": 1}


def test_a_checkpoint_is_where_a_run_goes_on():
    end = End(after=7)
    assert end.hello() == {"round": 7, "closed": 7}
    assert end.exchange.next_round() == 8
    assert end.refusal(end.payload, 7)[0] == "stale"


# --- to begin again, and to end --------------------------------------------------------------


def test_the_newest_payload_of_each_neighbor():
    end = End(neighbors=(3, 1, 2))
    for k, j in ((2, 3), (4, 3), (5, 1)):
        end.payload(k, j)
    end.goodbye(True, 2)
    found = end.exchange.newest(600.0)
    assert [(j, k, bytes(f)) for j, (k, f) in found.items()] == [
        (1, 5, frame(1, 5)),
        (3, 4, frame(3, 4)),
    ]


def test_to_begin_again_waits_for_all_who_are_connected():
    exchange = Exchange(0, (1, 2), rounds=9, timing=Timing(), monitor=Monitor(0))
    found = []
    waiter = threading.Thread(target=lambda: found.append(exchange.newest(600.0)))
    waiter.start()
    waiter.join(0.02)
    assert waiter.is_alive()  # nobody is here
    for j in (1, 2):
        exchange.joined(j, Line(), pb.Hello(vertex=j, round=4))
    exchange.accept(2, 4, frame(2, 4))
    waiter.join(0.02)
    assert waiter.is_alive()
    exchange.accept(1, 4, frame(1, 4))
    waiter.join(10)
    assert [list(f) for f in found] == [[1, 2]]


def test_to_begin_again_ends_when_its_time_is_up():
    end = End(neighbors=(1, 2))
    end.payload(4, 2)
    assert list(end.exchange.newest(0.0)) == [2]
    assert End().exchange.newest(0.0) == {}


def test_the_end_of_a_run_is_told_and_waited_for():
    end = End(neighbors=(1, 2, 3))
    end.cut(3)
    end.goodbye(True, 1)
    end.exchange.finish()
    assert end.exchange.finished
    assert (end.sent(1), end.sent(2), end.sent(3)) == (["goodbye finished"],) * 2 + ([],)
    waiter = threading.Thread(target=end.exchange.wait_for_finish, args=(600.0,))
    waiter.start()
    waiter.join(0.02)
    assert waiter.is_alive()  # 2 trains still
    end.goodbye(False, 2)
    waiter.join(0.02)
    assert waiter.is_alive()
    end.goodbye(True, 2)
    waiter.join(10)
    assert not waiter.is_alive()
    End().exchange.wait_for_finish(0.0)


# --- whom to follow --------------------------------------------------------------------------


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
    end = at_pace(seconds, neighbors=(1, 2), rounds=10)
    end.exchange.rounds = 5000
    end.wait(waited)
    end.payload(10 + ahead)
    assert end.exchange.next_round() == (10 + ahead if follows else 11)
    assert end.count("not-followed") == (not follows)


def test_at_first_contact_a_neighbor_may_be_anywhere_and_later_it_may_not():
    """Whoever begins late finds a run under way."""
    end = End(neighbors=(1, 2), rounds=5000, connected=False)
    end.connect(2, round=1)
    end.connect(1, round=4000, closed=3999)
    assert end.exchange.next_round() == 4000
    end = at_pace(2.0, neighbors=(1, 2), rounds=10)
    end.exchange.rounds = 5000
    end.connect(1, round=4000, closed=3999)
    assert end.exchange.next_round() == 11


@pytest.mark.parametrize(("other", "follows"), [(990, True), (989, False)])
def test_two_who_say_nearly_the_same_are_believed(other, follows):
    end = at_pace(2.0, neighbors=(1, 2), rounds=10)
    end.exchange.rounds = 5000
    end.payload(1000, 1)
    end.payload(other, 2)
    assert (end.exchange.next_round() >= 1000) is follows


def test_a_burst_of_payloads_is_no_pace():
    """Its rounds seem to take no time; ours say that they cannot."""
    end = End(neighbors=(1, 2), rounds=5000)
    for k in range(1, 11):
        end.share(k)
        end.wait(10.0)
        end.payload(k, 2)
        end.ack(k, 2)
        end.payload(k, 1)
        end.ack(k, 1)
        end.close()
    for k in range(11, 31):
        end.now += 1e-6
        end.payload(k, 1)
    end.payload(2000, 1)
    assert end.exchange.next_round() == 11
