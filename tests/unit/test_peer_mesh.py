"""What `mesh create` writes: every file of every device, by value, and what it refuses."""

import dataclasses
import datetime
import importlib
import pkgutil
import re
import shutil
import socket
import stat
import tomllib

import numpy as np
import pytest
import tomli_w
from cryptography import x509
from safetensors.numpy import load_file, save_file

import flower_dhb.peer
from flower_dhb import ConfigError, HeavyBall, Topology
from flower_dhb.cli import main
from flower_dhb.peer.device.settings import PeerSettings
from flower_dhb.peer.mesh import create as module
from flower_dhb.peer.mesh.certificates import Authority
from flower_dhb.peer.mesh.create import (
    Host,
    MeshPlan,
    check_empty,
    create_mesh,
    dialing_ends,
    local_hosts,
    n_agents,
    read_hosts,
)
from flower_dhb.peer.watch.editions import read_editions
from flower_dhb.peer.wire.address import parse_address
from flower_dhb.peer.wire.identity import OPERATOR, Identity, check_own
from tests.support.peers import APP

ADDRESSES = ["127.0.0.1:9000", "127.0.0.1:9001", None, "127.0.0.1:9003"]


def hosts(**changes):
    return [Host(v, a, **changes.get(f"v{v}", {})) for v, a in enumerate(ADDRESSES)]


def plan(out, **changes):
    """A path 0 - 1 - 2 - 3 whose vertex 2 cannot be reached."""
    overrides = {"topology": "path:4", "rounds": 7, "momentum": 0.8, **changes.pop("overrides", {})}
    kept = {"app": APP, "out": out, "hosts": hosts(), "overrides": overrides, "days": 30}
    return MeshPlan(**(kept | changes))


def read(path):
    return tomllib.loads(path.read_text())


def app(tmp_path, text, code=""):
    """A Flower App's directory with this pyproject.toml, and a module of its own name."""
    folder = tmp_path / "app"
    folder.mkdir(exist_ok=True)
    name = f"made_{abs(hash((tmp_path, text, code)))}"
    (folder / f"{name}.py").write_text(code)
    (folder / "pyproject.toml").write_text(text.replace("MODULE", name))
    return folder


# --- hosts --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "listen", "binds"),
    [
        (None, None, None),
        (None, "0.0.0.0:5", "0.0.0.0:5"),
        ("10.0.0.1:9", None, "0.0.0.0:9"),
        ("10.0.0.1:9", "10.0.0.1:7", "10.0.0.1:7"),
        ("127.0.0.1:9", None, "127.0.0.1:9"),
        ("[::1]:9", None, "[::1]:9"),
        ("localhost:9", None, "localhost:9"),
        ("[2001:db8::1]:9", None, "[::]:9"),
    ],
)
def test_what_a_host_binds(address, listen, binds):
    assert Host(0, address, listen).listens_on == binds


def test_all_that_a_hosts_file_can_say(tmp_path):
    path = tmp_path / "hosts.toml"
    table = {"vertex": 3, "address": "a:1", "listen": "b:2", "app": "/a", "node-config": {"x": 1}}
    path.write_text(tomli_w.dumps({"hosts": [table, {"vertex": 0}]}))
    assert read_hosts(path) == [Host(3, "a:1", "b:2", "/a", {"x": 1}), Host(0)]


@pytest.mark.parametrize("text", ["[[hosts]\n", "x = 1\n", "[[hosts]]\nport = 1\nvertex = 0\n"])
def test_a_hosts_file_that_is_none(tmp_path, text):
    path = tmp_path / "hosts.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"hosts.toml: .*expected \[\[hosts\]\] tables"):
        read_hosts(path)


def test_local_hosts_are_free_ports_in_order():
    made = local_hosts(5)
    assert [host.vertex for host in made] == [0, 1, 2, 3, 4]
    ports = [int(host.address.removeprefix("127.0.0.1:")) for host in made]
    assert len(set(ports)) == 5
    assert all(20000 <= port < 32000 for port in ports)
    for port in ports:
        socket.create_server(("127.0.0.1", port)).close()


def test_ports_in_use_are_passed_over(monkeypatch):
    first = int(local_hosts(1)[0].address.rpartition(":")[2])
    with socket.create_server(("127.0.0.1", first)):
        monkeypatch.setattr(module, "_PORTS", [first, first + 1])
        with pytest.raises(ConfigError, match="no 2 free ports on the loopback interface"):
            local_hosts(2)


