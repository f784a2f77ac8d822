"""What the operator changes in a running mesh: the next edition, written as a whole."""

import dataclasses
import json
import os
import re
import shutil
import sys
import tomllib

import pytest
from cryptography import x509
from safetensors.numpy import load_file

from flower_dhb import ConfigError, Topology
from flower_dhb.cli import main
from flower_dhb.errors import NotNowError
from flower_dhb.peer.device.settings import PeerSettings
from flower_dhb.peer.mesh.changes import desk
from flower_dhb.peer.mesh.create import Host, MeshPlan, create_mesh
from flower_dhb.peer.mesh.editions import MeshFolder, Moment, add, beginning
from flower_dhb.peer.mesh.folder import changing
from flower_dhb.peer.mesh.overview import read_overview
from flower_dhb.peer.mesh.publish import newest
from flower_dhb.peer.watch.editions import read_editions
from flower_dhb.peer.wire.bulletin import EDITION, REVOCATIONS
from flower_dhb.peer.wire.edition import MeshEdge, MeshEdition, MeshVertex
from flower_dhb.peer.wire.trust import serial_text
from tests.support.editions import edition
from tests.support.peers import APP

ADDRESSES = ["127.0.0.1:9000", "127.0.0.1:9001", None, "127.0.0.1:9003", "127.0.0.1:9004"]


@pytest.fixture(scope="module")
def created(tmp_path_factory):
    """A ring of five; vertex 2 is behind NAT."""
    out = tmp_path_factory.mktemp("created") / "m"
    hosts = [Host(v, address) for v, address in enumerate(ADDRESSES)]
    overrides = {"topology": "ring:5", "rounds": 40}
    peer = {"record": "checksums"}
    create_mesh(MeshPlan(app=APP, out=out, hosts=hosts, overrides=overrides, peer=peer))
    return out


@pytest.fixture
def mesh(created, tmp_path):
    return shutil.copytree(created, tmp_path / "mesh")


def change(mesh, *words, at_round=20):
    """One command that asks nobody."""
    name, *others = words
    return main(["mesh", name, str(mesh), *others, "--offline", "--at-round", str(at_round)])


def latest(mesh):
    return MeshFolder.read(mesh).edition


def toml(path):
    return tomllib.loads(path.read_text())


def files(mesh):
    return {
        str(p.relative_to(mesh)): p.read_bytes()
        for p in mesh.rglob("*")
        if p.is_file() and p.name != ".lock" and ".change" not in p.parts
    }


# --- the document -----------------------------------------------------------------------------


def test_an_edition_comes_back_from_its_document():
    first = edition(
        Topology.from_edges([(0, 1), (1, 2), (0, 2), (2, 3)]), limits={"frames": [9.0, 2.0]}
    )
    assert MeshEdition.of(json.loads(json.dumps(first.body()))) == first
    assert first.neighbors(2) == (0, 1, 3)
    assert first.row(3) == {2: first.edges[3].weight, 3: first.own_weights[3]}
    assert first.dial(2) == {3: "127.0.0.1:9003"}
    assert (first.is_dialed(0), first.is_dialed(3)) == (False, True)
    assert first.neighbors(9) == ()


def bad(**changes):
    def made(body):
        return {**body, **changes}

    return made


def edge(**changes):
    def made(body):
        first = dict(zip(("a", "b", "weight", "dials"), body["edges"][0], strict=True))
        return {**body, "edges": [list((first | changes).values()), *body["edges"][1:]]}

    return made


@pytest.mark.parametrize(
    ("broken", "why"),
    [
        (bad(number=0), "number must be an integer of at least 1, got 0"),
        (bad(rounds=2.5), "rounds must be an integer"),
        (bad(begins=21), "begins in round 21, after its last round 20"),
        (bad(graph="0"), "its graph is .*, and it says 0"),
        (bad(extra=1), "unknown key 'extra'"),
        (bad(edges=[[0, 1, 0.5]]), "not as it should be"),
        (bad(edges=[]), "not connected"),
        (bad(edges=5), "not as it should be"),
        (bad(vertices={"x": {}}), "a vertex is a number"),
        (bad(vertices={"0": {"address": 7}}), "address must be a text"),
        (bad(vertices={"0": {"address": "nowhere"}}), "has no port"),
        (bad(vertices={"0": {"color": "red"}}), "unknown key of vertex 0 'color'"),
        (bad(timing={"ceiling-s": -1.0}), r"\[timing\] ceiling-s must be above 0"),
        (bad(limits={"frames": [1.0, float("nan")]}), r"\[limits\] frames must be above 0"),
        (bad(limits={"frames": [1.0]}), "a number or two"),
        (edge(weight=0.5), "the weights of vertex 0 sum to"),
        (edge(weight=float("nan")), "the weights of vertex 0 sum to nan"),
        (edge(weight="1"), "not as it should be"),
        (edge(dials=2), "dialed by 2, which is no end of it"),
        (edge(b=9), "edge 0-9 is not between two of its vertices"),
        (edge(a=True), "is not between two of its vertices"),
    ],
)
def test_what_is_no_edition(broken, why):
    body = edition(Topology.ring(4)).body()
    assert MeshEdition.of(body).number == 1
    with pytest.raises(ConfigError, match=why):
        MeshEdition.of(broken(body))


