"""Bulletins: who is believed, what is kept and when, and what hostile neighbors make of it."""

import base64
import contextlib
import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flower_dhb import ConfigError
from flower_dhb.files import write_durably
from flower_dhb.peer.device import bulletins as module
from flower_dhb.peer.device.bulletins import Bulletins
from flower_dhb.peer.mesh.certificates import Authority
from flower_dhb.peer.monitor import Monitor
from flower_dhb.peer.protocol.messages import Hello
from flower_dhb.peer.wire import bulletin as wire
from flower_dhb.peer.wire import relay_pb2 as pb
from flower_dhb.peer.wire.bulletin import (
    EDITION,
    LIMIT_BYTES,
    NO_BOARD,
    REVOCATIONS,
    Bulletin,
    BulletinError,
    Notice,
    fingerprint,
    sign,
    signers,
    verify,
)
from flower_dhb.peer.wire.frames import Assembler, RefusedError, parse
from flower_dhb.peer.wire.gossip import Arrivals, InLine, frames_of
from flower_dhb.peer.wire.link import Allowance, StreamLink
from tests.support.events import Events

OLD, NEW, OTHER = (Authority.create("m1", 10) for _ in range(3))
KEYS = {a: a._key for a in (OLD, NEW, OTHER)}


@pytest.fixture(autouse=True)
def log():
    with Events() as heard:
        yield heard


def made(number=1, kind=EDITION, mesh="m1", by=(OLD,), **body):
    return sign(Bulletin(kind, mesh, number, body), [KEYS[a] for a in by])


ROUNDS_5 = made(3, rounds=5)


class Line:
    """A disk whose writes a test lets happen."""

    def __init__(self):
        self.waiting, self.at_once = [], True

    def __call__(self, path, data, done):
        self.waiting.append((path, data, done))
        if self.at_once:
            self.run()

    def run(self):
        while self.waiting:
            path, data, done = self.waiting.pop(0)
            write_durably(path, data)
            done()


class Device:
    """The bulletins of a device whose disk is `line`; told: what its neighbors heard."""

    def __init__(self, folder, roots=(OLD,)):
        self.line, self.told, self.roots = Line(), [], list(roots)
        self.monitor = Monitor(0)
        (folder / "state").mkdir(exist_ok=True)
        self.all = Bulletins(
            "m1",
            roots=lambda: [a.certificate for a in self.roots],
            state_dir=folder / "state",
            folder=folder / "bulletins",
            monitor=self.monitor,
            store=self.line,
            tell=self.told.append,
        )

    def refused(self):
        start = "bulletin-refused."
        return {n[len(start) :]: c for n, c in self.monitor.named().items() if n.startswith(start)}


# --- the bytes ----------------------------------------------------------------------------


def test_what_was_signed_is_read_and_nothing_else_is():
    raw = made(7, by=(OLD, NEW), rounds=9)
    for roots in ([OLD], [NEW], [OTHER, NEW]):
        found = verify(raw, [a.certificate for a in roots], "m1")
        assert found == Bulletin(EDITION, "m1", 7, {"rounds": 9})
    both = frozenset({fingerprint(OLD.certificate), fingerprint(NEW.certificate)})
    assert signers(raw, [OLD.certificate, NEW.certificate, OTHER.certificate]) == both
    text = raw.partition(b"\n\n")[2]
    assert text == b'{"body":{"rounds":9},"kind":"edition","mesh":"m1","number":7}'


