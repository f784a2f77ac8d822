"""A stolen key in a mesh of real processes, and ten years of certificates in some seconds."""

import dataclasses
import json
import shutil
import time

import grpc
import pytest

from flower_dhb.peer.wire import relay_pb2 as pb
from flower_dhb.peer.wire.identity import Identity, host_name
from flower_dhb.peer.wire.transport import EXCHANGE
from tests.support import clock
from tests.support.board import Device
from tests.support.peers import Mesh, run_cli

pytestmark = [pytest.mark.slow, pytest.mark.timeout(150)]


def dial(mesh, vertex, files):
    """Begin a stream to a peer with these files, and say how it ends."""
    key, certificate, authority = (f.read_bytes() for f in files)
    credentials = grpc.ssl_channel_credentials(authority, key, certificate)
    options = [
        ("grpc.ssl_target_name_override", host_name(Identity(mesh.settings(0).mesh, vertex))),
        ("grpc.use_local_subchannel_pool", 1),
    ]
    with grpc.secure_channel(mesh.settings(vertex).listen, credentials, options) as channel:
        hello = pb.Frame(hello=pb.Hello(version=3)).SerializeToString()
        call = channel.stream_stream(EXCHANGE)(iter([hello]), timeout=20)
        try:
            for _ in call:
                pass
        except grpc.RpcError:
            pass
        return call.code(), call.details()


def test_a_stolen_key_is_refused_by_all_and_its_owner_goes_on(tmp_path):
    """On a ring of four, 0 dials 1 and 1 dials 2; 2 is away when the list is published."""
    with Mesh(tmp_path / "m", n=4, topology="ring:4", rounds=100_000, size=4, step_s=0.05,
              peer={"start-timeout-s": 5.0, "linger-s": 1.0}) as mesh:  # fmt: skip
        mesh.start()
        for v in range(4):
            mesh.wait_round(v, 2)
        own = mesh.settings(1).tls
        stolen = [shutil.copy(f, tmp_path) for f in (own.key, own.certificate, own.authority)]
        stolen = [type(own.key)(path) for path in stolen]
        mesh.kill(2)
        begin = time.monotonic()
        done = run_cli("mesh", "renew", mesh.out, "--vertex", 1, "--revoke-old")
        assert done.returncode == 0, done.stderr
        assert "number 1, is on the disk of: 0, 1, 3" in done.stdout
        # Streams that were open are ended, and the owner comes back with what it has now.
        assert "was revoked on" in mesh.wait_event(0, "cut-off", neighbor=1)["why"]
        mesh.wait(lambda: len(mesh.named(0, "connected")) > 2, 60.0, "vertex 1 to come back")
        assert time.monotonic() - begin < 60.0
        mesh.wait_round(1, max(e["round"] for e in mesh.named(1, "round")) + 2)

        # A thief in the place of vertex 1, for whoever dials it.
        mesh.kill(1)
        key, certificate, authority = stolen
        files = {"key": key, "certificate": certificate, "authority": authority}
        settings = dataclasses.replace(mesh.settings(1), state_dir=tmp_path / "thief")
        with Device(settings, **files) as thief:
            told = mesh.wait_event(0, "unreachable", neighbor=1, why="was revoked on")
            assert "the certificate" in told["why"]
            assert "of vertex 1" in told["why"]
            assert thief.up() == ()

        # Who was away learns the list from a neighbor, and refuses the thief who dials.
        shutil.rmtree(mesh.out / "vertex-2" / "bulletins")
        mesh.start(2, 1)
        mesh.wait_event(2, "bulletin", kind="revocations", source="neighbor")
        code, details = dial(mesh, 2, stolen)
        assert code is grpc.StatusCode.PERMISSION_DENIED
        assert "of vertex 1 was revoked on" in details
        mesh.wait_event(2, "connected", neighbor=1)
        status = run_cli("mesh", "status", mesh.out, "--json").stdout
        assert '"turned-away.certificate' in status


@pytest.mark.skipif(not clock.AVAILABLE, reason="needs Linux and a C compiler")
def test_ten_years_of_renewals_and_another_authority(tmp_path, monkeypatch):
    """Real processes under a clock that is moved on: each handshake is judged by it."""
    years = clock.Clock(tmp_path)
    for name, value in years.environment.items():
        monkeypatch.setenv(name, value)  # of the processes that are started from here on

    def call(*words):
        done = run_cli("mesh", *words)
        assert done.returncode == 0, done.stderr + done.stdout
        return done.stdout

    out = tmp_path / "m"
    with Mesh(out, n=3, topology="path:3", rounds=100_000, size=4, step_s=0.05,
              peer={"start-timeout-s": 5.0, "linger-s": 1.0}) as mesh:  # fmt: skip
        shutil.copytree(out, tmp_path / "first")
        mesh.start()
        for step in range(5):
            for v in range(3):
                mesh.wait_round(v, 5 * step + 2)
            years.pass_days(730)
            # By files, or by keys that the devices make themselves.
            call("renew", out, "--all", *(["--online"] if step in (2, 4) else []))
            if step == 1:
                assert "step 1 of 3" in call("renew", out, "--authority")
            if step == 3:  # after the certificates have been renewed twice since
                assert "step 3 of 3" in call("renew", out, "--authority")
            # Both of its neighbors make a new connection, by certificates as they are now.
            mesh.kill(1)
            mesh.start(1)
            mesh.wait_event(1, "connected", neighbor=0)
            mesh.wait_event(1, "connected", neighbor=2)
        assert years.days == 3650
        for v in range(3):
            mesh.wait_round(v, 30)
            assert not mesh.named(v, "waits-for-certificate")
        assert len(mesh.named(0, "certificate-installed")) == 2
        status = json.loads(run_cli("mesh", "status", out, "--json").stdout)
        assert all(device["answer"] for device in status["devices"].values())
        assert not [f for f in status["findings"] if f["needs_somebody"]], status["findings"]
        # The clock has been another one indeed, for TLS as well.
        first = run_cli("mesh", "status", tmp_path / "first")
        assert first.returncode != 0
        assert "has expired" in first.stdout + first.stderr
