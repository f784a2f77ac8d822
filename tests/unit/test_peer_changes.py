"""Compressed payloads on an edge: what is sent in a payload's place, and what is made of it."""

import itertools

import numpy as np
import pytest

from flower_dhb.agent import codec
from flower_dhb.agent.compression import Compression
from flower_dhb.agent.node import Node
from flower_dhb.algorithms import HeavyBall
from flower_dhb.peer.monitor import Monitor
from flower_dhb.peer.protocol import events as ev
from flower_dhb.peer.protocol.messages import Hello, Offer, Release
from flower_dhb.peer.wire import relay_pb2 as pb
from flower_dhb.peer.wire.changes import MOST_CHANGES, Change, Held, Known, digest, follow
from flower_dhb.peer.wire.frames import Assembler, Outgoing, Reason, RefusedError, parse
from flower_dhb.peer.wire.link import Allowance, StreamLink
from flower_dhb.types import Layout

pytestmark = pytest.mark.usefixtures("quiet_peers")

FORMS = (
    "bf16",
    "int8:whole",
    "int8",
    "int4",
    "topk:0.05",
    "topk:0.3+int8",
    "randk:0.1",
    "lowrank:2",
)
CHANGES = ("int8", "int4", "topk:0.05", "randk:0.1", "lowrank:2")
SMALL, LARGE = 40, 400  # sides of the matrix: 6 KiB, and 640 KB, which comes in chunks


class Side:
    """Agent v of an edge between 0 and 1: its node, what it has received, and its link."""

    def __init__(self, v, text, side=SMALL):
        rng = np.random.default_rng(5)
        arrays = {
            "w": rng.normal(size=(side, side)).astype(np.float32),
            "b": rng.normal(size=side).astype(np.float32),
            "running_mean": rng.normal(size=4).astype(np.float32),
        }
        layout = Layout.of(arrays)
        compression = Compression.parse(text)
        self.v, self.monitor = v, Monitor(v)
        self.node = Node.start(v, HeavyBall(), {0: 0.5, 1: 0.5}, layout, arrays, compression)
        self.known = None
        if self.node.compressor is not None:
            self.known = Known(self.node.compressor, self.node.known(1 - v))
        self.changes = ()
        self.got, self.broken, self.events = {}, [], []
        self.rng = np.random.default_rng(v)
        self.answer = lambda link, offer: link.reserve(offer)

    def connect(self):
        self.link = StreamLink(
            1 - self.v,
            deliver=self.take,
            assembler=Assembler("r", 1 - self.v, self.node.vectors, self.known),
            monitor=self.monitor,
            greeting=lambda hello: None,
            greet=lambda hello: None,
            heartbeat_s=0.0,
            strikes=Allowance(1e9, 0.0),
            short_frames=Allowance(1e9, 0.0),
        )
        self.pieces = self.link.pieces()
        self.link.send(Hello())

    def take(self, event):
        self.events.append(event)
        if isinstance(event, ev.Offered):
            self.answer(event.link, event.offer)
        elif isinstance(event, ev.Completed):
            self.got[event.offer.round] = bytes(event.payload.handle)
        elif isinstance(event, ev.Broken):
            self.broken.append(event)

    def adapt(self, k):
        """Train a round. Returns the own payload, ready to be sent."""
        arrays = self.node.arrays()
        drift = {n: (a + self.rng.normal(size=a.shape)).astype(a.dtype) for n, a in arrays.items()}
        payload = self.node.adapt(k, drift)
        frame = codec.encode(payload, run="r", round=k, vertex=self.v)
        short = self.node.frame()
        if short is None or self.node.compressor is None:
            self.changes = ()
        else:
            change = Change.of(short, self.node.compressor, run="r", round=k, vertex=self.v)
            self.changes = follow(self.changes, change, len(frame))
        return Outgoing.of(frame, self.changes)

    def send(self, outgoing):
        k = outgoing.header.round
        self.link.send_payload(Offer(k, outgoing.checksum), ev.Payload(outgoing.checksum, outgoing))

    def count(self, name):
        return self.monitor.counts().get((name, 1 - self.v), 0)


