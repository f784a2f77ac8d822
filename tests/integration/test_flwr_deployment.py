"""Flower's deployment runtime: a real SuperLink, SuperNodes with registered keys, and faults."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support.deployment import Deployment, Row, Run
from support.deployment_faults import (
    client_app_killed,
    node_with_a_new_key,
    node_with_its_key,
    superlink_restarted,
)
from support.flower_runs import ROOT, history, models, processes_of, simulated

from flower_dhb import HeavyBall, Topology, simulate
from tests.support.peers import DIGITS
from tests.support.programs import quick

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(560),
    pytest.mark.usefixtures("quick_programs"),
]

N, ROUNDS = 4, 11
ENDED, SAME_KEY, NEW_KEY = 1, 2, 3


def test_a_relayed_run_outlives_supernodes_a_client_app_and_the_superlink(tmp_path: Path) -> None:
    trouble = tmp_path / "trouble"
    trouble.mkdir()
    with Deployment(tmp_path, executor=True) as deployment:
        deployment.start_link()
        deployment.start_nodes(range(N))
        run = Run.submit(
            deployment,
            {"topology": f"ring:{N}", "rounds": ROUNDS, "trouble": str(trouble)},
            round_timeout_s=60.0,
        )
        run.wait_for(lambda rows: len(rows) >= 2)
        # At the same time: Flower needs up to a minute to believe that a node or an app is dead.
        client_app_killed(deployment, trouble, ENDED)
        node_with_its_key(deployment, trouble, SAME_KEY)
        node_with_a_new_key(deployment, trouble, NEW_KEY)
        # A node that had just answered, and is back before the next message, has missed nothing.
        rows = missed(run, {ENDED})
        back = len(rows) + 1
        run.wait_for(lambda rows: any(row["missing"] == [] for row in rows[back:]))
        superlink_restarted(deployment, trouble, 0)
        rows = run.finish(400)

    assert [row["round"] for row in rows] == list(range(1, ROUNDS + 1))
    # Each round says where its time went; a process starts for each message.
    assert sum(rows[0]["profile"].values()) == pytest.approx(rows[0]["seconds"], abs=0.01)
    assert rows[0]["profile"]["process-start"] > 0.1
    assert all(set(row["missing"]) <= {ENDED, SAME_KEY, NEW_KEY} for row in rows)
    assert rows[-1]["missing"] == [], rows
    # Its state lay in a file, so each agent goes on from there and need not rejoin.
    assert all(row["rejoined"] == [] for row in rows), rows
    # Undisturbed, all agents come within 0.36 of the mean of their numbers, 1.5; a round without
    # an agent moves its neighbors by a few hundredths.
    np.testing.assert_allclose(run.models("x"), undisturbed(), atol=0.2)


def test_the_demonstration_ends_with_the_numbers_of_simulate(tmp_path: Path) -> None:
    """From an empty home; what it started has ended then, and it has left nothing but results."""
    words = ["--topology", "ring:5", "--rounds", "4"]
    with quick(tmp_path / "environment", DIGITS) as programs, programs.used():
        done = subprocess.run(
            [sys.executable, "-m", "deploy.demo", *words, "--runs-dir", tmp_path / "runs"],
            cwd=ROOT,
            env=os.environ | {"HOME": str(tmp_path), "TMPDIR": str(tmp_path), "COLUMNS": "100"},
            capture_output=True,
            text=True,
            check=False,
            timeout=500,
        )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "worst agent" in done.stdout
    (folder,) = (tmp_path / "runs").iterdir()
    assert f"Results: {folder}" in done.stdout.splitlines()
    assert list(tmp_path.glob("flower-dhb-deployment-*")) == []
    assert processes_of(tmp_path) == []
    assert len(history(folder)) == 4
    # float32, as in test_flwr_run.py: one gradient is batched over agents, the other is not.
    np.testing.assert_allclose(models(folder, 5), simulated("ring:5", 4, 0.4, 0), atol=1e-5)


def missed(run: Run, vertices: set[int]) -> list[Row]:
    """The rows, once each of these vertices has missed a round."""
    return run.wait_for(
        lambda rows: vertices <= {vertex for row in rows for vertex in row["missing"]}
    )


def undisturbed() -> np.ndarray:
    """The final models of a run in which nothing went wrong."""
    numbers = np.arange(float(N))[:, None]
    start = np.zeros((N, 8))
    step = lambda x, k: x + 0.1 * (numbers - x)  # noqa: E731
    return simulate(HeavyBall(momentum=0.5), Topology.ring(N), start, step, ROUNDS)[-1]
