"""gRPC on loopback: who is let in, who is turned away and why, and what becomes of a stream."""

import contextlib
import dataclasses
import datetime
import queue
import socket
import threading
import time
from concurrent import futures

import grpc
import numpy as np
import pytest

from flower_dhb import ConfigError, __version__
from flower_dhb.agent import codec
from flower_dhb.agent.codec import VectorSpec
from flower_dhb.errors import NotNowError
from flower_dhb.peer.mesh.certificates import Authority, write_private
from flower_dhb.peer.protocol.events import Tick
from flower_dhb.peer.protocol.messages import Ack
from flower_dhb.peer.wire import relay_pb2 as pb
from flower_dhb.peer.wire.descriptors import CONNECTIONS
from flower_dhb.peer.wire.frames import MESSAGE_LIMIT_BYTES, WHOLE_BYTES, Outgoing
from flower_dhb.peer.wire.identity import OPERATOR, Identity
from flower_dhb.peer.wire.operations import STATUS, STOP, Operations
from flower_dhb.peer.wire.tls import TlsFiles
from flower_dhb.peer.wire.transport import EXCHANGE, Limits, Transport
from tests.support.agents import PATIENT, Shell
from tests.support.events import Events
from tests.support.waiting import wait_for

SIZE = WHOLE_BYTES // 4 + 64  # float32 elements: in chunks
SPECS = (VectorSpec("folded", "float32", SIZE),)
AGREEMENT = {"edition 1": "t", "start": "s"}
DENIED, NOBODY, GONE = (
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.UNAVAILABLE,
)


@pytest.fixture(autouse=True)
def events():
    with Events() as heard:
        yield heard


@pytest.fixture(scope="module")
def authority():
    return Authority.create("m1")


@pytest.fixture(scope="module")
def files(authority, tmp_path_factory):
    """TLS files of a vertex, written once."""
    made = {}

    def of(vertex):
        if vertex not in made:
            home = tmp_path_factory.mktemp(f"vertex{vertex}")
            key, certificate = authority.issue(vertex, 5)
            write_private(home / "key.pem", key)
            (home / "certificate.pem").write_bytes(certificate)
            (home / "authority.pem").write_bytes(authority.pem)
            names = (home / f"{name}.pem" for name in ("key", "certificate", "authority"))
            made[vertex] = TlsFiles(Identity("m1", vertex), *names)
        return made[vertex]

    return of


class Peer:
    """One transport with its agent; stopped at the end of a test."""

    def __init__(self, vertex, neighbors, *, tls=None, dial=None, listen="127.0.0.1:0", **changes):
        limits = Limits(**changes.pop("limits", {}))
        timing = dataclasses.replace(
            PATIENT, hello_s=limits.hello_s, dead_after_s=limits.dead_after_s
        )
        closed = changes.pop("closed", 0)
        self.shell = Shell(
            vertex, neighbors, lambda k: frame(vertex, k), timing=timing, closed=closed
        )
        self.monitor = self.shell.monitor
        self.asked_to_stop = 0
        kept = {"run": "r", "agreement": AGREEMENT, "vectors": SPECS}
        self.transport = Transport(
            vertex=vertex,
            neighbors=neighbors,
            deliver=self.shell.deliver,
            monitor=self.monitor,
            listen=listen,
            dial=dial or {},
            tls=tls,
            operations=Operations(
                status=lambda request: pb.StatusReply(vertex=vertex, round=request.sketch),
                stop=self._asked_to_stop,
            ),
            limits=limits,
            **(kept | changes),
        )

    def _asked_to_stop(self, _):
        self.asked_to_stop += 1
        return pb.StopReply(vertex=self.monitor.vertex, round=4)

    def __enter__(self):
        self.shell.start()
        self.transport.start()
        return self

    def __exit__(self, *_):
        self.transport.stop(1.0)

    @property
    def address(self):
        return f"127.0.0.1:{self.transport.port}"

    def link(self, j=None):
        edges = self.shell.agent.edges
        (edge,) = edges.values() if j is None else [edges[j]]
        return edge.link if edge.up else None

    def up(self):
        return self.shell.up()

    def count(self, name):
        return self.monitor.total(name)


