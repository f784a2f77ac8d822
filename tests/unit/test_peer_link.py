"""One connection: the order of what goes out, and what each kind of frame does that comes in."""

import threading
import time

import numpy as np
import pytest

from flower_dhb.agent import codec
from flower_dhb.agent.codec import VectorSpec
from flower_dhb.peer.monitor import Monitor
from flower_dhb.peer.protocol.exchange import Exchange, Timing
from flower_dhb.peer.wire import relay_pb2 as pb
from flower_dhb.peer.wire.frames import (
    WHOLE_BYTES,
    Assembler,
    Outgoing,
    RefusedError,
    parse,
)
from flower_dhb.peer.wire.link import Allowance, StreamLink
from tests.support.events import Events

LARGE = WHOLE_BYTES // 4 + 64  # float32 elements: travels in chunks


@pytest.fixture(autouse=True)
def events():
    with Events() as heard:
        yield heard


def frame(round, size=4, value=1.0, vertex=1):
    vector = np.full(size, value, np.float32)
    return codec.encode({"folded": vector}, run="r", round=round, vertex=vertex)


class End:
    """Agent 0's end of its connection to neighbor 1, in round 5 of 50, without a socket."""

    def __init__(self, *, size=4, greeted=True, strikes=1e9, frames=1e9, greet=None):
        self.monitor = Monitor(0)
        timing = Timing(ceiling_s=60.0, least_s=60.0)
        self.exchange = Exchange(0, (1,), rounds=50, timing=timing, monitor=self.monitor)
        self.exchange.resume(4)
        self.cancelled = 0
        self.link = StreamLink(
            1,
            exchange=self.exchange,
            assembler=Assembler("r", 1, (VectorSpec("folded", "float32", size),)),
            monitor=self.monitor,
            greet=greet or (lambda hello: None),
            heartbeat_s=0.01,
            strikes=Allowance(strikes, 0.0),
            short_frames=Allowance(frames, 0.0),
        )
        self.link.cancel = self._cancel
        self.size = size
        self.pieces = self.link.pieces()
        if greeted:
            self.hear(hello=pb.Hello(vertex=1, neighbor=0, round=5, closed=4))

    @property
    def edge(self):
        return self.exchange.edges[1]

    def _cancel(self):
        self.cancelled += 1

    def hear(self, **frame):
        """A short frame arrives."""
        self.link.receive(pb.Frame(**frame).SerializeToString())

    def take(self, round=5, **fields):
        """A payload arrives."""
        for piece in Outgoing.of(frame(round, self.size)).pieces(**fields):
            self.link.receive(piece)

    def out(self, n=None):
        """The kinds of the frames that go out, until there is only a heartbeat or the end."""
        kinds = []
        for raw in self.pieces:
            found = parse(raw)
            kind = "chunk" if isinstance(found, memoryview) else found.WhichOneof("kind")
            if kind == "heartbeat" and n is None:
                return kinds
            kinds.append(kind if kind == "chunk" else getattr(found, kind))
            if len(kinds) == n:
                return kinds
        return [*kinds, "end"]

    def refusals(self):
        return {n: c for (n, _), c in self.monitor.counts().items() if n.startswith("refused.")}


# --- allowances ---------------------------------------------------------------------------


def test_an_allowance_fills_up_with_time_to_its_burst_and_no_further():
    now = [10.0]
    allowance = Allowance(2.0, 0.5, lambda: now[0])
    assert [allowance.take() for _ in range(3)] == [True, True, False]
    now[0] += 1.9
    assert not allowance.take()
    now[0] += 0.1  # what was refused has cost nothing
    assert [allowance.take() for _ in range(2)] == [True, False]
    now[0] += 1000.0
    assert [allowance.take() for _ in range(3)] == [True, True, False]


# --- out ----------------------------------------------------------------------------------


def test_short_frames_go_first_and_in_order_then_the_payload_then_heartbeats():
    end = End(size=LARGE)
    made = frame(5, LARGE, vertex=0)
    end.link.send_payload(Outgoing.of(made), ack=4)
    end.link.send(pb.Frame(ack=pb.Ack(round=1)))
    end.link.send(pb.Frame(ack=pb.Ack(round=2)))
    assert end.out(2) == [pb.Ack(round=1), pb.Ack(round=2)]
    (header,) = end.out(1)
    assert (header.round, header.ack, header.total_bytes) == (5, 4, len(made))
    end.link.send(pb.Frame(ack=pb.Ack(round=3)))  # in the middle of the payload
    assert end.out() == [pb.Ack(round=3), "chunk"]
    assert end.out(1) == [pb.Heartbeat(round=4)]


