"""The smaller parts of the peer runtime: files, identities, deadlines, status."""

import ast
import datetime
import gc
import json
import stat
import weakref
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

import flower_dhb.peer
from flower_dhb import ConfigError, Topology
from flower_dhb.cli.mesh_up import Local
from flower_dhb.metrics import consensus_distance, sketch
from flower_dhb.peer.device import flwr_adapter
from flower_dhb.peer.device.app import Agent, _from_plain, _to_plain
from flower_dhb.peer.device.ending import Ending
from flower_dhb.peer.device.settings import PeerSettings, check_loopback
from flower_dhb.peer.mesh.certificates import Authority, write_private
from flower_dhb.peer.mesh.create import Host, check_empty, dialing_ends, local_hosts, read_hosts
from flower_dhb.peer.mesh.findings import findings
from flower_dhb.peer.protocol.patience import Patience
from flower_dhb.peer.wire.identity import (
    OPERATOR,
    Identity,
    check_own,
    identity_of,
    identity_uri,
    private_bytes,
)
from flower_dhb.peer.wire.link import Allowance
from flower_dhb.peer.wire.native_log import handshake_reason
from flower_dhb.peer.wire.tls import peer_identity
from tests.support.fleets import Troubled
from tests.support.peers import APP, Mesh

PACKAGE = Path(flower_dhb.peer.__file__).parent

# --- no pickle, no eval, no insecure default --------------------------------------------


def test_no_pickle_no_eval_and_plaintext_only_where_it_was_asked_for():
    forbidden = {"pickle", "cloudpickle", "dill", "marshal", "shelve"}
    insecure = []
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {a.name.split(".")[0] for a in node.names}
                names.add((getattr(node, "module", None) or "").split(".")[0])
                assert not names & forbidden, path
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in ("eval", "exec", "compile", "__import__"), path
            if isinstance(node, ast.Attribute) and "insecure" in node.attr:
                insecure.append(path.name)
            if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
                raise AssertionError(path)
    # Both ends of an edge, the operator and the doctor, each behind `tls is None`.
    assert sorted(insecure) == ["fleet.py", "links.py", "transport.py", "transport.py"]


def test_no_wall_clock_decides_anything():
    users = {p.name for p in PACKAGE.rglob("*.py") if "time.time(" in p.read_text()}
    assert not users
    dates = {p.name for p in PACKAGE.rglob("*.py") if "datetime.now" in p.read_text()}
    assert dates == {"identity.py"}


# --- certificates ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority():
    return Authority.create("m1")


def test_identities():
    for vertex in (0, 17, OPERATOR):
        identity = Identity("m1", vertex)
        assert identity_of(identity_uri(identity)) == identity
    for text in ("", "http://m1/vertex/1", "flower-dhb://m1/vertex/01", "flower-dhb://m1/vertex/-1",
                 "flower-dhb://m1/vertex/1/2", "flower-dhb://m1"):  # fmt: skip
        assert identity_of(text) is None
    names = {"x509_subject_alternative_name": [b"flower-dhb://m2/vertex/1"]}
    assert peer_identity(names, "m1") is None
    assert peer_identity(names, "m2") == Identity("m2", 1)
    assert peer_identity({}, "m1") is None


def test_own_files_are_checked(authority):
    key, certificate = authority.issue(3, 5)
    check_own(key, certificate, authority.pem, Identity("m1", 3))
    past = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=9)
    other_key, _ = authority.issue(3, 5)
    bad = {
        "expected flower-dhb://m1/vertex/4": (key, certificate, authority.pem, 4),
        "does not belong to its key": (other_key, certificate, authority.pem, 3),
        "is not signed by the authority": (key, certificate, Authority.create("m1", 1).pem, 3),
        "set the clock": (*authority.issue(3, 1, past), authority.pem, 3),
        "unreadable": (b"x", certificate, authority.pem, 3),
    }
    for text, (k, c, a, vertex) in bad.items():
        with pytest.raises(ConfigError, match=text):
            check_own(k, c, a, Identity("m1", vertex))


def test_key_files_are_private(tmp_path):
    path = tmp_path / "key.pem"
    write_private(path, b"secret")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert private_bytes(path) == b"secret"
    for mode in (0o640, 0o604, 0o666):
        path.chmod(mode)
        with pytest.raises(ConfigError, match=f"{mode:04o}"):
            private_bytes(path)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("x] Handshake failed with error SSL_ERROR_SSL: CERTIFICATE_VERIFY_FAILED: certificate has "
         "expired", "expired"),
        ("Handshake failed with error: PEER_DID_NOT_RETURN_A_CERTIFICATE", "no certificate"),
        ("Handshake failed with error: BAD_SIGNATURE", "another authority"),
        ("Handshake failed: SSL routines:OPENSSL_internal:NEW_KIND: x", "NEW_KIND"),
    ],
)  # fmt: skip
def test_reasons_of_refused_handshakes(line, reason):
    assert reason in handshake_reason(line)
    assert handshake_reason("something else") is None