class Caller:
    """A dialing end that says whatever a test wants."""

    def __init__(self, address, *, vertex=0, credentials=None, name=1, metadata=None):
        if credentials is None:
            self.channel = grpc.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)])
        else:
            options = [("grpc.ssl_target_name_override", f"vertex-{name}.m1.flower-dhb"),
                       ("grpc.use_local_subchannel_pool", 1)]  # fmt: skip
            self.channel = grpc.secure_channel(address, credentials, options)
        self._line = queue.Queue()
        self.metadata = (("vertex", str(vertex)),) if metadata is None else metadata
        self.call = self.channel.stream_stream(EXCHANGE)(
            iter(self._line.get, None), metadata=self.metadata, timeout=20
        )

    def say(self, raw=None, **frame):
        self._line.put(pb.Frame(**frame).SerializeToString() if raw is None else raw)

    def hear(self, kind):
        """The next frame of a kind."""
        for raw in self.call:
            frame = pb.Frame.FromString(raw)
            if frame.WhichOneof("kind") == kind:
                return getattr(frame, kind)
        raise AssertionError(f"the stream ended without {kind}")

    def end(self):
        """How the stream ends: code and details."""
        try:
            for _ in self.call:
                pass
        except grpc.RpcError:
            pass
        return self.call.code(), self.call.details()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._line.put(None)
        self.call.cancel()
        self.channel.close()


def hello(**changes):
    fields = {"version": 3, "run": "r", "vertex": 0, "neighbor": 1, "agreement": AGREEMENT}
    return pb.Hello(**(fields | changes))


def frame(vertex, round, value=1.0):
    vector = np.full(SIZE, value + vertex, np.float32)
    return codec.encode({"folded": vector}, run="r", round=round, vertex=vertex)


# --- an edge ------------------------------------------------------------------------------


@pytest.mark.parametrize("secure", [True, False])
def test_two_peers_find_each_other_and_count_the_edge(files, events, secure):
    tls = (lambda v: files(v)) if secure else (lambda v: None)
    with (
        Peer(1, (0,), tls=tls(1)) as b,
        Peer(0, (1,), tls=tls(0), listen=None, dial={1: b.address}) as a,
    ):
        assert a.transport.port is None
        for k in (1, 2):
            for peer in (a, b):
                peer.shell.wait(lambda peer=peer: peer.shell.to_train)
                peer.shell.train()
            a.shell.wait(lambda k=k: k in a.shell.used)
            b.shell.wait(lambda k=k: k in b.shell.used)
            assert a.shell.used[k] == {1: frame(1, k)}
            assert b.shell.used[k] == {0: frame(0, k)}
        link = a.link()
    # The end that stopped said why; both ends know that it is over.
    assert {"vertex": 1, "neighbor": 0, "done": False, "why": "stopping"} in events.named("goodbye")
    assert {e["vertex"] for e in events.named("connected")} == {0, 1}
    assert {e["vertex"] for e in events.named("parted")} == {0, 1}
    assert (a.link(), b.link(), link.ended.is_set()) == (None, None, True)
    assert a.count("refused.stale") == b.count("refused.stale") == 0
    assert not [t for t in threading.enumerate() if t.name in ("dial-1", "read-0")]


def test_the_hello_says_who_and_where_one_is():
    with Peer(1, (0,), closed=4) as b:
        with Caller(b.address) as caller:
            found = caller.hear("hello")
        assert (found.version, found.run, found.vertex, found.neighbor) == (3, "r", 1, 0)
        assert dict(found.agreement) == AGREEMENT
        assert (found.round, found.digest, found.closed) == (0, 0, 4)


def test_what_may_differ_is_told_and_refused_to_nobody(events):
    with (
        Peer(1, (0,), may_differ=frozenset({"start"})) as b,
        Caller(b.address) as caller,
    ):
        caller.say(hello=hello(agreement={"edition 1": "t", "start": "other"}))
        wait_for(b.link)
        assert b.count("differs.start") == 1
    (told,) = events.named("differs")
    assert (told["neighbor"], told["part"]) == (0, "start")
    assert told["why"] == (
        "vertex 0 has another start: initial arrays of the same form and other values than "
        "vertex 1 ('other' there and 's' here); copy one start.safetensors to all devices"
    )