def test_a_newer_payload_takes_the_place_of_one_under_way():
    end = End(size=LARGE)
    end.link.send_payload(Outgoing.of(frame(5, LARGE, vertex=0)))
    assert end.out(1)[0].round == 5
    end.link.send_payload(Outgoing.of(frame(6, LARGE, vertex=0)))
    assert [getattr(f, "round", f) for f in end.out()] == [6, "chunk"]


@pytest.mark.parametrize("what", ["frame", "payload", "close", "abort"])
def test_what_is_sent_in_a_pause_goes_out_at_once(what):
    end = End()
    end.link._heartbeat_s = 60.0
    got = []
    waiter = threading.Thread(target=lambda: got.append(next(end.pieces, None)))
    waiter.start()
    time.sleep(0.02)  # most likely it waits by now; if not, the test is easier to pass
    {
        "frame": lambda: end.link.send(pb.Frame(ack=pb.Ack(round=1))),
        "payload": lambda: end.link.send_payload(Outgoing.of(frame(5, vertex=0))),
        "close": lambda: end.link.close("x"),
        "abort": lambda: end.link.abort(),
    }[what]()
    waiter.join(10)
    assert not waiter.is_alive()
    kind = pb.Frame.FromString(got[0]).WhichOneof("kind") if got[0] else None
    assert kind == {"frame": "ack", "payload": "header", "close": "goodbye", "abort": None}[what]


def test_a_heartbeat_comes_after_the_pause_that_was_set():
    end = End()
    end.link._heartbeat_s = 0.1
    begin = time.monotonic()
    assert end.out(1) == [pb.Heartbeat(round=4)]
    assert time.monotonic() - begin >= 0.09


@pytest.mark.parametrize("done", [False, True])
def test_goodbye_is_said_once_after_all_that_is_in_line(done):
    end = End()
    end.exchange.finished = done
    end.link.send(pb.Frame(ack=pb.Ack(round=1)))
    end.link.close("stopping")
    end.link.close("again")
    assert end.out() == [pb.Ack(round=1), pb.Goodbye(done=done, text="stopping"), "end"]
    assert end.cancelled == 0


def test_an_abort_drops_what_is_in_line_and_cancels_the_call():
    end = End()
    end.link.send(pb.Frame(ack=pb.Ack(round=1)))
    end.link.send_payload(Outgoing.of(frame(5, vertex=0)))
    end.link.abort()
    assert end.out() == ["end"]
    assert end.cancelled == 1


def test_a_reader_that_takes_nothing_is_cut_off_after_512_frames():
    end = End()
    for k in range(512):
        end.link.send(pb.Frame(heartbeat=pb.Heartbeat(round=k)))
    assert end.cancelled == 0
    end.link.send(pb.Frame(heartbeat=pb.Heartbeat()))
    assert end.cancelled == 1
    assert end.monitor.counts()["cut-off.slow-reader", 1] == 1
    assert end.out() == ["end"]


def test_the_bytes_of_both_directions_are_counted():
    end = End(size=LARGE, greeted=False)
    made = frame(5, LARGE, vertex=0)
    end.link.send(pb.Frame(ack=pb.Ack(round=1)))
    end.link.send_payload(Outgoing.of(made))
    sent = [len(next(end.pieces)) for _ in range(3)]
    beat = len(next(end.pieces))
    assert sum(sent) > len(made)
    assert end.monitor.counts()["bytes-sent", 1] == sum(sent) + beat
    hello = pb.Frame(hello=pb.Hello(vertex=1, round=5)).SerializeToString()
    pieces = [hello, *Outgoing.of(frame(5, LARGE)).pieces()]
    ack = pb.Frame(heartbeat=pb.Heartbeat(round=9)).SerializeToString()
    for piece in (*pieces, ack):
        end.link.receive(piece)
    assert end.monitor.counts()["bytes-received", 1] == sum(map(len, pieces)) + len(ack)


# --- in: each kind of frame ---------------------------------------------------------------


def test_a_hello_joins_the_exchange_and_is_told(events):
    end = End(greeted=False)
    assert not end.link.greeted
    assert end.edge.link is None
    end.hear(hello=pb.Hello(vertex=1, neighbor=0, round=7, closed=6))
    assert end.link.greeted
    assert end.edge.link is end.link
    assert (end.edge.wants, end.edge.gone) == (7, 6)
    assert events.named("connected") == [{"vertex": 0, "neighbor": 1, "round": 7}]


