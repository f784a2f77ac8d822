"""An operator at the desk: fetch, export, stop, and start again next day, with real processes."""

import json
import signal

import grpc
import pytest
import safetensors
from safetensors.numpy import load_file

from flower_dhb.pages.reading import read_run
from flower_dhb.peer.device.ending import Ending
from flower_dhb.peer.mesh.create import Host, local_hosts
from flower_dhb.peer.wire import relay_pb2 as pb
from flower_dhb.peer.wire.files import What
from flower_dhb.peer.wire.identity import Identity, host_name
from flower_dhb.peer.wire.operations import FETCH
from tests.support.peers import Mesh, run_cli

pytestmark = [pytest.mark.slow, pytest.mark.timeout(170)]


def fetched_as(mesh, who, whom):
    """How a fetch ends that shows the certificate of a vertex."""
    home = mesh.out / f"vertex-{who}"
    key, certificate, authority = (
        (home / f"{name}.pem").read_bytes() for name in ("key", "certificate", "authority")
    )
    credentials = grpc.ssl_channel_credentials(authority, key, certificate)
    name = host_name(Identity(mesh.settings(whom).mesh, whom))
    options = [("grpc.ssl_target_name_override", name), ("grpc.use_local_subchannel_pool", 1)]
    with grpc.secure_channel(mesh.settings(whom).listen, credentials, options) as channel:
        call = channel.unary_stream(
            FETCH,
            request_serializer=pb.FetchRequest.SerializeToString,
            response_deserializer=pb.FetchPiece.FromString,
        )(pb.FetchRequest(what=What.MODEL), timeout=20)
        with pytest.raises(grpc.RpcError) as error:
            list(call)
    return error.value.code(), error.value.details()


def about(path):
    with safetensors.safe_open(path, framework="numpy") as file:
        return file.metadata()


def test_fetch_export_stop_and_go_on(tmp_path):
    hosts = [*local_hosts(2), Host(2)]  # vertex 2 is behind NAT
    with Mesh(
        tmp_path / "m", hosts=hosts, topology="path:3", rounds=100_000, step_s=0.15,
        evaluate_every=0, peer={"record": "payloads", "log-file": "kept.log"},
    ) as mesh:  # fmt: skip
        out, config = tmp_path / "fetched", mesh.paths[1]
        config.write_text(config.read_text().replace('log-file = "kept.log"\n', ""))
        mesh.start()
        mesh.wait_round(0, 4)
        kinds = "models,histories,logs,records,status"
        first = run_cli("mesh", "fetch", mesh.out, out, "--what", kinds)
        assert first.returncode == 1  # somebody has to look after vertex 2
        assert "vertex 2: not reached: it has no address" in first.stderr
        assert "copy the files of its state directory" in first.stderr
        for v in (0, 1):
            found = about(out / f"vertex-{v}" / "model.safetensors")
            assert (found["vertex"], found["run"]) == (str(v), mesh.settings(v).run)
            assert int(found["round"]) >= 3
            lines = (out / f"vertex-{v}" / "history.jsonl").read_text().splitlines()
            assert json.loads(lines[0])["round"] == 1
            assert json.loads((out / f"vertex-{v}" / "status.json").read_text())["software"]
        found = read_run(out)  # with its graph, of which vertex 2 has told nothing
        assert {(link.a, link.b) for link in found.links} == {(0, 1), (1, 2)}
        assert found.links[0].weight == pytest.approx(1 / 3)
        assert "takes part in mesh" in (out / "vertex-0" / "peer.log").read_text()
        assert "vertex 1: no logs: it keeps no log file" in first.stdout
        replayed = run_cli("replay", mesh.out, "--records", out)
        assert replayed.returncode in (0, 3), replayed.stdout  # what vertex 2 did is not known
        assert run_cli("mesh", "fetch", mesh.out, out, "--what", "secrets").returncode == 2
        vectors = out / "vertex-0" / "record" / "round-1-shared.safetensors"
        before = vectors.stat().st_mtime_ns

        # Whoever is not the operator gets nothing, and is named.
        code, why = fetched_as(mesh, 0, 1)
        assert code is grpc.StatusCode.PERMISSION_DENIED
        assert "vertex 0 at " in why
        assert "asks for files, which is the operator's" in why

        # Killed at any moment, the model is there.
        mesh.kill(1)
        path = tmp_path / "exported.safetensors"
        told = run_cli("export", mesh.out / "vertex-1" / "state", "--out", path)
        assert told.returncode == 0, told.stderr
        assert list(load_file(path)) == ["x"]
        assert int(about(path)["round"]) >= 4
        mesh.start(1)
        mesh.wait_event(1, "connected", neighbor=0)
        mesh.wait_event(1, "connected", neighbor=2)

        second = run_cli("mesh", "fetch", mesh.out, out, "--what", "records", "--vertex", 0)
        assert second.returncode == 0, second.stderr
        assert vectors.stat().st_mtime_ns == before  # fetched once

        stopped = run_cli("mesh", "stop", mesh.out)
        assert stopped.returncode == 1
        for v in (0, 1):
            assert f"vertex {v}: stopped after round " in stopped.stdout
            assert mesh.processes[v].popen.wait(20) == Ending.STOPPED
            assert mesh.named(v, "asked-to-stop")[0]["by"] == "the operator"
        assert "vertex 2: not reached: it has no address" in stopped.stderr
        assert "systemctl stop" in stopped.stderr
        again = run_cli("mesh", "stop", mesh.out, "--vertex", 0)
        assert again.returncode == 1
        assert "vertex 0: not reached: nothing listens at" in again.stderr
        mesh.signal(2, signal.SIGTERM)
        assert mesh.processes[2].popen.wait(20) == Ending.STOPPED

        mesh.start()  # next day
        for v in mesh.paths:
            k = mesh.wait_event(v, "resumed")["round"]
            assert k >= 4
            mesh.wait_round(v, k + 5)
        for v in mesh.paths:
            mesh.kill(v)
        mesh.replay()
