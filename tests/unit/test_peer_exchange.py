"""The agreement of neighbors: whatever happens, both ends of an edge count it or neither."""

import threading
from collections import deque

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flower_dhb.agent import codec
from flower_dhb.agent.codec import Header, VectorSpec
from flower_dhb.peer.monitor import Monitor
from flower_dhb.peer.protocol.exchange import Exchange, Timing
from flower_dhb.peer.wire import relay_pb2 as pb
from flower_dhb.peer.wire.frames import RefusedError, relabel

SPECS = (VectorSpec("folded", "float64", 3),)
TIMING = Timing(ceiling_s=10.0, least_s=1.0, factor=3.0, reconnect_s=2.0)


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def frame(vertex, round, value=1.0):
    vector = np.full(3, value + vertex)
    return codec.encode({"folded": vector}, run="r", round=round, vertex=vertex)


def exchange(vertex, neighbors, clock=None, rounds=50):
    return Exchange(
        vertex,
        tuple(neighbors),
        rounds=rounds,
        timing=TIMING,
        monitor=Monitor(vertex),
        clock=clock or Clock(),
    )


class Wire:
    """Two exchanges joined in memory; frames are delivered one at a time, when asked to."""

    def __init__(self, a, b):
        self.ends = {a.vertex: a, b.vertex: b}
        self.line = {a.vertex: deque(), b.vertex: deque()}  # by receiver
        self.links = {}
        self.connect()

    def connect(self):
        (i, a), (j, b) = self.ends.items()
        hello_a, hello_b = a.hello(j), b.hello(i)
        self.links = {i: End(self, i, j), j: End(self, j, i)}
        a.joined(j, self.links[i], hello_b)
        b.joined(i, self.links[j], hello_a)

    def cut(self):
        for queue in self.line.values():
            queue.clear()
        for i, end in self.links.items():
            self.ends[i].parted(end.other, end)

    def deliver(self, receiver):
        """Hand over the next frame. Returns whether there was one."""
        if not self.line[receiver]:
            return False
        what = self.line[receiver].popleft()
        here = self.ends[receiver]
        sender = self.links[receiver].other
        try:
            if isinstance(what, pb.Frame):
                kind = what.WhichOneof("kind")
                if kind == "ack":
                    here.acknowledged(sender, what.ack.round)
                elif kind == "release":
                    here.freed(sender, what.release.round)
                elif kind == "goodbye":
                    here.left(sender, what.goodbye.done)
            else:
                payload, ack = what
                header = codec.read_header(payload)
                if ack:
                    here.acknowledged(sender, ack)
                here.admit(sender, header)
                here.accept(sender, header.round, payload)
        except RefusedError:
            here._monitor.count("refused")
        return True

    def flush(self):
        while any(self.deliver(i) for i in self.line):
            pass


class End:
    def __init__(self, wire, owner, other):
        self.wire, self.owner, self.other = wire, owner, other

    def send(self, message):
        self.wire.line[self.other].append(message)

    def send_payload(self, payload, ack=0):
        self.wire.line[self.other].append((payload.frame, ack))

    def close(self, text):
        pass


def decided(x, k):
    """Whether `close` would return at once."""
    return all(x._wait_s(edge, k) == 0.0 for edge in x.edges.values())


def test_the_later_payload_takes_the_acknowledgment_along():
    a, b = exchange(0, [1]), exchange(1, [0])
    wire = Wire(a, b)
    a.share(1, frame(0, 1))
    wire.flush()
    assert not wire.line[0]  # b trains still: it says nothing yet
    b.share(1, frame(1, 1))
    assert [ack for _, ack in wire.line[0]] == [1]
    wire.deliver(0)
    assert decided(a, 1)
    assert not decided(b, 1)
    wire.flush()
    assert (list(a.close(1)), list(b.close(1))) == ([1], [0])


