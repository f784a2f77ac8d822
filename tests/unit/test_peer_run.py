"""Whole peers in one process, over loopback: settings in, files and events out, by value."""

import dataclasses
import json
import sys
import threading
import time
import tomllib
import types

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from flower_dhb import ConfigError, HeavyBall, PayloadError, RoundError, Topology
from flower_dhb.agent import codec
from flower_dhb.agent.node import Node
from flower_dhb.agent.policy import Policy
from flower_dhb.peer.device.code import digest_of_code, digest_of_folder
from flower_dhb.peer.device.daemon import Peer, Result
from flower_dhb.peer.device.journal import Journal
from flower_dhb.peer.mesh.fleet import Fleet
from flower_dhb.peer.protocol import agent as protocol
from flower_dhb.peer.protocol.events import (
    Acknowledged,
    Completed,
    Connected,
    Greeted,
    Offered,
    Payload,
)
from flower_dhb.peer.protocol.messages import Hello, Offer, Seek
from flower_dhb.peer.protocol.settings import Timing
from flower_dhb.peer.watch.replay import of_mesh
from flower_dhb.peer.wire import relay_pb2 as pb
from flower_dhb.types import Layout
from tests.support.events import Events
from tests.support.peer_app.quadratics import local_step, target
from tests.support.peers import Mesh

pytestmark = pytest.mark.thorough

SIZE, RATE = 4, 0.25
START = np.random.default_rng([0, 7]).standard_normal(SIZE)


@pytest.fixture(autouse=True)
def events():
    with Events() as heard:
        yield heard


def made(tmp_path, n=2, plaintext=True, **overrides):
    """A mesh of files, and each peer's settings."""
    peer = {
        "start-timeout-s": 10.0,
        "linger-s": 5.0,
        "timing": {"ceiling-s": 10.0, "least-s": 10.0},
        **overrides.pop("peer", {}),
    }
    kept = {"topology": f"path:{n}", "rounds": 4, "size": SIZE, "rate": RATE, "momentum": 0.8}
    mesh = Mesh(tmp_path / "m", n=n, plaintext=plaintext, peer=peer, **(kept | overrides))
    return mesh, [mesh.settings(v) for v in range(n)]