class Edge:
    """Both sides, connected; nothing is lost between them."""

    def __init__(self, text, side=SMALL):
        self.sides = [Side(v, text, side) for v in (0, 1)]
        self.connect()

    def connect(self):
        for side in self.sides:
            side.connect()
        self.pump()

    def pump(self):
        """Until neither has anything to say but that it is alive."""
        quiet = 0
        for a, b in itertools.cycle([self.sides, self.sides[::-1]]):
            for raw in a.pieces:
                found = parse(raw)
                if not isinstance(found, memoryview) and found.WhichOneof("kind") == "heartbeat":
                    break
                quiet = 0
                b.link.receive(raw)
            quiet += 1
            if quiet > 2:
                return

    def round(self, k, deliver=(0, 1)):
        """Both train a round; of those in `deliver` the payload is sent. Returns the payloads."""
        made = [side.adapt(k) for side in self.sides]
        for v in deliver:
            self.sides[v].send(made[v])
        self.pump()
        for side, outgoing in zip(self.sides[::-1], made, strict=True):
            if k in side.got:
                assert side.got[k] == outgoing.frame
                payload = codec.decode(side.got[k], codec.read_header(side.got[k]))
                side.node.offer(outgoing.header.vertex, k, payload)
        for side in self.sides:
            side.node.combine()
        return made


# --- what arrives -------------------------------------------------------------------------


@pytest.mark.parametrize("side", [SMALL, LARGE])
@pytest.mark.parametrize("text", ["none", *FORMS])
def test_payloads_are_made_bit_for_bit_of_fewer_bytes(text, side):
    edge = Edge(text, side)
    for k in range(1, 4):
        made = edge.round(k)
        for one, outgoing in zip(edge.sides, made, strict=True):
            compressor = one.node.compressor
            sent = outgoing.sent[1 - one.v]
            if compressor is None:
                assert sent == len(outgoing.frame)
            else:
                assert compressor.n_bytes < sent < compressor.n_bytes + 400 < len(outgoing.frame)
    for one in edge.sides:
        assert set(one.got) == {1, 2, 3}
        assert not one.count("refused.estimate")
        assert not one.broken


@pytest.mark.parametrize("text", CHANGES)
def test_rounds_that_were_missed_come_along_as_changes(text):
    edge = Edge(text)
    one, other = edge.sides
    edge.round(1)
    edge.round(2, deliver=())
    edge.round(3, deliver=(1,))
    made = edge.round(4)  # 0's payloads of rounds 2 and 3 never came
    assert other.got.keys() == {1, 4}
    assert made[0].sent[1] < len(made[0].frame)
    assert not one.count("refused-there.estimate")
    # On a new connection it is not known what the other end holds: it says so, once.
    edge.round(5, deliver=())
    edge.connect()
    made = edge.round(6)
    assert other.got.keys() == {1, 4, 6}
    assert one.got.keys() == {1, 3, 4, 6}
    assert (other.count("refused.estimate"), one.count("sent-otherwise")) == (1, 1)
    assert not other.broken
    if text != "lowrank:2":  # two of its changes are longer than a payload of this small model
        assert made[0].sent[1] < len(made[0].frame)
    edge.round(7)
    assert other.count("refused.estimate") == 1


@pytest.mark.parametrize("text", CHANGES)
def test_a_connection_that_comes_back_costs_no_whole_payload(text):
    edge = Edge(text)
    for k in range(1, 5):
        made = edge.round(k)
        assert made[0].sent[1] < len(made[0].frame)
        edge.connect()
    assert not edge.sides[1].count("refused.estimate")


@pytest.mark.parametrize("text", CHANGES)
def test_a_base_that_is_lost_is_healed_by_a_whole_payload_in_the_same_round(text):
    edge = Edge(text)
    one, other = edge.sides
    edge.round(1)
    other.known = Known(other.node.compressor, None)  # its disk held nothing
    edge.connect()
    made = edge.round(2)
    assert other.got.keys() == {1, 2}
    assert made[0].sent[1] == len(made[0].frame)
    made = edge.round(3)
    assert made[0].sent[1] < len(made[0].frame)
    one.changes = ()  # it has restarted: earlier changes are gone
    edge.round(4, deliver=())
    one.changes = ()
    edge.connect()
    made = edge.round(5)
    assert other.got.keys() == {1, 2, 3, 5}
    assert made[0].sent[1] == len(made[0].frame)
    assert not other.broken


def test_what_leads_to_other_numbers_is_healed_too():
    edge = Edge("topk:0.05")
    other = edge.sides[1]
    edge.round(1)
    held = other.known.held
    wrong = {name: vector + np.float32(1.0) for name, vector in held.payload.items()}
    with pytest.MonkeyPatch.context() as patch:  # as if it added otherwise than its sender
        compressor = other.known.compressor
        decode = type(compressor).decode
        patch.setattr(
            type(compressor),
            "decode",
            lambda self, codes, known, k: decode(
                self, codes, wrong if known is held.payload else known, k
            ),
        )
        made = edge.round(2)
    assert other.got.keys() == {1, 2}
    assert made[0].sent[1] == len(made[0].frame)
    assert other.count("refused.estimate") == 1


