"""The device that nobody visits, as processes: what passes is waited for, the rest named."""

import os
import socket
import subprocess
import tomllib
from contextlib import contextmanager, suppress

import pytest
import tomli_w

from flower_dhb.peer.device.ending import Ending
from tests.support.peers import Mesh, run_cli

pytestmark = [pytest.mark.slow, pytest.mark.timeout(170)]

TIMING = {"least-s": 0.4, "reconnect-s": 0.5}


def mount(*words):
    subprocess.run(["mount", *map(str, words)], check=True, capture_output=True)


@contextmanager
def small_disk(folder, size):
    """A disk of its own at a folder, for whoever may mount one."""
    folder.mkdir()
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        pytest.skip("only root may mount a disk")
    try:
        mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"this machine mounts no disk: {error}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", folder], check=False)


def fill(path):
    """Write until the disk takes not one byte more."""
    with path.open("ab", 0) as file:
        for size in (2**16, 2**12, 1):
            with suppress(OSError):
                while True:
                    file.write(bytes(size))


def test_a_disk_that_is_full_and_then_read_only_holds_up_nobody_else(tmp_path):
    with Mesh(
        tmp_path / "m", n=3, topology="ring:3", rounds=250, step_s=0.03, evaluate_every=0,
        size=2000, peer={"timing": TIMING, "record": "checksums", "away-rounds": 1000},
    ) as mesh, small_disk(mesh.out / "vertex-1" / "state", "2m"):  # fmt: skip
        state = mesh.out / "vertex-1" / "state"
        mesh.start()
        mesh.wait_round(1, 5)
        fill(state / "filler")
        failed = mesh.wait_event(1, "disk-failed", 30)
        assert failed["why"] == "No space left on device"
        assert "free space on this disk" in failed["what_now"]
        at = mesh.named(0, "round")[-1]["round"]
        mesh.wait_round(0, at + 15, 30)  # the others go on, without it in the end
        missed = [e for e in mesh.named(0, "round") if e["round"] > at]
        assert missed[-1]["missing"] == [1]
        status = run_cli("mesh", "status", mesh.out)
        assert "vertex 1: its disk takes nothing" in status.stdout
        (state / "filler").unlink()
        mesh.wait_event(1, "disk-writes-again", 30)

        mount("--bind", state, state)
        mount("-o", "remount,bind,ro", state)
        try:
            failed = mesh.wait_event(1, "disk-failed", 30, why="Read-only file system")
            assert "mount it for writing" in failed["what_now"]
        finally:
            subprocess.run(["umount", "-l", state], check=True)
        mesh.finish(90)
        assert [e["event"] for e in mesh.processes[1].events if e["event"] == "text"] == []
        labels = [entry["round"] for entry in mesh.history(1)]
        assert labels == sorted(set(labels))
        assert labels[-1] == 250
        assert mesh.named(1, "rejoined") == []
        mesh.replay()


def test_two_processes_a_port_that_is_taken_and_a_worn_out_card(tmp_path):
    with Mesh(
        tmp_path / "m", n=3, topology="path:3", rounds=100_000, step_s=0.02, evaluate_every=0,
        peer={"timing": TIMING, "away-rounds": 3},
    ) as mesh:  # fmt: skip
        path, state = mesh.paths[1], mesh.out / "vertex-1" / "state"
        mesh.start()
        mesh.wait_round(1, 3)
        second = run_cli("peer", path)
        assert second.returncode == Ending.AGAIN
        assert f"process {mesh.processes[1].popen.pid} holds this state directory" in second.stderr
        assert "Traceback" not in second.stderr
        mesh.wait_round(1, mesh.named(1, "round")[-1]["round"] + 3)  # and the first goes on

        mesh.kill(1)
        host, _, port = mesh.settings(1).listen.rpartition(":")
        with socket.create_server((host, int(port))):
            taken = run_cli("peer", path)
        assert taken.returncode == Ending.AGAIN
        assert "cannot listen on" in taken.stderr
        assert "Traceback" not in taken.stderr

        files = sorted(state.glob("*-*.safetensors"))
        for file in files:
            file.write_bytes(bytes(len(file.read_bytes())))
        damaged = run_cli("peer", path)
        assert damaged.returncode == Ending.DAMAGED
        assert 'set on-damage = "rejoin"' in damaged.stderr
        assert sorted(state.glob("*-*.safetensors")) == files
        document = tomllib.loads(path.read_text())
        path.write_text(tomli_w.dumps({**document, "on-damage": "rejoin"}))
        mesh.start(1)
        rejoined = mesh.wait_event(1, "rejoined", 30)
        mesh.wait_round(1, rejoined["round"] + 3, 30)
        kept = mesh.named(1, "state-set-aside")[0]["kept_in"]
        assert sorted(p.name for p in (state / "damaged-1").glob("*-*")) == [f.name for f in files]
        assert kept == str(state / "damaged-1")