@pytest.mark.parametrize(
    ("addresses", "ends"),
    [
        ({0: "a", 1: None, 2: "c"}, {(0, 1): 1, (1, 2): 1}),
        ({0: None, 1: "b", 2: None}, {(0, 1): 0, (1, 2): 2}),
        ({0: "a", 1: "b", 2: "c"}, {(0, 1): 0, (1, 2): 1}),
    ],
)
def test_who_dials(addresses, ends):
    assert dialing_ends(Topology.path(3).edges, addresses) == ends


def test_the_work_of_dialing_is_shared_out():
    graph = Topology.complete(5)
    ends = dialing_ends(graph.edges, dict.fromkeys(range(5), "a"))
    assert set(ends) == set(graph.edges)
    assert all(end in edge for edge, end in ends.items())
    assert sorted(list(ends.values()).count(v) for v in range(5)) == [2, 2, 2, 2, 2]


# --- what is written ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    out = tmp_path_factory.mktemp("mesh") / "m"
    special = {"v1": {"app": "/apps/one", "node_config": {"data": "/d", "num-partitions": 9}}}
    peer = {"timing": {"least-s": 2.0}, "record": "checksums", "node-config": {"lidar": True}}
    paths = create_mesh(plan(out, hosts=hosts(**special), peer=peer))
    assert paths == [out / f"vertex-{v}" / "peer.toml" for v in range(4)]
    return out


def test_a_devices_file_to_the_last_key(made):
    document = read(made / "vertex-1" / "peer.toml")
    row = Topology.path(4).row(1)
    mesh = document["mesh"]
    run_config = read(APP / "pyproject.toml")["tool"]["flwr"]["app"]["config"]
    assert document == {
        "mesh": mesh,
        "run": f"quadratics-{mesh}",
        "vertex": 1,
        "rounds": 7,
        "evaluate-every": 1,
        "own-weight": row[1],
        "neighbors": [
            {"vertex": 0, "weight": row[0]},
            {"vertex": 2, "weight": row[2]},
        ],
        "graph": document["graph"],
        "app": "/apps/one",
        "client-app": "quadratics:app",
        "start": "start.safetensors",
        "state-dir": "state",
        "algorithm": HeavyBall(momentum=0.8).to_config(),
        "timing": {"ceiling-s": 60.0, "least-s": 2.0},
        "node-config": {"partition-id": 1, "num-partitions": 9, "data": "/d", "lidar": True},
        "run-config": {**run_config, "topology": "path:4", "rounds": 7, "momentum": 0.8},
        "record": "checksums",
        "listen": "127.0.0.1:9001",
        "tls": {
            "key": "key.pem",
            "certificate": "certificate.pem",
            "authority": "authority.pem",
        },
    }
    assert len(mesh) == 8


def test_who_is_dialed_and_who_listens(made):
    documents = [read(made / f"vertex-{v}" / "peer.toml") for v in range(4)]
    dials = {
        (d["vertex"], n["vertex"]): n["address"]
        for d in documents
        for n in d["neighbors"]
        if "address" in n
    }
    # Both ends of 0-1 can be reached: the odd sum's smaller end dials; 2 has no address.
    assert dials == {(0, 1): ADDRESSES[1], (2, 1): ADDRESSES[1], (2, 3): ADDRESSES[3]}
    assert [d.get("listen") for d in documents] == ADDRESSES
    assert len({d["graph"] for d in documents}) == 1
    assert documents[0]["app"] == str(APP.resolve())
    assert documents[0]["node-config"] == {"partition-id": 0, "num-partitions": 4, "lidar": True}
    for v in range(4):
        settings = PeerSettings.load(made / f"vertex-{v}" / "peer.toml")
        assert sum(settings.weights.values()) == pytest.approx(1.0, abs=1e-12)


def test_the_digest_is_of_the_weights(made, tmp_path):
    graph = read(made / "vertex-0" / "peer.toml")["graph"]
    for name, same in (("path:4", True), ("ring:4", False)):
        out = tmp_path / name.replace(":", "-")
        reachable = [Host(v, f"127.0.0.1:{9000 + v}") for v in range(4)]
        create_mesh(plan(out, hosts=reachable, plaintext=True, overrides={"topology": name}))
        assert (read(out / "vertex-0" / "peer.toml")["graph"] == graph) is same


