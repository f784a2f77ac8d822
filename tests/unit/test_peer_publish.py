"""What the operator publishes: signed and kept first, then handed to devices over mutual TLS."""

import grpc
import pytest

from flower_dhb import ConfigError
from flower_dhb.peer.mesh import publish as module
from flower_dhb.peer.mesh.certificates import Authority
from flower_dhb.peer.mesh.create import Host, local_hosts
from flower_dhb.peer.mesh.fleet import Fleet
from flower_dhb.peer.mesh.publish import hand_out, newest, publish
from flower_dhb.peer.wire import relay_pb2 as pb
from flower_dhb.peer.wire.bulletin import EDITION, LIMIT_BYTES, REVOCATIONS, Bulletin, sign
from flower_dhb.peer.wire.operations import PUBLISH
from tests.support.board import Device
from tests.support.events import Events
from tests.support.peers import Mesh
from tests.support.waiting import wait_for


@pytest.fixture(autouse=True)
def log():
    with Events() as heard:
        yield heard


def make(out, hosts=None, **changes):
    """A path 0 - 1 - 2; no process is started."""
    return Mesh(out, n=3, hosts=hosts, topology="path:3", rounds=3, size=4, **changes)


def test_one_device_is_told_and_all_learn_it_from_each_other(tmp_path):
    mesh = make(tmp_path / "m", [*local_hosts(2), Host(2)])
    with Device(mesh.settings(1)) as one:
        found = publish(mesh.out, EDITION, {"rounds": 9}, timeout_s=2.0)
        assert (found.bulletin.number, found.took) == (1, (1,))
        assert found.failures[2] == "it has no address that could be asked"
        assert "nothing listens" in found.failures[0]
        assert one.board.newest(EDITION) == found.bulletin
        with Device(mesh.settings(0)) as zero, Device(mesh.settings(2)) as two:
            # Whoever comes learns it in the Hellos.
            wait_for(lambda: zero.number() == two.number() == 1, "the Hellos")
            # What is new goes on at once, through one that is in between.
            raw = Authority.load(mesh.out / "authority").sign(
                Bulletin(
                    REVOCATIONS,
                    found.bulletin.mesh,
                    4,
                    {"certificates": [], "x": "y" * 1_500_000},
                )
            )
            two.board.take(raw, "a file")
            wait_for(lambda: zero.number(REVOCATIONS) == 4, "the news")
    # Beside each device's files lies what is to be carried with them.
    assert {p.read_bytes() for p in mesh.out.rglob("edition.bulletin")} == {found.path.read_bytes()}
    assert len(list(mesh.out.rglob("edition.bulletin"))) == 4


def test_numbers_grow_and_what_is_refused_is_told(tmp_path):
    mesh = make(tmp_path / "m")
    settings = mesh.settings(0)
    assert newest(mesh.out, EDITION) is None
    with pytest.raises(ConfigError, match="no bulletin of kind 'edition' has been published"):
        hand_out(mesh.out, EDITION)
    assert publish(mesh.out, EDITION, {"x": 1}, timeout_s=0.1).took == ()
    assert publish(mesh.out, EDITION, {"x": 2}, number=5, timeout_s=0.1).bulletin.number == 5
    with pytest.raises(ConfigError, match="number 5 is published already"):
        publish(mesh.out, EDITION, {}, number=5)
    with Device(settings) as device:
        assert hand_out(mesh.out, EDITION, timeout_s=2.0).took == (0,)
        key = Authority.load(mesh.out / "authority")._key
        device.board.take(sign(Bulletin(EDITION, settings.mesh, 8, {}), [key]), "a file")
        assert hand_out(mesh.out, EDITION, timeout_s=2.0).failures[0] == (
            "it has number 8, which is newer"
        )
        fleet = Fleet(mesh.out)
        other = Authority.create(settings.mesh, 5)
        for raw, why in [
            (
                other.sign(Bulletin(EDITION, settings.mesh, 9, {})),
                "no trusted authority has signed",
            ),
            (b"x" * (LIMIT_BYTES + 300_000), f"more than {LIMIT_BYTES} bytes"),
            (b"", "does not begin as one"),
        ]:
            replies, failures = fleet.publish(raw)
            assert why in replies[0].refused
            assert sorted(failures) == [1, 2]
        fleet.close()
        assert device.number() == 8
    # What lies in the mesh's folder is held against the authority as well.
    path = mesh.out / module.FOLDER / "edition.bulletin"
    path.write_bytes(path.read_bytes().replace(b'"x":2', b'"x":3'))
    with pytest.raises(ConfigError, match="no trusted authority"):
        newest(mesh.out, EDITION)


def test_a_disk_that_takes_nothing_is_told_to_the_operator_and_to_no_neighbor(
    tmp_path, monkeypatch
):
    monkeypatch.setattr("flower_dhb.peer.wire.operations._STORED_S", 0.05)
    mesh = make(tmp_path / "m")
    with Device(mesh.settings(0), full=True) as zero, Device(mesh.settings(1)) as one:
        wait_for(lambda: zero.shell.up() and one.shell.up(), "the connection")
        authority = Authority.load(mesh.out / "authority")
        fleet = Fleet(mesh.out)
        raw = authority.sign(Bulletin(EDITION, authority.mesh, 1, {}))
        replies, _ = fleet.ask_all(lambda channel: _publish(channel, raw), {0})
        fleet.close()
        assert "its disk does not take it; it will be tried again" in replies[0].refused
        assert replies[0].number == one.number() == 0


def _publish(channel, raw):
    call = channel.stream_unary(
        PUBLISH,
        request_serializer=pb.PublishRequest.SerializeToString,
        response_deserializer=pb.PublishReply.FromString,
    )
    return call(iter([pb.PublishRequest(data=raw)]), timeout=10)


def test_only_the_operator_publishes(tmp_path):
    mesh = make(tmp_path / "m")
    with Device(mesh.settings(1)) as one:
        tls = mesh.settings(0).tls
        options = [("grpc.ssl_target_name_override", tls.server_name(1))]
        address = mesh.settings(1).listen
        with (
            grpc.secure_channel(address, tls.channel_credentials(), options) as channel,
            pytest.raises(grpc.RpcError) as found,
        ):
            _publish(channel, b"x")
        assert found.value.code() == grpc.StatusCode.PERMISSION_DENIED
        assert "vertex 0 at" in found.value.details()
        assert "publishes a bulletin, which is the operator's" in found.value.details()
        assert one.number() == 0


def test_a_mesh_in_plaintext_has_nobody_who_could_sign(tmp_path):
    mesh = make(tmp_path / "m", plaintext=True)
    with pytest.raises(ConfigError, match="a mesh in plaintext has no authority"):
        publish(mesh.out, EDITION, {})
