"""The shell around the protocol: what leaves, when, what is on the disk then, and how it ends."""

import argparse
import dataclasses
import datetime
import errno
import json
import shutil
import signal
import sys
import threading
import time
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import load_file

from flower_dhb import ConfigError, RoundError, StateError
from flower_dhb.agent import codec
from flower_dhb.cli import peer as command
from flower_dhb.errors import DamageError, NotNowError
from flower_dhb.files import write_durably
from flower_dhb.peer.device import daemon, disk
from flower_dhb.peer.device.app import Outcome
from flower_dhb.peer.device.daemon import Peer, Result
from flower_dhb.peer.device.home import Home
from flower_dhb.peer.device.journal import Journal
from flower_dhb.peer.mesh import certificates
from flower_dhb.peer.mesh.certificates import Authority, write_private
from flower_dhb.peer.protocol import events as ev
from flower_dhb.peer.protocol.messages import Ack, Counted, Goodbye, Hello, Offer, Seek
from flower_dhb.peer.protocol.settings import Timing
from flower_dhb.peer.watch.records import read_record
from flower_dhb.peer.watch.vigil import Vigil
from flower_dhb.peer.wire import relay_pb2 as pb
from flower_dhb.peer.wire.bulletin import REVOCATIONS, Bulletin
from tests.support.events import Events
from tests.support.peers import Mesh
from tests.support.waiting import wait_for

pytestmark = pytest.mark.thorough

SIZE, ROUNDS = 4, 4
PATIENT = Timing(ceiling_s=60.0, least_s=60.0, reconnect_s=60.0, resume_s=60.0)


@pytest.fixture(autouse=True)
def log():
    with Events() as heard:
        yield heard


@pytest.fixture
def settings(tmp_path):
    """Vertex 0 of two, without TLS; nobody listens, for the connections are scripted."""
    mesh = Mesh(
        tmp_path / "m", n=2, plaintext=True, peer={"record": "checksums"}, topology="path:2",
        rounds=ROUNDS, size=SIZE, rate=0.25, noise=0.1, momentum=0.8,
    )  # fmt: skip
    return dataclasses.replace(mesh.settings(0), timing=PATIENT, start_timeout_s=60.0, linger_s=0.0)


class Neighbor:
    """Neighbor 1 and its connection, without a socket; it does what a good neighbor does.

    answers: rounds that it takes part in; it says nothing of others. got: what came, in order.
    watch: called with each payload that comes, before anything else.
    """

    def __init__(self, peer, answers=range(1, ROUNDS + 1), hello=None, final=None):
        self.peer, self.answers, self.final = peer, set(answers), final
        self.hello = hello or Hello()
        self.got, self.payloads, self.sent = [], {}, {}
        self.watch = lambda offer: None
        self.changed = threading.Condition()
        peer.transport.start = lambda: peer.deliver(ev.Connected(1, self))
        peer.transport.stop = lambda: None

    def frame(self, k):
        vector = np.random.default_rng(k).standard_normal(SIZE)
        return codec.encode({"folded": vector}, run=self.peer.settings.run, round=k, vertex=1)

    def say(self, kind, *fields):
        self.peer.deliver(kind(1, self, *fields))

    def send(self, message):
        self._note(message)
        if isinstance(message, Hello):
            self.say(ev.Greeted, self.hello)
        elif isinstance(message, Seek) and self.final is not None:
            self._offer(self.final, final=True)
        elif isinstance(message, Goodbye) and message.done:
            self.say(ev.Left, True, self._counted(ROUNDS))

    def send_payload(self, offer, payload):
        self.watch(offer)
        self.payloads.setdefault(offer.round, []).append((offer, bytes(payload.handle.frame)))
        self._note(offer)
        if offer.round in self.answers:
            self._offer(offer.round, ack=offer.digest)

    def _counted(self, k):
        """What it says of a round that it has ended."""
        if k not in self.sent or k not in self.payloads:
            return self.hello.counted
        ours, _ = self.payloads[k][0]
        return Counted(k, codec.read_checksum(self.sent[k]), ours.digest)

    def _offer(self, k, **fields):
        frame = self.sent.setdefault(k, self.frame(k))
        digest = codec.read_checksum(frame)
        self.say(ev.Offered, Offer(k, digest, k - 1, self._counted(k - 1), **fields))

    def reserve(self, offer):
        frame = self.sent[offer.round]
        self.say(ev.Completed, offer, ev.Payload(offer.digest, frame))

    def refuse(self, error):
        self._note(error)

    def close(self, text):
        self._note(text)

    def abort(self):
        self._note("aborted")

    def _note(self, what):
        with self.changed:
            self.got.append(what)
            self.changed.notify_all()

    def wait(self, holds, seconds=20.0):
        with self.changed:
            assert self.changed.wait_for(holds, seconds), self.got


