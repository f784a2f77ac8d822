"""One connection: the order of what goes out, and what each kind of frame becomes that comes in."""

import threading
import time

import numpy as np
import pytest

from flower_dhb.agent import codec
from flower_dhb.agent.codec import VectorSpec
from flower_dhb.peer.monitor import Monitor
from flower_dhb.peer.protocol import events as ev
from flower_dhb.peer.protocol.messages import (
    Ack,
    Counted,
    Goodbye,
    Hello,
    Offer,
    Release,
    Seek,
)
from flower_dhb.peer.wire import relay_pb2 as pb
from flower_dhb.peer.wire.bulletin import Notice
from flower_dhb.peer.wire.frames import WHOLE_BYTES, Assembler, Outgoing, RefusedError, parse
from flower_dhb.peer.wire.link import Allowance, StreamLink
from tests.support.events import Events

LARGE = WHOLE_BYTES // 4 + 64  # float32 elements: travels in chunks


@pytest.fixture(autouse=True)
def log():
    with Events() as heard:
        yield heard


def frame(round, size=4, value=1.0, vertex=1):
    vector = np.full(size, value, np.float32)
    return codec.encode({"folded": vector}, run="r", round=round, vertex=vertex)


def own(round, size=4):
    """An own payload, and what is said of it."""
    outgoing = Outgoing.of(frame(round, size, vertex=0))
    return Offer(round, outgoing.checksum, ack=7), ev.Payload(outgoing.checksum, outgoing)


class End:
    """Agent 0's end of its connection to neighbor 1, without a socket; it takes all payloads.

    answer: what is done with an offer, `reserve` or a refusal.
    """

    def __init__(self, *, size=4, greeted=True, strikes=1e9, frames=1e9, greet=None):
        self.monitor = Monitor(0)
        self.events = []
        self.cancelled = 0
        self.answer = lambda offer: self.link.reserve(offer)
        self.link = StreamLink(
            1,
            deliver=self._take,
            assembler=Assembler("r", 1, (VectorSpec("folded", "float32", size),)),
            monitor=self.monitor,
            greeting=lambda hello: setattr(hello, "run", "mine"),
            greet=greet or (lambda hello: None),
            heartbeat_s=0.01,
            strikes=Allowance(strikes, 0.0),
            short_frames=Allowance(frames, 0.0),
        )
        self.link.cancel = self._cancel
        self.size = size
        self.pieces = self.link.pieces()
        if greeted:
            self.link.send(Hello())
            next(self.pieces)
            self.hear(hello=pb.Hello(vertex=1, neighbor=0, round=5, closed=4))
            self.events.clear()

    def _take(self, event):
        assert (event.neighbor, event.link) == (1, self.link)
        self.events.append(event)
        if isinstance(event, ev.Offered):
            self.answer(event.offer)

    def _cancel(self):
        self.cancelled += 1

    @property
    def kinds(self):
        return [type(event).__name__ for event in self.events]

    def hear(self, **frame):
        """A short frame arrives."""
        self.link.receive(pb.Frame(**frame).SerializeToString())

    def take(self, round=5, **fields):
        """A payload arrives."""
        made = frame(round, self.size)
        offer = Offer(round, codec.read_checksum(made), **fields)
        for piece in Outgoing.of(made).pieces(offer):
            self.link.receive(piece)
        return offer

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


def test_a_bulletin_goes_before_a_payload_and_takes_turns_with_one_that_has_begun():
    for begun in (False, True):
        end, kinds, n_bytes = End(size=LARGE), [], 0
        end.link.send_payload(*own(5, LARGE))
        if begun:
            assert len(end.out(1)) == 1
        end.link.send_bulletin(Notice("edition", 1, bytes(30_000)))
        for raw in end.pieces:
            found = parse(raw)
            kind = "chunk" if isinstance(found, memoryview) else found.WhichOneof("kind")
            if kind in ("chunk", "header", "bulletin"):
                kinds.append(kind)
            n_bytes += len(raw)
            end.hear(receipt=pb.Receipt(bytes=n_bytes + 1000, clock_us=n_bytes))
            if kinds[-3:] == ["chunk"] * 3:
                break
        n = kinds.count("bulletin")
        assert n >= 2
        if begun:
            assert kinds[: 2 * n] == ["bulletin", "chunk"] * n
        else:
            assert kinds[: n + 1] == ["bulletin"] * n + ["header"]


