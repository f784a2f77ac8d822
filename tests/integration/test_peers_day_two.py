"""A mesh that changes while it runs: real processes on loopback, with real certificates."""

import signal
import sys

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from flower_dhb.peer.mesh.create import local_hosts
from flower_dhb.peer.watch.editions import read_editions
from tests.support.peers import Mesh

pytestmark = [pytest.mark.slow, pytest.mark.alone, pytest.mark.timeout(300)]

_STEP_S = 0.3


def newest(mesh, vertex=0):
    """The last round that a peer has finished."""
    return max((e["round"] for e in mesh.named(vertex, "round")), default=0)


def lines(mesh, vertex):
    return [e for e in mesh.history(vertex) if "missing" in e]


def average_is_exact(mesh, but=()):
    """In every round mixing moved no sum: what all shared is what all went on with.

    Under DSGD an agent shares what it has trained. but: rounds that are left out. Returns how
    many rounds there are.
    """
    last = max(e["round"] for v in mesh.paths for e in mesh.history(v))
    for k in sorted(set(range(1, last + 1)) - set(but)):
        shared, combined = [], []
        for record in mesh.out.glob("**/state/record"):
            if (record / f"round-{k}-shared.safetensors").exists():
                shared.append(load_file(record / f"round-{k}-shared.safetensors")["trained"])
                combined.append(load_file(record / f"round-{k}-combined.safetensors")["parameters"])
        # Twenty sums of a few float64 near 1.
        np.testing.assert_allclose(np.sum(shared, axis=0), np.sum(combined, axis=0), atol=1e-12)
    return last


@pytest.mark.xdist_group("busy")
def test_twenty_devices_and_all_that_befalls_them(tmp_path):
    # Nothing is to be missing because this machine is busy.
    peer = {"record": "payloads", "timing": {"least-s": 10.0}}
    with Mesh(
        tmp_path / "m", n=20, topology="small-world:20:4:0.3:1", weights="metropolis",
        algorithm="dsgd", rounds=100, step_s=_STEP_S, peer=peer,
    ) as mesh:  # fmt: skip
        mesh.start()
        mesh.wait_round(0, 2)
        at = newest(mesh) + 60  # many programs start before it
        last = at + 30
        free = iter(local_hosts(3))
        added, moved, other = (next(free).address for _ in range(3))
        first = read_editions(mesh.out)[1]
        mesh.change("add", "--neighbors", "0,9", "--address", added, at_round=at)
        mesh.start(20)
        mesh.change("remove", "7", at_round=at)
        mesh.change("set", f"rounds={last}", at_round=at)
        mesh.kill(3)
        killed = newest(mesh, 3)
        mesh.change("replace", "3", "--address", other, at_round=at)
        mesh.start(3)
        mesh.change("set-address", "5", moved, at_round=at)
        mesh.signal(5, signal.SIGTERM)
        assert mesh.processes[5].popen.wait(20) == 3
        upgraded = [sys.executable, "-m", "tests.support.later", "minor"]
        mesh.start(5, prefix=lambda _: upgraded)
        assert newest(mesh) < at, "the machine was too busy for the plan"

        members = [v for v in range(21) if v != 7]
        for v in members:
            mesh.wait_round(v, at)
        named = [word for v in members for word in ("--vertex", v)]
        mesh.change("fetch", tmp_path / "visit", *named)
        for v in members:
            with safe_open(tmp_path / f"visit/vertex-{v}/model.safetensors", "numpy") as model:
                assert int(model.metadata()["round"]) >= at
            assert (tmp_path / f"visit/vertex-{v}/history.jsonl").stat().st_size > 0
        stopped = [newest(mesh, v) for v in members]
        mesh.change("stop", *named)
        for v in members:
            assert mesh.processes[v].popen.wait(20) == 3, mesh.tail()

        mesh.wait_event(7, "ends", how="removed", status=0)

        mesh.start()  # the next day; the one that was removed is started, too
        for v in members:
            mesh.wait_round(v, 1)
        back = [min(e["round"] for e in mesh.named(v, "round")) for v in members]
        mesh.finish(120)
        assert mesh.wait_event(7, "ends")["how"] == "removed"
        for v in members:
            assert mesh.wait_event(v, "finished")["round"] == mesh.history(v)[-1]["round"] == last
            with safe_open(mesh.out / f"vertex-{v}/state/model.safetensors", "numpy") as model:
                assert model.metadata()["round"] == str(last)
        assert mesh.history(7)[-1]["round"] == at - 1
        # They had no part before their edition, and one of their own from when they were there.
        began = {v: lines(mesh, v)[0]["round"] for v in (3, 20)}
        assert at <= min(began.values()) <= max(began.values()) < at + 10
        # Who comes goes on with one neighbor, and has the others a few rounds later.
        there = {v: max(at, began.get(v, at)) + 8 for v in (3, 5, 20)}

        # Nothing is missing but what had to be, and both ends say the same: edges of the one
        # that broke and of the one that was moved, while they were away, and of the new ones,
        # where they were not there yet; and between those who were back already on the next day
        # and those who were not.
        # Whoever is back goes on with one neighbor, and has the others a few rounds later.
        restart = range(min(stopped), max(back) + 6)
        assert restart[-1] < last - 5
        stray = []
        for k, edges in mesh.missing_edges().items():
            away = {(v, j) for v in (3, 5) for j in first.neighbors(v) if k < there[v]}
            away |= {(20, j) for j in (0, 9) if k < there[20]}
            if k not in restart:
                stray += [(k, edge) for edge in edges - {*away, *((j, v) for v, j in away)}]
        # Two cores on which thirty programs start may lose a connection for a moment: one edge, at
        # both its ends.
        assert len({(k, frozenset(edge)) for k, edge in stray}) <= 1, stray
        assert len(stray) in (0, 2), stray
        replay = mesh.replay()
        # A kill between two acknowledgments is undecidable: its edges are known to both ends. If
        # the payload had left, its neighbors may have counted what no record has any more.
        # So it is when one is told to end between two of them.
        degree, by_kill = len(first.neighbors(3)), range(killed, killed + 3)
        assert replay.one_sided <= 2 * degree + len(first.neighbors(5))
        assert all({3, 5} & {*doubt.edge} for doubt in replay.doubts), replay.doubts
        in_doubt = {k for doubt in replay.doubts for a, b in doubt.rounds.ranges for k in (a, b)}
        assert replay.unseen == 0
        lost = replay.rounds_checked - replay.rounds_computed
        assert lost <= degree
        told = [u for u in replay.no_evidence if u.text.startswith("not computed again")]
        assert sum(len(u.rounds) for u in told) == lost
        for unseen in told:
            assert unseen.text.endswith("there are no vectors of vertex 3"), str(unseen)
            assert all({*ends} <= {*by_kill} for ends in unseen.rounds.ranges), str(unseen)
        assert average_is_exact(mesh, but={*by_kill, *in_doubt}) == last


