"""A real ServerApp is killed with SIGKILL, and another one goes on with its run."""

from __future__ import annotations

import time
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from support.deployment import Deployment, Run

from flower_dhb import HeavyBall, Topology, simulate
from flower_dhb.flower.checkpoint import Checkpoint
from tests.support import whole_run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.usefixtures("quick_programs"),
]

N, ROUNDS, SIZE = 3, 4, 8


def test_a_run_goes_on_after_its_serverapp_was_killed_in_mid_round(tmp_path: Path) -> None:
    """Agents 0 and 1 keep their state in files; agent 2 begins again from its neighbor."""
    checkpoint, trouble = tmp_path / "checkpoint", tmp_path / "trouble"
    trouble.mkdir()
    (trouble / "slow-1").write_text("2")
    settings = {"rounds": ROUNDS, "size": SIZE, "trouble": str(trouble)}
    with Deployment(tmp_path / "deployment") as deployment:
        deployment.start_link()
        deployment.start_nodes([0, 1])
        deployment.start_nodes([2], **{"state-dir": None})
        first = Run.submit(deployment, settings, checkpoint=str(checkpoint), round_timeout_s=120.0)
        first.wait_for(lambda rows: len(rows) >= 2, 300.0)
        # While agent 1 trains: it goes on for a ServerApp that is dead.
        for process in deployment.server_app():
            process.kill()
        status, _ = first.end()
        assert status.startswith("finished:failed")
        kept = Checkpoint(checkpoint).read()
        assert kept is not None
        (trouble / "slow-1").unlink()

        second = Run.submit(deployment, settings, checkpoint=str(checkpoint), round_timeout_s=120.0)
        rows = second.finish()
        assert [row["round"] for row in rows] == list(range(kept.round + 1, ROUNDS + 1))
        assert all(row["missing"] == [] for row in rows)
        assert [row["rejoined"] for row in rows] == [[2], *[[]] * (len(rows) - 1)]
        assert not checkpoint.exists()
        for vertex in (0, 1):
            state = deployment.folder / f"vertex-{vertex}" / "state"
            assert list(state.iterdir()) == [], "the run is over"
    found = np.stack([load_file(p)["x"] for p in sorted(second.folder.glob("agent-*.safetensors"))])
    np.testing.assert_allclose(found, _resumed_after(kept.round), rtol=0, atol=1e-12)


def heard(told: Connection, most: int | None) -> list[Any]:
    """What is told, until that was enough or there is no more."""
    found: list[Any] = []
    with suppress(EOFError):
        while len(found) != most:
            found.append(told.recv())
    return found


def test_a_process_that_is_killed_wherever_it_is_leaves_files_to_go_on_from(tmp_path: Path) -> None:
    """ServerApp and agents in one process, killed four times; its files are all that is left."""
    rng = np.random.default_rng(8)
    ends = {}
    processes = get_context("forkserver")  # loads what they need once
    processes.set_forkserver_preload([whole_run.__name__])
    for name, deaths in (("undisturbed", 0), ("killed", 4)):
        rounds, lives = set(), 0
        while True:
            here, there = processes.Pipe(duplex=False)
            process = processes.Process(target=whole_run.train, args=(tmp_path / name, there))
            process.start()
            there.close()
            wanted = int(rng.integers(3, 12)) if lives < deaths else None
            lines = heard(here, wanted)
            if wanted is not None:
                time.sleep(float(rng.uniform(0.0, 0.02)))  # wherever that finds it
                process.kill()
            process.join()
            here.close()
            lives += 1
            if wanted is None:
                assert process.exitcode == 0
                ends[name] = lines[-1]
                break
            assert len(lines) == wanted
            assert rounds.isdisjoint(lines), "a round is finished once"
            rounds |= set(lines)
        assert lives == deaths + 1
    assert ends["killed"] == ends["undisturbed"]


def _resumed_after(k: int) -> np.ndarray:
    """The law: as undisturbed for agents 0 and 1; agent 2 has agent 1's payload of round k."""
    rule, graph = HeavyBall(momentum=0.5), Topology.path(N)
    targets = np.arange(N, dtype=float)[:, None]

    def step(x: np.ndarray, round: int) -> np.ndarray:
        return x + 0.1 * (targets - x)

    undisturbed = simulate(rule, graph, np.zeros((N, SIZE)), step, k)
    x, before = undisturbed[k], undisturbed[k - 1]
    momentum = x - before
    sent = step(before, k) + rule.momentum * rule.momentum_mixing * (
        before - undisturbed[max(k - 2, 0)]
    )
    x[2], momentum[2] = sent[1], 0.0
    weights = graph.mixing_matrix
    for _ in range(k, ROUNDS):
        payload = step(x, 0) + rule.momentum * rule.momentum_mixing * momentum
        mixed = weights @ payload + rule.momentum * (1 - rule.momentum_mixing) * momentum
        x, momentum = mixed, mixed - x
    return x