@pytest.mark.parametrize(
    ("changes", "reason", "text"),
    [
        (
            {"version": 1},
            pb.Refusal.AGREEMENT,
            f"vertex 1 (flower_dhb {__version__}) speaks version 3 of the protocol, vertex 0 "
            "(flower_dhb unknown) version 1; upgrade flower_dhb on vertex 0",
        ),
        (
            {"version": 4, "software": "9.8.7" + 50 * "."},
            pb.Refusal.AGREEMENT,
            f"vertex 0 (flower_dhb 9.8.7{43 * '.'}) version 4; upgrade flower_dhb on vertex 1",
        ),
        ({"version": 0}, pb.Refusal.AGREEMENT, "(flower_dhb unknown) version 0; upgrade"),
        (
            {"vertex": 2},
            pb.Refusal.IDENTITY,
            "says that it is vertex 2 and wants vertex 1; its cer",
        ),
        (
            {"neighbor": 2},
            pb.Refusal.IDENTITY,
            "it is vertex 0 and wants vertex 2; its certificate",
        ),
        ({"run": "x" * 99}, pb.Refusal.AGREEMENT, f"in run '{'x' * 64}', vertex 1 in run 'r'"),
        (
            {"agreement": {"edition 1": "u" * 50, "start": "s"}},
            pb.Refusal.AGREEMENT,
            f"vertex 0 has another edition 1 of the mesh than vertex 1 ('{'u' * 48}' there and 't' "
            "here); give both the files of one and the same mesh",
        ),
    ],
)
def test_who_does_not_belong_is_told_why(changes, reason, text):
    with Peer(1, (0,)) as b, Caller(b.address) as caller:
        caller.say(hello=hello(**changes))
        refusal = caller.hear("refusal")
        assert refusal.reason == reason
        assert text in refusal.text
        assert caller.hear("goodbye").text == "refused"
        assert caller.end()[0] is grpc.StatusCode.OK
        assert b.link() is None
        name = pb.Refusal.Reason.Name(reason).lower()
        assert b.count(f"refused.{name}") == 1


def test_what_one_end_alone_knows_is_ignored(events):
    """A Hello, and frames, as a later version may send them, and an agreement as an older one."""
    with Peer(1, (0,)) as b, Caller(b.address) as caller:
        assert caller.hear("hello").software == __version__
        said = hello(agreement={"edition 1": "t", "more": "x"}, software="9.8.7")
        later = b"\xfa\x3e\x04more"  # field 1007, of no version
        caller.say(raw=pb.Frame(hello=said).SerializeToString() + later)
        wait_for(lambda: b.link() is not None)
        assert b.count("not-compared.start") == 1
        caller.say(raw=later)
        header = pb.Frame.FromString(next(Outgoing.of(frame(0, 1)).pieces())).header
        header.MergeFromString(later)
        caller.say(header=header)
        b.shell.wait(lambda: b.shell.done["Reserve"] == 1)
        assert b.count("ignored") == 1
        assert [n for n, _ in b.monitor.counts() if n.startswith("refused")] == []
        assert [(e["neighbor"], e["there"]) for e in events.named("software")] == [(0, "9.8.7")]


def test_who_comes_again_with_the_same_is_told_each_time_and_logged_once(events):
    with Peer(1, (0,)) as b:
        for version in (4, 4, 5, 5, 3):
            with Caller(b.address) as caller:
                caller.say(hello=hello(version=version))
                if version != 3:
                    assert f"version {version}; upgrade" in caller.hear("refusal").text
                else:
                    wait_for(b.link)
        wait_for(lambda: not b.up())
        with Caller(b.address) as caller:
            caller.say(hello=hello(version=5))
            caller.hear("refusal")
        told = [e["why"].rpartition("version ")[2][:1] for e in events.named("refused")]
        assert told == ["4", "5", "5"]  # since it did fit meanwhile
        assert b.count("other-version") == b.count("refused.agreement") == 5


def test_who_breaks_off_is_parted_at_once(events):
    with Peer(1, (0,)) as b:
        with Caller(b.address) as caller:
            caller.say(hello=hello())
            wait_for(lambda: b.link() is not None)
            link = b.link()
        wait_for(lambda: b.link() is None)
        assert link.ended.wait(10)
        (event,) = events.named("parted")
        assert (event["vertex"], event["neighbor"]) == (1, 0)
        assert event["why"]
        with Caller(b.address) as caller:  # never said Hello: it was never there
            caller.hear("hello")
        time.sleep(0.05)
        assert len(events.named("parted")) == 1