def test_a_final_model_is_no_base():
    edge = Edge("topk:0.05")
    one, other = edge.sides
    edge.round(1)
    held = other.known.held
    model = one.adapt(2)
    offer = Offer(2, model.checksum, final=True)
    one.link.send_payload(offer, ev.Payload(model.checksum, model))
    edge.pump()
    assert other.got[2] == model.frame
    assert model.sent[1] == len(model.frame)
    assert other.known.held is held


def test_a_neighbor_that_refuses_everything_gets_three_payloads_at_most():
    edge = Edge("topk:0.05")
    one = edge.sides[0]
    made = one.adapt(1)
    one.send(made)
    for known in (5, 6, 7, 8, 9):
        edge.pump()
        refusal = pb.Refusal(round=1, reason=Reason.ESTIMATE, known=known)
        one.link.receive(pb.Frame(refusal=refusal).SerializeToString())
    edge.pump()
    assert one.count("sent-otherwise") == 2
    one.link.receive(pb.Frame(refusal=pb.Refusal(round=9, reason=14)).SerializeToString())
    assert one.count("sent-otherwise") == 2  # of a payload that was never sent


def test_a_round_that_is_given_up_is_not_sent_again():
    edge = Edge("topk:0.05")
    one, other = edge.sides
    one.send(one.adapt(1))
    edge.pump()
    other.link.send(Release(1))
    edge.pump()
    refusal = pb.Refusal(round=1, reason=Reason.ESTIMATE, known=0)
    one.link.receive(pb.Frame(refusal=refusal).SerializeToString())
    assert not one.count("sent-otherwise")


# --- which changes follow each other --------------------------------------------------------


def change(k, base, public, size=10):
    return Change(k, bytes(size), base, public)


def test_changes_follow_each_other_without_gaps_and_are_no_longer_than_a_limit():
    trail = ()
    for k in range(1, 6):
        trail = follow(trail, change(k, k, k + 1), 1000)
    assert [c.round for c in trail] == [1, 2, 3, 4, 5]
    assert [c.round for c in follow(trail, change(6, 6, 7), 35)] == [4, 5, 6]
    assert [c.round for c in follow(trail, change(6, 4, 7), 1000)] == [1, 2, 3, 6]  # two unsent
    assert [c.round for c in follow(trail, change(6, 99, 7), 1000)] == [6]
    assert [c.round for c in follow(trail, change(6, 0, 7), 1000)] == [6]  # it is of none
    long = ()
    for k in range(1, 100):
        long = follow(long, change(k, k, k + 1), 10**6)
    assert len(long) == MOST_CHANGES


def test_the_shortest_form_that_a_neighbor_can_use():
    frame = codec.encode({"v": np.zeros(20, np.float32)}, run="r", round=3, vertex=0)
    trail = (change(1, 1, 2), change(2, 2, 3), change(3, 3, 4))
    sent = Outgoing.of(frame, trail)
    assert sent.public == 4
    assert sent.shortest(1) == trail
    assert sent.shortest(3) == trail[2:]
    assert sent.shortest(None) == trail[2:]
    assert sent.shortest(0) == sent.shortest(7) == sent.shortest(4) == ()
    own = (change(3, 0, 4),)
    assert Outgoing.of(frame, own).shortest(7) == own  # of no other payload
    assert Outgoing.of(frame, (change(3, 3, 4, len(frame)),)).shortest(3) == ()  # no shorter
    assert (Outgoing.of(frame).public, Outgoing.of(frame).shortest()) == (0, ())
    still = (change(1, 1, 1), change(2, 1, 2))  # nothing had changed in round 1
    assert Outgoing.of(frame, still).shortest(1) == still[1:]


# --- what is refused ------------------------------------------------------------------------


def arriving(text="topk:0.05", side=SMALL):
    """A receiver, and the header and pieces of a change that it would take."""
    edge = Edge(text, side)
    one, other = edge.sides
    made = one.adapt(1)
    pieces = list(made.pieces(Offer(1, made.checksum), changes=made.shortest(None)))
    there = Assembler("r", 0, other.node.vectors, other.known)
    return there, pb.Frame.FromString(pieces[0]).header, made