def test_a_payload_that_was_not_acknowledged_is_given_up_without_doubt():
    a, b = exchange(0, [1]), exchange(1, [0])
    wire = Wire(a, b)
    a.share(1, frame(0, 1))
    wire.flush()
    b.skip(1)
    wire.flush()
    assert decided(a, 1)
    assert a.close(1) == {}
    assert not b._monitor.total("in-doubt")


def test_a_restarted_neighbors_new_payload_replaces_the_one_that_was_not_acknowledged():
    a, b = exchange(0, [1]), exchange(1, [0])
    wire = Wire(a, b)
    b.share(1, frame(1, 1, value=3.0))
    wire.flush()
    wire.cut()
    b = exchange(1, [0])  # has lost the round, and trains it again
    wire.ends[1] = b
    wire.connect()
    b.share(1, frame(1, 1, value=5.0))
    a.share(1, frame(0, 1))
    wire.flush()
    assert a.close(1) == {1: frame(1, 1, value=5.0)}
    assert list(b.close(1)) == [0]


def test_both_use_the_edge():
    a, b = exchange(0, [1]), exchange(1, [0])
    wire = Wire(a, b)
    for k in (1, 2, 3):
        assert a.share(k, frame(0, k)) == k
        assert b.share(k, frame(1, k)) == k
        wire.flush()
        assert list(a.close(k)) == [1]
        assert list(b.close(k)) == [0]


def test_a_payload_ahead_is_held_for_its_round():
    a, b = exchange(0, [1]), exchange(1, [0])
    wire = Wire(a, b)
    a.share(1, frame(0, 1))
    wire.flush()
    assert not decided(a, 1)
    b.share(1, frame(1, 1))
    wire.flush()
    assert list(a.close(1)) == [1]
    a.share(2, frame(0, 2))
    wire.flush()
    assert list(b.close(1)) == [0]
    b.share(2, frame(1, 2))
    wire.flush()
    assert list(b.close(2)) == [0]
    assert list(a.close(2)) == [1]


def test_no_acknowledgment_no_use():
    """A gives up before it has B's payload: B, who holds A's, may not use it either."""
    clock = Clock()
    a, b = exchange(0, [1], clock), exchange(1, [0], clock)
    wire = Wire(a, b)
    a.share(1, frame(0, 1))
    wire.flush()
    clock.now += TIMING.ceiling_s
    assert a.close(1) == {}
    b.share(1, frame(1, 1))  # too late: A's release is on its way
    wire.flush()
    assert b.close(2 if b.round == 2 else 1) == {}


def test_late_peer_labels_its_payload_with_the_neighbors_round():
    clock = Clock()
    a, b = exchange(0, [1], clock), exchange(1, [0], clock)
    wire = Wire(a, b)
    for k in (1, 2, 3):
        a.share(k, frame(0, k))
        clock.now += TIMING.ceiling_s
        assert a.close(k) == {}
    wire.flush()
    label = b.share(1, frame(1, 1))
    assert label == 4
    a.share(4, frame(0, 4))
    wire.flush()
    used = b.close(4)
    assert codec.read_header(used[0]).round == 4
    assert list(a.close(4)) == [1]


def test_a_broken_connection_is_settled_by_the_next_hello():
    """B's acknowledgment is lost with the connection; the Hello says it again."""
    clock = Clock()
    a, b = exchange(0, [1], clock), exchange(1, [0], clock)
    wire = Wire(a, b)
    a.share(1, frame(0, 1))
    b.share(1, frame(1, 1))
    wire.deliver(1)  # B holds A's payload; its acknowledgment will not arrive
    wire.line[0].popleft()  # nor its payload
    wire.cut()
    assert not decided(a, 1)
    wire.connect()
    wire.flush()
    assert list(a.close(1)) == [1]
    assert list(b.close(1)) == [0]


