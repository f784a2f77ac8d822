"""How a peer tells how it is: counters, log lines, patience, status, and the operator's view."""

import io
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request

import grpc
import numpy as np
import pytest

from flower_dhb import ConfigError, __version__
from flower_dhb.metrics import sketch
from flower_dhb.peer.mesh.fleet import Fleet
from flower_dhb.peer.mesh.fleet import _reason as reason_of
from flower_dhb.peer.monitor import LOGGER, Monitor, set_up_logging
from flower_dhb.peer.protocol.agent import Agent, Phase
from flower_dhb.peer.protocol.edge import Connection
from flower_dhb.peer.protocol.edition import Edition
from flower_dhb.peer.protocol.events import Payload
from flower_dhb.peer.protocol.patience import Patience
from flower_dhb.peer.protocol.settings import Config, Timing
from flower_dhb.peer.watch.lately import Lately
from flower_dhb.peer.watch.metrics import serve_metrics
from flower_dhb.peer.watch.status import FINISHED, Progress
from flower_dhb.peer.wire import native_log
from flower_dhb.peer.wire import relay_pb2 as pb
from flower_dhb.peer.wire.native_log import handshake_reason, let_native_log_speak
from tests.support.events import Events

# --- counters -----------------------------------------------------------------------------


def test_counters_by_name_and_neighbor():
    monitor = Monitor(3)
    monitor.count("late", 1)
    monitor.count("late", 2, 5)
    monitor.count("late", 1, by=2)
    monitor.count("later")
    assert monitor.counts() == {("late", 1): 3, ("late", 2): 5, ("later", None): 1}
    assert monitor.named() == {"late.1": 3, "late.2": 5, "later": 1}
    assert (monitor.total("late"), monitor.total("later"), monitor.total("never")) == (8, 1, 0)
    monitor.counts()["late", 1] = 0  # a copy
    assert monitor.total("late") == 8


# --- log lines ----------------------------------------------------------------------------


@pytest.fixture
def loggers_as_before():
    others = (logging.getLogger(name) for name in ("flwr", "grpc"))
    before = [(lg, lg.handlers[:], lg.level, lg.propagate) for lg in (LOGGER, *others)]
    yield
    for lg, handlers, level, propagate in before:
        for handler in set(lg.handlers) - set(handlers):
            handler.close()
        lg.handlers[:], lg.level, lg.propagate = handlers, level, propagate


@pytest.mark.usefixtures("loggers_as_before")
@pytest.mark.parametrize("form", ["json", "text"])
def test_a_line_per_event_with_its_time_level_and_fields(form):
    stream = io.StringIO()
    set_up_logging(form, stream)
    monitor = Monitor(3, {3: "arm"})
    monitor.event("finished", round=4)
    monitor.warning("made-up", why="x y", part=2)
    monitor.event("chatter", logging.DEBUG)
    logging.getLogger("flwr").info("from flower %s", 7)
    try:
        raise ValueError("broken")
    except ValueError:
        LOGGER.exception("failed")
    record = logging.makeLogRecord({"created": 0.0625, "msg": "m", "levelname": "INFO"})
    line = LOGGER.handlers[0].format(record)
    if form == "json":
        lines = [json.loads(text) for text in stream.getvalue().splitlines()]
        assert [{k: v for k, v in d.items() if k != "time"} for d in lines[:3]] == [
            {
                "level": "info",
                "event": "finished",
                "vertex": 3,
                "round": 4,
                "name": "arm",
                "message": "the last round, 4, is over; the model is written",
            },
            {
                "level": "warning",
                "event": "made-up",
                "vertex": 3,
                "why": "x y",
                "part": 2,
                "name": "arm",
                "message": "made-up",
            },
            {"level": "info", "event": "from flower 7", "message": "from flower 7"},
        ]
        assert "ValueError: broken" in lines[3]["exception"]
        assert "exception" not in lines[0]
        assert len(lines) == 4
        assert json.loads(line)["time"] == "1970-01-01T00:00:00.062+00:00"
    else:
        lines = [text.split(" ", 1)[1] for text in stream.getvalue().splitlines()]
        assert lines[:3] == [
            "info    vertex 3 (arm): the last round, 4, is over; the model is written",
            'warning vertex 3 (arm): made-up why="x y" part=2',
            "info    from flower 7",
        ]
        assert lines[3] == "error   failed (ValueError: broken)"
        assert line == "1970-01-01T00:00:00.062+00:00 info    m"