def test_a_message_above_the_limit_ends_the_stream():
    with Peer(1, (0,)) as b, Caller(b.address) as caller:
        caller.say(hello=hello())
        wait_for(lambda: b.link() is not None)
        caller.say(raw=bytes(MESSAGE_LIMIT_BYTES + 1))
        assert caller.end()[0] is grpc.StatusCode.RESOURCE_EXHAUSTED
        wait_for(lambda: b.link() is None)


# --- who is let in ------------------------------------------------------------------------


def credentials(files, key=True, root=None):
    own, certificate, authority = files if isinstance(files, tuple) else files.read()
    pair = (own, certificate) if key else (None, None)
    return grpc.ssl_channel_credentials(root or authority, *pair)


def test_only_neighbors_that_dial_are_let_in(files, authority, events):
    """1 has neighbors 0, which dials it, and 2, which it dials; 3 is a stranger."""
    other = Authority.create("m2", 5)
    with Peer(1, (0, 2), tls=files(1), dial={2: "127.0.0.1:1"}) as b:

        def attempt(made):
            with Caller(b.address, credentials=made) as caller:
                caller.say(hello=hello())
                return caller.end()

        code, details = attempt(credentials(files(3)))
        assert code is DENIED
        assert "vertex 3 at ipv4:127.0.0.1:" in details
        assert "is no neighbor of vertex 1" in details
        code, details = attempt(credentials(files(2)))
        assert code is DENIED
        assert "dials, but on this edge vertex 1 does" in details
        code, details = attempt(credentials(files(OPERATOR)))
        assert code is DENIED
        assert "the operator at" in details
        # An authority that is trusted, and a name of another mesh.
        authority_of_both = Authority("m2", authority._key, authority.certificate)
        key, certificate = authority_of_both.issue(0, 5)
        code, details = attempt(credentials((key, certificate, authority.pem)))
        assert code is NOBODY
        assert "names nobody of this mesh" in details
        assert b.count("turned-away.identity") == 4
        assert b.monitor.counts()["turned-away.identity", 2] == 1
        assert {e["reason"] for e in events.named("turned-away")} == {"identity"}
        # What TLS turns away before any of our code runs.
        now = datetime.datetime.now(datetime.UTC)
        day = datetime.timedelta(days=1)
        for start in (now - 9 * day, now + day):  # expired, and not valid yet
            key, certificate = authority.issue(0, 5, start)
            assert attempt(credentials((key, certificate, authority.pem)))[0] is GONE
        key, certificate = other.issue(0, 5)
        assert attempt(credentials((key, certificate, authority.pem)))[0] is GONE
        assert attempt(credentials(files(0), key=False))[0] is GONE
        assert attempt(credentials(files(0), root=other.pem))[0] is GONE  # we do not trust it
        assert b.up() == ()
        with Caller(b.address, credentials=credentials(files(0))) as caller:
            caller.say(hello=hello())
            wait_for(lambda: b.up() == (0,))


def test_a_dialing_end_wants_the_certificate_of_the_vertex_it_dials(files, events):
    with (
        Peer(3, (0,), tls=files(3)) as wrong,
        Peer(0, (1,), tls=files(0), listen=None, dial={1: wrong.address}) as a,
    ):
        wait_for(lambda: a.count("dial-failed") >= 1)
        assert wrong.up() == a.up() == ()
    assert events.named("unreachable")[0]["neighbor"] == 1
    assert a.count("disconnected") == 0


@pytest.mark.parametrize(
    "metadata", [(), (("vertex", "3"),), (("vertex", "x"),), (("vertex", "-1"),)]
)
def test_a_stranger_without_tls(metadata):
    with Peer(1, (0,)) as b, Caller(b.address, metadata=metadata) as caller:
        assert caller.end()[0] is DENIED
        assert b.count("turned-away.identity") == 1