class Running:
    """A peer whose `run` is under way in a thread."""

    def __init__(self, peer):
        self.peer, self.result, self.error = peer, None, None
        self.thread = threading.Thread(daemon=True, target=self._run)
        self.thread.start()

    def _run(self):
        try:
            self.result = self.peer.run()
        except Exception as error:
            self.error = error

    def end(self, stop=False):
        if stop:
            self.peer.stop()
        self.thread.join(20)
        assert not self.thread.is_alive()
        return self.result


def lines(settings, name):
    path = settings.state_dir / name
    return [json.loads(line) for line in path.read_text().splitlines()]


def load(settings):
    return Journal(settings.state_dir, settings.run, print).load()


# --- what leaves, and what is on the disk then --------------------------------------------


def test_nothing_leaves_before_it_is_on_the_disk(settings):
    peer = Peer(settings)
    neighbor = Neighbor(peer)
    seen = []

    def watch(offer):
        found = load(settings)
        seen.append((offer.round, found.round, codec.read_checksum(found.payload) == offer.digest))
        assert found.record["closed"] == offer.round - 1

    neighbor.watch = watch
    assert Running(peer).end() == Result(True)
    assert seen == [(k, k, True) for k in range(1, ROUNDS + 1)]
    # An acknowledgment never comes before the payload of its round has left.
    order = [type(x).__name__ + str(x.round) for x in neighbor.got if isinstance(x, Ack | Offer)]
    for k in range(1, ROUNDS + 1):
        assert order.index(f"Offer{k}") < order.index(f"Ack{k}")


def test_a_full_disk_lets_nothing_leave_until_it_takes_it(settings, log, monkeypatch):
    monkeypatch.setattr(disk, "_PAUSE_S", 0.01)
    peer = Peer(settings)
    neighbor = Neighbor(peer)
    whole, full = peer._disk._journal._write_durably, threading.Event()
    full.set()

    def write(path, data):
        if full.is_set():
            raise OSError(28, "No space left on device")
        whole(path, data)

    peer._disk._journal._write_durably = write
    running = Running(peer)
    end = time.monotonic() + 20
    while peer.monitor.total("disk-failed") < 5:
        assert time.monotonic() < end
        time.sleep(0.005)
    assert [x for x in neighbor.got if not isinstance(x, Hello)] == []
    assert peer.progress.phase == "journaling"
    full.clear()
    assert running.end() == Result(True)
    assert [e["round"] for e in lines(settings, "history.jsonl")] == [1, 2, 3, 4]
    assert len(log.named("disk-failed")) == len(log.named("disk-writes-again")) == 1


def test_a_full_disk_does_not_keep_a_peer_from_being_stopped(settings):
    peer = Peer(settings)
    Neighbor(peer)

    def write(path, data):
        raise OSError(28, "No space left on device")

    peer._disk._journal._write_durably = write
    running = Running(peer)
    end = time.monotonic() + 20
    while peer.monitor.total("disk-failed") < 1:
        assert time.monotonic() < end
        time.sleep(0.005)
    assert running.end(stop=True) == Result(False)