# --- deadlines and allowances ------------------------------------------------------------


def test_patience_follows_the_neighbor():
    patience = Patience(factor=3.0, least_s=0.1, ceiling_s=10.0)
    assert patience.deadline_s == 10.0  # nothing known
    for k in range(1, 10):
        patience.arrived(k, 0.5 * k)
    assert patience.deadline_s == pytest.approx(1.5)
    patience.missed()
    assert patience.deadline_s == pytest.approx(0.75)
    patience.arrived(20, 100.0)  # not the round after: tells nothing of its pace
    assert patience.deadline_s == pytest.approx(1.5)
    for _ in range(9):
        patience.missed()
    assert patience.deadline_s == 0.0
    patience.returned()
    assert patience.deadline_s == pytest.approx(0.75)
    fast = Patience(factor=3.0, least_s=0.1, ceiling_s=10.0)
    for k in range(1, 10):
        fast.arrived(k, 0.001 * k)
    assert fast.deadline_s == pytest.approx(0.1)


def test_allowance():
    now = [0.0]
    allowance = Allowance(3, 2.0, lambda: now[0])
    assert [allowance.take() for _ in range(4)] == [True, True, True, False]
    now[0] = 1.0
    assert [allowance.take() for _ in range(3)] == [True, True, False]


# --- status ------------------------------------------------------------------------------


def test_sketch_keeps_distances():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((8, 50_000)) + 3.0
    sketches = [sketch(row, 1024, "run") for row in x]
    # Relative standard deviation of a squared distance: sqrt(2 / 1024) = 4.4 %; of its
    # root half of that, and less for the mean over 8. Four standard deviations.
    assert consensus_distance(sketches) == pytest.approx(consensus_distance(list(x)), rel=0.09)
    np.testing.assert_array_equal(sketches[0], sketch(x[0], 1024, "run"))
    assert not np.array_equal(sketches[0], sketch(x[0], 1024, "another run"))


# --- mesh files --------------------------------------------------------------------------


def test_the_end_that_can_be_reached_is_dialed():
    topology = Topology.path(3)
    hosts = {0: Host(0, None), 1: Host(1, "10.0.0.1:9000"), 2: Host(2, "10.0.0.2:9000")}
    addresses = {v: host.address for v, host in hosts.items()}
    ends = dialing_ends(topology.edges, addresses)
    assert ends[0, 1] == 0
    with pytest.raises(ConfigError, match="edge 0-1: neither end has an address"):
        dialing_ends(topology.edges, {**addresses, 1: None})
    assert hosts[1].listens_on == "0.0.0.0:9000"
    assert Host(1, "127.0.0.1:9000").listens_on == "127.0.0.1:9000"


def test_hosts_file(tmp_path):
    path = tmp_path / "hosts.toml"
    path.write_text(
        '[[hosts]]\nvertex = 0\naddress = "a:1"\n[[hosts]]\nvertex = 1\naddress = "b:1"\n'
    )
    assert read_hosts(path)[1] == Host(1, "b:1")
    path.write_text(
        '[[hosts]]\nvertex = 0\n[hosts.node-config]\ndata = "/srv/images"\nlidar = true\n'
    )
    assert read_hosts(path)[0].node_config == {"data": "/srv/images", "lidar": True}
    path.write_text("[[hosts]]\nvertx = 0\n")
    with pytest.raises(ConfigError, match="expected"):
        read_hosts(path)
    with pytest.raises(ConfigError, match="No such file"):
        read_hosts(tmp_path / "none")


def test_local_hosts_are_distinct():
    assert len({h.address for h in local_hosts(20)}) == 20


def test_a_device_tells_its_app_what_flower_would(tmp_path):
    """Stock apps ask for `partition-id` and `num-partitions`; a host may add its own."""
    hosts = [
        Host(h.vertex, h.address, node_config={"data": f"/d{h.vertex}"}) for h in local_hosts(3)
    ]
    more = {"node-config": {"lidar": True}, "timing": {"least-s": 2.0}}
    mesh = Mesh(tmp_path / "m", hosts=hosts, topology="ring:3", rounds=2, peer=more)
    found = {"partition-id": 2, "num-partitions": 3, "data": "/d2", "lidar": True}
    assert dict(mesh.settings(2).node_config) == found


