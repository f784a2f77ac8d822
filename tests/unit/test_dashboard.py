"""`flower-dhb dashboard`: what it shows, that it follows, and that strangers get nothing."""

import contextlib
import http.client
import json
import os
import socket
import time
from importlib.resources import files

import numpy as np
import pytest

from flower_dhb import ConfigError, RunFolder, Topology
from flower_dhb.cli import main
from flower_dhb.dashboard.sources import RunsSource, source_of
from flower_dhb.dashboard.views import View, chart_of, view_of_mesh, view_of_run
from flower_dhb.metrics import RoundRecord
from flower_dhb.pages.reading import read_run
from flower_dhb.peer.mesh.create import MeshPlan, create_mesh, local_hosts
from flower_dhb.peer.mesh.status import FleetStatus
from flower_dhb.peer.wire import relay_pb2 as pb
from tests.support.dashboards import serving
from tests.support.peers import APP

pytestmark = pytest.mark.thorough

NAN = float("nan")


def record(k, n=4, **changes):
    evaluate = {v: {"accuracy": 1 - 0.5 / k - 0.01 * v} for v in range(n)}
    return RoundRecord(round=k, **({"evaluate": evaluate, "seconds": 0.1} | changes))


@pytest.fixture
def folder(tmp_path):
    config = {"rounds": 5, "topology": "ring:4"}
    found = RunFolder(tmp_path / "runs", "live", Topology.ring(4), config)
    found.append(record(1))
    return found


@pytest.fixture
def server(folder):
    with serving(source_of(folder.path)) as found:
        yield found


def ask(server, path=None, headers=None, method="GET"):
    """Status, headers and body of an answer; of events only as much as has come."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    with contextlib.closing(connection):
        connection.putrequest(method, path or f"/{server.token}/", skip_host=True)
        for name, value in ({"Host": f"127.0.0.1:{server.port}"} | (headers or {})).items():
            if value is not None:
                connection.putheader(name, value)
        connection.endheaders()
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read().decode()


class Events:
    """What the page's stream of events brings."""

    def __init__(self, server):
        self.connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=15)
        self.connection.request("GET", f"/{server.token}/events")
        self.answer = self.connection.getresponse()
        assert self.answer.getheader("Content-Type").startswith("text/event-stream")

    def next(self):
        while not (line := self.answer.readline()).startswith(b"data: "):
            assert line
        return json.loads(line[6:])

    def close(self):
        self.answer.close()
        self.connection.close()


# --- what is shown --------------------------------------------------------------------------


def test_a_run_at_a_moment(folder):
    folder.append(record(2, missing=[2], warnings=["they drift"], events=[(2, "out of memory")]))
    view = view_of_run(read_run(folder.path))
    assert view.sentence.startswith("round 2 of 5; 1 of 4 agents missing; accuracy 73.5% on")
    assert [(a.round, a.state, a.well) for a in view.agents] == [
        ("2", "took part", True), ("2", "took part", True), ("1", "missing", False),
        ("2", "took part", True),
    ]  # fmt: skip
    down = {(link.a, link.b) for link in view.links if link.state == "down"}
    assert down == {(1, 2), (2, 3)}
    assert view.warnings[0] == "Round 2: they drift"
    assert "1 times, last in round 2: out of memory" in view.warnings[1]
    shown = view.to_json()
    assert shown["graph"]["text"] == "4 agents, 4 edges, 2 of them down"
    assert [dot[0] for dot in shown["graph"]["dots"]] == ["", "", "ill", ""]
    assert shown["graph"]["dots"][0][1:3] == [0.0, -100.0]  # the first is at the top
    assert len(shown["chart"]["line"].split()) == 2
    assert not view.over


def test_a_chart_has_its_band_even_where_the_best_is_not_known():
    rows = [[1, 0.5, 0.25, NAN], [3, 0.75, 0.5, NAN], [4, NAN, NAN, NAN]]
    chart = chart_of("accuracy", np.array(rows))
    drawn = chart.to_json()
    assert drawn["line"] == "60.0,120.0 460.0,20.0"
    assert drawn["band"] == "60.0,120.0 460.0,20.0 460.0,120.0 60.0,220.0"
    assert [label[3] for label in drawn["labels"]] == ["25.0%", "75.0%", "round 1", "3"]
    assert chart_of("accuracy", np.full((2, 4), NAN)) is None
    one = chart_of("loss", np.array([[7, 2.0, 2.0, 2.0]])).to_json()
    assert one["line"] == "60.0,220.0"