@pytest.mark.usefixtures("loggers_as_before")
def test_a_second_set_up_takes_the_place_of_the_first():
    first, second = io.StringIO(), io.StringIO()
    set_up_logging("json", first)
    set_up_logging("json", second)
    Monitor(0).event("x", what=object)  # whatever it is, it can be written
    assert (first.getvalue(), len(second.getvalue().splitlines())) == ("", 1)
    assert not LOGGER.propagate
    assert LOGGER.level == logging.INFO


# --- gRPC's own log -----------------------------------------------------------------------

FAILED = "E0000 ssl.cc:1] Handshake failed with error SSL_ERROR_SSL: "


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("certificate has expired", "its certificate has expired, or this clock is wrong"),
        (
            "certificate is not yet valid",
            "its certificate is not valid yet, or this clock is wrong",
        ),
        ("BAD_SIGNATURE", "its certificate is signed by another authority"),
        ("self signed certificate", "its certificate is self-made"),
        ("self-signed certificate", "its certificate is self-made"),
        ("unable to get local issuer", "its certificate is signed by an unknown authority"),
        ("PEER_DID_NOT_RETURN_A_CERTIFICATE", "it showed no certificate"),
        ("WRONG_VERSION_NUMBER", "it does not speak TLS"),
        ("HTTP_REQUEST", "it does not speak TLS"),
        ("error:1000: SSL routines:OPENSSL_internal:NEW_KIND2: x", "NEW_KIND2"),
        ("nothing known", "the TLS handshake failed"),
    ],
)
def test_a_refused_handshake_in_words(text, reason):
    assert handshake_reason(FAILED + text) == reason
    assert handshake_reason(text) is None


@pytest.mark.parametrize(
    ("before", "after"),
    [(None, "info"), ("error", "info"), ("NONE", "info"), ("debug", "debug"), ("info", "info")],
)
def test_the_library_may_speak_unless_somebody_asked_it_for_more(monkeypatch, before, after):
    monkeypatch.delenv("GRPC_VERBOSITY", raising=False)
    if before is not None:
        monkeypatch.setenv("GRPC_VERBOSITY", before)
    let_native_log_speak()
    assert os.environ["GRPC_VERBOSITY"] == after


def test_what_the_library_writes_becomes_events():
    reader, writer = socket.socketpair()
    lines = [
        FAILED + "BAD_SIGNATURE",
        "I0000 loading.cc:1] just information",
        "E0000 x.cc:3] No match found for server name: vertex-1.",
        "W0000 Log level INFO is on",
        "",
        "E0000 x.cc:9] " + "y" * 600,
    ]
    writer.sendall("\n".join(lines).encode() + b"\n\xff")  # the last one is never ended
    writer.close()
    monitor = Monitor(3)
    with Events() as events:
        native_log._read(reader, monitor)
    assert events.named("turned-away") == [
        {"vertex": 3, "reason": "handshake",
         "why": "its certificate is signed by another authority"}
    ]  # fmt: skip
    assert monitor.counts() == {("turned-away.handshake", None): 1}
    assert [e["why"] for e in events.named("native")] == [lines[-1][:500], "�"]


def test_standard_error_itself_is_left_as_it_was(capfd, monkeypatch):
    """Python's goes where it went; what is written to the descriptor is read."""
    monkeypatch.setattr(sys, "stderr", open(2, "w", closefd=False))  # noqa: SIM115
    monkeypatch.setattr(native_log.faulthandler, "enable", lambda file: None)
    sys.stderr.write("begun ")
    before = os.dup(2)
    heard = threading.Event()
    monitor = Monitor(3)
    try:
        with Events() as events:
            original = events.emit
            events.emit = lambda record: (original(record), heard.set())
            native_log.capture_native_log(monitor)
            print("from Python", file=sys.stderr)
            sys.stderr.close()
            os.write(2, b"E0000 from the library\n")
            assert heard.wait(10)
        assert [e["why"] for e in events.named("native")] == ["E0000 from the library"]
    finally:
        os.dup2(before, 2)  # the last writer's end: the reading thread ends
        os.close(before)
        guard, lifeline = native_log._GUARDS.pop()
        os.close(lifeline)
        assert guard.wait(10) == 0  # as it does when this process ends
    for thread in threading.enumerate():
        if thread.name == "native-log":
            assert thread.daemon  # it outlives nobody
            thread.join(10)
            assert not thread.is_alive()
    assert capfd.readouterr().err == "begun from Python\n"


