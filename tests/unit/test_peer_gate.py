"""The door in front of gRPC, with a plain listener in gRPC's place: who passes, and who goes."""

import contextlib
import os
import resource
import socket
import threading
import time

import pytest

from flower_dhb.peer.monitor import Monitor
from flower_dhb.peer.wire import gate as gate_module
from flower_dhb.peer.wire.descriptors import CONNECTIONS, Room, raise_limit, room_for
from flower_dhb.peer.wire.doubles import Doubles
from flower_dhb.peer.wire.gate import Gate
from flower_dhb.peer.wire.pipes import PIPES, Pipes
from tests.support.events import Events
from tests.support.waiting import wait_for

NAME = "vertex-1.m.flower-dhb"
HELLO = b"\x16\x03\x01" + NAME.encode()  # as a ClientHello that asks for us
OTHER = b"\x16\x03\x01 somebody"


@pytest.fixture(autouse=True)
def events():
    with Events() as heard:
        yield heard


class House:
    """A gate, and what stands behind it: it keeps each connection and what came first."""

    def __init__(
        self,
        *,
        name=NAME,
        waiting=8,
        handshakes=4,
        limit_s=30.0,
        address="127.0.0.1:0",
        pipes=PIPES,
    ):
        self.monitor = Monitor(1)
        room = Room(waiting=waiting, handshakes=handshakes)
        self.gate = Gate(address, name=name, room=room, limit_s=limit_s, monitor=self.monitor)
        self.gate._pipes = Pipes(pipes)
        self.guests = []  # socket, its name for the gate, its first bytes
        self._clients = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind("\0" + self.gate.backend.partition(":")[2])
        self._listener.listen(64)

    def __enter__(self):
        self._thread = threading.Thread(daemon=True, target=self._serve)
        self._thread.start()
        self.gate.start(1)
        return self

    def __exit__(self, *_):
        self.gate.stop()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(10)
        assert not self._thread.is_alive()
        self._listener.close()
        for end in (*self._clients, *(guest for guest, _, _ in self.guests)):
            end.close()

    def _serve(self):
        while True:
            try:
                guest, name = self._listener.accept()
            except OSError:
                return
            first = guest.recv(4096)
            self.guests.append((guest, "unix-abstract:" + name[1:].decode(), first))

    def call(self, *said, origin="127.0.0.1"):
        """A connection from outside that has said something."""
        end = socket.create_connection(("127.0.0.1", self.gate.port), 10, (origin, 0))
        self._clients.append(end)
        for data in said:
            end.sendall(data)
        return end

    def guest(self, n):
        """The n-th that was let through."""
        wait_for(lambda: len(self.guests) > n, f"guest {n}")
        return self.guests[n]

    def count(self, why):
        return self.monitor.total(f"turned-away.{why}")


def is_closed(end):
    end.settimeout(10)
    try:
        return end.recv(1) == b""
    except ConnectionResetError:
        return True


@pytest.mark.parametrize(("known", "pipes"), [(False, 8), (True, 8), (True, 0)])
def test_bytes_go_both_ways_whole_and_in_order(known, pipes):
    """More than all buffers hold, and each side reads only after a while."""
    data = os.urandom(6 * 2**20)
    with House(pipes=pipes) as house:
        end = house.call(HELLO)
        guest, name, first = house.guest(0)
        assert first == HELLO
        if known:
            house.gate.admit(name, 0, 2)
        for source, sink in ((end, guest), (guest, end)):
            sender = threading.Thread(daemon=True, target=source.sendall, args=(data,))
            sender.start()
            time.sleep(0.05)
            got = bytearray()
            sink.settimeout(10)
            while len(got) < len(data):
                got += sink.recv(2**20)
            sender.join(10)
            assert bytes(got) == data
        way = house.gate._ways[house.guests[0][1]]
        wait_for(lambda: way.pipe is None)
        assert way.to_inner == way.to_outer == b""
        assert way.wide == (known and pipes > 0)  # the kernel moved what came