def reply(vertex, round, phase="waiting", waits=(), up=(), down=()):
    neighbors = [pb.Neighbor(vertex=v, up=True) for v in up]
    neighbors += [pb.Neighbor(vertex=v, up=False, why_down="refused") for v in down]
    return pb.StatusReply(vertex=vertex, round=round, rounds=9, phase=phase, waits_for=waits,
                          neighbors=neighbors)  # fmt: skip


def test_a_mesh_at_a_moment():
    replies = {
        0: reply(0, 3, waits=[1], up=[1], down=[2]),
        1: reply(1, 2, phase="training", up=[0]),
    }
    fleet = FleetStatus(replies, {2: "no answer"}, ((0, 1), (0, 2), (2, 3)),
                        addresses={0: "a", 1: "b", 2: "c", 3: None}, names={1: "boat"})  # fmt: skip
    view = view_of_mesh("m", fleet, ["vertex 2: silent"], None, None)
    assert view.sentence == "2 of 4 devices answer; round 2 to 3 of 9"
    assert [(a.name, a.round, a.state, a.waits) for a in view.agents[:2]] == [
        ("0", "3", "waiting", "1 (boat)"), ("1 (boat)", "2", "training", ""),
    ]  # fmt: skip
    assert [a.well for a in view.agents] == [True, True, False, False]
    assert [link.state for link in view.links] == ["up", "down", "unknown"]
    assert view.to_json()["graph"] is None


def test_a_mesh_that_an_operator_changes_is_read_again(tmp_path):
    out = tmp_path / "m"
    create_mesh(MeshPlan(app=APP, out=out, hosts=local_hosts(3),
                         overrides={"topology": "path:3", "rounds": 50}))  # fmt: skip
    source = source_of(out)
    with contextlib.closing(source):
        (view,) = source.look()
        assert view.sentence == "0 of 3 devices answer"
        assert len(view.to_json()["graph"]["lines"]) == 2
        words = ["--neighbors", "0,2", "--offline", "--at-round", "30", "--name", "new"]
        assert main(["mesh", "add", str(out), *words, "--address", "127.0.0.1:9"]) == 0
        (view,) = source.look()
        assert view.sentence == "0 of 4 devices answer"
        assert view.agents[3].name == "3 (new)"
        assert len(view.to_json()["graph"]["lines"]) == 4


def test_the_script_is_short_and_loads_nothing():
    room = files("flower_dhb.dashboard")
    script = (room / "page.js").read_text(encoding="utf-8")
    assert len(script.splitlines()) <= 80
    text = script + (room / "page.html").read_text("utf-8") + (room / "page.css").read_text("utf-8")
    for word in ("innerHTML", "eval(", "import ", "@import", "url(", "fetch(", "https:"):
        assert word not in text
    assert text.count("http://www.w3.org/2000/svg") == text.count("http") == 1


# --- following ------------------------------------------------------------------------------


def test_the_newest_runs_of_a_folder_are_shown_and_what_is_new_appears(tmp_path):
    source = RunsSource(tmp_path)
    assert [view.sentence for view in source.look()] == ["no round is finished yet"]
    for at in range(6):
        folder = tmp_path / f"run-{at}"
        folder.mkdir()
        (folder / "history.jsonl").write_text('{"round": 1}\n')
        os.utime(folder / "history.jsonl", (at, at))
    assert [view.name for view in source.look()] == ["run-5", "run-4", "run-3", "run-2"]
    before = source.look()
    with (tmp_path / "run-2" / "history.jsonl").open("a") as file:
        file.write('{"round": 2}\n')
    after = source.look()
    assert after[0].sentence.startswith("round 2")
    assert after[1] is before[0]  # what has not changed is not read again


def test_a_page_hears_of_each_round(server, folder):
    events = Events(server)
    with contextlib.closing(events):
        assert events.next()["views"][0]["sentence"].startswith("round 1 of 5")
        for k in range(2, 6):
            folder.append(record(k, missing=[1] if k == 3 else []))
            view = events.next()["views"][0]
            assert view["sentence"].startswith(f"round {k} of 5")
            assert [row[0] for row in view["rows"]] == ["", "ill" if k == 3 else "", "", ""]
        assert "finished" in view["sentence"]


def test_a_source_that_fails_for_a_moment_is_told_and_goes_on():
    class Failing:
        pause_s = 0.01
        looks = 0

        def look(self):
            self.looks += 1
            if self.looks == 1:
                raise ConfigError("it is not there")
            return [View(name="x", sentence="here")]

        def close(self):
            self.closed = True

    source = Failing()
    with serving(source) as server:
        events = Events(server)
        with contextlib.closing(events):
            found = [events.next()]
            while not found[-1]["views"]:
                found.append(events.next())
    assert found[-1]["views"][0]["sentence"] == "here"
    assert source.closed