CHILD = """
import ctypes, os, signal, sys
from flower_dhb.peer.monitor import Monitor, set_up_logging
from flower_dhb.peer.wire.native_log import capture_native_log

capture_native_log(Monitor(3))
set_up_logging("text")
os.write(2, b"E0000 a line that is read\\n")
while sys.argv[1] == "abort" and "read" not in open(sys.argv[2]).read():
    pass
held = ctypes.PyDLL(None)  # keeps Python's lock: no thread of Python's runs any more
held.write(2, b"F0000 check failed: last words\\n", 31)
held.abort() if sys.argv[1] == "abort" else held._exit(7)
"""


@pytest.mark.parametrize("end", ["abort", "exit"])
def test_last_words_of_a_library_reach_standard_error(tmp_path, end):
    """What is written right before the process dies, when nobody here can read it any more."""
    path = tmp_path / "err"
    with path.open("wb") as err:
        child = subprocess.Popen([sys.executable, "-c", CHILD, end, str(path)], stderr=err)
        assert child.wait(30) == (-signal.SIGABRT if end == "abort" else 7)
    wait_until = time.monotonic() + 10.0
    while "last words" not in (text := path.read_text()):
        assert time.monotonic() < wait_until, text
        time.sleep(0.01)
    if end == "abort":
        assert "native" in text  # the line before, told as an event
        assert "Fatal Python error: Aborted" in text
        assert text.count("a line that is read") == 1


# --- patience -----------------------------------------------------------------------------


def patience(times=(), **limits):
    made = Patience(**{"factor": 3.0, "least_s": 1.0, "ceiling_s": 10.0, **limits})
    now = 0.0
    made.arrived(1, now)
    for k, seconds in enumerate(times, start=2):
        now += seconds
        made.arrived(k, now)
    return made


@pytest.mark.parametrize(
    ("times", "deadline"),
    [
        ((), 10.0),  # one payload tells no pace
        ((2.0,), 6.0),
        ((0.1,), 1.0),
        ((9.0,), 10.0),
        ((1.0, 2.0, 3.0), 6.0),
        ((1.0, 2.0, 3.0, 2.5), 6.75),  # the median of an even number
        ((3.0,) * 8 + (1.0,) * 8, 6.0),
        ((3.0,) * 20 + (1.0,) * 9, 3.0),  # sixteen rounds are looked at
    ],
)
def test_the_deadline_is_a_multiple_of_the_usual_time(times, deadline):
    assert patience(times).deadline_s == pytest.approx(deadline, rel=1e-12)


def test_only_the_round_after_tells_the_pace():
    made = patience((2.0,))
    assert made.usual_s == 2.0
    made.arrived(4, 50.0)  # round 3 did not come
    assert made.usual_s == 2.0
    made.arrived(5, 54.0)  # counted from the last that came
    assert made.usual_s == 3.0
    made.arrived(5, 90.0)
    made.arrived(4, 99.0)
    assert made.usual_s == 3.0
    assert Patience(factor=1.0, least_s=0.0, ceiling_s=1.0).usual_s == 0.0


def test_each_miss_halves_the_deadline_and_after_the_sixth_there_is_none():
    made = patience((2.0,))
    deadlines = []
    for _ in range(7):
        deadlines.append(made.deadline_s)
        made.missed()
    assert deadlines == [6.0, 3.0, 1.5, 0.75, 0.375, 0.1875, 0.0]


def test_being_in_time_halves_the_misses():
    made = patience((2.0,))
    for _ in range(5):
        made.missed()
    now, misses = 10.0, []
    for k in range(20, 24):
        made.arrived(k, now)
        misses.append(made.misses)
    assert misses == [2, 1, 0, 0]


@pytest.mark.parametrize(("misses", "after"), [(0, 0), (1, 1), (9, 1)])
def test_who_returns_gets_at_least_half_of_the_time(misses, after):
    made = patience((2.0,))
    for _ in range(misses):
        made.missed()
    made.returned()
    assert made.misses == after


def test_the_least_time_is_not_above_the_ceiling():
    assert patience((0.1,), least_s=60.0, ceiling_s=5.0).deadline_s == 5.0


# --- status -------------------------------------------------------------------------------


def progress(neighbors=(0, 2), rounds=50):
    monitor = Monitor(1)
    timing = Timing(ceiling_s=8.0)
    config = Config(vertex=1, editions=(Edition(1, 1, rounds, neighbors),), timing=timing)
    agent = Agent(config, time.monotonic())
    lately = Lately(agent, time.monotonic())
    return Progress("r", agent, monitor, lately), agent, monitor