@pytest.mark.parametrize("text", ["int8:whole", "topk:0.05"])
def test_a_header_that_cannot_be_true_is_refused_before_any_memory_is_taken(text):
    there, header, _ = arriving(text)
    one = header.changes[0].bytes
    wrong = [
        [(1, one + 5000)],
        [(1, 10)],
        [(1, 2**60)],
        [(2, one)],
        [(1, one), (1, one)],
        [(2, one), (1, one)],
        [(1, one)] * 1000,
        [(k, one) for k in range(1, 66)],
        *([[(0, one), (1, one)]] if text == "int8:whole" else []),  # it is a change of nothing
    ]
    for total in (None, 0, 2**50):
        for changes in wrong:
            bad = pb.Header()
            bad.CopyFrom(header)
            del bad.changes[:]
            bad.changes.extend(pb.Change(round=k, bytes=n) for k, n in changes)
            bad.total_bytes = min(sum(n for _, n in changes), 2**63) if total is None else total
            with pytest.raises(RefusedError, match="header announces") as error:
                there.check(bad)
            assert error.value.kind == "size"
    plain = Assembler("r", 0, there._vectors)
    with pytest.raises(RefusedError, match="must run with the same compression"):
        plain.check(header)


def test_a_change_of_something_else_is_refused_by_name_and_says_what_is_here():
    there, header, _ = arriving()
    held = there._known.held.digest
    for base in (0, 1, 2**64 - 1):
        header.base = base
        with pytest.raises(RefusedError, match="does not hold") as error:
            there.require_base(header, there.check(header))
        assert (error.value.kind, error.value.known) == ("estimate", held)


@pytest.mark.parametrize("text", FORMS)
@pytest.mark.parametrize("side", [SMALL, LARGE])
def test_damaged_changes_are_refused_by_name_and_honest_ones_are_taken_afterwards(text, side):
    edge = Edge(text, side)
    one, other = edge.sides
    made = one.adapt(1)
    pieces = list(made.pieces(Offer(1, made.checksum), changes=made.shortest(None)))
    rng = np.random.default_rng(1)
    for _ in range(60 if side == SMALL else 12):
        bad = [bytearray(piece) for piece in pieces]
        for _ in range(int(rng.integers(1, 4))):
            piece = bad[int(rng.integers(0, len(bad)))]
            piece[int(rng.integers(0, len(piece)))] ^= 1 << int(rng.integers(0, 8))
        for piece in bad:
            other.link.receive(bytes(piece))
        assert not other.got or other.got[1] == made.frame
        other.got.clear()
    refused = [n for (n, _) in other.monitor.counts() if n.startswith("refused.")]
    assert refused
    edge.connect()
    one.send(made)
    edge.pump()
    assert other.got[1] == made.frame


def test_codes_that_their_sender_made_up_are_refused_and_an_honest_payload_is_taken():
    """Checksums are right, and what they say is not: no payload comes of it."""
    edge = Edge("topk:0.05")
    one, other = edge.sides
    rng = np.random.default_rng(2)
    made = one.adapt(1)
    compressor, honest = one.node.compressor, made.changes[0]
    frame = one.node.frame()
    for _ in range(50):
        codes = {n: rng.integers(0, 256, c.size).astype(np.uint8) for n, c in frame.codes.items()}
        lie = type(frame)(codes, frame.public, frame.known)
        forged = Change.of(lie, compressor, run="r", round=1, vertex=0)
        assert (forged.base, forged.public) == (honest.base, honest.public)
        for piece in made.pieces(Offer(1, made.checksum), changes=(forged,)):
            other.link.receive(piece)
    assert not other.got
    assert other.known.held == Held(honest.base, other.known.held.payload)
    assert other.count("refused.estimate") + other.count("refused.content") == 50
    one.send(made)
    edge.pump()
    assert other.got[1] == made.frame


def test_changes_lead_to_the_very_payload_that_was_announced():
    """Statistics travel beside what is compressed, and the digest of a change leaves them out."""
    edge = Edge("topk:0.05")
    one, other = edge.sides
    made, frame = one.adapt(1), one.node.frame()
    public = {**frame.public, "statistics": frame.public["statistics"] + np.float32(1.0)}
    lie = type(frame)(frame.codes, public, frame.known)
    forged = Change.of(lie, one.node.compressor, run="r", round=1, vertex=0)
    for piece in made.pieces(Offer(1, made.checksum), changes=(forged,)):
        other.link.receive(piece)
    assert not other.got
    assert other.count("refused.estimate") == 1


def test_a_digest_names_numbers_and_nothing_else():
    compressor = Side(0, "topk:0.05").node.compressor
    payload = {"folded": np.arange(5, dtype=np.float32)}
    assert digest(payload, compressor) == digest({**payload, "statistics": payload}, compressor)
    assert digest({}, compressor) == 0
    assert digest({"folded": -payload["folded"]}, compressor) != digest(payload, compressor)