def test_an_edge_whose_dialed_end_has_no_address():
    first = edition(Topology.path(2))
    with pytest.raises(ConfigError, match="edge 0-1: vertex 0 dials, and 1 has no address"):
        dataclasses.replace(first, vertices={**first.vertices, 1: MeshVertex()})
    with pytest.raises(ConfigError, match="not each there once"):
        dataclasses.replace(first, edges=first.edges * 2)


# --- one more -------------------------------------------------------------------------------


def test_a_device_that_comes(mesh, capsys):
    before = latest(mesh)
    assert change(mesh, "add", "--neighbors", "0,2", "--address", "127.0.0.1:9005",
                  "--node-config", "data=/d") == 0  # fmt: skip
    after = latest(mesh)
    graph = Topology.from_edges([(a, b) for a, b in Topology.ring(5).edges] + [(0, 5), (2, 5)])
    assert after.graph == graph.digest
    assert (after.number, after.begins, after.rounds) == (2, 20, 40)
    assert (before.members_since, after.members_since) == (1, 2)
    # What stood stays as it was dialed; the device behind NAT dials the new one.
    was = {(e.a, e.b): e.dials for e in before.edges}
    assert {(e.a, e.b): e.dials for e in after.edges if e.b != 5} == was
    assert after.dial(2)[5] == "127.0.0.1:9005"
    settings = PeerSettings.load(mesh / "vertex-5" / "peer.toml")
    assert (settings.edition, settings.begins, settings.neighbors) == (2, 20, (0, 2))
    assert settings.weights == after.row(5)
    assert settings.record == "checksums"
    assert settings.node_config == {"partition-id": 5, "num-partitions": 6, "data": "/d"}
    settings.tls.read()  # key and certificate belong together, and to vertex 5
    want, found = (load_file(p / "start.safetensors")["x"] for p in (mesh, mesh / "vertex-5"))
    assert (want == found).all()
    # Everybody has the bulletin in the folder that is carried to it.
    signed = (mesh / "bulletins" / "edition.bulletin").read_bytes()
    assert all((p / "bulletins" / "edition.bulletin").read_bytes() == signed
               for p in mesh.glob("vertex-*"))  # fmt: skip
    assert MeshEdition.of(newest(mesh, EDITION).body) == after
    assert sorted(read_editions(mesh)) == [1, 2]
    said = capsys.readouterr().out
    assert "edition 2: 6 devices, 7 edges, 40 rounds; it begins in round 20" in said
    assert f"copy {mesh}/bulletins/edition.bulletin into the folder bulletins/" in said
    assert f"carry {mesh}/vertex-5 to the device of vertex 5" in said


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["add", "--neighbors", "0,7"], "has no vertex '7'; it has 0, 1, 2, 3, 4"),
        (["add", "--neighbors", "2"], "edge 2-5: neither end has an address"),
        (["add", "--neighbors", "0", "--vertex", "3"], "vertex 3 is there; .*next free one is 5"),
        (["add", "--neighbors", "0", "--address", "127.0.0.1:9001"], "is that of vertex 1, too"),
        (["add", "--neighbors", "0", "--address", "nowhere"], "has no port"),
        (["add", "--neighbors", "0", "--weights", "metropols"], "metropolis"),
        (["remove", "9"], "has no vertex '9'"),
        (["remove", "0", "--connect", "1"], "expected two vertices"),
        (["remove", "0", "--connect", "1-2"], "that edge is there already"),
        (["remove", "0", "--connect", "1-0"], "expected two of the vertices that stay"),
        (["set-address", "0", "127.0.0.1"], "has no port"),
        (["set-address", "1", "none"], "edge 1-2: neither end has an address"),
        (["set"], "nothing to set"),
        (["set", "rounds=19"], "the run ends with round 19"),
        (["set", "rounds=1.5"], "rounds must be an integer"),
        (["set", "momentum=0.5"], "'momentum' cannot be set in a running mesh"),
        (["set", "timing.ceiling=5"], "unknown key of .timing. 'ceiling'.*ceiling-s"),
        (["set", "limits.frames=-1"], "must be above 0"),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_is_written(mesh, capsys, words, why):
    before = files(mesh)
    assert change(mesh, *words) == 2
    assert re.search(why, capsys.readouterr().err)
    assert files(mesh) == before