def test_a_status_holds_everything_that_the_operator_sees():
    here, agent, monitor = progress()
    first = here.reply(pb.StatusRequest(sketch=16))
    assert (first.phase, first.round, first.seconds_per_round) == ("loading", 0, 0.0)
    assert list(first.sketch) == []
    up, down = agent.edges[2], agent.edges[0]
    up.connection, up.wants, up.one_sided_total = Connection.UP, 7, 3
    up.settled = False
    down.patience.missed()
    down.rounds_missed = 4
    down.doubt(2)
    monitor.count("bytes-sent", 0, 10)
    monitor.count("bytes-sent", 2, 5)
    monitor.count("bytes-received", 2, 7)
    agent.phase = Phase.TRAINING
    here.metrics["loss"] = 0.5
    x = np.arange(6.0)
    for k, seconds in enumerate((1.0, 9.0, 2.0), start=3):
        here.finished_round(k, seconds, x)
    time.sleep(0.01)
    found = here.reply(pb.StatusRequest(sketch=16))
    assert (found.vertex, found.run, found.round, found.rounds) == (1, "r", 5, 50)
    assert (found.phase, found.seconds_per_round) == ("training", 2.0)
    assert (found.bytes_sent, found.bytes_received) == (15, 7)
    assert [(n.vertex, n.up, n.round, n.deadline_s, n.misses) for n in found.neighbors] == [
        (0, False, 0, 4.0, 4),
        (2, True, 7, 8.0, 0),
    ]
    assert [(n.one_sided, n.in_doubt) for n in found.neighbors] == [(0, 1), (3, 1)]
    assert dict(found.counts) == {"bytes-sent.0": 10, "bytes-sent.2": 5, "bytes-received.2": 7}
    assert dict(found.metrics) == {"loss": 0.5}
    np.testing.assert_array_equal(found.sketch, sketch(x, 16, "r").astype(np.float32))
    assert 0.0 < first.uptime_s < found.uptime_s < 60.0


def test_who_is_alone_says_since_when():
    here, agent, _ = progress()
    agent.near.closed, agent.mixed = 9, 7
    assert not here.reply(pb.StatusRequest()).HasField("alone_since")
    agent.mixed = 2
    assert here.reply(pb.StatusRequest()).alone_since == 2
    agent.mixed = 0  # in no round at all
    found = here.reply(pb.StatusRequest())
    assert (found.HasField("alone_since"), found.alone_since) == (True, 0)


@pytest.mark.parametrize(
    ("phase", "final", "word"),
    [
        (Phase.WAITING, False, "waiting"),
        (Phase.FINISHING, False, "finishing"),
        (Phase.LINGERING, True, FINISHED),
        (Phase.STOPPED, True, FINISHED),
        (Phase.STOPPED, False, "stopped"),
    ],
)
def test_finished_is_whose_model_is_on_the_disk(phase, final, word):
    here, agent, _ = progress()
    agent.phase = phase
    agent.near.final = Payload(1, None) if final else None
    assert here.reply(pb.StatusRequest()).phase == word


def test_removed_is_who_is_no_member_any_more():
    here, agent, _ = progress()
    agent.near.editions.learn(Edition(2, 5, 50, (), member=False, members_since=2))
    agent.phase, agent.near.final = Phase.LINGERING, Payload(1, None)
    assert here.reply(pb.StatusRequest()).phase == "removed"


@pytest.mark.parametrize(("asked", "given"), [(0, 0), (1, 1), (4096, 4096), (2**31, 4096)])
def test_a_sketch_is_as_long_as_asked_for_within_a_limit(asked, given):
    here, _, _ = progress()
    here.finished_round(1, 1.0, np.ones(5000))
    assert len(here.reply(pb.StatusRequest(sketch=asked)).sketch) == given


def test_the_usual_time_is_of_the_last_sixteen_rounds():
    here, _, _ = progress()
    for k in range(40):
        here.finished_round(k, 5.0 if k < 31 else 1.0, np.ones(1))
    assert here.seconds_per_round == 1.0