def run(settings):
    """Run peers at the same time, each in a thread; whether each came to its end, or why not."""
    peers = [Peer(one) for one in settings]
    ends = [None] * len(peers)

    def one(i):
        try:
            ends[i] = peers[i].run()
        except Exception as error:
            ends[i] = error

    threads = [threading.Thread(daemon=True, target=one, args=(i,)) for i in range(len(peers))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    return peers, ends


def reference(n, rounds, rule=None, start=START):
    """What the law says: parameters by round, of all agents."""
    graph, rule = Topology.path(n), rule or HeavyBall(momentum=0.8)
    layout = Layout.of({"x": start})
    weights = [{j: float(w) for j, w in enumerate(graph.row(v)) if w} for v in range(n)]
    nodes = [Node.start(v, rule, weights[v], layout, {"x": start}) for v in range(n)]
    by_round = [np.stack([node.parameters for node in nodes])]
    for k in range(1, rounds + 1):
        payloads = [
            node.adapt(k, {"x": local_step(node.parameters, v, RATE)})
            for v, node in enumerate(nodes)
        ]
        for node in nodes:
            for j in node.neighbors:
                node.offer(j, k, payloads[j])
            node.combine()
        by_round.append(np.stack([node.parameters for node in nodes]))
    return by_round


def state(settings):
    return settings.state_dir


def files(settings):
    """What lies in the state directory, as the journal names it."""
    return sorted(p.name for p in state(settings).glob("*-*.safetensors"))


def history(settings):
    path = state(settings) / "history.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def model(settings):
    return load_file(state(settings) / "model.safetensors")["x"]


def loss(x, vertex):
    return float(np.mean((x - target(vertex, SIZE)) ** 2))


# --- a run --------------------------------------------------------------------------------


def test_a_run_leaves_model_history_checkpoints_and_record(tmp_path, events):
    mesh, settings = made(tmp_path, n=3, peer={"record": "payloads"})
    peers, ends = run(settings)
    assert ends == [Result(True)] * 3
    want = reference(3, 4)
    for v in range(3):
        np.testing.assert_array_equal(model(settings[v]), want[4][v])
        entries = history(settings[v])
        assert [entry["round"] for entry in entries] == [1, 2, 3, 4]
        for k, entry in enumerate(entries, start=1):
            assert set(entry) == {
                "round", "seconds", "train_seconds", "wait_seconds", "missing", "bytes",
            "train", "evaluate",
            }  # fmt: skip
            assert entry["missing"] == []
            assert entry["train"] == {"num-examples": 1, "size": SIZE}
            assert entry["evaluate"] == {"num-examples": 1, "loss": loss(want[k][v], v)}
            assert 0.0 <= entry["train_seconds"] + entry["wait_seconds"] <= entry["seconds"]
        assert files(settings[v])[-1] == "round-4.safetensors"
        assert set(files(settings[v])) <= {
            *(f"round-{k}.safetensors" for k in range(1, 5)),
            *(f"payload-{k}.safetensors" for k in (3, 4)),
        }
        found = Journal(state(settings[v]), settings[v].run, print).load()
        assert (found.round, found.contents.document["agent-round"]) == (4, 4)
        status = peers[v].progress.reply(pb.StatusRequest())
        assert (status.phase, status.round, status.rounds) == ("finished", 4, 4)
        assert dict(status.metrics) == {
            "num-examples": 1.0, "size": SIZE, "loss": loss(want[4][v], v),
        }  # fmt: skip
        assert status.seconds_per_round > 0.0
        told = [e for e in events.named("round") if e["vertex"] == v]
        assert [e["round"] for e in told] == [1, 2, 3, 4]
        assert told[0]["missing"] == []
        assert told[0]["metrics"] == {"loss": round(loss(want[1][v], v), 5)}
    assert [e["round"] for e in events.named("finished")] == [4, 4, 4]
    again = of_mesh(tomllib.loads((mesh.out / "mesh.toml").read_text()), mesh.out)
    assert list(again.findings()) == []
    assert (again.rounds_checked, again.rounds_computed) == (12, 12)


@pytest.mark.parametrize("order", ["adapt-then-combine", "combine-then-adapt"])
def test_a_run_goes_on_where_it_ended_as_if_it_had_not(tmp_path, events, order):
    _, settings = made(tmp_path, order=order, rounds=3)
    run(settings)
    longer = [dataclasses.replace(one, rounds=5) for one in settings]
    _, ends = run(longer)
    assert ends == [Result(True)] * 2
    assert [e["round"] for e in events.named("resumed")] == [3, 3]
    want = reference(2, 5, HeavyBall(momentum=0.8, order=order))
    for v in range(2):
        np.testing.assert_array_equal(model(longer[v]), want[5][v])
        assert [entry["round"] for entry in history(longer[v])] == [1, 2, 3, 4, 5]


def test_a_run_that_is_over_is_over(tmp_path):
    _, settings = made(tmp_path, rounds=2)
    run(settings)
    before = (state(settings[0]) / "history.jsonl").read_text()
    peer = Peer(dataclasses.replace(settings[0], linger_s=0.0, start_timeout_s=0.0))
    assert peer.run().done
    assert (state(settings[0]) / "history.jsonl").read_text() == before
    np.testing.assert_array_equal(peer.progress.parameters, reference(2, 2)[2][0])


@pytest.mark.parametrize(
    ("every", "rounds", "evaluated", "due"),
    [(2, 5, [2, 4, 5], [2, 4, 5]), (0, 3, [], [3]), (9, 3, [3], [3]), (1, 3, [1, 2, 3], [1, 2, 3])],
)
def test_when_a_peer_evaluates_and_keeps_its_state(tmp_path, every, rounds, evaluated, due):
    peer = {"checkpoint-every": every or 7}
    _, settings = made(tmp_path, rounds=rounds, evaluate_every=every, peer=peer)
    run(settings)
    entries = history(settings[0])
    assert [entry["round"] for entry in entries if entry["evaluate"]] == evaluated
    # A state whose payload was in line behind it is part of that file.
    states = {name for name in files(settings[0]) if name.startswith("round")}
    assert f"round-{rounds}.safetensors" in states
    assert states <= {f"round-{k}.safetensors" for k in due}


def test_entries_that_a_crash_undid_are_dropped(tmp_path):
    _, settings = made(tmp_path, rounds=2)
    run(settings)
    path = state(settings[0]) / "history.jsonl"
    whole = path.read_text()
    path.write_text(whole + '{"round": 3}\nnonsense\n[1]\n{"x": 1}\n{"round": 2, "tr')
    peer = Peer(dataclasses.replace(settings[0], linger_s=0.0, start_timeout_s=0.0))
    peer.run()
    assert path.read_text() == whole


def test_the_operator_sees_the_peers_over_tls(tmp_path):
    """The peers train for as long as they are looked at."""
    mesh, settings = made(tmp_path, n=2, plaintext=False, rounds=10**6)
    peers = [Peer(one) for one in settings]
    threads = [threading.Thread(daemon=True, target=peer.run) for peer in peers]
    fleet = Fleet(mesh.out)
    try:
        for thread in threads:
            thread.start()
        end = time.monotonic() + 20
        while min(peer.progress.round for peer in peers) < 1:
            assert time.monotonic() < end
            time.sleep(0.005)
        for timeout in (5.0, 5.0):  # the connections are used again
            found = fleet.status(timeout)
            assert found.failures == {}
            assert {v: r.vertex for v, r in found.replies.items()} == {0: 0, 1: 1}
            assert found.parts == [[0, 1]]
            assert found.consensus_distance is not None
    finally:
        fleet.close()
        for peer in peers:
            peer.stop()
        for thread in threads:
            thread.join(10)
    assert not any(thread.is_alive() for thread in threads)
    assert not (state(settings[0]) / "model.safetensors").exists()  # it was stopped, not done
    # What was finished is kept.
    last = history(settings[0])[-1]["round"]
    found = Journal(state(settings[0]), settings[0].run, print).load()
    assert found.record["closed"] == last


# --- alone, and when the app fails --------------------------------------------------------


def quick(settings, **changes):
    timing = Timing(ceiling_s=0.01, least_s=0.01, reconnect_s=0.01)
    kept = {"timing": timing, "start_timeout_s": 0.0, "linger_s": 0.0}
    return dataclasses.replace(settings, **(kept | changes))


def test_a_peer_alone_trains_by_itself_at_its_pace_and_says_so(tmp_path, events, monkeypatch):
    monkeypatch.setattr(protocol, "_UNKNOWN_PACE_S", 0.1)
    _, settings = made(tmp_path, rounds=3)
    peer = Peer(quick(settings[1]))
    begin = time.monotonic()
    assert peer.run() == Result(True, alone_since=0)
    assert time.monotonic() - begin > 0.25  # three rounds, each as long as is usual
    entries = history(settings[1])
    assert [entry["missing"] for entry in entries] == [[0], [0], [0]]
    assert [entry["alone_since"] for entry in entries] == [0, 0, 0]
    assert events.named("alone") == [{"vertex": 1, "since": 0}]
    assert events.named("finished") == [{"vertex": 1, "round": 3, "alone_since": 0}]
    assert peer.progress.reply(pb.StatusRequest()).alone_since == 0
    assert peer.monitor.counts()["missing", 0] == 3
    assert events.named("starting-without") == [{"vertex": 1, "neighbors": [0]}]
    x, d = START, np.zeros(SIZE)
    for _ in range(3):  # its weight is all its own: heavy ball by itself
        z = local_step(x, 1, RATE)
        x, d = z + 0.8 * d, z + 0.8 * d - x
    np.testing.assert_allclose(model(settings[1]), x, rtol=1e-12)


FAILING = """
from flwr.clientapp import ClientApp
from tests.support.peer_app import quadratics

app = ClientApp()

@app.train()
def train(message, context):
    k = message.content["config"]["server-round"]
    if k in map(int, context.run_config["fails"].split(",")):
        raise ValueError(f"no battery in round {k}")
    return quadratics.train(message, context)

@app.evaluate()
def evaluate(message, context):
    return quadratics.evaluate(message, context)
"""


def failing(tmp_path, fails, rounds):
    """A peer alone whose app raises in these rounds."""
    _, settings = made(tmp_path, rounds=rounds)
    (tmp_path / "app_that_fails.py").write_text(FAILING)
    config = {**settings[1].run_config, "fails": ",".join(map(str, fails))}
    app = {"app": tmp_path, "client_app": "app_that_fails:app", "run_config": config}
    return quick(settings[1], **app)


def test_a_round_in_which_the_app_fails_leaves_the_state_as_it_was(tmp_path, events, monkeypatch):
    monkeypatch.setattr(protocol, "_UNKNOWN_PACE_S", 0.0)
    settings = failing(tmp_path, (1, 3), 4)
    peer = Peer(settings)
    assert peer.run().done
    entries = history(settings)
    assert [entry.get("failure") for entry in entries] == [
        "ValueError: no battery in round 1", None, "ValueError: no battery in round 3", None,
    ]  # fmt: skip
    assert peer.monitor.total("app-failed") == 2
    assert [(e["round"], e["why"]) for e in events.named("app-failed")] == [
        (1, "ValueError: no battery in round 1"),
        (3, "ValueError: no battery in round 3"),
    ]
    x, d = START, np.zeros(SIZE)
    for _ in range(2):
        z = local_step(x, 1, RATE)
        x, d = z + 0.8 * d, z + 0.8 * d - x
    np.testing.assert_allclose(model(settings), x, rtol=1e-12)


@pytest.mark.parametrize(("fails", "good"), [(range(1, 10), True), (range(1, 11), False)])
def test_an_app_that_fails_ten_times_in_a_row_ends_the_peer(tmp_path, monkeypatch, fails, good):
    monkeypatch.setattr(protocol, "_UNKNOWN_PACE_S", 0.0)
    settings = failing(tmp_path, fails, 12)
    peer = Peer(settings)
    if good:
        assert peer.run().done
        return
    text = "vertex 1: the app failed in 10 rounds in a row, last in round 10: ValueError: no batt"
    with pytest.raises(RoundError, match=text):
        peer.run()
    assert [entry["round"] for entry in history(settings)] == list(range(1, 11))


def test_failures_that_are_not_in_a_row_end_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(protocol, "_UNKNOWN_PACE_S", 0.0)
    fails = sorted(set(range(1, 14)) - {7})
    assert Peer(failing(tmp_path, fails, 14)).run().done


# --- long away ----------------------------------------------------------------------------


class Neighbor:
    """A neighbor that is in a round, and its connection, without a socket.

    It shares its payload when it is asked to, or gets one of that round; then it stops the peer.
    """

    def __init__(self, peer, j, k, vector):
        self.peer, self.j = peer, j
        self.frame = codec.encode({"folded": vector}, run=peer.settings.run, round=k, vertex=j)
        self.offer = Offer(k, codec.read_checksum(self.frame), closed=k - 1)

    def send(self, message):
        if isinstance(message, Hello):
            hello = Hello(self.offer.round, self.offer.digest, self.offer.closed)
            self.peer.deliver(Greeted(self.j, self, hello))
        elif isinstance(message, Seek):
            self.peer.deliver(Offered(self.j, self, self.offer))

    def send_payload(self, offer, payload):
        if offer.round > self.offer.round:
            self.peer.stop()
            return
        self.peer.deliver(Acknowledged(self.j, self, offer.round, offer.digest))
        self.peer.deliver(Offered(self.j, self, self.offer))

    def reserve(self, offer):
        assert offer == self.offer
        self.peer.deliver(Completed(self.j, self, offer, Payload(offer.digest, self.frame)))

    def close(self, text):
        pass


@pytest.mark.parametrize(("ahead", "rejoins"), [(5, False), (6, True)])
def test_who_was_away_for_long_takes_its_neighbors_average(tmp_path, events, ahead, rejoins):
    """Four rounds missed are trained through; five are not worth it."""
    _, settings = made(tmp_path, n=3, rounds=50, peer={"away-rounds": 4})
    peer = Peer(settings[1])
    vectors = {0: np.arange(4.0), 2: np.full(4, 3.0)}
    neighbors = [Neighbor(peer, j, ahead, vector) for j, vector in vectors.items()]
    peer.transport.start = lambda: [
        peer.deliver(Connected(neighbor.j, neighbor)) for neighbor in neighbors
    ]
    assert peer.run() == Result(False)
    assert peer.monitor.total("rejoined") == rejoins
    snapshot, first = peer.app.snapshot(), history(settings[1])[0]
    found = Journal(state(settings[1]), settings[1].run, print).load()
    if not rejoins:
        row = Topology.path(3).row(1)
        x = row[0] * vectors[0] + row[1] * local_step(START, 1, RATE) + row[2] * vectors[2]
        np.testing.assert_allclose(snapshot.state.parameters, x, rtol=1e-12)
        assert (first["round"], first["missing"]) == (5, [])
        assert found.round >= 5
        return
    np.testing.assert_allclose(snapshot.state.parameters, (vectors[0] + vectors[2]) / 2)
    np.testing.assert_array_equal(snapshot.state.memory["displacement"], np.zeros(4))
    assert (first["round"], first["rejoined"], first["neighbors"]) == (6, True, [0, 2])
    assert first["evaluate"]["loss"] == loss(snapshot.state.parameters, 1)
    assert events.named("rejoined") == [{"vertex": 1, "round": 6, "missed": 5, "neighbors": [0, 2]}]
    assert found.round >= 6


# --- what must agree ----------------------------------------------------------------------


def test_what_neighbors_must_have_in_common(tmp_path):
    _, settings = made(tmp_path)
    agreement = Peer(settings[0]).transport.agreement
    assert set(agreement) == {"algorithm", "layout", "start", "app", "compression"}
    assert agreement == Peer(settings[1]).transport.agreement
    editions = Peer(settings[0]).transport.editions()
    assert editions == {"edition 1": f"graph {settings[0].graph[:16]}, rounds 1 to 4"}
    assert json.loads(agreement["algorithm"]) == settings[0].algorithm.to_config()

    def differs(**changes):
        transport = Peer(dataclasses.replace(settings[0], **changes)).transport
        here, there = agreement | editions, {**transport.agreement, **transport.editions()}
        return {part for part in here if there[part] != here[part]}

    assert differs(rounds=5) == {"edition 1"}
    assert differs(graph="x") == {"edition 1"}
    assert differs(algorithm=HeavyBall(momentum=0.7)) == {"algorithm"}
    x = load_file(settings[0].start)["x"]
    for arrays, parts in (
        ({"x": x}, set()),
        ({"x": x + 1e-12}, {"start"}),
        ({"y": x}, {"start", "layout"}),
        ({"x": x.reshape(2, 2)}, {"layout"}),
        ({"x": x.astype(np.float32)}, {"start", "layout"}),
    ):
        path = tmp_path / "other.safetensors"
        save_file(arrays, path)
        assert differs(start=path) == parts


def test_the_code_of_an_app_has_a_digest_wherever_it_lies(tmp_path, monkeypatch):
    def digest(folder, source, *, packages=""):
        path = tmp_path / folder / packages / "wheels.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(source)
        module = types.ModuleType("wheels")
        module.__file__ = str(path)
        monkeypatch.setitem(sys.modules, "wheels", module)
        return digest_of_code(tmp_path / folder)

    nothing = digest_of_code(tmp_path)
    first = digest("a", b"x = 1\n")
    assert first != nothing
    assert digest("b", b"x = 1\r\n") == first
    assert digest("c", b"x = 2\n") not in (first, nothing)
    assert digest("d", b"x = 1\n", packages=".venv/site-packages") == nothing
    assert digest_of_code(tmp_path / "a") == nothing  # the loaded one lies elsewhere
    (tmp_path / "d/.venv/site-packages/wheels.py").unlink()
    assert digest_of_code(tmp_path / "d") == nothing


def test_an_app_that_differs_is_a_warning_or_a_refusal(tmp_path):
    _, settings = made(tmp_path)
    assert Peer(settings[0]).transport.may_differ == {"app"}
    strict = dataclasses.replace(settings[0], strict_app=True)
    assert Peer(strict).transport.may_differ == frozenset()
    with pytest.raises(ConfigError, match="strict-app must be true or false, got 'yes'"):
        dataclasses.replace(settings[0], strict_app="yes")


def test_a_start_that_cannot_be_read(tmp_path):
    _, settings = made(tmp_path)
    settings[0].start.write_bytes(b"x")
    with pytest.raises(ConfigError, match=r"start.safetensors: no readable initial arrays: "):
        Peer(settings[0])
    settings[0].start.unlink()
    with pytest.raises(ConfigError, match=r"start.safetensors: no readable initial arrays: "):
        Peer(settings[0])


# --- the policy of whoever runs a device ----------------------------------------------------


def test_a_policy_bounds_what_a_device_sends_and_its_history_says_so(tmp_path, events):
    _, settings = made(tmp_path, rounds=1)
    allowed = (digest_of_folder(settings[0].app),)
    policy = Policy(clip=0.125, metrics=("num-examples",), apps=allowed)
    settings[0] = dataclasses.replace(settings[0], policy=policy)
    _, ends = run(settings)
    assert ends == [Result(True)] * 2
    lines = [
        json.loads((one.state_dir / "history.jsonl").read_text().splitlines()[0])
        for one in settings
    ]
    assert lines[0]["policy"] == "clip 0.125; metrics num-examples; 1 allowed app"
    assert "policy" not in lines[1]
    assert set(lines[0]["train"]) == {"num-examples"} < set(lines[1]["train"])
    models = [load_file(one.state_dir / "model.safetensors")["x"] for one in settings]
    start = load_file(settings[0].start)["x"]
    steps = [local_step(start, v, RATE) - start for v in (0, 1)]
    assert np.linalg.norm(steps[0]) > 0.125, "the clip must be reached"
    steps[0] *= 0.125 / np.linalg.norm(steps[0])
    np.testing.assert_allclose(models[0], start + (steps[0] + steps[1]) / 2, rtol=1e-12)
    (begins,) = [e for e in events.named("begins") if e["vertex"] == 0]
    assert begins["policy"] == str(policy)


def test_code_that_is_not_allowed_is_refused_before_any_of_it_runs(tmp_path):
    _, (settings, _) = made(tmp_path)
    app = tmp_path / "app"
    app.mkdir()
    (app / "tells.py").write_text("raise SystemExit('this code has run')")
    before = digest_of_folder(app)
    policy = Policy(apps=("0" * 64,))
    foreign = dataclasses.replace(settings, app=app, client_app="tells:app", policy=policy)
    with pytest.raises(ConfigError, match=f"does not allow the app with the digest {before}"):
        Peer(foreign)
    for change, counts in (
        (lambda: (app / "notes.txt").write_text("x"), False),
        (lambda: (app / ".hidden").mkdir() or (app / ".hidden" / "a.py").write_text("x"), False),
        (lambda: (app / "below").mkdir() or (app / "below" / "a.py").write_text("x"), True),
        (lambda: (app / "fast.so").write_bytes(b"x"), True),
        (lambda: (app / "fast.so").rename(app / "slow.so"), True),
        (lambda: (app / "tells.py").write_text("pass"), True),
    ):
        change()
        assert (digest_of_folder(app) != before) == counts
        before = digest_of_folder(app)
    (app / "link").symlink_to(tmp_path)
    with pytest.raises(ConfigError, match="link is a link to a folder"):
        digest_of_folder(app)


def test_a_model_that_is_larger_than_the_policy_lets_out_does_not_begin(tmp_path):
    _, (settings, _) = made(tmp_path)
    Peer(dataclasses.replace(settings, policy=Policy(payload_bytes=8 * SIZE)))
    with pytest.raises(PayloadError, match="has 32 bytes, and this node's policy lets out 31"):
        Peer(dataclasses.replace(settings, policy=Policy(payload_bytes=8 * SIZE - 1)))
