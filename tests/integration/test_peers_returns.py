"""Devices that return late, to a run that is over or to nobody, and peers killed at any moment."""

import shutil

import numpy as np
import pytest

from flower_dhb.peer.device.ending import Ending
from tests.integration.kills import KINDS, run
from tests.support.peers import Mesh, run_cli

pytestmark = [pytest.mark.slow, pytest.mark.alone, pytest.mark.timeout(170)]

QUICK = {"least-s": 0.4, "reconnect-s": 0.5}


def until_ended(mesh, *vertices):
    mesh.wait(lambda: all(mesh.named(v, "ended") for v in vertices), 90, f"the end of {vertices}")
    return [mesh.processes[v].popen.wait() for v in vertices]


def mesh_of_three(folder, linger_s):
    return Mesh(
        folder, n=3, topology="path:3", rounds=60, step_s=0.03, evaluate_every=0,
        peer={"timing": QUICK, "away-rounds": 5, "linger-s": linger_s, "record": "checksums"},
    )  # fmt: skip


@pytest.mark.parametrize("lost", ["nothing", "its disk"])
def test_a_device_that_returns_after_the_end_takes_its_neighbors_model(lost, tmp_path):
    """Vertex 0's only neighbor has finished and stays for it."""
    with mesh_of_three(tmp_path / "m", 60.0) as mesh:
        mesh.start()
        mesh.wait_round(0, 4)
        mesh.kill(0)
        mesh.wait_event(1, "finished")
        if lost == "its disk":
            shutil.rmtree(tmp_path / "m" / "vertex-0" / "state")
        mesh.start(0)
        assert mesh.wait_event(0, "rejoined")["round"] == 60
        assert until_ended(mesh, 0, 1, 2) == [0, 0, 0]
        assert np.array_equal(mesh.model(0)["x"], mesh.model(1)["x"])
        mesh.replay()


def test_a_device_that_finds_nobody_says_since_when_it_was_alone(tmp_path):
    with mesh_of_three(tmp_path / "m", 0.0) as mesh:
        mesh.start()
        mesh.wait_round(0, 4)
        mesh.kill(0)
        assert until_ended(mesh, 1, 2) == [0, 0]
        mesh.start(0)
        last = mesh.wait_event(0, "resumed")["round"]  # all until then had its only neighbor
        event = mesh.wait_event(0, "alone")
        assert until_ended(mesh, 0) == [Ending.ALONE]
        (finished,) = mesh.named(0, "finished")
        assert event["since"] == finished["alone_since"]
        assert last <= finished["alone_since"] <= last + 1  # the round that was open may count yet
        assert not any(e["missing"] for e in mesh.history(0) if e["round"] <= last)
        assert mesh.history(0)[-1]["alone_since"] == finished["alone_since"]
        mesh.replay()


def test_a_peer_that_has_finished_is_there_again_at_once(tmp_path):
    """Started again it waits for nobody: it has its model, gives it to who asks, and ends."""
    with mesh_of_three(tmp_path / "m", 0.5) as mesh:
        mesh.start()
        mesh.finish(60)
        before = mesh.model(1)["x"]
        again = run_cli("peer", mesh.paths[1], timeout=30.0)  # start-timeout-s is 120
        assert again.returncode == 0, again.stderr
        assert np.array_equal(mesh.model(1)["x"], before)


@pytest.mark.parametrize("kind", KINDS)
def test_peers_killed_at_any_moment_leave_no_difference_that_nobody_knows_of(kind, tmp_path):
    """`python -m tests.integration.kills` does the same two hundred times."""
    outcome = run(kind, 3, tmp_path / "m", seed=7, rounds=140)
    assert outcome.kills >= 3
    assert outcome.uncounted == []