def test_the_overview(made):
    mesh = read(made / "vertex-0" / "peer.toml")["mesh"]
    special = {"app": "/apps/one", "node-config": {"data": "/d", "num-partitions": 9}}
    run_config = read(APP / "pyproject.toml")["tool"]["flwr"]["app"]["config"]
    assert read(made / "mesh.toml") == {
        "mesh": mesh,
        "run": f"quadratics-{mesh}",
        "topology": "path:4",
        "weights": "metropolis",
        "plaintext": False,
        "edition": 1,
        "next-vertex": 4,
        "edges": [
            {"between": [0, 1], "dials": 0},
            {"between": [1, 2], "dials": 2},
            {"between": [2, 3], "dials": 2},
        ],
        "hosts": [
            {"vertex": v, **({"address": a} if a else {}), **(special if v == 1 else {})}
            for v, a in enumerate(ADDRESSES)
        ],
        "algorithm": HeavyBall(momentum=0.8).to_config(),
        "device": {
            "app": str(APP.resolve()),
            "client-app": "quadratics:app",
            "start": "start.safetensors",
            "state-dir": "state",
            "timing": {"ceiling-s": 60.0, "least-s": 2.0},
            "run-config": {**run_config, "topology": "path:4", "rounds": 7, "momentum": 0.8},
            "record": "checksums",
            "node-config": {"lidar": True},
        },
    }


def test_the_first_edition(made):
    (first,) = read_editions(made).values()
    graph = Topology.path(4)
    assert (first.number, first.begins, first.rounds, first.evaluate_every) == (1, 1, 7, 1)
    assert first.graph == graph.digest == read(made / "vertex-0" / "peer.toml")["graph"]
    assert {v: about.address for v, about in first.vertices.items()} == dict(enumerate(ADDRESSES))
    assert [(e.a, e.b, e.dials) for e in first.edges] == [(0, 1, 0), (1, 2, 2), (2, 3, 2)]
    assert all(first.row(v)[j] == graph.row(v)[j] for v in range(4) for j in first.row(v))


def test_keys_are_where_they_belong_and_nowhere_else(made):
    mesh = read(made / "mesh.toml")["mesh"]
    root = (made / "authority" / "authority.pem").read_bytes()
    for vertex in (0, 1, 2, 3, OPERATOR):
        folder = made / ("operator" if vertex == OPERATOR else f"vertex-{vertex}")
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        key, certificate = ((folder / f"{n}.pem").read_bytes() for n in ("key", "certificate"))
        assert (folder / "authority.pem").read_bytes() == root
        check_own(key, certificate, root, Identity(mesh, vertex))
        found = x509.load_pem_x509_certificate(certificate)
        span = found.not_valid_after_utc - found.not_valid_before_utc
        assert span == datetime.timedelta(days=30, minutes=5)
        assert stat.S_IMODE((folder / "key.pem").stat().st_mode) == 0o600
    assert stat.S_IMODE((made / "authority").stat().st_mode) == 0o700
    assert [p.parent.name for p in made.rglob("authority-key.pem")] == ["authority"]
    lasts = Authority.load(made / "authority").certificate
    span = lasts.not_valid_after_utc - lasts.not_valid_before_utc
    # As long as anybody renews certificates.
    assert span == datetime.timedelta(days=7300, minutes=5)


def test_all_devices_start_from_the_same_arrays(made):
    want = np.random.default_rng([0, 7]).standard_normal(12)
    for path in (made, *(made / f"vertex-{v}" for v in range(4))):
        arrays = load_file(path / "start.safetensors")
        assert list(arrays) == ["x"]
        np.testing.assert_array_equal(arrays["x"], want)


def test_a_plaintext_mesh_has_no_keys(tmp_path):
    out = tmp_path / "m"
    create_mesh(plan(out, plaintext=True))
    assert list(out.rglob("*.pem")) == []
    assert sorted(p.name for p in out.iterdir()) == [
        "editions", "mesh.toml", "start.safetensors",
        "vertex-0", "vertex-1", "vertex-2", "vertex-3",
    ]  # fmt: skip
    assert read(out / "mesh.toml")["plaintext"] is True
    assert read(out / "vertex-0" / "peer.toml")["plaintext"] is True
    assert "tls" not in read(out / "vertex-0" / "peer.toml")