def test_a_hello_that_does_not_fit_is_answered_with_the_reason_and_goodbye():
    def greet(hello):
        raise RefusedError(pb.Refusal.AGREEMENT, "another run")

    end = End(greeted=False, greet=greet)
    end.hear(hello=pb.Hello(vertex=1))
    assert not end.link.greeted
    assert end.edge.link is None
    refusal = pb.Refusal(reason=pb.Refusal.AGREEMENT, text="another run")
    assert end.out() == [refusal, pb.Goodbye(text="refused"), "end"]


def test_a_second_hello_is_refused_and_the_first_holds():
    end = End()
    end.hear(hello=pb.Hello(vertex=1, round=40, closed=39))
    assert end.refusals() == {"refused.malformed": 1}
    assert end.edge.wants == 5


SPOKEN = {
    "header": lambda end: end.take(),
    "ack": lambda end: end.hear(ack=pb.Ack(round=4)),
    "release": lambda end: end.hear(release=pb.Release(round=5)),
    "chunk": lambda end: end.hear(chunk=b"x"),
}


@pytest.mark.parametrize("kind", SPOKEN)
def test_who_speaks_before_its_hello_is_refused(kind):
    end = End(greeted=False)
    SPOKEN[kind](end)
    (refusal, goodbye, last) = end.out()
    assert refusal.reason == pb.Refusal.MALFORMED
    assert "neighbor 1: spoke before its Hello was accepted" in refusal.text
    assert (goodbye.text, last) == ("refused", "end")
    assert (end.edge.held, end.edge.acked, end.edge.gone, end.edge.lost) == ({}, 0, 0, 0)


def test_an_empty_frame_is_refused():
    end = End()
    end.link.receive(b"")
    assert [f.text for f in end.out()] == ["neighbor 1: an empty frame"]
    assert end.refusals() == {"refused.malformed": 1}


def test_a_heartbeat_says_nothing_and_is_no_offense():
    end = End()
    end.hear(heartbeat=pb.Heartbeat(round=9))
    assert end.out() == []
    assert end.refusals() == {}


@pytest.mark.parametrize("size", [4, LARGE])
def test_a_payload_is_held_for_its_round_and_acknowledged(size):
    end = End(size=size)
    end.exchange.share(5, frame(5, size, vertex=0))
    assert next(f for f in end.out() if f != "chunk").round == 5
    end.take(5)
    assert {k: bytes(v) for k, v in end.edge.held.items()} == {5: frame(5, size)}
    assert end.monitor.counts()["payloads-received", 1] == 1
    assert end.out() == [pb.Ack(round=5)]


def test_an_acknowledgment_and_a_release_reach_the_edge_they_came_from():
    end = End()
    end.exchange.share(5, frame(5, vertex=0))
    end.hear(ack=pb.Ack(round=5))
    assert end.edge.acked == 5
    end.hear(release=pb.Release(round=5))
    assert (end.edge.gone, end.edge.lost) == (5, 5)


def test_a_header_may_bring_the_acknowledgment_along():
    end = End()
    end.exchange.share(5, frame(5, vertex=0))
    end.take(5, ack=5)
    assert end.edge.acked == 5
    assert list(end.exchange.close(5)) == [1]


def test_an_acknowledgment_counts_though_the_payload_that_brings_it_is_refused():
    end = End()
    end.exchange.share(5, frame(5, vertex=0))
    end.take(3, ack=5)
    assert end.refusals() == {"refused.stale": 1}
    assert end.edge.acked == 5


def test_a_header_that_is_none_of_this_run_acknowledges_nothing():
    end = End()
    end.exchange.share(5, frame(5, vertex=0))
    for piece in Outgoing.of(
        codec.encode({"folded": np.ones(4, np.float32)}, run="x", round=5, vertex=1)
    ).pieces(ack=5):
        end.link.receive(piece)
    assert end.refusals() == {"refused.agreement": 1}
    assert end.edge.acked == 0


@pytest.mark.parametrize("done", [False, True])
def test_a_goodbye_says_whether_the_neighbor_has_finished(events, done):
    end = End()
    end.hear(goodbye=pb.Goodbye(done=done, text="t" * 300))
    assert end.edge.done is done
    assert events.named("goodbye") == [{"vertex": 0, "neighbor": 1, "done": done, "why": "t" * 200}]


def test_a_goodbye_of_somebody_who_was_never_let_in_ends_nothing(events):
    end = End(greeted=False)
    end.hear(goodbye=pb.Goodbye(done=True, text="bye"))
    assert end.edge.done is False
    assert len(events.named("goodbye")) == 1


