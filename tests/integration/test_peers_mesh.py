"""Commands, status, certificates, and strangers at the door: real processes, real TLS."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import tomllib
import urllib.request

import grpc
import numpy as np
import psutil
import pytest
import tomli_w
from safetensors.numpy import load_file, save_file

from flower_dhb.agent import codec
from flower_dhb.peer.device.ending import Ending
from flower_dhb.peer.mesh.certificates import Authority, write_private
from flower_dhb.peer.mesh.fleet import Fleet
from flower_dhb.peer.mesh.renewal import renew
from flower_dhb.peer.wire import relay_pb2 as pb
from flower_dhb.peer.wire.frames import Outgoing
from flower_dhb.peer.wire.identity import OPERATOR, Identity, host_name
from flower_dhb.peer.wire.transport import EXCHANGE
from tests.support.peers import APP, COMMAND, Mesh, environment, run_cli

pytestmark = [pytest.mark.slow, pytest.mark.timeout(90)]


@pytest.fixture
def mesh(tmp_path):
    """Four peers on a ring that train for as long as a test needs."""
    with Mesh(
        tmp_path / "m", n=4, topology="ring:4", rounds=100000, step_s=0.02,
        peer={
            "limits": {"hello-s": 1.0, "heartbeat-s": 0.3, "dead-after-s": 1.5},
            "record": "checksums",
        },
    ) as mesh:  # fmt: skip
        mesh.start()
        mesh.wait_round(0, 2)
        yield mesh
        for v in mesh.paths:
            mesh.kill(v)
        mesh.replay()


def address(mesh, vertex):
    return mesh.settings(vertex).listen


def dialer(mesh):
    """An edge as (who dials, who listens)."""
    for v in mesh.paths:
        for j in mesh.settings(v).dial:
            return v, j
    raise AssertionError


def open_stream(mesh, vertex, files, frames, name=None):
    """Talk to a peer with any certificate; returns status code and details."""
    key, certificate, authority = files
    credentials = grpc.ssl_channel_credentials(authority, key, certificate)
    target = host_name(Identity(mesh.settings(0).mesh, vertex if name is None else name))
    options = [("grpc.ssl_target_name_override", target), ("grpc.use_local_subchannel_pool", 1)]
    replies = []
    with grpc.secure_channel(address(mesh, vertex), credentials, options) as channel:
        try:
            stream = channel.stream_stream(EXCHANGE)(iter(frames), timeout=20)
            replies.extend(pb.Frame.FromString(raw) for raw in stream)
        except grpc.RpcError as error:
            return error.code(), error.details(), replies
    return grpc.StatusCode.OK, "", replies


def files_of(mesh, vertex):
    home = mesh.out / ("operator" if vertex == OPERATOR else f"vertex-{vertex}")
    return [(home / n).read_bytes() for n in ("key.pem", "certificate.pem", "authority.pem")]


def test_strangers_are_turned_away_with_a_reason(mesh):
    _, listener = dialer(mesh)
    not_neighbor = (listener + 2) % 4
    here = Authority.load(mesh.out / "authority")
    own = here.pem
    import datetime

    past = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=9)
    hello = [pb.Frame(hello=pb.Hello(version=3)).SerializeToString()]
    strangers = {
        "expired": ([*here.issue(0, 1, past), own], "expired"),
        "foreign": ([*Authority.create(here.mesh, 5).issue(0, 5), own], "another authority"),
        "none": ([None, None, own], "no certificate"),
    }
    for files, reason in strangers.values():
        code, _, _ = open_stream(mesh, listener, files, hello)
        assert code is grpc.StatusCode.UNAVAILABLE
        mesh.wait_event(listener, "turned-away", 10, why=reason)
    code, details, _ = open_stream(mesh, listener, files_of(mesh, not_neighbor), hello)
    assert code is grpc.StatusCode.PERMISSION_DENIED
    assert f"vertex {not_neighbor}" in details
    assert "no neighbor" in mesh.wait_event(listener, "turned-away", 10, why="no neighbor")["why"]
    code, _, _ = open_stream(mesh, listener, files_of(mesh, OPERATOR), hello)
    assert code is grpc.StatusCode.PERMISSION_DENIED
    # A dialing end checks too: whoever answers must be the neighbor.
    code, details, _ = open_stream(mesh, listener, files_of(mesh, 0), hello, name=not_neighbor)
    assert code is grpc.StatusCode.UNAVAILABLE
    assert "Hostname" in details
    with socket.create_connection(address(mesh, listener).split(":")) as plain:
        plain.sendall(b"GET / HTTP/1.1\r\n\r\n")
        mesh.wait_event(listener, "turned-away", 10, why="TLS")
    k = max(e["round"] for e in mesh.named(listener, "round"))
    mesh.wait_round(listener, k + 10)
    assert not mesh.named(listener, "missing")


def test_a_neighbor_with_a_certificate_turns_hostile(mesh):
    """Replaces an honest neighbor with one that sends 1,000 bad payloads through real TLS."""
    bad, victim = dialer(mesh)
    mesh.kill(bad)
    s = mesh.settings(bad)
    k = max(e["round"] for e in mesh.named(victim, "round"))
    size = 12
    agreement = agreed(mesh)

    def frames():
        yield pb.Frame(
            hello=pb.Hello(version=3, run=s.run, vertex=bad, neighbor=victim, round=k, closed=k,
                           agreement=agreement)
        ).SerializeToString()  # fmt: skip
        for i in range(1000):
            vector = np.full(size, np.nan if i % 2 else 1.0)
            frame = codec.encode({"folded": vector}, run=s.run, round=k + 5, vertex=bad)
            piece = pb.Frame.FromString(next(Outgoing.of(frame).pieces()))
            if i % 2 == 0:
                piece.header.checksum ^= 1
            yield piece.SerializeToString()
        mesh.wait_event(victim, "cut-off", 20, neighbor=bad)

    code, _, replies = open_stream(mesh, victim, files_of(mesh, bad), frames())
    kinds = {pb.Refusal.Reason.Name(f.refusal.reason) for f in replies if f.HasField("refusal")}
    assert kinds & {"CHECKSUM", "CONTENT"}, (code, kinds)
    mesh.wait_round(victim, k + 20)
    mesh.start(bad)  # the honest one returns
    mesh.wait_event(bad, "resumed")
    mesh.wait_round(bad, k + 40)
    assert mesh.processes[victim].popen.poll() is None


def agreed(mesh):
    from flower_dhb.peer.device.daemon import Peer

    return dict(Peer(mesh.settings(0)).transport.agreement)


def test_floods_and_half_open_streams(mesh):
    bad, victim = dialer(mesh)
    mesh.kill(bad)
    files = files_of(mesh, bad)
    codes = {open_stream(mesh, victim, files, [])[0] for _ in range(30)}
    assert grpc.StatusCode.RESOURCE_EXHAUSTED in codes
    mesh.wait_event(victim, "turned-away", why="too often")
    idle = [socket.create_connection(address(mesh, victim).split(":")) for _ in range(50)]
    k = max(e["round"] for e in mesh.named(victim, "round"))
    mesh.wait_round(victim, k + 10)
    for end in idle:
        end.close()


def test_a_stream_without_a_hello_is_cut_off(mesh):
    bad, victim = dialer(mesh)
    mesh.kill(bad)

    def silence():
        mesh.wait_event(victim, "cut-off", 20, why="half-open")
        yield from ()

    open_stream(mesh, victim, files_of(mesh, bad), silence())


def test_status_and_certificates_renewed_without_a_restart(mesh):
    found = run_cli("mesh", "status", mesh.out, "--json")
    document = json.loads(found.stdout)
    assert sorted(document["devices"]) == ["0", "1", "2", "3"]
    assert document["parts"] == [[0, 1, 2, 3]]
    assert (document["findings"], found.returncode) == ([], 0)
    assert document["consensus_distance"] > 0
    assert document["devices"]["0"]["answer"]["seconds_per_round"] > 0
    dials, listens = dialer(mesh)
    for v in (dials, listens):
        assert run_cli("mesh", "renew", mesh.out, "--vertex", v).returncode == 0
    fleet = Fleet(mesh.out)
    assert not fleet.status().failures
    fleet.close()
    mesh.wait_event(listens, "certificate-renewed")
    mesh.kill(dials)
    mesh.start(dials)
    mesh.wait_event(dials, "connected", neighbor=listens)
    mesh.kill((listens + 2) % 4)
    mesh.kill(dials)
    mesh.wait_event(listens, "parted", neighbor=dials)
    document = json.loads(run_cli("mesh", "status", mesh.out, "--json").stdout)
    gone = {str(dials), str((listens + 2) % 4)}
    assert {v for v, about in document["devices"].items() if about["state"] == "silent"} == gone


def test_split_network_is_told(mesh):
    for v in (1, 3):
        mesh.kill(v)
    for v in (0, 2):
        for j in (1, 3):
            mesh.wait_event(v, "parted", neighbor=j)
    document = json.loads(run_cli("mesh", "status", mesh.out, "--json").stdout)
    assert sorted(document["parts"]) == [[0], [2]]


def test_main_commands(tmp_path):
    """create, up, replay: as `make demo-peers` does it, with a record."""
    out = tmp_path / "mesh"
    made = run_cli("mesh", "create", "--app", APP, "--out", out, "--topology", "ring:3",
                   "--rounds", 12, "--set", "record='payloads'")  # fmt: skip
    assert made.returncode == 0, made.stderr
    up = run_cli("mesh", "up", out, "--quiet")
    assert up.returncode == 0, up.stderr
    replay = run_cli("replay", out)
    assert replay.returncode == 0, replay.stdout
    assert "36 of them computed again: 0 not" in " ".join(replay.stdout.split())
    # A peer that combined otherwise than the law says is named.
    path = out / "vertex-1" / "state" / "record" / "round-7-combined.safetensors"
    arrays = load_file(path)
    arrays["parameters"] = arrays["parameters"] + 1e-9
    save_file(arrays, path)
    replay = run_cli("replay", out)
    assert replay.returncode == 1
    assert "vertex 1, round 7: combined to other parameters" in replay.stdout


def test_peers_do_not_outlive_the_command_that_started_them(tmp_path):
    """`mesh up` dies by SIGKILL: its peers stop by themselves, and keep what they have."""
    with Mesh(tmp_path / "m", n=3, topology="ring:3", rounds=100000, step_s=0.02) as mesh:
        command = [sys.executable, "-c", COMMAND, "mesh", "up", str(mesh.out), "--quiet"]
        logs = [mesh.out / f"vertex-{v}" / "peer.log" for v in range(3)]
        with subprocess.Popen(command, env=environment()) as up:
            end = time.monotonic() + 60
            while not all(log.exists() and '"round": 3,' in log.read_text() for log in logs):
                assert up.poll() is None
                assert time.monotonic() < end
                time.sleep(0.2)
            peers = psutil.Process(up.pid).children()
            up.kill()
        assert len(peers) == 3
        _, alive = psutil.wait_procs(peers, timeout=30)
        assert not alive
        assert all(len(mesh.history(v)) >= 3 for v in range(3))


def test_refused_before_anything_starts(tmp_path):
    with Mesh(tmp_path / "m", n=3, topology="ring:3", rounds=2) as mesh:
        home = mesh.out / "vertex-0"
        path = mesh.paths[0]

        def refused(text):
            done = run_cli("peer", path)
            assert done.returncode == 2
            assert text in done.stderr, done.stderr

        (home / "key.pem").chmod(0o644)
        refused("mode 0644")
        (home / "key.pem").chmod(0o600)
        shutil.copy(mesh.out / "vertex-1" / "certificate.pem", home / "certificate.pem")
        refused("does not belong to its key")
        renew(mesh.out, [0], 5)
        here = Authority.load(mesh.out / "authority")
        key, certificate = here.issue(2, 5)
        write_private(home / "key.pem", key)
        (home / "certificate.pem").write_bytes(certificate)
        refused("expected flower-dhb://")
        (home / "certificate.pem").unlink()
        refused("there is no connection without key and certificate")
        document = tomllib.loads(path.read_text())
        del document["tls"]
        path.write_text(tomli_w.dumps(document))
        refused("plaintext = true")
        document |= {"plaintext": True, "listen": "0.0.0.0:9440"}
        path.write_text(tomli_w.dumps(document))
        refused("loopback addresses only")


def test_other_start_is_refused_by_the_neighbors(tmp_path):
    with Mesh(tmp_path / "m", n=3, topology="ring:3", rounds=5,
              peer={"start-timeout-s": 2.0, "linger-s": 1.0}) as mesh:  # fmt: skip
        start = mesh.out / "vertex-2" / "start.safetensors"
        arrays = load_file(start)
        arrays["x"] = arrays["x"] + 1
        save_file(arrays, start)
        mesh.start()
        texts = [mesh.wait_event(v, "refused", why="another start")["why"] for v in (0, 1)]
        assert all("copy one start.safetensors to all devices" in text for text in texts)
        mesh.finish(60, alone={2})
        assert mesh.wait_event(2, "finished")["alone_since"] == 0
        assert all(2 in e["missing"] for e in mesh.history(0))


def test_plaintext_on_loopback_and_prometheus(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with Mesh(
        tmp_path / "m", n=3, topology="ring:3", rounds=100000, step_s=0.02, plaintext=True
    ) as mesh:
        path = mesh.paths[1]
        document = tomllib.loads(path.read_text())
        document["metrics-port"] = port
        path.write_text(tomli_w.dumps(document))
        mesh.start()
        mesh.wait_round(1, 5)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as reply:
            text = reply.read().decode()
        assert 'flower_dhb_neighbors_up{vertex="1"} 2.0' in text
        assert 'flower_dhb_events_total{event="payloads-received",neighbor="0",vertex="1"}' in text
        for v in mesh.paths:
            os.kill(mesh.processes[v].popen.pid, 15)
        mesh.wait(lambda: all(mesh.named(v, "ended") for v in mesh.paths), 30, "all to stop")
        assert {p.popen.wait() for p in mesh.processes.values()} == {Ending.STOPPED}