def test_mesh_files(tmp_path):
    mesh = Mesh(tmp_path / "m", n=3, topology="path:3", rounds=7, momentum=0.8)
    settings = [mesh.settings(v) for v in range(3)]
    assert [s.neighbors for s in settings] == [(1,), (0, 2), (1,)]
    assert settings[0].algorithm.momentum == 0.8
    assert settings[1].rounds == 7
    row = Topology.path(3).row(1)
    assert settings[1].weights == {j: row[j] for j in range(3)}
    for v in range(3):
        assert settings[v].tls is not None
        settings[v].tls.read()
        home = tmp_path / "m" / f"vertex-{v}"
        assert stat.S_IMODE((home / "key.pem").stat().st_mode) == 0o600
        assert not (home / "authority-key.pem").exists()
    with pytest.raises(ConfigError, match="is not empty"):
        check_empty(tmp_path / "m", force=False)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").touch()
    with pytest.raises(ConfigError, match="something else than a mesh"):
        check_empty(tmp_path / "other", force=True)


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        ("rounds = 5", "round = 5", "unknown key 'round'"),
        ("rounds = 5", "rounds = 0", "rounds must be an integer of at least 1"),
        ("vertex = 0", "", "lacks 'vertex'"),
        ("ceiling-s = 60.0", "ceiling-s = -1", "ceiling-s must be above 0"),
        ("ceiling-s = 60.0", "ceiling = 1", "unknown key of"),
        ("[timing]", "[timing", "not readable as TOML"),
        ("partition-id = 0", "partition-id = 1", "this is vertex 0"),
        ("partition-id = 0", "partition-id = [0]", "must be a number, a text"),
        ("partition-id = 0", 'state-dir = "x"', "a peer keeps its state where"),
    ],
)
def test_bad_peer_files(tmp_path, old, new, text):
    mesh = Mesh(tmp_path / "m", n=3, topology="ring:3", rounds=5)
    path = mesh.paths[0]
    content = path.read_text()
    assert old in content
    path.write_text(content.replace(old, new, 1))
    with pytest.raises(ConfigError, match=text):
        PeerSettings.load(path)


@pytest.mark.parametrize("address", ["127.0.0.1:1", "[::1]:1", "localhost:1", "127.9.9.9:2"])
def test_loopback(address):
    check_loopback(address)


@pytest.mark.parametrize("address", ["0.0.0.0:1", "10.0.0.1:1", "example.org:1", "[::]:1"])
def test_not_loopback(address):
    with pytest.raises(ConfigError, match="loopback"):
        check_loopback(address)


# --- Flower's private parts: fails loudly when Flower changes them ----------------------


def test_flower_is_as_the_adapter_expects():
    flwr_adapter.take_identity(11, 5)
    message = flwr_adapter.make_message(RecordDict(), "train", 3, 5)
    assert message.metadata.run_id == 11
    assert message.metadata.dst_node_id == 5
    assert message.metadata.message_type == "train"
    assert message.metadata.group_id == "3"
    context = flwr_adapter.make_context(11, 5, {"vertex": 2}, {"a": 1})
    assert context.node_config["vertex"] == 2
    assert context.run_config["a"] == 1
    view = flwr_adapter.frame_view(memoryview(b"abc"))
    record = ArrayRecord()
    record["0"] = view
    assert bytes(record["0"].data) == b"abc"
    assert record["0"].shape == (3,)
    with pytest.raises(ConfigError, match="cannot load ClientApp"):
        flwr_adapter.load_client_app(APP, "quadratics:missing")
    with pytest.raises(ConfigError, match="expected a flwr ClientApp"):
        flwr_adapter.load_client_app(APP, "quadratics:start")


def quadratic_agent(algorithm=None):
    """Vertex 0 of two, with the app of the tests."""
    from flower_dhb import HeavyBall

    return Agent.of_device(
        flwr_adapter.load_client_app(APP, "quadratics:app"),
        vertex=0,
        run="r",
        algorithm=algorithm or HeavyBall(),
        weights={0: 0.5, 1: 0.5},
        arrays={"x": np.arange(12.0)},
        node_config={},
        run_config={
            "rate": 0.1,
            "slow-vertex": -1,
            "slow-s": 0.0,
            "step-s": 0.0,
            "evaluate-s": 0.0,
            "noise": 0.0,
        },
    )


def test_agent_with_the_real_app_and_its_state(tmp_path):
    one, two = quadratic_agent(), quadratic_agent()
    first = one.train(1)
    assert first.frame is not None
    combined = one.combine(1, {}, evaluate=True)
    assert "loss" in combined.metrics
    arrays, document = one.save()
    two.load(1, arrays, json.loads(json.dumps(document)))
    assert two.train(2).frame == one.train(2).frame


