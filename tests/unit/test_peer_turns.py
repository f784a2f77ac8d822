"""A mesh whose edges take turns: its edition, what a device reads of it, and what can change."""

import copy
import json
import tomllib

import numpy as np
import pytest

from flower_dhb import ConfigError
from flower_dhb.peer.device.settings import PeerSettings
from flower_dhb.peer.mesh.create import Host, MeshPlan, create_mesh
from flower_dhb.peer.mesh.editions import MeshFolder, add, remove, set_address, set_values
from flower_dhb.peer.protocol.edition import Edition
from flower_dhb.peer.watch.lately import Lately
from flower_dhb.peer.wire.edition import MeshEdition
from flower_dhb.topology.turns import parse_graph, share_every
from tests.support.peers import APP
from tests.support.protocol import End, vertex

GRAPHS = share_every(parse_graph("base:5:1"), 2)
CONFIG = {"topology": "base:5:1", "share-every": 2, "rounds": 40, "algorithm": "dsgd"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("mesh") / "m"
    hosts = [Host(v, f"127.0.0.1:{9000 + v}") for v in range(5)]
    create_mesh(MeshPlan(app=APP, out=out, hosts=hosts, overrides=CONFIG))
    return MeshFolder.read(out)


def settings(folder, v):
    return PeerSettings.load(folder.directory / f"vertex-{v}" / "peer.toml")


def test_a_device_reads_each_round_of_the_period_from_its_file_and_from_the_edition(folder):
    assert folder.edition.graph == GRAPHS.digest
    assert MeshEdition.of(json.loads(json.dumps(folder.edition.body()))) == folder.edition
    for v in range(5):
        read = settings(folder, v)
        later = read.in_edition(folder.edition)
        assert read.neighbors == GRAPHS.neighbors(v)
        assert len(read.turns) == len(later.turns) == len(GRAPHS) == 10
        for k in range(1, 25):
            expected = GRAPHS.at(k).weights_of(v)
            assert read.row(k) == later.row(k) == folder.edition.row_at(v, k) == expected
            assert read.due(k) == GRAPHS.at(k).neighbors(v)
        mean = [read.weights.get(j, 0.0) for j in range(5)]
        np.testing.assert_array_equal(mean, GRAPHS.together.row(v))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda turns: turns[1]["edges"].append([3, 4, 0.5]), "turn 2 has the edge"),
        (lambda turns: turns[1]["edges"].reverse(), "turn 2 are not in ascending order"),
        (lambda turns: turns[1]["edges"][0].__setitem__(2, 0.7), "in turn 2 sum to"),
        (lambda turns: turns[1]["own-weights"].pop("0"), "turn 2: its own weights are not of"),
        (
            lambda turns: turns.__setitem__(5, {"edges": [], "own-weights": {}}),
            "edge .* has no turn",
        ),
        (lambda turns: turns[1].pop("edges"), "lacks 'edges'"),
        (lambda turns: turns.pop(), "its graph is"),
    ],
)
def test_an_edition_whose_turns_cannot_be_is_refused(folder, change, says):
    body = copy.deepcopy(folder.edition.body())
    change(body["turns"])
    with pytest.raises(ConfigError, match=says):
        MeshEdition.of(body)


def test_a_file_whose_turns_cannot_be_is_refused(folder):
    path = folder.directory / "vertex-0" / "peer.toml"
    for turn, says in (
        ({"own-weight": 0.5, "weights": {"1": 0.4}}, "turn 2 has the weights"),
        (
            {"own-weight": 0.5, "weights": {"3": 0.5}},
            "expected its own and those of some neighbors",
        ),
        ({"own-weights": 0.5}, "did you mean 'own-weight'"),
    ):
        document = tomllib.loads(path.read_text())
        document["turns"][1] = turn
        with pytest.raises(ConfigError, match=says):
            PeerSettings.of(document, path.parent)


def test_rounds_limits_and_addresses_can_change_and_edges_cannot(folder):
    longer = set_values(folder, 20, {"rounds": 80, "timing.ceiling-s": 9}).edition
    assert (longer.rounds, longer.turns) == (80, folder.edition.turns)
    moved = set_address(folder, 20, 3, Host(3, "127.0.0.1:9777")).edition
    assert (moved.turns, moved.vertices[3].address) == (folder.edition.turns, "127.0.0.1:9777")
    for make in (
        lambda: add(folder, 20, [0], Host(5, "127.0.0.1:9005")),
        lambda: remove(folder, 20, 4),
        lambda: set_values(folder, 20, {}, weights="lazy"),
    ):
        with pytest.raises(
            ConfigError, match="edges of 'base:5:1, shared every 2 rounds' take turns"
        ):
            make()


def test_what_a_peer_has_seen_lately_is_of_rounds_in_which_somebody_is_due():
    editions = (Edition(1, 1, 500, (1,), turns=((), (), (vertex("b"),))),)
    end = End("b", editions=editions, started=False)
    lately = Lately(end.agent, end.now)
    plain = end.handle

    def handle(event):
        before = len(end.effects)
        plain(event)
        lately.saw(event, end.effects[before:], end.now)

    end.handle = handle
    end.do("start", "up b")
    for k in range(1, 91):
        end.do("later 1", "trained", "journaled")
        if k % 3 == 0:
            end.do(f"payload b{k} +", f"ack b a{k}")
        end.do("combined", "saved")
    assert lately.rounds() == list(range(33, 91, 3))
    assert lately.took_part() == lately.took_part(1) == 20