@pytest.mark.parametrize("every", [1, ROUNDS])
def test_a_round_writes_four_models_however_often_checkpoints_are_made(
    tmp_path, monkeypatch, every
):
    """What docs/peers.md says of the wear of flash: payload, trained model, model, displacement."""
    monkeypatch.setattr(sys.modules[__name__], "SIZE", 5000)
    mesh = Mesh(
        tmp_path / "m", n=2, plaintext=True, peer={"checkpoint-every": every},
        topology="path:2", rounds=ROUNDS, size=5000,
    )  # fmt: skip
    peer = Peer(dataclasses.replace(mesh.settings(0), timing=PATIENT, linger_s=0.0))
    Neighbor(peer)
    whole, written = peer._disk._journal._write_durably, []

    def write(path, data):
        written.append(len(data))
        whole(path, data)

    peer._disk._journal._write_durably = write
    assert Running(peer).end() == Result(True)
    models = sum(written) / (8 * 5000)
    # The first state has no displacement yet; the last is written although no payload follows.
    assert models / ROUNDS == pytest.approx(4.0, rel=0.15)


# --- killed, and started again --------------------------------------------------------------


def killed_while_it_waits(settings, tmp_path, k):
    """What the disk holds of a peer whose payload of round k has left and is not answered."""
    peer = Peer(settings)
    neighbor = Neighbor(peer, answers=range(1, k))
    running = Running(peer)
    neighbor.wait(lambda: k in neighbor.payloads)
    after = dataclasses.replace(settings, state_dir=tmp_path / "after")
    shutil.copytree(settings.state_dir, after.state_dir)
    running.end(stop=True)
    return neighbor, after


def test_after_a_kill_the_same_bytes_are_sent_again_and_the_round_is_ended_once(
    settings, tmp_path, log
):
    before, after = killed_while_it_waits(settings, tmp_path, 3)
    ((first, frame),) = before.payloads[3]
    peer = Peer(after)
    counted = Counted(2, codec.read_checksum(before.sent[2]), before.payloads[2][0][0].digest)
    neighbor = Neighbor(peer, hello=Hello(closed=2, counted=counted))
    assert Running(peer).end() == Result(True)
    assert log.named("resumed") == [{"vertex": 0, "round": 2}]
    assert [(offer.digest, found) for offer, found in neighbor.payloads[3]] == [
        (first.digest, frame)
    ]
    history = lines(after, "history.jsonl")
    assert [entry["round"] for entry in history] == [1, 2, 3, 4]
    assert history[2]["missing"] == []
    assert history[2]["train"] == {"num-examples": 1, "size": SIZE}  # of the life before
    record = lines(after, "record/record.jsonl")
    assert [entry["round"] for entry in record] == [1, 2, 3, 4]
    assert [e["from"] for e in record[1:]] == [e["to"] for e in record[:-1]]
    assert peer.agent.edges[1].one_sided_total == 0


def test_a_round_whose_end_a_crash_undid_is_told_again_and_not_twice(settings, tmp_path):
    """The lines of round 3 were written; its state was not: it is ended anew."""
    before, after = killed_while_it_waits(settings, tmp_path, 3)
    for name in ("history.jsonl", "record/record.jsonl"):
        with (after.state_dir / name).open("a") as file:
            file.write(json.dumps({"round": 3, "undone": True}) + "\n")
    peer = Peer(after)
    counted = Counted(2, codec.read_checksum(before.sent[2]), before.payloads[2][0][0].digest)
    Neighbor(peer, hello=Hello(closed=2, counted=counted))
    Running(peer).end()
    for name in ("history.jsonl", "record/record.jsonl"):
        assert [e["round"] for e in lines(after, name)] == [1, 2, 3, 4]
        assert not any("undone" in e for e in lines(after, name))
    found = read_record(after.state_dir / "record", 0)
    assert found.lines[3]["received"].keys() == {"1"}


def test_to_look_at_a_peers_files_changes_nothing(settings, tmp_path):
    """Who makes a peer and does not run it, while another process may."""
    _, after = killed_while_it_waits(settings, tmp_path, 3)
    with (after.state_dir / "history.jsonl").open("a") as file:
        file.write('{"round": 3}\n')
    files = {p: p.read_bytes() for p in after.state_dir.rglob("*") if p.is_file()}
    Peer(after)
    assert {p: p.read_bytes() for p in after.state_dir.rglob("*") if p.is_file()} == files