def ask(address, made, name="vertex-1.m1.flower-dhb", *, stop=False):
    options = [("grpc.ssl_target_name_override", name), ("grpc.use_local_subchannel_pool", 1)]
    with grpc.secure_channel(address, made, options) as channel:
        call = channel.unary_unary(
            STOP if stop else STATUS,
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=(pb.StopReply if stop else pb.StatusReply).FromString,
        )
        try:
            return call(pb.StopRequest() if stop else pb.StatusRequest(sketch=5), timeout=10)
        except grpc.RpcError as error:
            return error


def test_what_is_the_operators(files, authority):
    with Peer(1, (0,), tls=files(1)) as b:
        found = ask(b.address, credentials(files(OPERATOR)))
        assert (found.vertex, found.round) == (1, 5)
        refused = ask(b.address, credentials(files(0)))
        assert refused.code() is DENIED
        assert "vertex 0 at ipv4:127.0.0.1:" in refused.details()
        assert "asks for status, which is the operator's" in refused.details()
        refused = ask(b.address, credentials(files(0)), stop=True)
        assert refused.code() is DENIED
        assert "asks it to stop, which is the operator's" in refused.details()
        assert b.asked_to_stop == 0
        assert ask(b.address, credentials(files(OPERATOR)), stop=True).round == 4
        assert b.asked_to_stop == 1
        key, certificate = Authority("m2", authority._key, authority.certificate).issue(OPERATOR, 5)
        refused = ask(b.address, credentials((key, certificate, authority.pem)))
        assert refused.code() is DENIED
        assert "somebody at" in refused.details()
        assert b.count("turned-away.identity") == 3


def test_connections_that_come_too_often_are_turned_away():
    with Peer(1, (0,), limits={"streams": (2.0, 1e-6)}) as b:
        for _ in range(2):
            with Caller(b.address) as caller:
                caller.hear("hello")
        with Caller(b.address) as caller:
            code, details = caller.end()
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert details == "neighbor 0 opens connections too often"
        assert b.monitor.counts()["turned-away.busy", 0] == 1


def test_strikes_outlive_a_connection():
    with Peer(1, (0,), limits={"refusals": (3.0, 1e-6)}) as b:
        for bad in (3, 1):
            with Caller(b.address) as caller:
                caller.say(hello=hello())
                for _ in range(bad):
                    caller.say(raw=b"\xff")
                for _ in range(bad):
                    caller.hear("refusal")
                if bad == 1:
                    assert caller.hear("goodbye").text == "too many refused frames"
        assert b.monitor.counts()["cut-off.refusals", 0] == 1


def test_short_frames_are_counted_over_all_connections():
    with Peer(1, (0,), limits={"frames": (4.0, 1e-6)}) as b:
        one = len(pb.Frame(hello=hello()).SerializeToString())
        one += len(pb.Frame(heartbeat=pb.Heartbeat()).SerializeToString())
        for n in (1, 2):
            with Caller(b.address) as caller:
                caller.say(hello=hello())
                caller.say(heartbeat=pb.Heartbeat())
                wait_for(lambda n=n: b.count("bytes-received") == n * one)
            wait_for(lambda: b.link() is None)
        with Caller(b.address) as caller:
            caller.say(hello=hello())
            caller.end()
        assert b.monitor.counts()["cut-off.flood", 0] == 1


def test_a_greedy_neighbor_takes_no_place_of_others(files):
    """It greets, never reads, and opens stream after stream, on old and new connections."""
    generous = {"streams": (1e9, 1e9), "hello_s": 5.0}
    with (
        Peer(1, (0, 2), tls=files(1), limits=generous) as b,
        contextlib.ExitStack() as greedy,
    ):
        for n in range(12):
            caller = greedy.enter_context(Caller(b.address, credentials=credentials(files(0))))
            caller.say(hello=hello())
            for _ in range(3):
                line = iter(threading.Event().wait, False)  # says nothing more, ever
                greedy.callback(caller.channel.stream_stream(EXCHANGE)(line).cancel)
            if n % 4 == 3:
                assert ask(b.address, credentials(files(OPERATOR))).vertex == 1
        with Caller(b.address, vertex=2, credentials=credentials(files(2))) as honest:
            honest.say(hello=hello(vertex=2))
            wait_for(lambda: 2 in b.up())
            assert ask(b.address, credentials(files(OPERATOR))).vertex == 1
            wait_for(lambda: len(b.transport._serving[0]) <= CONNECTIONS + 1)
            known = [way.who for way in b.transport._gate._ways.values()]
            wait_for(lambda: known.count(0) <= CONNECTIONS)
        assert b.monitor.counts()["turned-away.busy", 0] > 0