# --- one less, another, elsewhere -------------------------------------------------------------


def test_a_device_that_goes_and_a_number_that_is_not_used_again(mesh, capsys):
    assert change(mesh, "remove", "4") == 0  # a ring without one is a path
    after = latest(mesh)
    assert sorted(after.vertices) == [0, 1, 2, 3]
    assert after.graph == Topology.path(4).digest
    assert change(mesh, "remove", "1", at_round=21) == 2
    why = capsys.readouterr().err
    assert "parts that cannot agree: [0], [2, 3]; connect them: --connect 0-2" in why
    assert change(mesh, "remove", "1", "--connect", "0-2", at_round=21) == 0
    ids = latest(mesh)
    assert sorted(ids.vertices) == [0, 2, 3]
    assert ids.neighbors(2) == (0, 3)
    # Weights are those of the scheme, on a path whose vertices have gaps in their numbers.
    path = Topology.path(3)
    assert ids.row(2) == dict(zip((0, 2, 3), path.row(1), strict=True))
    assert change(mesh, "add", "--neighbors", "3", at_round=22) == 0
    assert sorted(latest(mesh).vertices) == [0, 2, 3, 5]
    assert change(mesh, "add", "--neighbors", "3", "--vertex", "4", at_round=23) == 2
    assert "vertex 4 was there; a number is not used twice" in capsys.readouterr().err


def test_a_device_in_the_place_of_another(mesh, capsys):
    before = {name: (mesh / "vertex-1" / name).read_bytes() for name in ("key.pem", "peer.toml")}
    first = latest(mesh)
    assert change(mesh, "replace", "1", "--address", "127.0.0.1:9911") == 0
    after = latest(mesh)
    assert (after.graph, after.members_since) == (first.graph, 1)
    assert after.vertices[1].address == "127.0.0.1:9911"
    settings = PeerSettings.load(mesh / "vertex-1" / "peer.toml")
    assert (settings.begins, settings.listen) == (20, "127.0.0.1:9911")
    settings.tls.read()
    assert (mesh / "vertex-1" / "key.pem").read_bytes() != before["key.pem"]
    (aside,) = (mesh / "former").iterdir()
    assert aside.name == "vertex-1-until-edition-2"
    assert (aside / "key.pem").read_bytes() == before["key.pem"]
    old = x509.load_pem_x509_certificate((aside / "certificate.pem").read_bytes())
    (entry,) = newest(mesh, REVOCATIONS).body["certificates"]
    assert (entry["serial"], entry["who"]) == (serial_text(old), "vertex 1")
    lists = {p.read_bytes() for p in mesh.rglob("revocations.bulletin")}
    assert (len(lists), len(list(mesh.glob("vertex-*/bulletins/revocations.bulletin")))) == (1, 5)
    assert f"carry {mesh}/vertex-1 to the device of vertex 1" in capsys.readouterr().out


def test_a_device_that_moved(mesh, capsys):
    first = latest(mesh)
    assert change(mesh, "set-address", "3", "127.0.0.1:9933") == 0
    after = latest(mesh)
    assert (after.graph, after.edges) == (first.graph, first.edges)
    assert {**first.dial(2), **after.dial(2)}[3] == "127.0.0.1:9933"
    assert toml(mesh / "vertex-3" / "peer.toml")["listen"] == "127.0.0.1:9933"
    assert f"carry {mesh}/vertex-3/peer.toml to its device" in capsys.readouterr().out
    # Behind NAT from now on: it dials whoever can be reached, and 2 cannot.
    assert change(mesh, "set-address", "0", "none", at_round=21) == 0
    assert sorted(latest(mesh).dial(0)) == [1, 4]


def test_rounds_limits_and_weights(mesh):
    first = latest(mesh)
    words = ["rounds=90", "evaluate-every=5", "timing.ceiling-s=7", "limits.frames=[50, 20]"]
    assert change(mesh, "set", *words) == 0
    after = latest(mesh)
    assert (after.rounds, after.evaluate_every, after.graph) == (90, 5, first.graph)
    settings = PeerSettings.load(mesh / "vertex-2" / "peer.toml").in_edition(after)
    assert (settings.rounds, settings.evaluate_every, settings.timing.ceiling_s) == (90, 5, 7.0)
    assert settings.limits.frames == (50.0, 20.0)
    assert change(mesh, "set", "--weights", "lazy", at_round=21) == 0
    third = latest(mesh)
    assert third.graph == Topology.ring(5, "lazy").digest
    assert third.timing == {"ceiling-s": 7}  # what was set stays
    assert read_overview(mesh)["weights"] == "lazy"