def test_who_returns_after_the_end_gets_its_neighbors_model(settings, log):
    """Its neighbor has finished; 40 rounds are missed."""
    late = dataclasses.replace(settings, rounds=40)
    peer = Peer(late)
    neighbor = Neighbor(peer, hello=Hello(closed=40, done=True), final=41)
    assert Running(peer).end() == Result(True)
    theirs = codec.decode(neighbor.frame(41), codec.read_header(neighbor.frame(41)))["folded"]
    np.testing.assert_array_equal(load_file(late.state_dir / "model.safetensors")["x"], theirs)
    (rejoined,) = log.named("rejoined")
    assert (rejoined["round"], rejoined["neighbors"]) == (40, [1])
    (entry,) = lines(late, "history.jsonl")
    assert (entry["round"], entry["rejoined"]) == (40, True)


def test_who_has_finished_gives_its_model_to_whoever_returns(settings):
    peer = Peer(dataclasses.replace(settings, linger_s=60.0))
    neighbor = Neighbor(peer)
    neighbor.send = lambda message: (
        neighbor.say(ev.Greeted, neighbor.hello) if isinstance(message, Hello) else None,
        neighbor._note(message),
    )
    running = Running(peer)
    neighbor.wait(lambda: any(isinstance(x, Goodbye) for x in neighbor.got))
    neighbor.say(ev.Sought)
    (offer, frame), *_ = neighbor.payloads[ROUNDS + 1]
    assert offer.final
    found = codec.decode(frame, codec.read_header(frame))["folded"]
    model = load_file(settings.state_dir / "model.safetensors")["x"]
    np.testing.assert_array_equal(found, model)
    neighbor.say(ev.Left, True)
    assert running.end() == Result(True)


# --- one entrance -------------------------------------------------------------------------


def test_what_an_effect_brings_is_taken_after_the_other_effects(settings):
    peer = Peer(settings)
    order = []

    class Talks:
        def handle(self, event, now):
            order.append(("event", event))
            return ["first", "second"] if event == "a" else []

        def next_deadline(self):
            return None

    def do(effect):
        order.append(("effect", effect))
        if effect == "first":
            peer.deliver("b")

    peer.agent, peer._do = Talks(), do
    peer.deliver("a")
    assert order == [("event", "a"), ("effect", "first"), ("effect", "second"), ("event", "b")]