# --- strangers ------------------------------------------------------------------------------


def test_the_page_has_headers_that_forbid_all_but_itself(server):
    status, headers, body = ask(server)
    assert status == 200
    policy = headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "connect-src 'self'" in policy
    assert "unsafe" not in policy
    assert headers["cache-control"] == "no-store"
    assert headers["referrer-policy"] == "no-referrer"
    assert "server" not in headers
    assert server.token not in body


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/", 404),
        ("/favicon.ico", 404),
        ("/wrong/", 404),
        ("/wrong/events", 404),
        ("/{token}", 404),
        ("/{token}x/", 404),
        ("/{start}/", 404),
        ("/{token}/../../etc/passwd", 404),
        ("/{token}/%2e%2e/%2e%2e/etc/passwd", 404),
        ("/{token}//etc/passwd", 404),
        ("/{token}/events/../config.toml", 404),
        ("/%00/", 404),
        ("/%ff%fe/events", 404),
        ("/\N{LATIN SMALL LETTER E WITH ACUTE}/".encode().decode("latin-1"), 404),
        ("http://127.0.0.1/{token}/", 404),
    ],
)
def test_whoever_does_not_know_the_address_finds_nothing(server, path, status):
    path = path.format(token=server.token, start=server.token[:-1])
    head = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\nConnection: close\r\n\r\n"
    said = talk(server, head.encode("latin-1"))
    assert said.startswith((f"HTTP/1.1 {status} ".encode(), b"HTTP/1.1 400 "))
    assert b"root:" not in said
    assert b"round" not in said


def talk(server, data):
    """Bytes for bytes."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as stream:
        with contextlib.suppress(ConnectionError):
            stream.sendall(data)
        said = b""
        with contextlib.suppress(ConnectionError):
            while piece := stream.recv(65536):
                said += piece
                if b"event-stream" in said:
                    break
        return said


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": None}, 400),
        ({"Host": "evil.example"}, 421),
        ({"Host": "127.0.0.1"}, 421),
        ({"Host": "127.0.0.1:1"}, 421),
        ({"Host": "evil.example:{port}"}, 421),
        ({"Host": "127.0.0.1:{port}.evil.example"}, 421),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "https://127.0.0.1:{port}"}, 403),
        ({"Origin": "http://localhost:{port}"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Origin": "http://127.0.0.1:{port}", "Sec-Fetch-Site": "same-origin"}, 200),
        ({"Host": "localhost:{port}"}, 200),
    ],
)
def test_other_hosts_and_origins_are_refused_with_the_right_token(server, headers, status):
    filled = {k: v and v.format(port=server.port) for k, v in headers.items()}
    found, _, body = ask(server, headers=filled)
    assert found == status
    assert ("<h1>" in body) == (status == 200)


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE"])
def test_nothing_can_be_sent(server, method):
    assert ask(server, method=method)[0] == 405


def test_what_is_too_large_or_no_request_is_refused_and_the_server_goes_on(server):
    host = f"Host: 127.0.0.1:{server.port}\r\n"
    lines = "".join(f"X-{i}: x\r\n" for i in range(9999))
    large = [
        f"GET /{server.token}/ HTTP/1.1\r\n{host}X: {'x' * 100_000}\r\n\r\n",
        f"GET /{'x' * 100_000}/ HTTP/1.1\r\n{host}\r\n",
        f"GET / HTTP/1.1\r\n{host}{lines}\r\n",
    ]
    for request in [
        *large,
        "\x16\x03\x01\x02\x00\r\n\r\n",
        "GET\r\n\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ]:
        said = talk(server, request.encode("latin-1"))
        assert b" 200 " not in said[:15]
    doubled = f"GET /{server.token}/ HTTP/1.1\r\n{host}Host: evil.example\r\n\r\n"
    assert b" 200 " not in talk(server, doubled.encode())[:15]
    assert ask(server)[0] == 200


def test_many_that_only_connect_do_not_end_it(server):
    streams = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(200)]
    assert ask(server)[0] in (200, 503)
    for stream in streams:
        stream.close()
    until = time.monotonic() + 20
    while ask(server)[0] != 200:
        assert time.monotonic() < until
        time.sleep(0.05)


# --- the command ----------------------------------------------------------------------------


def test_what_cannot_be_shown_is_refused(tmp_path, capsys):
    assert main(["dashboard", str(tmp_path / "absent")]) == 2
    assert "is no folder" in capsys.readouterr().err
    assert main(["dashboard", str(tmp_path), "--port", "70000"]) == 2
    assert "--port must be 0 to 65535" in capsys.readouterr().err