def test_a_stream_that_nobody_reads_makes_way_for_the_third():
    """Of one identity one stream lives and one dies, on one connection, too.

    Nothing goes out on a stream whose window is full, neither heartbeat nor goodbye.
    """
    with Peer(1, (0,), limits={"streams": (1e9, 1e9)}) as b, Caller(b.address) as first:
        lines = [first._line, *(queue.Queue() for _ in range(3))]
        calls = [first.call]
        links = []
        for n, line in enumerate(lines):
            if n:
                calls.append(
                    first.channel.stream_stream(EXCHANGE)(
                        iter(line.get, None), metadata=first.metadata, timeout=20
                    )
                )
            line.put(pb.Frame(hello=hello()).SerializeToString())
            wait_for(lambda: b.link() not in (None, *links))
            links.append(b.link())
            for _ in range(400):  # more than the window of a stream that is not read, grown or not
                links[n]._put(pb.Frame(refusal=pb.Refusal(text="x" * 50_000)))
            wait_for(lambda n=n: 0 < len(links[n]._control) < 400)
            wait_for(lambda n=n: b.transport._serving[0] == links[max(0, n - 1) :])
        wait_for(lambda: [link.ended.is_set() for link in links] == [True, True, False, False])
        assert b.count("turned-away.busy") == 0
        for line in lines:
            line.put(None)
        for call in calls:
            call.cancel()


def test_two_devices_with_one_identity_are_named(events):
    """Each evicts the other; the neighbor says so, and both of them are told."""
    with Peer(1, (0,)) as b, contextlib.ExitStack() as stack:
        goodbyes = []
        for instance in ("a", "b", "a"):
            metadata = (("vertex", "0"), ("instance", instance))
            caller = stack.enter_context(Caller(b.address, metadata=metadata))
            caller.say(hello=hello())
            wait_for(lambda: b.link() is not None)
            goodbyes.append(caller)
            caller.hear("hello")
        assert goodbyes[0].hear("goodbye").text == "replaced by a newer connection"
        why = goodbyes[1].hear("goodbye").text
        assert why.startswith("two devices show the certificate of vertex 0, at ipv4:127.0.0.1:")
        assert why == events.named("two-devices")[0]["why"]
        assert b.monitor.counts()["two-devices", 0] == 1


def test_both_ends_name_themselves():
    with (
        Peer(1, (0,)) as b,
        Peer(0, (1,), listen=None, dial={1: b.address}) as a,
    ):
        wait_for(lambda: a.up() and b.up())
        assert list(a.transport._doubles._seen[1]) == [b.transport._instance]
        assert list(b.transport._doubles._seen[0]) == [a.transport._instance]
        assert a.transport._doubles._seen[1][b.transport._instance] == b.address


# --- who is cut off -----------------------------------------------------------------------


def test_a_stream_without_a_hello_ends():
    """The protocol says so at its deadline; here nobody's clock ticks but the test's."""
    with Peer(1, (0,), limits={"hello_s": 0.15}) as b, Caller(b.address) as caller:
        caller.hear("hello")
        begin = time.monotonic()
        b.shell.deliver(Tick())
        assert b.count("cut-off.half-open") == 0
        wait_for(lambda: b.shell.agent.next_deadline() <= time.monotonic())
        b.shell.deliver(Tick())
        caller.end()
        assert time.monotonic() - begin < 5.0
        assert b.count("cut-off.half-open") == 1
        wait_for(lambda: b.shell.edge(0).link is None)