def test_events_of_many_threads_are_taken_one_after_the_other(settings):
    peer = Peer(settings)
    inside, most, taken = [0], [0], []

    class Slow:
        def handle(self, event, now):
            inside[0] += 1
            most[0] = max(most[0], inside[0])
            time.sleep(0.001)
            taken.append((event, now))
            inside[0] -= 1
            return []

        def next_deadline(self):
            return None

    peer.agent = Slow()
    threads = [
        threading.Thread(daemon=True, target=lambda i=i: [peer.deliver((i, n)) for n in range(20)])
        for i in range(5)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (most[0], len(taken)) == (1, 100)
    assert [now for _, now in taken] == sorted(now for _, now in taken)
    for i in range(5):
        assert [n for (j, n), _ in taken if j == i] == list(range(20))


def test_time_alone_wakes_the_agent_when_it_said_and_not_before(settings):
    """No neighbor comes: after start_s it begins without."""
    peer = Peer(dataclasses.replace(settings, start_timeout_s=0.3))
    peer.transport.start = peer.transport.stop = lambda: None
    ticks = []
    handle = peer.agent.handle
    peer.agent.handle = lambda event, now: (
        ticks.append(now) if isinstance(event, ev.Tick) else None,
        handle(event, now),
    )[1]
    begin = time.monotonic()
    running = Running(peer)
    while not ticks:
        assert time.monotonic() - begin < 10
        time.sleep(0.005)
    assert time.monotonic() - begin >= 0.3
    running.end(stop=True)
    assert len(ticks) < 5  # it does not look again and again


def test_a_signal_may_stop_a_peer_whatever_its_thread_is_doing(settings):
    """The handler interrupts the thread that holds the lock, and any other there may be."""
    peer = Peer(settings)
    Neighbor(peer, answers=())
    old = signal.signal(signal.SIGUSR1, lambda *_: peer.stop())
    try:
        with peer._lock, peer.monitor._lock:
            signal.raise_signal(signal.SIGUSR1)
        assert Running(peer).end() == Result(False)
    finally:
        signal.signal(signal.SIGUSR1, old)


def test_what_goes_wrong_in_any_thread_ends_the_run(settings):
    for where in ("agent", "app", "disk"):
        peer = Peer(settings)
        Neighbor(peer)

        def wrong(*_, where=where, **__):
            raise ZeroDivisionError(where)

        if where == "agent":
            peer.agent.handle = wrong
        elif where == "app":
            peer.app.train = wrong
        else:
            peer._disk._journal.share = wrong
        running = Running(peer)
        running.end()
        assert isinstance(running.error, ZeroDivisionError)
        assert str(running.error) == where


def test_a_peer_whose_app_fails_for_good_says_who_it_is(settings, monkeypatch):
    monkeypatch.setattr("flower_dhb.peer.protocol.agent._UNKNOWN_PACE_S", 0.0)
    peer = Peer(dataclasses.replace(settings, rounds=20))
    Neighbor(peer)
    peer.app.train = lambda *_, **__: Outcome(failure="no battery")
    running = Running(peer)
    running.end()
    assert isinstance(running.error, RoundError)
    assert "vertex 0: the app failed in 10 rounds in a row" in str(running.error)
    assert [e["failure"] for e in lines(settings, "history.jsonl")] == ["no battery"] * 10


# --- what is waited for -------------------------------------------------------------------


@pytest.fixture
def certified(tmp_path):
    """Vertex 0 of two with certificates that are valid for a day from now."""
    mesh = Mesh(tmp_path / "c", n=2, topology="path:2", rounds=ROUNDS, size=SIZE)
    settings = mesh.settings(0)
    authority = Authority.load(tmp_path / "c" / "authority")

    def renew(between=lambda: None):
        key, certificate = authority.issue(0, 1)
        write_private(settings.tls.key, key)
        between()
        write_durably(settings.tls.certificate, certificate)

    renew()
    return dataclasses.replace(settings, timing=PATIENT, linger_s=0.0), renew


DAY = datetime.timedelta(days=1)


@pytest.mark.parametrize(
    ("clock", "says", "corrected"),
    [
        (datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC), "set the clock", True),
        (30 * DAY, "has expired. Issue new files with 'flower-dhb mesh renew", True),
        (1.5 * DAY, "and copy them over the old ones, or set the clock", False),
    ],
)
def test_clock_and_certificate_are_waited_for_and_that_is_said_once(
    certified, log, monkeypatch, clock, says, corrected
):
    """clock: what it shows, or how far it is ahead. corrected: it is, or there are new files."""
    monkeypatch.setattr(daemon, "_LOOK_AGAIN_S", 0.01)
    now = datetime.datetime.now(datetime.UTC)
    clock = now + clock if isinstance(clock, datetime.timedelta) else clock
    settings, renew = certified
    clocks = [clock]

    def tell():
        return clocks[0]

    tls = dataclasses.replace(settings.tls, clock=tell)
    read = type(tls).read
    monkeypatch.setattr(type(tls), "read", lambda self: (looked.append(1), read(self))[1])
    looked = []

    def looks(n=1):
        """Until it has looked so many times more."""
        want, end = len(looked) + n, time.monotonic() + 20
        while len(looked) <= want:
            assert time.monotonic() < end
            time.sleep(0.002)

    peer = Peer(dataclasses.replace(settings, tls=tls))
    Neighbor(peer)
    running = Running(peer)
    looks(5)
    assert not peer.agent.edges[1].up
    assert peer.progress.phase == "loading"
    (warning,) = log.named("waits-for-certificate")
    assert says in warning["why"]
    assert f"clock says {clock:%Y-%m-%d %H:%M}" in warning["why"]
    if corrected:
        clocks[0] = now
    else:
        authority_now = now + 1.4 * DAY
        monkeypatch.setattr(certificates, "_now", lambda: authority_now)
        renew(between=lambda: looks(3))  # for a while the files do not fit together
    assert running.end() == Result(True)
    told = log.named("waits-for-certificate")
    assert len(told) == (1 if corrected else 2)
    assert corrected or "does not belong to its key" in told[1]["why"]
    assert len(log.named("certificate-valid")) == 1