def test_time_is_taken_from_a_header_to_its_last_chunk():
    end = End(size=LARGE)
    before = time.monotonic()
    first, *chunks = Outgoing.of(frame(5, LARGE)).pieces()
    assert end.link.transfer_since is None
    end.link.receive(first)
    assert before <= end.link.transfer_since <= time.monotonic()
    end.link.receive(first)  # begun again
    assert end.link.transfer_since is not None
    for chunk in chunks:
        end.link.receive(chunk)
    assert end.link.transfer_since is None
    end.link.receive(first)  # a payload that is here already
    assert end.link.transfer_since is None


def test_a_refused_header_ends_the_transfer_under_way():
    end = End(size=LARGE)
    end.link.receive(next(Outgoing.of(frame(5, LARGE)).pieces()))
    assert end.link.transfer_since is not None
    end.link.receive(next(Outgoing.of(frame(2, LARGE)).pieces()))
    assert end.link.transfer_since is None


def test_a_whole_payload_takes_no_time():
    end = End()
    end.take(5)
    assert end.link.transfer_since is None


def test_every_frame_says_that_the_neighbor_is_alive():
    end = End()
    for raw in (b"", b"\xff", pb.Frame(heartbeat=pb.Heartbeat()).SerializeToString()):
        end.link.heard_at = 0.0
        end.link.receive(raw)
        assert 0.0 < end.link.heard_at <= time.monotonic()


# --- in: refusals -------------------------------------------------------------------------


def test_a_refusal_is_counted_logged_and_answered_with_its_round_and_reason(events):
    end = End()
    end.take(3)
    assert end.refusals() == {"refused.stale": 1}
    (refusal,) = end.out()
    text = "round 3, neighbor 1: agent 0 has closed round 4"
    assert (refusal.round, refusal.reason, refusal.text) == (3, pb.Refusal.STALE, text)
    (told,) = events.named("refused")
    assert told == {"vertex": 0, "neighbor": 1, "reason": "stale", "round": 3, "why": text}
    assert not end.link._closing


def test_the_text_of_a_refusal_is_short_whatever_the_neighbor_wrote():
    end = End()
    end.link.refuse(RefusedError(pb.Refusal.OTHER, "t" * 600))
    assert [f.text for f in end.out()] == ["t" * 500]


def test_so_many_strikes_and_the_connection_ends(events):
    end = End(strikes=3)
    for _ in range(3):
        end.link.receive(b"\xff")
    assert len(end.out()) == 3
    end.link.receive(b"\xff")
    (refusal, goodbye, last) = end.out()
    assert refusal.reason == pb.Refusal.MALFORMED
    assert (goodbye.text, last) == ("too many refused frames", "end")
    assert end.monitor.counts()["cut-off.refusals", 1] == 1
    assert events.named("cut-off") == [{"vertex": 0, "neighbor": 1, "why": "too many refusals"}]


def test_a_payload_sent_again_is_no_strike():
    """A neighbor that has restarted does not know what is here already."""
    end = End(strikes=0)
    end.take(5)
    for _ in range(5):
        end.take(5)
    assert end.refusals() == {"refused.repeated": 5}
    assert not end.link._closing
    end.take(3)
    assert end.link._closing


def test_so_many_short_frames_and_the_connection_ends_at_once(events):
    end = End(frames=4)  # the Hello is one
    for k in range(3):
        end.hear(ack=pb.Ack(round=k))
    assert end.cancelled == 0
    end.hear(release=pb.Release(round=5))
    assert end.cancelled == 1
    assert end.edge.gone == 4  # it was not heard
    assert end.monitor.counts()["cut-off.flood", 1] == 1
    assert events.named("cut-off") == [{"vertex": 0, "neighbor": 1, "why": "flood of frames"}]


def test_chunks_are_no_short_frames():
    end = End(size=LARGE, frames=2)  # the Hello and the header
    first, *chunks = Outgoing.of(frame(5, LARGE)).pieces(chunk_bytes=10_000)
    for piece in (first, *chunks):
        end.link.receive(piece)
    assert len(chunks) > 20
    assert list(end.edge.held) == [5]


@pytest.mark.parametrize(
    ("reason", "name"), [(pb.Refusal.CHECKSUM, "checksum"), (0, "other"), (99, "other")]
)
def test_what_the_neighbor_refuses_is_counted_and_told(events, reason, name):
    end = End()
    end.hear(refusal=pb.Refusal(round=5, reason=reason, text="w" * 600))
    assert end.monitor.counts()[f"refused-there.{name}", 1] == 1
    assert events.named("refused-there") == [
        {"vertex": 0, "neighbor": 1, "reason": name, "round": 5, "why": "w" * 500}
    ]
    assert end.out() == []