def test_neighbors_that_wait_for_grpc_hold_a_few_pipes_and_the_others_are_copied():
    """More than there are pipes send what nobody reads yet; then all of it comes, or none."""
    data = os.urandom(5 * 2**20)
    with House(pipes=2) as house:
        ends = [house.call(HELLO) for _ in range(4)]
        for n in range(4):
            house.gate.admit(house.guest(n)[1], n, 2)
        senders = [
            threading.Thread(daemon=True, target=_send_all, args=(end, data)) for end in ends
        ]
        for sender in senders:
            sender.start()
        wait_for(lambda: sum(way.pipe is not None for way in _ways(house)) == 2)
        wait_for(lambda: sum(bool(way.to_inner) for way in _ways(house)) == 2)
        (gone, *_) = [n for n in range(4) if house.gate._ways[house.guests[n][1]].pipe]
        house.guests[gone][0].close()  # its pipe is lost, and another takes its place
        for guest in (guest for n, (guest, _, _) in enumerate(house.guests) if n != gone):
            got = bytearray()
            guest.settimeout(10)
            while len(got) < len(data):
                got += guest.recv(2**20)
            assert bytes(got) == data
        for sender in senders:
            sender.join(10)
        wait_for(lambda: all(way.pipe is None for way in _ways(house)), "pipes that come back")
        lent = [house.gate._pipes.lend() for _ in range(3)]
        assert lent[2] is None
        for pipe in lent[:2]:
            assert pipe.held == 0
            house.gate._pipes.back(pipe)


def _ways(house):
    return list(house.gate._ways.values())


def _send_all(end, data):
    with contextlib.suppress(ConnectionError):
        end.sendall(data)


def test_a_system_that_does_not_move_bytes_lends_no_pipe(monkeypatch):
    def forbidden(*_, **__):
        raise PermissionError(1, "not permitted")

    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(os, "splice", forbidden)
    assert Pipes().lend() is None
    monkeypatch.undo()
    pipes = Pipes(1)
    pipe = pipes.lend()
    assert pipes.lend() is None
    pipes.back(pipe)
    pipes.close()
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("outer_goes", [True, False])
def test_when_one_end_closes_the_other_hears_all_and_the_end(outer_goes, known):
    with House() as house:
        end = house.call(HELLO)
        guest, name, _ = house.guest(0)
        if known:
            house.gate.admit(name, 0, 2)
        going, staying = (end, guest) if outer_goes else (guest, end)
        going.sendall(b"goodbye")
        going.shutdown(socket.SHUT_RDWR)
        going.close()
        staying.settimeout(10)
        assert staying.recv(100) == b"goodbye"
        assert is_closed(staying)
        wait_for(lambda: not house.gate._ways)
        assert not house.gate._handshakes


def test_who_says_nothing_takes_no_place_from_who_speaks(events):
    with House(waiting=4) as house:
        silent = [house.call() for _ in range(40)]
        house.call(HELLO)
        assert house.guest(0)[2] == HELLO
        wait_for(lambda: house.count("crowd") >= 36)
        assert sum(is_closed(end) for end in silent[:30]) == 30  # the oldest ones
        assert len(house.gate._waiting) <= 4
        (told,) = {e["reason"] for e in events.named("turned-away")}
        assert told == "crowd"
        assert "last from ipv4:127.0.0.1:" in events.named("turned-away")[0]["why"]


def test_those_go_of_which_there_are_most_from_one_address():
    with House(waiting=4) as house:
        few = house.call(origin="127.0.0.2")
        wait_for(lambda: len(house.gate._waiting) == 1)
        for _ in range(40):
            house.call(origin="127.0.0.3")
        wait_for(lambda: house.count("crowd") == 37)
        few.sendall(HELLO)  # it took its time
        assert house.guest(0)[2] == HELLO


def test_in_a_crowd_the_silent_go_at_once_and_others_have_their_time(monkeypatch):
    """More come than are given time to speak: nobody waits for those that are the crowd's."""
    monkeypatch.setattr(gate_module, "_ACCEPTS", (3.0, 1e-9))
    monkeypatch.setattr(gate_module, "_CROWD_PAUSE_S", 0.2)
    with House(waiting=8) as house:
        for _ in range(3):
            house.call(origin="127.0.0.3")
        wait_for(lambda: len(house.gate._waiting) == 3)
        slow = house.call(origin="127.0.0.2")
        wait_for(lambda: len(house.gate._waiting) == 4)
        assert is_closed(house.call(origin="127.0.0.3"))
        assert len(house.gate._waiting) == 4
        house.call(HELLO, origin="127.0.0.3")  # has spoken when its turn comes
        house.guest(0)
        slow.sendall(HELLO)
        house.guest(1)
        wait_for(lambda: house.count("crowd") == 1)