@pytest.mark.parametrize(("timeout", "ceiling"), [(12.5, 12.5), (0.0, 3600.0)])
def test_a_round_without_a_time_limit_has_the_longest_ceiling(tmp_path, timeout, ceiling):
    out = tmp_path / "m"
    overrides = {"round-timeout-s": timeout, "evaluate-every": 3}
    create_mesh(plan(out, plaintext=True, overrides=overrides))
    document = read(out / "vertex-0" / "peer.toml")
    assert (document["timing"], document["evaluate-every"]) == ({"ceiling-s": ceiling}, 3)


def test_a_table_joins_the_one_it_names_and_anything_else_takes_its_place(tmp_path):
    out = tmp_path / "m"
    peer = {"limits": {"hello-s": 1.0}, "away-rounds": 9, "node-config": {"a": 1}}
    create_mesh(plan(out, plaintext=True, peer=peer))
    document = read(out / "vertex-0" / "peer.toml")
    assert (document["limits"], document["away-rounds"]) == ({"hello-s": 1.0}, 9)
    assert document["node-config"] == {"partition-id": 0, "num-partitions": 4, "a": 1}


# --- what is refused ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("vertices", "text"),
    [
        ([0, 1, 2], r"of vertices \[0, 1, 2\], .* has vertices 0 … 3, each once; missing: 3$"),
        ([0, 1, 2, 3, 4], r"of vertices \[0, 1, 2, 3, 4\], .* has vertices 0 … 3, each once$"),
        ([0, 1, 2, 2], "hosts: vertex 2 is given twice"),
        ([1, 2, 3, 4], r"of vertices \[1, 2, 3, 4\], .*; missing: 0$"),
        ([0, 1, 2, 3, 3], "hosts: vertex 3 is given twice"),
        ([0, 1, 2, "3"], "'path:4' have no names but the numbers 0 … 3, got vertex = '3'"),
    ],
)
def test_hosts_that_are_not_the_vertices_each_once(tmp_path, vertices, text):
    there = [Host(v, f"127.0.0.1:{9000 + i}") for i, v in enumerate(vertices)]
    with pytest.raises(ConfigError, match=text):
        create_mesh(plan(tmp_path / "m", hosts=there))
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize(
    ("address", "text"),
    [
        ("10.0.0.1", "address '10.0.0.1' has no port, expected one as in '10.0.0.1:9440'"),
        ("[fd00::10]", r"address '\[fd00::10\]' has no port, expected one as in"),
        ("fd00::10:9440", r"an IPv6 address stands in brackets, as in '\[fd00::10\]:9440'"),
        ("10.0.0.1:0", "the port must be 1 … 65535"),
        ("10.0.0.1:65536", "the port must be 1 … 65535"),
        ("10.0.0.1:http", "the port must be 1 … 65535"),
        ("http://robot:9440", "'http://robot' is no host"),
        ("robot/3:9440", "'robot/3' is no host"),
        (":9440", "'' is no host"),
        ("LocalHost:9001", "is that of vertex 1, too; each device has its own"),
    ],
)
def test_addresses_that_a_device_could_not_use(tmp_path, address, text):
    there = [*hosts()[:3], Host(3, address)]
    there[1] = Host(1, "localhost:9001")
    with pytest.raises(ConfigError, match=f"hosts: vertex 3: .*{text}"):
        create_mesh(plan(tmp_path / "m", hosts=there))
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize(
    ("address", "found"),
    [
        ("10.0.0.1:9440", ("10.0.0.1", 9440)),
        ("Robot-3.local:1", ("robot-3.local", 1)),
        ("[FD00::10]:65535", ("[fd00::10]", 65535)),
        ("[fe80::1%eth0]:9440", ("[fe80::1%eth0]", 9440)),
    ],
)
def test_addresses_that_it_can_use(address, found):
    assert parse_address(address) == found