def test_given_up_in_doubt_is_counted_when_it_was_one_sided():
    clock = Clock()
    a, b = exchange(0, [1], clock), exchange(1, [0], clock)
    wire = Wire(a, b)
    a.share(1, frame(0, 1))
    b.share(1, frame(1, 1))
    wire.deliver(0)  # A holds and acknowledges B's payload
    wire.deliver(1)  # B holds A's payload
    wire.deliver(1)  # and A's acknowledgment: B counts the edge
    assert list(b.close(1)) == [0]
    wire.cut()  # B's acknowledgment is lost
    clock.now += TIMING.reconnect_s
    assert a.close(1) == {}
    assert a._monitor.total("in-doubt") == 1
    wire.connect()
    assert b._monitor.total("one-sided") == 1


def test_a_dead_neighbor_costs_less_and_less():
    clock = Clock()
    a = exchange(0, [1], clock)
    deadlines = []
    for k in range(1, 9):
        a.share(k, frame(0, k))
        deadlines.append(a.edges[1].patience.deadline_s)
        clock.now += TIMING.ceiling_s
        assert a.close(k) == {}
    assert deadlines == sorted(deadlines, reverse=True)
    assert deadlines[-1] == 0.0


@pytest.mark.parametrize(
    ("round", "held", "reason"),
    [
        (1, (), "stale"),
        (2, (), "stale"),
        (51, (), "ahead"),
        (3, (3,), "repeated"),
        (3, (4,), "stale"),
    ],
)
def test_rounds_that_cannot_be(round, held, reason):
    a = exchange(0, [1])
    a.resume(2)
    for k in held:
        a.admit(1, Header("r", k, 1, SPECS))
        a.accept(1, k, frame(1, k))
    with pytest.raises(RefusedError) as error:
        a.admit(1, Header("r", round, 1, SPECS))
    assert error.value.kind == reason


def in_step(clock, rounds=10):
    """Agent 0 and its neighbors 1 and 2, after some rounds of a second each."""
    agents = [exchange(0, [1, 2], clock, rounds=5000)]
    agents += [exchange(j, [0], clock, rounds=5000) for j in (1, 2)]
    wires = [Wire(agents[0], agents[j]) for j in (1, 2)]
    for k in range(1, rounds + 1):
        for agent in agents:
            agent.share(k, frame(agent.vertex, k))
        clock.now += 1.0
        for wire in wires:
            wire.flush()
        assert [sorted(agent.close(k)) for agent in agents] == [[1, 2], [0], [0]]
    return agents[0], wires


@pytest.mark.parametrize("how", ["payload", "release", "hello"])
def test_who_lies_about_its_round_is_not_followed(how):
    """In step for ten rounds of a second; then one message from the end of the run."""
    a, wires = in_step(Clock())
    if how == "payload":
        a.admit(1, Header("r", 5000, 1, SPECS))
        a.accept(1, 5000, frame(1, 5000))
    elif how == "release":
        a.freed(1, 4999)
    else:
        a.joined(1, wires[0].links[0], pb.Hello(vertex=1, round=5000, closed=4999))
    assert a.next_round() == 11
    assert a.share(11, frame(0, 11)) == 11
    assert a._monitor.total("not-followed") == (0 if how == "release" else 2)


def test_who_was_cut_off_follows_as_far_as_time_allows():
    """A hundred seconds apart, at a second a round: the neighbor may be 100 rounds ahead."""
    clock = Clock()
    a, wires = in_step(clock)
    wires[0].cut()
    clock.now += 100.0
    a.joined(1, wires[0].links[0], pb.Hello(vertex=1, round=110, closed=109))
    assert a.next_round() == 110


def test_nobody_follows_an_agent_whose_app_fails():
    """It leaves its rounds at once; a neighbor that begins later still begins with the first."""
    a, b = exchange(0, [1]), exchange(1, [0])
    b.skip(1)
    wire = Wire(a, b)
    assert a.next_round() == 1
    assert a.share(1, frame(0, 1)) == 1
    wire.flush()
    assert decided(a, 1)
    assert a.close(1) == {}
    b.skip(2)
    wire.flush()
    assert a.next_round() == 2
    assert a.share(2, frame(0, 2)) == 2
    assert decided(a, 2)