def test_who_asks_by_name_goes_first(monkeypatch):
    """Strangers have spoken, too; so many handshakes are begun in a second, and no more."""
    monkeypatch.setattr(gate_module, "_UNNAMED", (2.0, 1e-9))
    with House(waiting=8) as house:
        for _ in range(6):
            house.call(OTHER)
        wait_for(lambda: len(house.guests) == 2)
        house.call(HELLO)
        assert house.guest(2)[2] == HELLO
        time.sleep(0.05)
        assert len(house.guests) == 3
        assert len(house.gate._waiting) == 4


def test_a_handshake_that_takes_its_time_makes_way(monkeypatch):
    monkeypatch.setattr(gate_module, "_LEAST_S", 0.2)
    with House(handshakes=2) as house:
        stalled = [house.call(HELLO, origin="127.0.0.2") for _ in range(2)]
        wait_for(lambda: len(house.guests) == 2)
        begin = time.monotonic()
        house.call(HELLO, origin="127.0.0.3")
        house.guest(2)
        assert 0.15 < time.monotonic() - begin < 5.0
        assert is_closed(stalled[0])
        wait_for(lambda: house.count("slow") == 1)
        # One whose certificate has been seen takes no place any more.
        for _, name, _ in house.guests[1:]:
            house.gate.admit(name, 0, 2)
        house.call(HELLO, origin="127.0.0.2")
        house.guest(3)
        assert house.count("slow") == 1


@pytest.mark.parametrize(("said", "why"), [((), "silent"), ((HELLO,), "slow")])
def test_who_shows_no_certificate_in_time_goes(said, why):
    with House(limit_s=0.2) as house:
        end = house.call(*said)
        assert is_closed(end)
        wait_for(lambda: house.count(why) == 1)
        known = house.call(HELLO)
        house.gate.admit(house.guest(len(said))[1], 3, 2)
        time.sleep(0.5)
        house.guests[-1][0].sendall(b"still here")
        assert known.recv(100) == b"still here"


def test_what_is_not_tls_is_turned_away_before_grpc_sees_it(events):
    with House() as house:
        assert is_closed(house.call(b"GET / HTTP/1.1\r\n\r\n"))
        wait_for(lambda: house.count("handshake") == 1)
        assert "does not speak TLS" in events.named("turned-away")[0]["why"]
        assert not house.guests
    with House(name=None) as house:  # plaintext
        house.call(b"PRI")
        assert house.guest(0)[2] == b"PRI"


def test_one_identity_has_so_many_connections():
    with House() as house:
        ends = [house.call(HELLO) for _ in range(3)]
        for n in range(3):
            assert house.gate.admit(house.guest(n)[1], 7, 2)
            assert house.gate.admit(house.guest(n)[1], 7, 2)  # once more for the same one
        house.call(HELLO)
        assert house.gate.admit(house.guest(3)[1], 8, 2)
        callers = {house.gate.caller(name) for _, name, _ in house.guests}
        gone = [end for end in ends if _ends_within(end, 0.3)]
        assert len(gone) == 1
        assert f"ipv4:127.0.0.1:{ends[1].getsockname()[1]}" in callers
        assert not house.gate.admit("unix-abstract:x", 7, 2)  # came in some other way
        assert house.gate.caller("unix-abstract:x") == "unix-abstract:x"


def _ends_within(end, seconds):
    end.settimeout(seconds)
    try:
        return end.recv(1) == b""
    except TimeoutError:
        return False


def test_a_connection_whose_calls_are_refused_ends():
    with House() as house:
        end = house.call(HELLO)
        _, name, _ = house.guest(0)
        for _ in range(7):
            house.gate.strike(name)
        assert not _ends_within(end, 0.2)
        house.gate.strike(name)
        assert _ends_within(end, 10)