@pytest.mark.parametrize(
    ("peer", "text"),
    [
        ({"recrod": "payloads"}, "unknown key 'recrod', did you mean 'record'"),
        ({"timing": {"ceilling-s": 5.0}}, r"of \[timing\] 'ceilling-s', did you mean 'ceiling-s'"),
        ({"timng": {"ceiling-s": 5.0}}, "unknown key 'timng', did you mean 'timing'"),
        ({"timing": 5}, r"\[timing\] must be a table, got 5"),
        ({"timing": {"ceiling-s": "5"}}, "ceiling-s must be above 0, got '5'"),
        ({"record": "everything"}, "unknown record 'everything'"),
        ({"on-damage": "rejoins"}, "unknown on-damage 'rejoins', did you mean 'rejoin'"),
        ({"checkpoint-every": 0}, "checkpoint_every must be an integer of at least 1"),
        ({"train-config": 1}, "train-config must be a table"),
        ({"vertex": 3}, "'vertex' of peer.toml cannot be set for all devices: it is each device's"),
        ({"algorithm": {"momentum": 0.5}}, "'algorithm' .*: --run-config says the rule"),
    ],
)
def test_what_a_device_would_refuse_is_refused_when_the_mesh_is_made(tmp_path, peer, text):
    with pytest.raises(ConfigError, match=text):
        create_mesh(plan(tmp_path / "m", peer=peer))
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("rouds", "unknown run-config key 'rouds', did you mean 'rounds'"),
        ("step_s", "unknown run-config key 'step_s', did you mean 'step-s'"),  # the app's own
    ],
)
def test_a_run_config_key_that_nothing_reads_is_refused(tmp_path, key, text):
    with pytest.raises(ConfigError, match=text):
        create_mesh(plan(tmp_path / "m", overrides={key: 1}))


def test_run_config_is_said_as_to_flwr_run(tmp_path, capsys):
    """Several settings in one text, and files of settings; later ones win."""
    preset = tmp_path / "preset.toml"
    preset.write_text("rounds = 9\nmomentum = 0.5\n")
    create = ["mesh", "create", "--app", str(APP), "--out", str(tmp_path / "m")]
    create += ["--insecure-plaintext", "--run-config", str(preset), "--run-config"]
    assert main([*create, 'topology="path:2" rounds=7']) == 0
    found = PeerSettings.load(tmp_path / "m" / "vertex-1" / "peer.toml")
    assert (found.rounds, found.algorithm.momentum) == (7, 0.5)
    capsys.readouterr()
    assert main([*create, "topology=path:2"]) == 2
    assert "path:2 is no TOML value; a text needs quotes" in capsys.readouterr().err


def test_a_value_that_no_app_can_be_given_is_refused_with_the_file(tmp_path):
    app = shutil.copytree(APP, tmp_path / "app")
    project = (app / "pyproject.toml").read_text()
    project = project.replace("[tool.flwr.app.config]\n", "[tool.flwr.app.config]\nx.y = [1]\n")
    (app / "pyproject.toml").write_text(project)
    with pytest.raises(ConfigError, match=r"pyproject.toml: .*'x.y' must be a text, a number or"):
        create_mesh(plan(tmp_path / "m", app=app))


def test_all_keys_of_the_rules_are_known(tmp_path):
    """Also those that the app's own pyproject.toml does not name."""
    keys = {"momentum-mixing": 0.25, "evaluate-every": 2, "algorithm": "dmsgd"}
    create_mesh(plan(tmp_path / "m", plaintext=True, overrides=keys))
    assert read(tmp_path / "m" / "vertex-0" / "peer.toml")["algorithm"]["momentum_mixing"] == 0.25


# --- graphs whose vertices have names -----------------------------------------------------


@pytest.fixture
def named(tmp_path):
    """A path lidar - rover - arm, in a file."""
    path = tmp_path / "robots.edgelist"
    path.write_text("rover lidar\nrover arm\n")
    return {"topology": str(path)}


def test_hosts_may_be_called_by_the_names_of_their_vertices(tmp_path, named):
    path = tmp_path / "hosts.toml"
    path.write_text(
        '[[hosts]]\nvertex = "rover"\naddress = "127.0.0.1:9000"\n'
        '[[hosts]]\nvertex = "arm"\n[[hosts]]\nvertex = 1\n'
    )
    out = tmp_path / "m"
    create_mesh(plan(out, hosts=read_hosts(path), overrides=named))
    overview = read(out / "mesh.toml")
    assert overview["hosts"] == [  # by name: arm, lidar, rover
        {"vertex": 0, "name": "arm"},
        {"vertex": 1, "name": "lidar"},
        {"vertex": 2, "name": "rover", "address": "127.0.0.1:9000"},
    ]
    assert {tuple(e["between"]): e["dials"] for e in overview["edges"]} == {(0, 2): 0, (1, 2): 1}
    settings = PeerSettings.load(out / "vertex-2" / "peer.toml")
    assert settings.neighbors == (0, 1)
    assert settings.names == {0: "arm", 1: "lidar", 2: "rover"}
    document = read(out / "vertex-2" / "peer.toml")
    document["neighbors"][0]["name"] = 7
    with pytest.raises(ConfigError, match="name of a vertex must be a text, got 7"):
        PeerSettings.of(document, out)