@pytest.mark.parametrize(
    ("raw", "cause", "why"),
    [
        (made(by=(OTHER,)), "untrusted", f"it names {fingerprint(OTHER.certificate)}"),
        (made(mesh="m2"), "mesh", "for mesh 'm2', this is mesh 'm1'"),
        (made()[:-1] + b" ", "untrusted", "no trusted authority has signed"),
        (made().replace(b"number", b"numbes"), "untrusted", "no trusted"),
        (b"", "garbage", "does not begin as one"),
        (made()[1:], "garbage", "does not begin as one"),
        (made().partition(b"\n")[0] + b"\n\n{}", "garbage", "does not begin as one"),
        (b"flower-dhb bulletin 1\nsigned-by x y\n\n{}", "garbage", "no signature"),
        (b"flower-dhb bulletin 1\n" + b"\n".join([b"s"] * 5) + b"\n\n{}", "garbage", "5 sig"),
        (made() + b" " * LIMIT_BYTES, "size", f"expected at most {LIMIT_BYTES}"),
    ],
    ids=range(10),  # keys are new in each process, and names of tests are not
)
def test_what_is_not_believed_is_refused_by_its_cause(raw, cause, why, monkeypatch):
    if cause != "mesh":  # nobody reads the text of what is not signed
        monkeypatch.setattr(wire.json, "loads", lambda text: pytest.fail("was parsed"))
    with pytest.raises(BulletinError, match=why) as found:
        verify(raw, [OLD.certificate], "m1")
    assert found.value.cause == cause


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b"{}",
        b"[" * 100_000,
        b"\xff",
        b'{"body":{},"kind":"x","mesh":"m1","number":1.5}',
        b'{"body":[],"kind":"x","mesh":"m1","number":1}',
        b'{"body":{},"kind":7,"mesh":"m1","number":1}',
        b'{"body":{},"kind":"x","mesh":"m1","number":0}',
        b'{"body":{},"kind":"x","mesh":1,"number":1}',
        b'{"body":{},"kind":"x","mesh":"m1","number":true}',
        b'{"body":{},"kind":"' + b"k" * 99 + b'"}',
    ],
)
def test_a_signed_text_that_is_none_is_refused_too(text):
    line = b"signed-by " + fingerprint(OLD.certificate).encode() + b" "
    signature = base64.b64encode(KEYS[OLD].sign(wire._signed(text), wire._HASH))
    raw = wire._TITLE + line + signature + b"\n\n" + text
    with pytest.raises(BulletinError) as found:
        verify(raw, [OLD.certificate], "m1")
    assert found.value.cause == "content"


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_damaged_bytes_are_never_believed_and_never_an_accident(data):
    raw = bytearray(ROUNDS_5)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(raw) - 1))
        change = data.draw(st.sampled_from(["flip", "cut", "double", "junk"]))
        if change == "flip":
            raw[at] ^= 1 << data.draw(st.integers(0, 7))
        elif change == "cut":
            del raw[at : at + data.draw(st.integers(1, 40))]
        elif change == "double":
            raw[at:at] = raw[at : at + 30]
        else:
            raw[at:at] = data.draw(st.binary(max_size=20))
        if not raw:
            break
    try:
        found = verify(bytes(raw), [OLD.certificate], "m1")
    except BulletinError:
        return
    assert found == Bulletin(EDITION, "m1", 3, {"rounds": 5})  # the changes took each other back


def test_only_what_can_be_meant_is_signed():
    for body, why in [({"x": float("nan")}, "NaN|nan|JSON"), ({"x": object()}, "serializable")]:
        with pytest.raises(ConfigError, match=why):
            OLD.sign(Bulletin(EDITION, "m1", 1, body))
    with pytest.raises(ConfigError, match="at most 4194304 can be published"):
        OLD.sign(Bulletin(EDITION, "m1", 1, {"x": "y" * LIMIT_BYTES}))
    with pytest.raises(ConfigError, match="got 0"):
        sign(Bulletin(EDITION, "m1", 1, {}), [])
    for kind, number in [("Edition", 1), ("", 1), ("edition", 0), ("edition", True)]:
        with pytest.raises(ConfigError):
            Bulletin(kind, "m1", number, {})


# --- what a device keeps --------------------------------------------------------------------


def test_the_newest_is_kept_told_after_it_is_stored_and_there_after_a_restart(tmp_path, log):
    device = Device(tmp_path)
    device.line.at_once = False
    heard = []
    device.all.subscribe(EDITION, heard.append)
    second = device.all.take(made(2), "neighbor 1")
    assert (device.all.known(), device.told, heard) == ({}, [], [])
    assert not device.all.wait(second, 0.0)
    assert not device.all.settle(0.0)
    assert device.all.take(made(1), "neighbor 2").number == 1  # older than what is on its way
    assert not device.all.wants(EDITION, 1)
    assert device.all.wants(EDITION, 3)
    assert len(device.line.waiting) == 1
    device.line.run()
    assert device.all.wait(second, 0.0)
    assert device.all.settle(0.0)
    assert (device.all.known(), device.told) == ({EDITION: 2}, [second])
    assert heard == [Bulletin(EDITION, "m1", 2, {})] == [device.all.newest(EDITION)]
    assert log.named("bulletin") == [
        {"vertex": 0, "kind": EDITION, "number": 2, "source": "neighbor 1"}
    ]
    assert device.all.newer_than({}) == device.all.newer_than({EDITION: 1}) == [second]
    assert device.all.newer_than({EDITION: 2}) == []

    again = Device(tmp_path, roots=[NEW])  # its own disk is believed, whoever is trusted now
    assert again.all.newer_than({}) == [second]
    again.all.subscribe(EDITION, heard.append)
    assert heard[1:] == heard[:1]
    assert device.monitor.total("bulletins-old") == 2