def test_numbers_for_prometheus_on_loopback_only():
    here, agent, monitor = progress()
    agent.edges[2].connection = Connection.UP
    agent.edges[0].one_sided_total, agent.edges[2].one_sided_total = 2, 3
    monitor.count("late", 2, 3)
    monitor.count("rejoined")
    here.metrics["loss"] = 0.5
    here.finished_round(7, 2.0, np.ones(1))
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    stop = serve_metrics(port, here.reply)
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
    finally:
        stop()
    assert {
        'flower_dhb_round{vertex="1"} 7.0',
        'flower_dhb_rounds{vertex="1"} 50.0',
        'flower_dhb_seconds_per_round{vertex="1"} 2.0',
        'flower_dhb_left_seconds{vertex="1"} 86.0',
        'flower_dhb_neighbors_up{vertex="1"} 1.0',
        'flower_dhb_neighbors{vertex="1"} 2.0',
        'flower_dhb_neighbor_up{neighbor="0",vertex="1"} 0.0',
        'flower_dhb_neighbor_up{neighbor="2",vertex="1"} 1.0',
        'flower_dhb_one_sided{vertex="1"} 5.0',
        'flower_dhb_alone{vertex="1"} 0.0',
        'flower_dhb_stalled_seconds{vertex="1"} 0.0',
        'flower_dhb_app{name="loss",vertex="1"} 0.5',
        'flower_dhb_events_total{event="late",neighbor="2",vertex="1"} 3.0',
        'flower_dhb_events_total{event="rejoined",neighbor="",vertex="1"} 1.0',
        f'flower_dhb_info{{phase="loading",version="{__version__}",vertex="1"}} 1.0',
    } <= set(lines)
    assert not [x for x in lines if "heard_seconds{" in x]  # nothing has been heard: not known
    with socket.create_server(("127.0.0.1", port)):
        pass  # it has stopped: the port is free


# --- the operator's connections ------------------------------------------------------------


def write_mesh(tmp_path, **changes):
    import tomli_w

    document = {
        "mesh": "m",
        "run": "0001",
        "topology": "path:2",
        "weights": "metropolis",
        "edition": 1,
        "next-vertex": 2,
        "device": {},
        "algorithm": {"name": "dsgd"},
        "plaintext": True,
        "edges": [{"between": [0, 1], "dials": 0}],
        "hosts": [{"vertex": 0}, {"vertex": 1, "address": "127.0.0.1:1"}],
        **changes,
    }
    (tmp_path / "mesh.toml").write_text(tomli_w.dumps(document))
    return Fleet(tmp_path)


def test_a_fleet_is_what_its_mesh_file_says(tmp_path):
    with pytest.raises(ConfigError, match=r"mesh.toml: No such file.*; 'mesh create' writes it"):
        Fleet(tmp_path)
    fleet = write_mesh(tmp_path)
    assert fleet.edges == ((0, 1),)
    assert fleet.hosts == {0: None, 1: "127.0.0.1:1"}


def test_who_cannot_be_asked_and_who_does_not_listen(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as probe:
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    fleet = write_mesh(tmp_path, hosts=[{"vertex": 0}, {"vertex": 1, "address": address}])
    try:
        found = fleet.status(timeout_s=5.0)
    finally:
        fleet.close()
    assert found.failures == {
        0: "it has no address that could be asked",
        1: f"nothing listens at {address}",
    }
    assert (found.replies, found.edges) == ({}, ((0, 1),))


class Failed(grpc.RpcError):
    def __init__(self, code, details):
        self.code, self.details = lambda: code, lambda: details


@pytest.mark.parametrize(
    ("code", "details", "text"),
    [
        (grpc.StatusCode.UNAVAILABLE, "x: Connection refused", "nothing listens at a:1"),
        (grpc.StatusCode.UNAVAILABLE, "x: connection refused (111)", "nothing listens at a:1"),
        (grpc.StatusCode.UNAVAILABLE, "x: No route to host", "a:1: no network leads there"),
        (grpc.StatusCode.INTERNAL, "y" * 300, ("a:1: " + "y" * 300)[:200]),
    ],
)
def test_why_a_peer_did_not_answer(code, details, text):
    assert reason_of(Failed(code, details), "a:1") == text


def test_somebody_who_takes_connections_and_says_nothing():
    """A process that was stopped: its kernel goes on without it."""
    error = Failed(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded")
    with socket.create_server(("127.0.0.1", 0)) as held:
        address = f"127.0.0.1:{held.getsockname()[1]}"
        assert reason_of(error, address) == f"{address} takes connections and does not answer"
    assert reason_of(error, address) == (
        f"{address}: no answer: the device is off or away, or a firewall drops what is sent to it"
    )


def test_after_the_end_nobody_is_asked(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as probe:
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    fleet = write_mesh(tmp_path, hosts=[{"vertex": 1, "address": address}])
    fleet.status(5.0)
    fleet.close()
    with pytest.raises(ValueError, match="closed channel"):
        fleet.status(5.0)