def test_short_frames_go_first_and_in_order_then_the_payload_then_heartbeats():
    end = End(size=LARGE)
    offer, payload = own(5, LARGE)
    end.link.send_payload(offer, payload)
    end.link.send(Ack(1, 11))
    end.link.send(Release(2))
    assert end.out(2) == [pb.Ack(round=1, digest=11), pb.Release(round=2)]
    (header,) = end.out(1)
    assert (header.round, header.ack, header.total_bytes) == (5, 7, len(payload.handle.frame))
    end.link.send(Ack(3, 13))  # in the middle of the payload
    assert end.out() == [pb.Ack(round=3, digest=13), "chunk"]
    assert end.out(1) == [pb.Heartbeat()]


def test_all_that_the_protocol_says_goes_out_as_it_is():
    end = End()
    counted = Counted(3, 2**64 - 1, 12)
    said = [
        Hello(5, 2**63, 4, counted, 14, (1, 2), (3,), True, 9, edition=3),
        Ack(5, 2**64 - 1),
        Release(4),
        Seek(),
        Goodbye(True, "bye", counted, 5),
    ]
    for message in said:
        end.link.send(message)
    theirs = pb.Counted(round=3, mine=2**64 - 1, yours=12)
    assert end.out(5) == [
        pb.Hello(
            run="mine", round=5, digest=2**63, closed=4, counted=theirs, holds=14,
            doubts=[1, 2], one_sided=[3], done=True, epoch=9, edition=3,
        ),
        pb.Ack(round=5, digest=2**64 - 1),
        pb.Release(round=4),
        pb.Seek(),
        pb.Goodbye(done=True, text="bye", counted=theirs, closed=5),
    ]  # fmt: skip


def test_a_header_says_all_that_an_offer_does():
    end = End()
    _, payload = own(5)
    end.link.send_payload(Offer(5, payload.digest, 4, Counted(3, 1, 2), 8, 6, True, 2), payload)
    (header,) = end.out(1)
    assert (header.checksum, header.closed, header.ack, header.epoch) == (payload.digest, 4, 8, 6)
    assert (header.counted, header.final) == (pb.Counted(round=3, mine=1, yours=2), True)
    assert header.edition == 2
    assert header.whole == payload.handle.frame


def test_what_a_neighbor_sent_is_no_own_payload():
    end = End()
    with pytest.raises(TypeError, match="expected an own payload"):
        end.link.send_payload(Offer(5, 1), ev.Payload(1, b"bytes"))


def test_a_newer_payload_takes_the_place_of_one_under_way():
    end = End(size=LARGE)
    end.link.send_payload(*own(5, LARGE))
    assert end.out(1)[0].round == 5
    end.link.send_payload(*own(6, LARGE))
    assert [getattr(f, "round", f) for f in end.out()] == [6, "chunk"]