def test_the_only_neighbor_is_followed():
    """A slow starter at the end of a path would else never find its way into the run."""
    a, wires = in_step(Clock())
    wires[1].cut()
    a.admit(1, Header("r", 4000, 1, SPECS))
    a.accept(1, 4000, frame(1, 4000))
    assert a.next_round() == 4000


def test_two_who_say_the_same_are_followed():
    """As after a pause of the whole machine, which no clock of it has seen."""
    clock = Clock()
    a = exchange(0, [1, 2], clock, rounds=5000)
    for j in (1, 2):
        a.joined(j, End(None, 0, j), pb.Hello(vertex=j, round=1))
    a.admit(1, Header("r", 900, 1, SPECS))
    a.accept(1, 900, frame(1, 900))
    assert a.next_round() == 1
    a.admit(2, Header("r", 901, 2, SPECS))
    a.accept(2, 901, frame(2, 901))
    assert a.next_round() == 901


def test_at_most_two_payloads_in_memory():
    clock = Clock()
    a = exchange(0, [1], clock)
    a.share(1, frame(0, 1))
    for k in range(1, 40):
        clock.now += 1.0
        a.admit(1, Header("r", k, 1, SPECS))
        a.accept(1, k, frame(1, k))
        assert len(a.edges[1].held) <= 2
    assert set(a.edges[1].held) == {1, 39}


def test_close_wakes_up_when_the_payload_arrives():
    a, b = exchange(0, [1]), exchange(1, [0])
    wire = Wire(a, b)
    a.share(1, frame(0, 1))
    used = []
    waiter = threading.Thread(target=lambda: used.append(a.close(1)))
    waiter.start()
    b.share(1, frame(1, 1))
    wire.flush()
    waiter.join(10)
    assert list(used[0]) == [1]


def test_relabel_keeps_the_vectors():
    again = relabel(frame(1, 3), 8)
    assert codec.read_header(again).round == 8
    vectors = codec.decode(again, Header("r", 8, 1, SPECS))
    np.testing.assert_array_equal(vectors["folded"], [2.0, 2.0, 2.0])


# What may happen between two neighbors, in any order.
EVENTS = st.lists(
    st.sampled_from(["to-0", "to-1", "share-0", "share-1", "time", "cut", "heal"]), max_size=60
)


@settings(max_examples=1500, deadline=None)
@given(EVENTS)
def test_an_edge_counts_for_both_or_for_none(events):
    """Any interleaving of sends, deliveries, deadlines and cuts.

    Every round that only one end counted was given up *in doubt* by the other end, after
    a cut or a full ceiling of silence, and never otherwise.
    """
    clock = Clock()
    ends = [exchange(0, [1], clock), exchange(1, [0], clock)]
    wire = Wire(*ends)
    up, cuts = True, 0
    used = [set(), set()]
    doubted = [set(), set()]

    def settle(x):
        if x.round > x.closed and decided(x, x.round):
            k = x.round
            if x.close(k):
                used[x.vertex].add(k)
            elif x.edges[1 - x.vertex].doubted == k:
                doubted[x.vertex].add(k)

    for event in events:
        if event.startswith("to-"):
            wire.deliver(int(event[-1]))
        elif event.startswith("share-"):
            x = ends[int(event[-1])]
            if x.round == x.closed and x.closed < 50:
                x.share(x.next_round(), frame(x.vertex, x.next_round()))
        elif event == "time":
            clock.now += TIMING.ceiling_s
        elif event == "cut" and up:
            wire.cut()
            up, cuts = False, cuts + 1
        elif event == "heal" and not up:
            wire.connect()
            up = True
        for x in ends:
            settle(x)
    for k in used[0] ^ used[1]:
        loser = 1 if k in used[0] else 0
        still_open = ends[loser].round <= k and ends[loser].closed < k
        assert k in doubted[loser] or still_open, (k, events)
    if cuts == 0 and "time" not in events:
        assert not doubted[0]
        assert not doubted[1]