def test_without_a_descriptor_left_nobody_comes_in_and_nothing_ends():
    with House() as house:
        clients = [socket.socket() for _ in range(3)]
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        probe = os.dup(0)
        os.close(probe)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (probe, limits[1]))
            for client in clients:
                client.connect(("127.0.0.1", house.gate.port))
            wait_for(lambda: house.count("no-descriptor") > 0)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        clients[1].sendall(HELLO)
        assert house.guest(0)[2] == HELLO
        for client in clients:
            client.close()


@pytest.mark.parametrize(
    ("address", "host"), [("[::1]:0", "::1"), ("[::]:0", "127.0.0.1"), ("localhost:0", "127.0.0.1")]
)
def test_any_form_of_address(address, host):
    with House(address=address) as house:
        end = socket.create_connection((host, house.gate.port), 10)
        end.sendall(HELLO)
        _, name, _ = house.guest(0)
        caller = house.gate.caller(name)
        port = end.getsockname()[1]
        assert caller == (f"ipv6:[::1]:{port}" if host == "::1" else f"ipv4:127.0.0.1:{port}")
        end.close()


def test_neighbors_of_one_site_are_one_origin():
    assert gate_module._names(("2001:db8::1", 5, 0, 0))[1] == "2001:db8::/64"
    assert gate_module._names(("2001:db8::ff:2", 5, 0, 0))[1] == "2001:db8::/64"
    assert gate_module._names(("::ffff:192.0.2.1", 5, 0, 0)) == ("ipv4:192.0.2.1:5", "192.0.2.1")


def test_an_address_in_use_leaves_nothing_open():
    with House() as house, pytest.raises(OSError, match="in use"):
        House(address=f"127.0.0.1:{house.gate.port}")


# --- descriptors --------------------------------------------------------------------------


def test_the_limit_is_raised_as_far_as_it_may(monkeypatch):
    asked = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 1024))
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: asked.append(limits))
    assert raise_limit(4096) == 1024
    assert raise_limit(512) == 512
    assert raise_limit(128) == 256  # is enough
    assert asked == [(1024, 1024), (512, 1024)]
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, resource.RLIM_INFINITY))
    assert raise_limit(4096) == 4096


@pytest.mark.parametrize("neighbors", [1, 2, 8, 20])
@pytest.mark.parametrize("limit", [256, 1024, 8192])
def test_strangers_never_have_what_the_peer_needs(events, limit, neighbors):
    room = room_for(limit, neighbors, Monitor(0))
    own = 64 + 2 * PIPES + 3 * (CONNECTIONS * neighbors + 4)
    assert room.waiting >= 4
    assert room.handshakes >= 2
    strangers = room.waiting + 3 * room.handshakes
    assert strangers + own <= limit - (limit - own) // 3
    assert strangers <= 112
    assert not events.named("few-descriptors")


def test_too_few_descriptors_are_said(events):
    room_for(256, 40, Monitor(0))
    assert "40 neighbors" in events.named("few-descriptors")[0]["why"]


# --- two devices --------------------------------------------------------------------------


def test_restarts_are_no_second_device(events):
    doubles = Doubles([3], Monitor(0))
    for n in range(20):
        for _ in range(3):
            assert doubles.seen(3, f"process {n}", f"ipv4:10.0.0.{n % 3}:{n}") is None
    assert doubles.seen(3, "", "ipv4:10.0.0.9:1") is None  # says nothing of itself
    assert len(doubles._seen[3]) <= 8
    assert not events.named("two-devices")


def test_processes_that_come_by_turns_are_two_devices(events):
    monitor = Monitor(0)
    doubles = Doubles([3, 4], monitor)
    assert doubles.seen(3, "a", "ipv4:10.0.0.1:5") is None
    assert doubles.seen(3, "b", "ipv4:10.0.0.2:6") is None
    assert doubles.seen(4, "a", "ipv4:10.0.0.1:5") is None
    why = doubles.seen(3, "a", "ipv4:10.0.0.1:7")
    assert "vertex 3, at ipv4:10.0.0.2:6 and at ipv4:10.0.0.1:7;" in why
    assert events.named("two-devices") == [{"vertex": 0, "neighbor": 3, "why": why}]
    assert doubles.seen(3, "a", "ipv4:10.0.0.1:8") is None  # itself once more
    assert doubles.seen(3, "b", "ipv4:10.0.0.2:9")
    assert monitor.counts() == {("two-devices", 3): 2}