@pytest.mark.parametrize("answers", [False, True])
def test_the_dialing_end_says_nothing_before_the_other_end_is_there(events, answers):
    """A server that lets the stream in and stays silent; the attempt ends after hello_s."""
    heard, go = [], threading.Event()

    def silent(requests, context):
        if answers:
            context.send_initial_metadata(())
        heard.append(next(requests, None))
        go.wait(10)
        yield from ()

    server = grpc.server(futures.ThreadPoolExecutor(2))
    handler = grpc.stream_stream_rpc_method_handler(silent)
    service, _, method = EXCHANGE.strip("/").rpartition("/")
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(service, {method: handler}),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    quick = {"hello_s": 0.3, "retry_s": 60.0, "retry_max_s": 60.0}
    try:
        with Peer(0, (1,), listen=None, dial={1: f"127.0.0.1:{port}"}, limits=quick) as a:
            if answers:
                wait_for(lambda: heard)
                assert pb.Frame.FromString(heard[0]).hello.vertex == 0
                assert a.shell.edge(1).link is not None
            else:
                wait_for(lambda: a.count("cut-off.half-open") == 1)
                wait_for(lambda: a.count("dial-failed") == 1)
                assert a.shell.done == {}  # it never knew
    finally:
        go.set()
        server.stop(0).wait()
    assert answers or not any(heard)


def test_a_connection_that_is_over_before_it_is_told_of_is_over():
    """However the threads run: the protocol is left with no link."""
    with Peer(1, (0,)) as b:
        for _ in range(20):
            with Caller(b.address):
                pass
        wait_for(lambda: not b.transport._links)
        wait_for(lambda: b.shell.edge(0).link is None)


class Pauses(threading.Event):
    """An Event whose waits take no time; at the last of so many the transport stops."""

    def __init__(self, peer, n):
        super().__init__()
        self.peer, self.n, self.taken = peer, n, []

    def wait(self, timeout=None):
        self.taken.append(timeout)
        if len(self.taken) >= self.n:
            self.peer.transport._stopping.set()
        return False


# --- dialing ------------------------------------------------------------------------------


@pytest.mark.parametrize("vertex", [0, 7])
def test_the_pauses_between_attempts_grow_and_differ_between_peers(vertex):
    with socket.create_server(("127.0.0.1", 0)) as probe:
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    peer = Peer(vertex, (1,), listen=None, dial={1: address},
                limits={"retry_s": 0.25, "retry_max_s": 3.0})  # fmt: skip
    pauses = Pauses(peer, 6)
    peer.transport._keep_dialing(1, pauses)
    rng = np.random.default_rng([vertex, 1])
    want = [pause * rng.uniform(0.5, 1.5) for pause in (0.25, 0.5, 1.0, 2.0, 3.0, 3.0)]
    assert pauses.taken == pytest.approx(want, rel=1e-12)
    assert peer.monitor.counts()["dial-failed", 1] == 6


def test_after_a_connection_the_pauses_begin_anew():
    """It failed twice, then was let in: the next attempt comes soon."""
    peer = Peer(0, (1,), listen=None, dial={1: "x"}, limits={"retry_s": 0.25, "retry_max_s": 3.0})
    pauses = Pauses(peer, 4)
    answers = iter([("no", False), ("no", False), ("ended", True), ("no", False)])
    peer.transport._dial_once = lambda neighbor, address: next(answers)
    peer.transport._keep_dialing(1, pauses)
    rng = np.random.default_rng([0, 1])
    draws = [rng.uniform(0.5, 1.5) for _ in range(4)]
    taken = [t / d for t, d in zip(pauses.taken, draws, strict=True)]
    assert taken[:2] == pytest.approx([0.25, 0.5])
    assert taken[3] == pytest.approx(0.25)
    assert peer.count("dial-failed") == 3
    assert peer.count("disconnected") == 1


def test_dialing_goes_on_until_somebody_listens(events):
    with socket.create_server(("127.0.0.1", 0)) as probe:
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    quick = {"retry_s": 0.01, "retry_max_s": 0.02}
    with Peer(0, (1,), listen=None, dial={1: address}, limits=quick) as a:
        wait_for(lambda: a.count("dial-failed") >= 2)
        with Peer(1, (0,), listen=address) as b:
            a.shell.wait(a.up)
            b.shell.wait(b.up)
        wait_for(lambda: a.count("disconnected") >= 1)