@pytest.mark.parametrize("what", ["frame", "payload", "close", "abort"])
@pytest.mark.parametrize("begun", [True, False])
def test_what_is_sent_in_a_pause_goes_out_at_once(what, begun):
    end = End(greeted=begun)
    end.link._heartbeat_s = 60.0
    got = []
    waiter = threading.Thread(daemon=True, target=lambda: got.append(next(end.pieces, None)))
    waiter.start()
    time.sleep(0.02)  # most likely it waits by now; if not, the test is easier to pass
    {
        "frame": lambda: end.link.send(Ack(1, 1)),
        "payload": lambda: end.link.send_payload(*own(5)),
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
    assert end.out(1) == [pb.Heartbeat()]
    assert time.monotonic() - begin >= 0.09


def test_nothing_goes_out_before_the_hello():
    """Not even a heartbeat, while the connection is being made."""
    end = End(greeted=False)
    got = []
    waiter = threading.Thread(daemon=True, target=lambda: got.append(next(end.pieces)))
    waiter.start()
    waiter.join(0.1)  # ten times the pause
    assert got == []
    end.link.send(Hello())
    waiter.join(10)
    assert [pb.Frame.FromString(raw).WhichOneof("kind") for raw in got] == ["hello"]


@pytest.mark.parametrize("before", [None, Goodbye(), Goodbye(True), Hello(done=True)])
def test_goodbye_is_said_once_after_all_that_is_in_line(before):
    """Who has said that it is done does not take it back."""
    end = End()
    end.link.send(Ack(1, 1))
    if before is not None:
        end.link.send(before)
    end.link.close("stopping")
    end.link.close("again")
    *_, goodbye, last = end.out()
    done = getattr(before, "done", False)
    assert (goodbye, last) == (pb.Goodbye(done=done, text="stopping", counted=pb.Counted()), "end")
    assert end.cancelled == 0


def test_an_abort_drops_what_is_in_line_and_cancels_the_call():
    end = End()
    end.link.send(Ack(1, 1))
    end.link.send_payload(*own(5))
    end.link.abort()
    assert end.out() == ["end"]
    assert end.cancelled == 1


def test_a_reader_that_takes_nothing_is_cut_off_after_512_frames():
    end = End()
    for k in range(512):
        end.link.send(Release(k))
    assert end.cancelled == 0
    end.link.send(Release(0))
    assert end.cancelled == 1
    assert end.monitor.counts()["cut-off.slow-reader", 1] == 1
    assert end.out() == ["end"]


def test_the_bytes_of_both_directions_are_counted():
    end = End(size=LARGE, greeted=False)
    offer, payload = own(5, LARGE)
    end.link.send(Ack(1, 1))
    end.link.send_payload(offer, payload)
    sent = [len(next(end.pieces))]
    pieces = []
    while sum(sent) < len(payload.handle.frame):
        sent.append(len(next(end.pieces)))
        come = pb.Receipt(bytes=sum(sent[1:]), clock_us=len(sent))
        pieces.append(pb.Frame(receipt=come).SerializeToString())
        end.link.receive(pieces[-1])
    sent.append(len(next(end.pieces)))
    assert end.monitor.counts()["bytes-sent", 1] == sum(sent)
    hello = pb.Frame(hello=pb.Hello(vertex=1, round=5)).SerializeToString()
    pieces += [hello, *Outgoing.of(frame(5, LARGE)).pieces()]
    ack = pb.Frame(heartbeat=pb.Heartbeat()).SerializeToString()
    for piece in (*pieces[-3:], ack):
        end.link.receive(piece)
    assert end.monitor.counts()["bytes-received", 1] == sum(map(len, pieces)) + len(ack)


# --- in: each kind of frame ---------------------------------------------------------------


def test_a_connection_that_begins_and_ends_says_so():
    end = End(greeted=False)
    end.link.opened()
    end.link.parted()
    assert end.kinds == ["Connected", "Disconnected"]


def test_a_hello_says_where_the_neighbor_stands():
    end = End(greeted=False)
    assert not end.link.greeted
    counted = pb.Counted(round=6, mine=1, yours=2)
    end.hear(
        hello=pb.Hello(
            vertex=1, neighbor=0, round=7, closed=6, digest=2**64 - 1, counted=counted, holds=3,
            doubts=[4, 5], one_sided=[2], done=True, epoch=8,
        )
    )  # fmt: skip
    assert end.link.greeted
    (event,) = end.events
    assert event.hello == Hello(7, 2**64 - 1, 6, Counted(6, 1, 2), 3, (4, 5), (2,), True, 8)


def test_a_hello_that_does_not_fit_is_answered_with_the_reason_and_goodbye():
    def greet(hello):
        raise RefusedError(pb.Refusal.AGREEMENT, "another run")

    end = End(greeted=False, greet=greet)
    end.hear(hello=pb.Hello(vertex=1))
    assert not end.link.greeted
    assert end.events == []
    refusal = pb.Refusal(reason=pb.Refusal.AGREEMENT, text="another run")
    goodbye = pb.Goodbye(text="refused", counted=pb.Counted())
    assert end.out() == [refusal, goodbye, "end"]


@pytest.mark.parametrize("name", ["doubts", "one_sided"])
@pytest.mark.parametrize(("n", "good"), [(256, True), (257, False)])
def test_a_hello_lists_no_more_rounds_than_there_can_be(name, n, good):
    end = End(greeted=False)
    end.hear(hello=pb.Hello(vertex=1, **{name: range(1, n + 1)}))
    assert (end.kinds, end.link.greeted) == (["Greeted"] if good else [], good)
    assert end.refusals() == ({} if good else {"refused.size": 1})


def test_a_second_hello_is_refused_and_the_first_holds():
    end = End()
    end.hear(hello=pb.Hello(vertex=1, round=40, closed=39))
    assert end.refusals() == {"refused.malformed": 1}
    assert end.events == []


SPOKEN = {
    "header": lambda end: end.take(),
    "ack": lambda end: end.hear(ack=pb.Ack(round=4)),
    "release": lambda end: end.hear(release=pb.Release(round=5)),
    "seek": lambda end: end.hear(seek=pb.Seek()),
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
    assert end.events == []


def test_an_empty_frame_is_refused():
    end = End()
    end.link.receive(b"")
    assert [f.text for f in end.out()] == ["neighbor 1: an empty frame"]
    assert end.refusals() == {"refused.malformed": 1}
    assert end.events == []


@pytest.mark.parametrize("greeted", [True, False])
def test_a_kind_of_frame_that_is_not_known_is_ignored(greeted):
    end = End(greeted=greeted, frames=3.0)
    for _ in range(2):
        end.link.receive(b"\xfa\x3e\x04more")  # field 1007
    assert (end.events, end.refusals(), end.cancelled) == ([], {}, 0)
    assert end.monitor.total("ignored") == 2
    for _ in range(2):
        end.link.receive(b"\xfa\x3e\x04more")
    assert end.cancelled >= 1  # a flood is one whatever it says


@pytest.mark.parametrize("greeted", [True, False])
def test_a_heartbeat_is_a_sign_of_life_and_no_offense(greeted):
    end = End(greeted=greeted)
    end.hear(heartbeat=pb.Heartbeat())
    assert end.kinds == ["Heard"]
    assert end.refusals() == {}


def test_short_frames_become_what_they_say():
    end = End()
    end.hear(ack=pb.Ack(round=5, digest=2**64 - 1))
    end.hear(release=pb.Release(round=6))
    end.hear(seek=pb.Seek())
    counted = pb.Counted(round=4, mine=1, yours=2)
    end.hear(goodbye=pb.Goodbye(done=True, text="t", counted=counted, closed=4))
    assert end.events == [
        ev.Acknowledged(1, end.link, 5, 2**64 - 1),
        ev.Released(1, end.link, 6),
        ev.Sought(1, end.link),
        ev.Left(1, end.link, True, Counted(4, 1, 2), 4),
    ]


@pytest.mark.parametrize("size", [4, LARGE])
def test_a_payload_is_offered_and_then_complete(size):
    end = End(size=size)
    offer = end.take(5, ack=9, closed=4, counted=Counted(4, 1, 2), epoch=3, final=True)
    assert end.kinds[0] == "Offered"
    assert set(end.kinds[1:-1]) <= {"Heard"}
    last = end.events[-1]
    assert (end.events[0].offer, last.offer) == (offer, offer)
    assert last.payload.digest == offer.digest == codec.read_checksum(frame(5, size))
    assert bytes(last.payload.handle) == frame(5, size)
    assert end.monitor.counts()["payloads-received", 1] == 1


def test_the_bytes_of_a_payload_are_signs_of_life_but_not_each():
    end = End(size=LARGE)
    made = Outgoing.of(frame(5, LARGE))
    first, *chunks = made.pieces(Offer(5, made.checksum), chunk_bytes=lambda: 10_000)
    end.link.receive(first)
    for chunk in chunks[:-1]:
        end.link.receive(chunk)
    (told,) = [event for event in end.events if isinstance(event, ev.Arriving)][:1]
    assert (told.n_bytes, told.total) == (10_000, len(made.frame))
    assert 1 <= end.kinds.count("Arriving") < len(chunks) // 2


def test_what_has_come_is_told():
    end = End(size=LARGE)
    made = Outgoing.of(frame(5, LARGE))
    pieces = list(made.pieces(Offer(5, made.checksum), chunk_bytes=lambda: 4096))
    for piece in pieces[:10]:
        end.link.receive(piece)
    (first,) = end.out(1)
    assert first.bytes == sum(map(len, pieces[:10]))
    assert abs(first.clock_us / 1e6 - time.monotonic()) < 5.0
    end.link.receive(pieces[10])  # a little: it waits for its time, and comes then
    while not isinstance(second := end.out(1)[0], pb.Receipt):
        assert second == pb.Heartbeat()
    assert second.bytes == sum(map(len, pieces[:11]))


def test_a_payload_waits_for_room_on_the_link_and_short_frames_do_not():
    end = End(size=LARGE)
    end.link.send_payload(*own(5, LARGE))
    kinds = end.out()  # until there is only a heartbeat
    assert kinds.count("chunk") == 1  # an unknown link: little goes before a receipt comes
    end.link.send(Ack(1, 11))
    assert end.out(1) == [pb.Ack(round=1, digest=11)]
    end.hear(receipt=pb.Receipt(bytes=10**9, clock_us=5))  # more than was sent is not believed
    assert end.out().count("chunk") >= 2
    assert end.kinds[-1] == "Heard"


@pytest.mark.parametrize(
    "said",
    [
        {"release": pb.Release(round=5)},
        {"refusal": pb.Refusal(round=5, reason=pb.Refusal.STALE, text="over")},
    ],
)
def test_what_the_neighbor_does_not_want_is_not_sent_on(said):
    end = End(size=LARGE)
    end.link.send_payload(*own(5, LARGE))
    assert "chunk" in end.out()
    end.hear(**said)
    end.hear(receipt=pb.Receipt(bytes=10**9, clock_us=5))
    assert end.out(1) == [pb.Heartbeat()]


def test_what_the_neighbor_does_not_want_of_another_round_changes_nothing():
    end = End(size=LARGE)
    end.link.send_payload(*own(5, LARGE))
    end.out()
    end.hear(release=pb.Release(round=4))
    end.hear(receipt=pb.Receipt(bytes=10**9, clock_us=5))
    assert "chunk" in end.out()


@pytest.mark.parametrize("size", [4, LARGE])
def test_a_payload_that_nobody_wants_is_passed_over(size):
    """Its chunks come all the same: they were in line when it was refused."""
    end = End(size=size)
    end.answer = lambda offer: end.link.refuse(RefusedError(pb.Refusal.STALE, "over", offer.round))
    end.take(3)
    assert end.kinds[0] == "Offered"
    assert set(end.kinds[1:]) <= {"Heard"}
    assert end.refusals() == {"refused.stale": 1}
    end.answer = lambda offer: None  # the protocol drops what is of an old connection
    end.events.clear()
    end.take(3)
    assert set(end.kinds[1:]) <= {"Heard"}
    assert end.refusals() == {"refused.stale": 1}


@pytest.mark.parametrize("size", [4, LARGE])
def test_a_payload_that_is_refused_on_its_way_will_not_come(size):
    end = End(size=size)
    made = frame(5, size)
    for piece in damaged(made):
        end.link.receive(piece)
    assert [kind for kind in end.kinds if kind != "Heard"] == ["Offered", "Broken"]
    assert end.refusals() == {"refused.checksum": 1}
    end.take(5)
    assert end.kinds[-1] == "Completed"


def damaged(made):
    """The pieces of a payload with its last byte changed."""
    other = bytearray(made)
    other[-1] ^= 1
    return Outgoing(codec.read_header(made), bytes(other), codec.read_checksum(made)).pieces(
        Offer(5, codec.read_checksum(made))
    )


def test_a_refused_short_frame_breaks_no_payload():
    end = End(size=LARGE)
    made = Outgoing.of(frame(5, LARGE))
    first, *chunks = made.pieces(Offer(5, made.checksum))
    end.link.receive(first)
    end.link.receive(b"")
    for chunk in chunks:
        end.link.receive(chunk)
    assert [kind for kind in end.kinds if kind != "Heard"] == ["Offered", "Completed"]


def test_a_header_that_is_none_of_this_run_offers_nothing():
    end = End()
    made = codec.encode({"folded": np.ones(4, np.float32)}, run="x", round=5, vertex=1)
    for piece in Outgoing.of(made).pieces(Offer(5, 1, ack=5)):
        end.link.receive(piece)
    assert end.refusals() == {"refused.agreement": 1}
    assert end.events == []


@pytest.mark.parametrize("done", [False, True])
def test_a_goodbye_is_told(log, done):
    end = End()
    end.hear(goodbye=pb.Goodbye(done=done, text="t" * 300))
    assert [event.done for event in end.events] == [done]
    assert log.named("goodbye") == [{"vertex": 0, "neighbor": 1, "done": done, "why": "t" * 200}]


def test_a_goodbye_of_somebody_who_was_never_let_in_ends_nothing(log):
    end = End(greeted=False)
    end.hear(goodbye=pb.Goodbye(done=True, text="bye"))
    assert end.events == []
    assert len(log.named("goodbye")) == 1


# --- in: refusals -------------------------------------------------------------------------


def test_a_refusal_is_counted_logged_and_answered_with_its_round_and_reason(log):
    end = End()
    end.link.refuse(RefusedError(pb.Refusal.EPOCH, "another epoch", 3))
    assert end.refusals() == {"refused.epoch": 1}
    (refusal,) = end.out()
    assert refusal == pb.Refusal(round=3, reason=pb.Refusal.EPOCH, text="another epoch")
    (told,) = log.named("refused")
    assert told == {
        "vertex": 0, "neighbor": 1, "reason": "epoch", "round": 3, "why": "another epoch",
    }  # fmt: skip
    assert not end.link._closing


def test_the_text_of_a_refusal_is_short_whatever_the_neighbor_wrote():
    end = End()
    end.link.refuse(RefusedError(pb.Refusal.OTHER, "t" * 600))
    assert [f.text for f in end.out()] == ["t" * 500]


def test_so_many_strikes_and_the_connection_ends(log):
    end = End(strikes=3)
    for _ in range(3):
        end.link.receive(b"\xff")
    assert len(end.out()) == 3
    end.link.receive(b"\xff")
    (refusal, goodbye, last) = end.out()
    assert refusal.reason == pb.Refusal.MALFORMED
    assert (goodbye.text, last) == ("too many refused frames", "end")
    assert end.monitor.counts()["cut-off.refusals", 1] == 1
    assert log.named("cut-off") == [{"vertex": 0, "neighbor": 1, "why": "too many refusals"}]


def test_a_payload_sent_again_is_no_strike():
    """A neighbor that has restarted does not know what is here already."""
    end = End(strikes=0)
    repeated = RefusedError(pb.Refusal.REPEATED, "here already", 5)
    end.answer = lambda offer: end.link.refuse(repeated)
    for _ in range(5):
        end.take(5)
    assert end.refusals() == {"refused.repeated": 5}
    assert not end.link._closing
    end.link.refuse(RefusedError(pb.Refusal.STALE, "over", 3))
    assert end.link._closing


def test_so_many_short_frames_and_the_connection_ends_at_once(log):
    end = End(frames=4)  # the Hello is one
    for k in range(3):
        end.hear(ack=pb.Ack(round=k))
    assert end.cancelled == 0
    end.hear(release=pb.Release(round=5))
    assert end.cancelled == 1
    assert end.kinds == ["Acknowledged"] * 3  # the release was not heard
    assert end.monitor.counts()["cut-off.flood", 1] == 1
    assert log.named("cut-off") == [{"vertex": 0, "neighbor": 1, "why": "flood of frames"}]


def test_chunks_are_no_short_frames():
    end = End(size=LARGE, frames=2)  # the Hello and the header
    made = Outgoing.of(frame(5, LARGE))
    first, *chunks = made.pieces(Offer(5, made.checksum), chunk_bytes=lambda: 10_000)
    for piece in (first, *chunks):
        end.link.receive(piece)
    assert len(chunks) > 20
    assert end.kinds[-1] == "Completed"


@pytest.mark.parametrize(
    ("reason", "level"),
    [(pb.Refusal.REPEATED, "info"), (pb.Refusal.STALE, "info"), (pb.Refusal.CHECKSUM, "warning")],
)
def test_payloads_that_crossed_on_their_way_ask_for_no_attention(log, reason, level):
    end = End()
    end.link.refuse(RefusedError(reason, "x", 3))
    end.hear(refusal=pb.Refusal(round=5, reason=reason, text="x"))
    levels = {name: found for found, name, _ in log.all}
    assert levels == {"refused": level, "refused-there": level}


@pytest.mark.parametrize(
    ("reason", "name"), [(pb.Refusal.CHECKSUM, "checksum"), (0, "other"), (99, "other")]
)
def test_what_the_neighbor_refuses_is_counted_and_told(log, reason, name):
    end = End()
    end.hear(refusal=pb.Refusal(round=5, reason=reason, text="w" * 600))
    assert end.monitor.counts()[f"refused-there.{name}", 1] == 1
    assert log.named("refused-there") == [
        {"vertex": 0, "neighbor": 1, "reason": name, "round": 5, "why": "w" * 500}
    ]
    assert end.out() == []