def test_a_damaged_file_of_the_disk_is_told_and_the_bulletin_comes_again(tmp_path, log):
    device = Device(tmp_path)
    device.all.take(made(2), "neighbor 1")
    path = tmp_path / "state" / "bulletin-edition"
    path.write_bytes(path.read_bytes()[:-1])
    again = Device(tmp_path)
    assert again.all.known() == {}
    (told,) = log.named("damaged")
    assert "its checksum is another one; the neighbors or the operator bring it" in told["why"]
    again.all.take(made(2), "neighbor 1")
    path.unlink()
    again.all.store_again()  # the directory was another one
    assert Device(tmp_path).all.known() == {EDITION: 2}


def test_what_is_refused_changes_nothing_and_is_counted_by_cause(tmp_path, log):
    device = Device(tmp_path)

    def check(bulletin):
        if "bad" in bulletin.body:
            raise ConfigError("it is bad")

    device.all.subscribe(EDITION, lambda bulletin: None, check)
    good = device.all.take(made(2), "neighbor 1")
    for raw, cause in [
        (b"x", "garbage"), (made(3, by=(OTHER,)), "untrusted"), (made(3, mesh="m2"), "mesh"),
        (made(3, kind="later"), "kind"), (made(3, bad=1), "content"),
        (made(2, other=1), "conflict"), (made(3) + b" " * LIMIT_BYTES, "size"),
    ]:  # fmt: skip
        with pytest.raises(BulletinError) as found:
            device.all.take(raw, "neighbor 1")
        assert found.value.cause == cause
        assert log.named("bulletin-refused")[-1]["reason"] == cause
    assert device.refused() == dict.fromkeys(
        ("garbage", "untrusted", "mesh", "kind", "content", "conflict", "size"), 1
    )
    assert device.all.newer_than({}) == [good] == device.told


def test_a_taker_that_fails_ends_nothing(tmp_path, log):
    device, heard = Device(tmp_path), []

    def fails(bulletin):
        raise KeyError("defect")

    device.all.subscribe(EDITION, fails)
    device.all.subscribe(EDITION, heard.append)
    device.all.take(made(2), "neighbor 1")
    assert (len(heard), len(device.told)) == (1, 1)
    (told,) = log.named("bulletin-failed")
    assert told["why"] == "KeyError: 'defect'"
    assert "in fails" in told["where"]


def test_the_same_text_signed_by_more_authorities_takes_the_place_of_the_other(tmp_path):
    device = Device(tmp_path, roots=[OLD, NEW])
    device.all.take(made(2), "neighbor 1")
    both = device.all.take(made(2, by=(OLD, NEW)), "neighbor 1")
    device.all.take(made(2, by=(NEW,)), "neighbor 1")
    assert device.all.newer_than({}) == [both]


def test_files_are_looked_at_once_and_again_when_they_or_the_authorities_change(tmp_path, log):
    device = Device(tmp_path)
    folder = tmp_path / "bulletins"
    device.all.look()  # there is no folder
    folder.mkdir()
    (folder / ".hidden").write_bytes(b"x")
    (folder / "sub").mkdir()
    (folder / "a").write_bytes(made(4, by=(NEW,)))
    (folder / "b").write_bytes(made(2))
    for _ in range(2):
        device.all.look()
    assert device.all.known() == {EDITION: 2}
    assert device.refused() == {"untrusted": 1}
    assert {e["reason"] for e in log.named("bulletin-refused")} == {"unreadable", "untrusted"}
    device.roots = [OLD, NEW]
    device.all.look()
    assert device.all.known() == {EDITION: 4}
    (folder / "b").write_bytes(made(5, x=1))
    device.all.look()
    assert device.all.known() == {EDITION: 5}