def test_a_mesh_without_an_authority(tmp_path, capsys):
    hosts = [Host(v, f"127.0.0.1:{9000 + v}") for v in range(2)]
    out = tmp_path / "m"
    overrides = {"topology": "path:2"}
    create_mesh(MeshPlan(app=APP, out=out, hosts=hosts, overrides=overrides, plaintext=True))
    assert change(out, "set", "rounds=30") == 2
    assert "in plaintext has no authority" in capsys.readouterr().err


# --- when it begins -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("moment", "options", "begins"),
    [
        (Moment(3, 10.0), {}, 8),  # five rounds are longer than 30 s
        (Moment(3, 2.0), {}, 18),  # 30 s are longer
        (Moment(3, 0.0), {}, 8),
        (Moment(3, 2.0), {"at_round": 4}, 4),
        (Moment(None), {"at_round": 7}, 7),
        (Moment(39, 2.0), {"rounds": 60}, 41),  # nobody is past the end of the run
        (Moment(40, 0.0), {"rounds": 41}, 41),
    ],
)
def test_when_an_edition_begins(moment, options, begins):
    assert beginning(edition(Topology.ring(4), rounds=40), moment, **options) == begins


@pytest.mark.parametrize(
    ("moment", "options", "why"),
    [
        (Moment(None), {}, "no device could be asked.*--at-round N"),
        (Moment(30, 1.0), {}, "with a margin of 30 rounds the change would begin in round 60"),
        (Moment(40, 1.0), {}, "the run ends with round 40; let the run go on before"),
        (Moment(30, 1.0), {"at_round": 30}, "round 30 is under way already"),
        (Moment(30, 1.0), {"at_round": 41}, "the run ends with round 40"),
        (Moment(None), {"at_round": 1}, "edition 1 begins in round 2"),
    ],
)
def test_when_it_cannot(moment, options, why):
    first = edition(Topology.ring(4), rounds=40, begins=2)
    with pytest.raises(ConfigError, match=why):
        beginning(first, moment, **options)


# --- whole, or not at all ---------------------------------------------------------------------


def in_a_process_that_ends(mesh, step):
    """A command whose process is gone before its n-th touch of the disk.

    Returns whether it was done before that.
    """
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    count = 0

    def hook(event, _):
        nonlocal count
        if event in ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir"):
            count += 1
            if count == step:
                os._exit(9)

    try:
        with desk(mesh) as held:
            draft = add(held.folder, 20, [0, 3], Host(5, "127.0.0.1:9005"))
            sys.addaudithook(hook)
            held.write(draft)
    finally:
        os._exit(0)


@pytest.mark.slow
def test_a_folder_is_as_before_or_whole_wherever_a_command_is_killed(created, tmp_path):
    before = files(created)
    step, outcomes = 1, []
    while True:
        mesh = shutil.copytree(created, tmp_path / f"killed-{step}")
        done = in_a_process_that_ends(mesh, step)
        number = read_overview(mesh)["edition"]  # any command finishes what holds
        assert not (mesh / ".changed").exists()
        outcomes.append(number)
        if number == 1:
            assert files(mesh) == before
        else:
            after = latest(mesh)
            assert sorted(after.vertices) == [0, 1, 2, 3, 4, 5]
            PeerSettings.load(mesh / "vertex-5" / "peer.toml").tls.read()
            bulletins = {p.read_bytes() for p in mesh.rglob("edition.bulletin")}
            assert len(bulletins) == 1
            assert len(list(mesh.rglob("edition.bulletin"))) == 7
        with changing(mesh):  # and the next command can go on
            pass
        shutil.rmtree(mesh)
        if done:
            break
        step += 7  # each seventh place: they are some hundreds
    assert outcomes == sorted(outcomes)
    assert set(outcomes) == {1, 2}


def test_two_commands_do_not_change_one_mesh_at_once(mesh):
    refused = pytest.raises(NotNowError, match="another command is changing this mesh")
    with desk(mesh), refused, desk(mesh):
        raise AssertionError("both were let in")


def test_edges_and_their_ends_are_ordered():
    assert MeshEdge(0, 1, 0.5, 0) < MeshEdge(0, 2, 0.1, 0)