def test_an_app_of_stock_flower_needs_no_change():
    """No mod, no word of this package; with the mod it would do the same."""
    from flower_dhb import HeavyBall, consensus_mod

    def agent(mods):
        app = ClientApp(mods=mods)

        @app.train()
        def train(message, context):
            assert context.node_config["num-partitions"] == 2
            x = message.content.array_records["arrays"]["x"].numpy()
            metrics = MetricRecord({"round": message.content["config"]["server-round"]})
            content = {"arrays": ArrayRecord({"x": Array(0.5 * x)}), "metrics": metrics}
            return Message(RecordDict(content), reply_to=message)

        return Agent.of_device(
            app,
            vertex=1,
            run="r",
            algorithm=HeavyBall(),
            weights={0: 0.5, 1: 0.5},
            arrays={"x": np.arange(12.0)},
            node_config={"num-partitions": 2},
            run_config={},
        )

    stock, modded = agent([]), agent([consensus_mod])
    for k in (1, 2, 3):
        one, other = stock.train(k), modded.train(k)
        assert one.frame == other.frame is not None
        assert one.metrics == {"round": k}
        stock.combine(k, {}, evaluate=False)
        modded.combine(k, {}, evaluate=False)


def test_payloads_are_let_go_when_their_round_is_combined():
    """At once, not when Python looks for cycles: their memory is used for the next ones."""
    from flower_dhb.agent import codec

    agent = quadratic_agent()
    gc.collect()
    gc.disable()
    try:
        for k in (1, 2):
            sent = agent.train(k).frame
            vectors = codec.decode(sent, codec.read_header(sent))
            frame = codec.encode(vectors, run="r", round=k, vertex=1)
            memory = np.frombuffer(bytearray(frame), np.uint8)
            alive = weakref.ref(memory)
            agent.combine(k, {1: memory.data}, evaluate=False)
            del memory
            assert alive() is None
    finally:
        gc.enable()


def test_any_record_of_the_context_survives():
    records = RecordDict(
        {
            "a": ArrayRecord([np.arange(6.0).reshape(2, 3)]),
            "m": MetricRecord({"loss": 0.5, "list": [1, 2]}),
            "c": ConfigRecord({"s": "x", "b": b"\x00\xff", "f": True, "l": [1.5]}),
        }
    )
    arrays, document = _to_plain(records)
    back = _from_plain(arrays, json.loads(json.dumps(document)))
    assert dict(back["m"].items()) == dict(records["m"].items())
    assert dict(back["c"].items()) == dict(records["c"].items())
    np.testing.assert_array_equal(back["a"]["0"].numpy(), records["a"]["0"].numpy())


def test_combine_then_adapt_is_shared_before_training():
    from flower_dhb import HeavyBall

    agent = quadratic_agent(HeavyBall(order="combine-then-adapt"))
    for k in (1, 2, 3):
        early = agent.early(k).frame
        assert early is not None
        assert agent.train(k).frame == early
        agent.combine(k, {}, evaluate=False)


# --- the operator's view -----------------------------------------------------------------


class Alive:
    def __init__(self, returncode=None):
        self.returncode = returncode

    def poll(self):
        return self.returncode


def test_the_live_view_knows_starting_from_lost_and_ended_from_failed():
    """As `mesh up` sees its own processes: silence while loading is no alarm."""
    fleet = Troubled(4)
    answers = {}

    class Asked:
        def status(self, timeout_s):
            silent = {v: f"nothing listens at {v}" for v in range(4) if v not in answers}
            return fleet.status(replies=dict(answers), failures=silent)

    processes = {v: Alive() for v in range(4)}
    view = Local(Asked(), processes)
    found = view.look()
    assert [found.state(v) for v in range(4)] == ["starting"] * 4
    assert (findings(found), view.ended) == ([], False)
    answers |= fleet.replies
    assert findings(view.look()) == []
    del answers[1]  # it answered, and does no more; its neighbors hear it
    assert [(f.kind, f.needs) for f in findings(view.look())] == [("unreachable", False)]
    for v in (0, 2):
        fleet.down(v, 1)
    assert ("silent", (1,)) in [(f.kind, f.vertices) for f in findings(view.look())]
    answers.clear()
    for process in processes.values():
        process.returncode = 0
    processes[2].returncode = 1
    processes[3].returncode = Ending.STOPPED
    found = view.look()
    assert view.ended
    assert [found.state(v) for v in range(4)] == ["finished", "finished", "ended", "stopped"]
    assert [r.round for r in found.replies.values()] == [500, 500, 118]
    (finding,) = findings(found)
    assert finding.text.startswith("vertex 2: its process has ended with status 1.")