def test_the_folder_is_looked_at_by_itself(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_LOOK_S", 0.01)
    device = Device(tmp_path)
    device.all.start()
    try:
        write_durably(tmp_path / "bulletins" / "a", made(3, kind=REVOCATIONS))
        assert device.all.wait(Notice(REVOCATIONS, 3, b""), 10.0)
    finally:
        device.all.stop()
    assert not device.all._thread.is_alive()


# --- between neighbors ------------------------------------------------------------------------


def test_without_an_authority_bulletins_are_refused_by_name():
    arrivals = Arrivals(1, NO_BOARD, lambda: True)
    with pytest.raises(RefusedError, match="bulletin 1 of kind 'edition': this mesh is in plain"):
        arrivals.piece(pb.Bulletin(kind=EDITION, number=1, total_bytes=9, data=b"x"))
    with pytest.raises(BulletinError, match="has no authority"):
        NO_BOARD.take(b"", "the operator")
    assert (NO_BOARD.known(), list(NO_BOARD.newer_than({}))) == ({}, [])


def test_pieces_come_together_whatever_their_size_and_memory_comes_with_them(tmp_path):
    device = Device(tmp_path)
    sizes = iter([1, 7, 300, 20, *[64] * 99])
    notice = Notice(EDITION, 2, made(2, x="y" * 2000))
    arrivals = Arrivals(1, device.all, lambda: True)
    *rest, last = (parse(f).bulletin for f in frames_of(notice, lambda: next(sizes)))
    for piece in rest:
        assert arrivals.piece(piece) is None
        assert len(arrivals._data) == piece.offset + len(piece.data)
    assert arrivals.piece(last) == notice
    assert device.told == [notice]
    # What is old, or of a kind of later versions, is passed over in no memory.
    for kind, number in [(EDITION, 1), ("later", 9)]:
        pieces = [
            parse(f).bulletin for f in frames_of(Notice(kind, number, bytes(900)), lambda: 300)
        ]
        for piece in pieces:
            assert arrivals.piece(piece) is None
            assert arrivals._data is None
    assert device.refused() == {}


@pytest.mark.parametrize(
    ("pieces", "reason"),
    [
        ([{"total_bytes": LIMIT_BYTES + 1}], pb.Refusal.SIZE),
        ([{"data": b""}], pb.Refusal.MALFORMED),
        ([{"total_bytes": 1}], pb.Refusal.MALFORMED),
        ([{"offset": 3}], pb.Refusal.MALFORMED),
        ([{}, {"offset": 2}], pb.Refusal.MALFORMED),
        ([{}, {"offset": 3, "number": 3}], pb.Refusal.MALFORMED),
        ([{}, {"offset": 3, "kind": REVOCATIONS}], pb.Refusal.MALFORMED),
        ([{}, {"offset": 3, "total_bytes": 8}], pb.Refusal.MALFORMED),
        ([{}, {"offset": 3, "data": bytes(7)}], pb.Refusal.MALFORMED),
        ([{"total_bytes": 3}], pb.Refusal.BULLETIN),
    ],
)
def test_pieces_that_do_not_fit_are_refused(tmp_path, pieces, reason):
    arrivals = Arrivals(1, Device(tmp_path).all, lambda: True)
    kept = {"kind": EDITION, "number": 2, "total_bytes": 9, "data": b"abc"}
    *good, bad = (pb.Bulletin(**(kept | piece)) for piece in pieces)
    for piece in good:
        arrivals.piece(piece)
    with pytest.raises(RefusedError) as found:
        arrivals.piece(bad)
    assert found.value.reason == reason
    with pytest.raises(RefusedError):  # what follows is refused as well
        arrivals.piece(pb.Bulletin(**(kept | {"offset": 3})))


def test_a_bulletin_is_what_its_pieces_say(tmp_path):
    device = Device(tmp_path)
    arrivals = Arrivals(1, device.all, lambda: True)
    (frame,) = frames_of(Notice(EDITION, 9, made(2)), lambda: 1000)
    with pytest.raises(RefusedError, match="a bulletin 2 of kind 'edition', announced as 9"):
        arrivals.piece(parse(frame).bulletin)


def test_a_newer_bulletin_takes_the_place_of_an_older_one_in_line():
    line = InLine(lambda: 100)
    line.put(Notice(EDITION, 1, bytes(250)))
    line.put(Notice(REVOCATIONS, 1, bytes(50)))
    first = parse(line.next()).bulletin
    assert (first.kind, first.number, first.offset) == (EDITION, 1, 0)
    line.put(Notice(EDITION, 2, bytes(150)))
    left = []
    while (raw := line.next()) is not None:
        piece = parse(raw).bulletin
        left.append((piece.kind, piece.number, piece.offset))
    assert left == [(REVOCATIONS, 1, 0), (EDITION, 2, 0), (EDITION, 2, 100)]


class End:
    """One end of a connection, without a socket."""

    def __init__(self, vertex, board, *, strikes=8.0):
        self.monitor, self.events = Monitor(vertex), []
        self.link = StreamLink(
            1 - vertex,
            deliver=self.events.append,
            assembler=Assembler("r", 1 - vertex, ()),
            monitor=self.monitor,
            greeting=lambda hello: hello.bulletins.update(board.known()),
            greet=lambda hello: None,
            heartbeat_s=0.001,
            strikes=Allowance(strikes, 0.0),
            short_frames=Allowance(1e9, 0.0),
            board=board,
        )
        self.pieces = self.link.pieces()

    def out(self):
        """Frames until there is only a heartbeat left."""
        for raw in self.pieces:
            if parse(raw).WhichOneof("kind") == "heartbeat":
                return
            yield raw


def test_two_ends_that_meet_have_the_newest_of_both_before_any_payload(tmp_path):
    devices = []
    for name in "ab":
        (tmp_path / name).mkdir()
        devices.append(Device(tmp_path / name))
    a, b = devices
    large = a.all.take(made(5, x="y" * 50_000), "the operator")
    a.all.take(made(1, kind=REVOCATIONS), "the operator")
    b.all.take(made(4), "the operator")
    newest = b.all.take(made(2, kind=REVOCATIONS), "the operator")
    ends = [End(v, d.all) for v, d in enumerate(devices)]
    for end in ends:
        end.link.send(Hello())
    kinds = [[], []]
    for _ in range(20):
        for v, end in enumerate(ends):
            for raw in end.out():
                kinds[v].append(parse(raw).WhichOneof("kind"))
                ends[1 - v].link.receive(raw)
    assert a.all.known() == b.all.known() == {EDITION: 5, REVOCATIONS: 2}
    assert (large in b.told, newest in a.told) == (True, True)
    # Each sent what the other's Hello lacked and no more, in pieces as the link bears them.
    assert kinds[0].count("bulletin") == 7
    assert kinds[1].count("bulletin") == 1
    assert kinds[1].count("receipt") >= 1


def test_nobody_brings_bulletins_before_his_hello_or_garbage_without_end(tmp_path, log):
    device = Device(tmp_path)
    end = End(0, device.all)
    notice = Notice(EDITION, 2, made(2))
    (frame,) = frames_of(notice, lambda: 10_000)
    end.link.receive(frame)
    assert device.told == []
    assert log.named("refused")[0]["reason"] == "malformed"

    end = End(0, device.all)
    end.link.send(Hello())
    end.link.receive(pb.Frame(hello=pb.Hello()).SerializeToString())
    good = made(3)
    for i in range(1000):
        raw = bytearray(good)
        raw[i % len(raw)] ^= 1 << (i % 8)
        for piece in frames_of(Notice(EDITION, 3, bytes(raw)), lambda: 128):
            end.link.receive(piece)
    assert device.told == []
    assert end.monitor.total("cut-off.refusals") > 0
    # It has a small number of attempts; then not even a signature is looked at.
    assert sum(device.refused().values()) <= 64
    assert end.monitor.total("refused.busy") > 900


def test_replays_are_ignored_and_cost_no_strike(tmp_path):
    device = Device(tmp_path)
    device.all.take(made(3), "neighbor 1")
    end = End(0, device.all)
    end.link.send(Hello())
    end.link.receive(pb.Frame(hello=pb.Hello()).SerializeToString())
    with contextlib.suppress(StopIteration):
        for number in [1, 2, 3] * 5:
            for piece in frames_of(Notice(EDITION, number, made(number)), lambda: 100):
                end.link.receive(piece)
    assert end.monitor.total("refused.bulletin") == end.monitor.total("refused.malformed") == 0
    assert device.all.newest(EDITION).number == 3
    assert device.monitor.total("bulletins-old") >= 15


def test_large_bulletins_are_verified_in_little_time():
    raw = made(1, x="y" * (LIMIT_BYTES - 1000))
    begin = time.process_time()
    verify(raw, [OLD.certificate], "m1")
    assert time.process_time() - begin < 1.0
    assert json.loads(raw.partition(b"\n\n")[2])["number"] == 1