def test_what_the_operator_says_is_told_when_the_disk_has_it(certified, log, monkeypatch):
    """A full disk keeps a bulletin from everybody, until it is there; then it holds at once."""
    settings, _ = certified
    full = [True]
    write = disk.write_durably

    def takes(path, data, **options):
        if full[0] and path.name.startswith("bulletin-"):
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write(path, data, **options)

    monkeypatch.setattr(disk, "write_durably", takes)
    peer, told = Peer(settings), []
    Neighbor(peer, answers=())
    monkeypatch.setattr(peer.transport, "tell", told.append)
    authority = Authority.load(settings.tls.key.parent.parent / "authority")
    serial = peer.settings.tls.standing().serial
    listed = {"certificates": [{"serial": serial, "since": "2031-05-04"}]}
    raw = authority.sign(Bulletin(REVOCATIONS, settings.mesh, 3, listed))
    running = Running(peer)
    wait_for(lambda: peer.progress.phase != "loading", "the beginning")
    write_durably(settings.bulletins / "list", raw)  # somebody puts it there
    peer.bulletins.look()
    wait_for(lambda: log.named("disk-failed"), "the disk to be full")
    assert (peer.bulletins.known(), told) == ({}, [])
    assert peer.settings.tls.read()
    full[0] = False
    wait_for(lambda: told, "the list to be told")
    assert peer.progress.reply(pb.StatusRequest()).bulletins == {REVOCATIONS: 3}
    with pytest.raises(ConfigError, match="was revoked on 2031-05-04"):
        peer.settings.tls.read()
    assert running.end(stop=True) == Result(False)
    # It is on the disk: the next life knows it from its first moment on, and waits.
    again = Peer(settings)
    Neighbor(again)
    running = Running(again)
    wait_for(lambda: log.named("waits-for-certificate"), "the next life to wait")
    assert "was revoked on" in log.named("waits-for-certificate")[0]["why"]
    assert running.end(stop=True) == Result(False)


def test_who_waits_for_the_clock_can_be_stopped(certified, log):
    settings, _ = certified
    late = dataclasses.replace(
        settings.tls, clock=lambda: datetime.datetime.now(datetime.UTC) + 30 * DAY
    )
    peer = Peer(dataclasses.replace(settings, tls=late))
    running = Running(peer)
    while not log.named("waits-for-certificate"):
        time.sleep(0.005)
    assert running.end(stop=True) == Result(False)


def test_all_checkpoints_damaged(settings, tmp_path, log):
    """It says what to do; or, if that is wanted, begins again from its neighbors."""
    _, after = killed_while_it_waits(settings, tmp_path, 3)
    for path in after.state_dir.glob("*-*.safetensors"):
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DamageError, match=r"are damaged \(.*set on-damage = \"rejoin\""):
        Peer(after)
    before = {p.name for p in after.state_dir.iterdir()}
    peer = Peer(dataclasses.replace(after, on_damage="rejoin", rounds=40))
    (aside,) = log.named("state-set-aside")
    assert "payload-3.safetensors" in aside["why"]
    kept = after.state_dir / "damaged-1"
    assert aside["kept_in"] == str(kept)
    assert {p.name for p in kept.iterdir()} == before - {"lock"}
    Neighbor(peer, hello=Hello(closed=40, done=True), final=41)
    assert Running(peer).end() == Result(True)
    assert len(log.named("rejoined")) == 1
    assert [entry["round"] for entry in lines(after, "history.jsonl")] == [40]