def test_one_comes_one_goes_while_it_is_away_and_the_run_goes_on_after_its_end(tmp_path):
    peer = {
        "record": "payloads",
        "timing": {"least-s": 5.0},
        "linger-s": 1.0,
        "start-timeout-s": 8.0,
    }
    with Mesh(
        tmp_path / "m", n=4, topology="ring:4", algorithm="dsgd", rounds=45, step_s=0.1, peer=peer
    ) as mesh:
        mesh.start()
        mesh.wait_round(1, 3)
        mesh.signal(1, signal.SIGTERM)
        assert mesh.processes[1].popen.wait(20) == 3
        gone = newest(mesh, 1)
        at = newest(mesh) + 20
        said = mesh.change("remove", "1", at_round=at)
        assert "has it: 0, 2, 3" in said
        assert f"it begins in round {at}" in said
        address = local_hosts(1)[0].address
        mesh.change("add", "--neighbors", "0,2", "--address", address, "--name", "arm", at_round=at)
        mesh.start(4)
        mesh.wait_round(4, at + 2)
        # It was away, and nobody is its neighbor any more: whom it dials tells it why.
        (mesh.out / "vertex-1" / "bulletins" / "edition.bulletin").unlink()
        mesh.start(1)
        assert mesh.wait_event(1, "ends", 30, status=0)["how"] == "removed"
        assert "neighbor" in mesh.wait_event(1, "bulletin", kind="edition")["source"]
        assert mesh.history(1)[-1]["round"] == at - 1  # what was left it did alone
        mesh.finish(60)
        assert mesh.history(4)[-1]["round"] == 45

        # All have ended, nobody can be asked: the files are there when they are started again.
        said = mesh.change("set", "rounds=50", "evaluate-every=2", at_round=46)
        assert "nobody has it yet" in said
        members = (0, 2, 3, 4)
        mesh.start(*members)
        mesh.finish(60)
        for v in members:
            found = mesh.history(v)
            assert [e["round"] for e in found[-5:]] == [46, 47, 48, 49, 50]
            assert [bool(e["evaluate"]) for e in found[-5:]] == [True, False, True, False, True]
            with safe_open(mesh.out / f"vertex-{v}/state/model.safetensors", "numpy") as model:
                assert model.metadata()["round"] == "50"
        settled = {k: e for k, e in mesh.missing_edges().items() if gone + 8 < k < at or k > at}
        of_1 = {(0, 1), (2, 1), (1, 0), (1, 2)}
        assert all(edges <= of_1 for edges in settled.values()), settled
        replay = mesh.replay()
        assert replay.unseen == replay.one_sided == 0
        assert average_is_exact(mesh) == 50