@pytest.mark.parametrize(
    ("vertices", "text"),
    [
        (["rover", "arn", "lidar"], "unknown vertex 'arn', did you mean 'arm'"),
        (["rover", "arm", 2], r"vertex 2 \('rover'\) is given twice"),
        (["rover", "arm"], r"missing: 1 \('lidar'\)"),
    ],
)
def test_names_that_are_not_the_vertices_each_once(tmp_path, named, vertices, text):
    there = [Host(v, f"127.0.0.1:{9000 + i}") for i, v in enumerate(vertices)]
    with pytest.raises(ConfigError, match=text):
        create_mesh(plan(tmp_path / "m", hosts=there, overrides=named))


@pytest.mark.parametrize(
    ("table", "text"),
    [
        ("address = 'a:1'", "a table lacks 'vertex'"),
        ("vertex = true", "vertex must be a number or a name, got True"),
        ("vertex = 1.5", "vertex must be a number or a name, got 1.5"),
        ("vertex = 0\nadress = 'a:1'", "unknown key 'adress', did you mean 'address'"),
        ("vertex = 0\naddress = 9440", "vertex 0: address must be a text, got 9440"),
        ("vertex = 0\nnode-config = 3", "vertex 0: node-config must be a table"),
    ],
)
def test_tables_of_hosts_that_cannot_be_meant(tmp_path, table, text):
    path = tmp_path / "hosts.toml"
    path.write_text(f"[[hosts]]\n{table}\n")
    with pytest.raises(ConfigError, match=text):
        read_hosts(path)


def test_a_plaintext_mesh_is_on_loopback_only(tmp_path):
    there = [*hosts()[:3], Host(3, "10.0.0.1:1")]
    with pytest.raises(ConfigError, match=r"plaintext on 0\.0\.0\.0:1"):
        create_mesh(plan(tmp_path / "m", hosts=there, plaintext=True))


def test_a_mesh_is_not_written_over_another(tmp_path):
    out = tmp_path / "m"
    check_empty(out, force=False)  # not there
    out.mkdir()
    check_empty(out, force=False)  # empty
    create_mesh(plan(out, plaintext=True))
    (out / "vertex-0" / "mine").touch()
    before = (out / "mesh.toml").read_text()
    for call in (lambda: check_empty(out, force=False), lambda: create_mesh(plan(out))):
        with pytest.raises(ConfigError, match="is not empty; --force replaces the mesh in it"):
            call()
    # What is wrong is refused before anything is replaced.
    with pytest.raises(ConfigError, match="unknown key 'recrod', did you mean 'record'"):
        create_mesh(plan(out, peer={"recrod": "payloads"}, force=True))
    assert (out / "mesh.toml").read_text() == before
    assert (out / "vertex-0" / "mine").exists()
    create_mesh(plan(out, plaintext=True, force=True))
    assert (out / "mesh.toml").read_text() != before
    assert not (out / "vertex-0" / "mine").exists()
    shutil.rmtree(out)
    out.mkdir()
    (out / "thesis.tex").touch()
    for force in (False, True):
        with pytest.raises(ConfigError, match=r"is not empty|something else than a mesh"):
            check_empty(out, force=force)
    assert (out / "thesis.tex").exists()


# --- the app ------------------------------------------------------------------------------

PROJECT = """
[tool.flwr.app.components]
clientapp = "MODULE:app"
[tool.flwr.app.config]
topology = "path:4"
plain = 1
[tool.flwr.app.config.optimizer]
rate = 0.5
[tool.flwr.app.config.optimizer.warm]
up = true
[tool.flower-dhb]
start = "MODULE:start"
train-config = { epochs = 2 }
evaluate-config = { full = true }
"""


