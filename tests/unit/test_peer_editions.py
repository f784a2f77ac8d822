"""The editions that a device knows: what it takes, refuses, keeps, and goes by."""

import json
import logging
from dataclasses import replace

import pytest

from flower_dhb import ConfigError, Topology
from flower_dhb.peer.device.editions import Editions
from flower_dhb.peer.device.settings import PeerSettings
from flower_dhb.peer.mesh.create import Host, MeshPlan, create_mesh
from flower_dhb.peer.mesh.editions import MeshFolder, add, remove, replace_device, set_values
from flower_dhb.peer.monitor import Monitor
from flower_dhb.peer.protocol.edition import Edition
from flower_dhb.peer.wire.bulletin import EDITION, Bulletin
from tests.support.peers import APP


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A ring of four; vertex 3 is behind NAT, and listens nowhere."""
    out = tmp_path_factory.mktemp("mesh") / "m"
    hosts = [Host(v, f"127.0.0.1:{9000 + v}" if v < 3 else None) for v in range(4)]
    create_mesh(
        MeshPlan(app=APP, out=out, hosts=hosts, overrides={"topology": "ring:4", "rounds": 40})
    )
    return MeshFolder.read(out)


class Device:
    """The editions of one device, and what its disk is asked to write."""

    def __init__(self, folder, vertex, state_dir):
        loaded = PeerSettings.load(folder.directory / f"vertex-{vertex}" / "peer.toml")
        self.base = replace(loaded, state_dir=state_dir)
        self.told, self.writes = [], []
        self.monitor = Monitor(vertex)
        self.begin()

    def begin(self):
        self.editions = Editions(self.base, self.monitor, self.store, self.told.append)

    def store(self, path, data, done):
        self.writes.append((path, data, done))

    def write(self):
        """The disk takes what is in line."""
        for path, data, done in self.writes:
            path.write_bytes(data)
            done()
        self.writes.clear()


def bulletin(edition, number=None):
    body = json.loads(json.dumps(edition.body()))
    return Bulletin(EDITION, "m", number or edition.number, body)


def test_an_edition_is_told_when_it_is_on_the_disk_and_known_after_a_restart(folder, tmp_path):
    device = Device(folder, 0, tmp_path)
    assert device.editions.protocol() == (Edition(1, 1, 40, (1, 3)),)
    second = add(folder, 20, [0, 2], Host(4, "127.0.0.1:9004")).edition
    device.editions.check(bulletin(second))
    device.editions.take(bulletin(second))
    assert not device.told
    assert not device.editions.settle(0.0)
    device.write()
    want = Edition(2, 20, 40, (1, 3, 4), members_since=2)
    assert device.told == [want]
    assert device.editions.settle(0.0)
    device.begin()  # after a restart
    assert device.editions.protocol() == (Edition(1, 1, 40, (1, 3)), want)
    assert device.editions.settings(1).weights == folder.edition.row(0)
    now = device.editions.settings(2)
    assert now.weights == second.row(0)
    assert (now.rounds, now.graph, now.neighbors) == (40, second.graph, (1, 3, 4))
    device.editions.take(bulletin(second))  # the same again is no news
    assert not device.writes


def test_addresses_and_limits_are_those_of_the_newest_edition(folder, tmp_path):
    device = Device(folder, 3, tmp_path)
    assert {j: device.editions.dial(j) for j in (0, 2)} == {
        0: "127.0.0.1:9000",
        2: "127.0.0.1:9002",
    }
    moved = replace_device(folder, 20, 2, Host(2, "127.0.0.1:9922")).edition
    device.editions.take(bulletin(moved))
    assert device.editions.dial(2) == "127.0.0.1:9922"
    assert device.editions.dial(1) is None
    values = {"timing.ceiling-s": 7.0, "limits.heartbeat-s": 1.0, "rounds": 90}
    later = set_values(folder, 30, values).edition
    device.editions.take(bulletin(replace(later, number=3)))
    newest = device.editions.newest
    assert (newest.timing.ceiling_s, newest.limits.heartbeat_s, newest.rounds) == (7.0, 1.0, 90)
    assert device.editions.settings(2).timing.ceiling_s == device.base.timing.ceiling_s
    assert list(device.editions.agreement()) == ["edition 1", "edition 2", "edition 3"]
    assert "rounds 30 to 90" in device.editions.agreement()["edition 3"]


def test_a_device_that_is_no_member_any_more(folder, tmp_path):
    device = Device(folder, 1, tmp_path)
    gone = remove(folder, 20, 1).edition
    device.editions.check(bulletin(gone))
    device.editions.take(bulletin(gone))
    device.write()
    assert device.told == [Edition(2, 20, 40, (), member=False, members_since=2)]
    assert device.editions.newest == device.base
    assert device.editions.dial(2) == device.base.dial.get(2)


def test_what_a_device_cannot_follow_is_refused(folder, tmp_path):
    """A neighbor is to dial it, and it listens nowhere."""
    second = add(folder, 20, [0, 3], Host(4, "127.0.0.1:9004")).edition
    edges = [replace(e, dials=4) if (e.a, e.b) == (3, 4) else e for e in second.edges]
    vertices = {**second.vertices, 3: replace(second.vertices[3], address="127.0.0.1:9003")}
    turned = replace(second, edges=tuple(edges), vertices=vertices)
    device = Device(folder, 3, tmp_path)
    with pytest.raises(ConfigError, match=r"neighbors \[4\] dial it, but it has no 'listen'"):
        device.editions.check(bulletin(turned))
    Device(folder, 0, tmp_path).editions.check(bulletin(turned))
    with pytest.raises(ConfigError, match="says that it is edition 2"):
        device.editions.check(bulletin(second, number=3))
    with pytest.raises(ConfigError, match=r"unknown key of .limits. 'frame'"):
        device.editions.check(bulletin(replace(second, limits={"frame": 1.0})))
    other = replace(folder.edition, rounds=41)
    with pytest.raises(ConfigError, match=r"rounds 1 to 41, and peer.toml, which is of the same"):
        device.editions.check(bulletin(other))
    device.editions.check(bulletin(folder.edition))  # as the operator publishes it


def test_a_damaged_file_is_told_and_the_device_goes_on(folder, tmp_path, caplog):
    device = Device(folder, 0, tmp_path)
    device.editions.take(bulletin(set_values(folder, 20, {"rounds": 60}).edition))
    device.write()
    path = tmp_path / "editions.json"
    path.write_bytes(path.read_bytes().replace(b"60", b"61"))
    with caplog.at_level(logging.WARNING):
        device.begin()
    assert len(device.editions.protocol()) == 1
    assert "damaged" in [record.message for record in caplog.records]


def test_a_device_that_joined_later_has_its_own_edition_first(folder, tmp_path):
    second = add(folder, 20, [0, 2], Host(4, "127.0.0.1:9004")).edition
    device = Device(folder, 0, tmp_path)
    device.base = replace(device.base.in_edition(second), state_dir=tmp_path)
    device.begin()
    assert device.editions.protocol() == (Edition(2, 20, 40, (1, 3, 4), members_since=2),)
    device.editions.check(bulletin(second))
    device.editions.take(bulletin(second))
    device.editions.take(bulletin(folder.edition))
    assert not device.writes
    assert Topology.ring(4).digest == folder.edition.graph