def test_neighbors_change_while_it_runs(events):
    """One is dialed elsewhere from the next time on, one goes, and one comes."""
    quick = {"retry_s": 0.01, "retry_max_s": 0.02}
    with Peer(1, (0,)) as b, Peer(2, (0,)) as c, Peer(1, (0,)) as moved:
        dial = {1: b.address}
        with Peer(0, (1, 2), listen=None, dial=dial, limits=quick) as a:
            wait_for(lambda: a.link(1) is not None)
            first = a.link(1)
            limits = dataclasses.replace(a.transport.limits, frames=(7.0, 3.0))
            a.transport.meet({1: moved.address, 2: c.address}, limits)
            wait_for(lambda: a.link(2) is not None and c.up())
            assert a.link(1) is first  # what stands stays
            assert (first._short_frames._burst, first._short_frames._per_s) == (7.0, 3.0)
            b.transport.stop(1.0)
            wait_for(lambda: a.link(1) not in (None, first) and moved.up())
            a.transport.meet({1: moved.address})
            wait_for(lambda: not c.up())
            wait_for(lambda: list(a.transport._dialers) == [1])
            assert a.link(1) is not None


def test_files_that_do_not_fit_are_an_attempt_that_failed(files, events, tmp_path):
    home = tmp_path
    broken = TlsFiles(Identity("m1", 0), home / "key.pem", home / "c.pem", home / "a.pem")
    quick = {"retry_s": 0.01, "retry_max_s": 0.02}
    peer = Peer(0, (1,), listen=None, dial={1: "127.0.0.1:1"}, tls=broken, limits=quick)
    with pytest.raises(ConfigError, match="cannot read"):
        peer.transport.start()
    peer.transport._keep_dialing(1, Pauses(peer, 1))
    assert "cannot read" in events.named("unreachable")[0]["why"]


def test_an_address_in_use_is_an_error_with_the_vertex():
    with Peer(1, (0,)) as b:
        again = Peer(4, (0,), listen=b.address)
        with pytest.raises(NotNowError, match=f"vertex 4: cannot listen on {b.address}: "):
            again.transport.start()


def test_stopping_frees_the_port():
    with Peer(1, (0,)) as b:
        address = b.address
    host, _, port = address.rpartition(":")
    socket.create_server((host, int(port))).close()


# --- what the surroundings bring ----------------------------------------------------------


def test_a_proxy_of_the_web_is_not_asked(monkeypatch):
    """A neighbor is dialed, whatever the environment names for web pages."""
    for name in ("http_proxy", "https_proxy", "grpc_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.delenv("no_proxy", raising=False)
    with Peer(1, (0,)) as b, Peer(0, (1,), listen=None, dial={1: b.address}) as a:
        wait_for(lambda: a.up() and b.up())


def test_an_ipv6_address_that_is_dialed_needs_ipv6_on_the_loopback_interface(monkeypatch):
    """gRPC would not dial it, and not say why; what listens asks the system itself."""

    class Machine(socket.socket):
        def bind(self, address):
            raise OSError(99, "Cannot assign requested address")

    monkeypatch.setattr(socket, "socket", Machine)
    peer = Peer(0, (1,), listen=None, dial={1: "[fd00::10]:9440"})
    with pytest.raises(ConfigError, match=r"is an IPv6 address.*::1: Cannot assign.*lo up"):
        peer.transport.start()
    peer = Peer(0, (1,), listen="[::]:0")
    with pytest.raises(NotNowError, match=r"cannot listen on \[::\]:0: .*Cannot assign"):
        peer.transport.start()


@pytest.mark.parametrize("accepting", [True, False])
def test_a_defect_that_a_neighbors_bytes_find_is_named_and_ends_the_connection(
    events, monkeypatch, accepting
):
    def fail(raw):
        raise RuntimeError("no such case")

    quick = {"retry_s": 0.01, "retry_max_s": 0.02}
    with (
        Peer(1, (0,)) as b,
        Peer(0, (1,), listen=None, dial={1: b.address}, limits=quick) as a,
    ):
        wait_for(lambda: a.up() and b.up())
        here, there = (b, a) if accepting else (a, b)
        before = here.link()
        monkeypatch.setattr(before, "receive", fail)
        there.link().send(Ack(1, 1))
        wait_for(lambda: here.count("reader-failed") == 1)
        (event,) = events.named("reader-failed")
        assert (event["why"], event["neighbor"]) == (
            "RuntimeError: no such case", there.transport.vertex,
        )  # fmt: skip
        assert "in fail" in event["where"]
        wait_for(lambda: here.link() not in (None, before), "a new connection")