def test_a_state_directory_that_is_removed_under_way_is_made_again(settings, log):
    """What is sent afterwards is on the disk, whole, as before."""
    peer = Peer(settings)
    neighbor = Neighbor(peer, answers=[1, 3, 4])
    neighbor.watch = lambda offer: shutil.rmtree(settings.state_dir) if offer.round == 2 else None
    running = Running(peer)
    neighbor.wait(lambda: 2 in neighbor.payloads)
    neighbor.watch = lambda offer: found.append(load(settings))
    found = []
    neighbor._offer(2, ack=neighbor.payloads[2][0][0].digest)
    assert running.end() == Result(True)
    assert [(f.round, codec.read_checksum(f.payload)) for f in found[:2]] == [
        (k, neighbor.payloads[k][0][0].digest) for k in (3, 4)
    ]
    assert len(log.named("state-directory-made-anew")) == 1
    assert (settings.state_dir / "model.safetensors").exists()
    assert log.named("disk-failed") == []


def test_a_state_goes_into_no_directory_that_is_not_held(settings):
    """One that vanishes between the look at it and the write is not made by the way."""
    peer = Peer(settings)
    with pytest.raises(FileNotFoundError):
        peer._disk._journal._write_durably(settings.state_dir / "round-1.safetensors", b"x")
    assert not settings.state_dir.exists()


def test_a_second_peer_on_the_directory_of_a_running_one_is_refused(settings):
    peer = Peer(settings)
    neighbor = Neighbor(peer, answers=())
    running = Running(peer)
    neighbor.wait(lambda: 1 in neighbor.payloads)
    with pytest.raises(NotNowError, match="holds this state directory"):
        Peer(settings).run()
    running.end(stop=True)
    Home(settings.state_dir).take()


# --- exit status --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ConfigError("x"), 2),
        (ModuleNotFoundError("x"), 2),
        (KeyboardInterrupt(), 3),
        (RoundError("the app failed in 10 rounds in a row"), 5),
        (DamageError("x"), 6),
        (NotNowError("x"), 75),
        (OSError(28, "No space left on device"), 75),
        (StateError("x"), 1),
    ],
)
def test_every_error_has_its_exit_status(error, status):
    assert command.status_of(error) == status


@pytest.mark.parametrize(
    ("result", "status"),
    [
        (Result(True), 0),
        (Result(True, 0), 4),
        (Result(True, 7), 4),
        (Result(True, 7, removed=True), 0),
        (Result(False), 3),
        (Result(False, 7), 3),
    ],
)
def test_the_exit_status_says_how_it_ended(settings, monkeypatch, result, status):
    class Ended:
        def __init__(self, *_):
            self.agent = SimpleNamespace(closed=3, rounds=9)

        def run(self):
            return result

    monkeypatch.setattr(daemon, "Peer", Ended)
    monkeypatch.setattr("flower_dhb.peer.wire.native_log.capture_native_log", lambda monitor: None)
    monkeypatch.setattr("flower_dhb.peer.monitor.set_up_logging", lambda *_: None)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    parser = argparse.ArgumentParser()
    command.configure(parser)
    path = settings.state_dir.parent / "peer.toml"
    assert command.execute(parser.parse_args([str(path)])) == status


def test_a_peer_that_waits_says_for_whom_and_why(settings, log, monkeypatch):
    """Its only neighbor is dialed, and nothing listens there."""
    monkeypatch.setattr(daemon, "Vigil", partial(Vigil, every_s=0.2))
    running = Running(Peer(settings))
    wait_for(lambda: len(log.named("waits")) >= 2, seconds=20)
    running.end(stop=True)
    first = log.all[0]
    assert first[1] == "begins"
    assert first[2]["dials"] == [1]
    wait = log.named("waits")[-1]
    assert wait["what"] == "waits to begin, for neighbors that are not connected,"
    assert wait["neighbors"] == [1]
    address = settings.dial[1]
    assert wait["why"].startswith(f"cannot reach vertex 1 at {address}: nothing listens there")