def test_the_apps_own_tables_and_nested_settings(tmp_path):
    code = (
        "def start(values):\n    import numpy\n    return {'w': numpy.full(2, values['plain'])}\n"
    )
    folder = app(tmp_path, PROJECT, code)
    out = tmp_path / "m"
    create_mesh(plan(out, app=folder, plaintext=True, overrides={"optimizer.rate": 0.25}))
    document = read(out / "vertex-0" / "peer.toml")
    assert document["run-config"] == {
        "topology": "path:4", "plain": 1, "optimizer.rate": 0.25, "optimizer.warm.up": True,
        "rounds": 7, "momentum": 0.8,
    }  # fmt: skip
    assert (document["train-config"], document["evaluate-config"]) == (
        {"epochs": 2},
        {"full": True},
    )
    assert load_file(out / "start.safetensors")["w"].tolist() == [1, 1]
    assert n_agents(folder, {}) == 4
    assert n_agents(folder, {"topology": "ring:6"}) == 6


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[tool.flwr", "pyproject.toml: not readable as TOML: .*--app is a Flower App's"),
        ("[tool.other]\nx = 1", "pyproject.toml: is not a Flower App's: 'flwr'"),
        ("[tool.flwr.app]\nx = 1", "pyproject.toml: is not a Flower App's: 'components'"),
        (
            '[tool.flwr.app.components]\nserverapp = "x:y"',
            "pyproject.toml: is not a Flower App's: 'clientapp'",
        ),
    ],
)
def test_a_directory_that_is_no_flower_app(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        n_agents(app(tmp_path, text), {})


def test_a_directory_without_a_project_file(tmp_path):
    with pytest.raises(ConfigError, match=r"No such file.*; --app is a Flower App's directory"):
        n_agents(tmp_path, {})


STARTS = {
    "numbers": "def start(values):\n    return {'w': [1.0, 2.0], 'n': 3}\n",
    "of nothing": "def start():\n    return {'w': [1.0, 2.0], 'n': 3}\n",
    "model": """
class start:
    def __init__(self, hidden=5):
        assert hidden == 5
    def state_dict(self):
        return {'w': [1.0, 2.0], 'n': 3}
""",
    "torch": """
import torch
def start(values):
    return {'w': torch.nn.Parameter(torch.tensor([1.0, 2.0])), 'n': torch.tensor(3)}
""",
    "flower": """
import numpy
from flwr.app import Array
def start(values):
    return {'w': Array(numpy.array([1.0, 2.0])), 'n': Array(numpy.array(3))}
""",
}


@pytest.mark.parametrize("kind", STARTS)
def test_initial_arrays_from_whatever_an_app_makes_them_with(tmp_path, kind):
    folder = app(tmp_path, PROJECT, STARTS[kind])
    out = tmp_path / "m"
    create_mesh(plan(out, app=folder, plaintext=True))
    arrays = load_file(out / "start.safetensors")
    assert {name: a.tolist() for name, a in arrays.items()} == {"w": [1.0, 2.0], "n": 3}


def test_initial_arrays_in_any_order_of_memory(tmp_path):
    code = (
        "import numpy\ndef start(values):\n"
        "    a = numpy.arange(6.0).reshape(2, 3)\n"
        "    return {'f': numpy.asfortranarray(a), 't': a.T, 's': a[:, ::2]}\n"
    )
    out = tmp_path / "m"
    create_mesh(plan(out, app=app(tmp_path, PROJECT, code), plaintext=True))
    arrays = load_file(out / "start.safetensors")
    a = np.arange(6.0).reshape(2, 3)
    for name, want in {"f": a, "t": a.T, "s": a[:, ::2]}.items():
        np.testing.assert_array_equal(arrays[name], want)


def test_initial_arrays_from_a_file(tmp_path):
    path = tmp_path / "given.safetensors"
    save_file({"x": np.arange(12.0)}, path)
    out = tmp_path / "m"
    create_mesh(plan(out, plaintext=True, start=str(path)))
    np.testing.assert_array_equal(load_file(out / "start.safetensors")["x"], np.arange(12.0))
    x = np.arange(12.0)
    for arrays, why in (
        ({"w": x}, "lacks 'x', which the app's own start 'quadratics:start' has"),
        ({"x": x, "w": x}, "has 'w', which the app's own start 'quadratics:start' lacks"),
        ({"x": x[1:]}, r"'x' has the shape \[11\], and \[12\] in the app's own"),
        ({"x": x * np.nan}, "no readable initial arrays: 'x' holds 12 values that are not finite"),
        ({"x": x.astype(int)}, "no floating-point parameters"),
    ):
        save_file(arrays, path)
        with pytest.raises(ConfigError, match=f"{path}: {why}"):
            create_mesh(plan(tmp_path / "n", plaintext=True, start=str(path)))
    path.write_bytes(b"x")
    for bad in (path, tmp_path / "none.safetensors"):
        with pytest.raises(ConfigError, match=f"{bad}: no readable initial arrays"):
            create_mesh(plan(tmp_path / "n", plaintext=True, start=str(bad)))


def test_an_app_that_names_no_start(tmp_path):
    folder = app(tmp_path, PROJECT.replace('start = "MODULE:start"', ""))
    with pytest.raises(ConfigError, match=r"no initial arrays: give --start FILE.safetensors or"):
        create_mesh(plan(tmp_path / "m", app=folder, plaintext=True))


@pytest.mark.parametrize(
    ("start", "error"),
    [
        ("nowhere:start", "ModuleNotFoundError"),
        ("quadratics:nothing", "AttributeError"),
        ("quadratics", "AttributeError"),
        ("quadratics:time.sleep", "AttributeError"),
        ("quadratics:target", "TypeError"),
    ],
)
def test_a_start_that_cannot_be_called(tmp_path, start, error):
    with pytest.raises(ConfigError, match=f"start '{start}': {error}: .*; expected a function of"):
        create_mesh(plan(tmp_path / "m", plaintext=True, start=start))
    assert not (tmp_path / "m").exists()


# --- classes ------------------------------------------------------------------------------

# What a run, or a walk through its records, keeps its state in.
CHANGING = {"Edge", "Replay", "Spans", "Transport", "_Fold", "_Life", "_Rates"}


def test_what_describes_something_cannot_be_changed():
    names = [m.name for m in pkgutil.walk_packages(flower_dhb.peer.__path__, "flower_dhb.peer.")]
    found = {
        kind.__name__: kind.__dataclass_params__.frozen
        for name in [*names, "flower_dhb.agent.codec"]
        for kind in vars(importlib.import_module(name)).values()
        if isinstance(kind, type) and dataclasses.is_dataclass(kind)
        if kind.__module__.startswith("flower_dhb.")
    }
    assert {name for name, frozen in found.items() if not frozen} == CHANGING
    assert len(found) > 10


# --- the number of rounds of an app ------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "words", "rounds", "said"),
    [
        (
            "num-server-rounds = 3",
            [],
            3,
            "3 rounds, as 'num-server-rounds' of the app's",
        ),
        ("num-server-rounds = 3", ["--rounds", "5"], 5, "5 rounds, as 'rounds' says"),
        ("num-server-rounds = 3\nrounds = 3", [], 3, None),
        ("", [], 100, None),
    ],
)
def test_an_apps_number_of_rounds_is_taken_where_nothing_else_says_it_and_said(
    tmp_path, capsys, config, words, rounds, said
):
    app = shutil.copytree(APP, tmp_path / "app")
    project = (app / "pyproject.toml").read_text()
    project = re.sub(r"(?m)^rounds = .*\n", "", project)
    project = project.replace("[tool.flwr.app.config]\n", f"[tool.flwr.app.config]\n{config}\n")
    (app / "pyproject.toml").write_text(project)
    out = tmp_path / "m"
    create = ["mesh", "create", "--app", str(app), "--out", str(out), "--topology", "path:2"]
    assert main([*create, "--insecure-plaintext", *words]) == 0
    printed = capsys.readouterr().out
    assert (said in printed) if said else ("num-server-rounds" not in printed)
    assert PeerSettings.load(out / "vertex-0" / "peer.toml").rounds == rounds


@pytest.mark.parametrize(
    ("words", "limit"),
    [
        ([], "takes 640 s, and round-timeout-s gives a round 300 s"),
        (
            ["--share-every", "4", "--run-config", 'algorithm="dsgd"'],
            "takes 640 s, and round-timeout-s gives a round 300 s",
        ),
        (["--compression", "int8"], None),
        (["--run-config", "round-timeout-s=1280"], None),
        (["--run-config", "round-timeout-s=0"], None),  # an hour
    ],
)
def test_a_link_too_slow_for_a_round_is_said(tmp_path, capsys, words, limit):
    create = ["mesh", "create", "--app", str(APP), "--out", str(tmp_path / "mesh")]
    about = 'topology="ring:3" size=10000 dtype="float32" round-timeout-s=300'
    assert (
        main([*create, "--run-config", about, "--insecure-plaintext", "--link", "0.001", *words])
        == 0
    )
    said = " ".join(capsys.readouterr().out.split())
    assert ("no edge would count" in said) == (limit is not None)
    if limit is not None:
        assert limit in said
        assert "--run-config round-timeout-s=1280" in said
