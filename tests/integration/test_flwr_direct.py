"""Direct rounds in a real deployment of Flower: the numbers of simulate, and what goes wrong."""

from __future__ import annotations

import signal
from contextlib import suppress

import numpy as np
import psutil
import pytest
from safetensors.numpy import load_file
from support.deployment import Deployment, Run
from support.sites import identities
from support.waiting import wait_for

from flower_dhb import HeavyBall, Topology, simulate

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.usefixtures("quick_programs"),
]

N, ROUNDS, SIZE = 3, 40, 8


def models(run: Run) -> np.ndarray:
    return np.stack([load_file(run.folder / f"agent-{v:03d}.safetensors")["x"] for v in range(N)])


def test_direct_rounds_of_a_deployment(tmp_path) -> None:
    """The numbers are those of `simulate`; a ClientApp that is told to end answers; one dies."""
    with Deployment(tmp_path) as deployment:
        deployment.start_link()
        deployment.addresses = identities(deployment.mesh, N, without_address={2})
        deployment.start_nodes(range(N))
        settings = {"rounds": ROUNDS, "topology": "path:3", "size": SIZE}

        patient = {"transport": "direct", "round_timeout_s": 120.0}
        run = Run.submit(deployment, settings, evaluate_every=10, **patient)
        rows = run.finish(600.0)
        assert [row["round"] for row in rows] == list(range(1, ROUNDS + 1))
        assert not any(row["missing"] or row["events"] for row in rows)
        assert [row["round"] for row in rows if row["consensus_distance"]] == [10, 20, 30, 40]
        targets = np.arange(N, dtype=float)[:, None]
        expected = simulate(
            HeavyBall(momentum=0.5),
            Topology.path(N),
            np.zeros(SIZE),
            lambda x, _: x + 0.1 * (targets - x),
            ROUNDS,
        )
        np.testing.assert_allclose(models(run), expected[-1], rtol=0, atol=1e-13)

        trouble = tmp_path / "trouble"
        trouble.mkdir()
        (trouble / "slow-0").write_text("0.2")
        settings |= {"trouble": str(trouble)}
        run = Run.submit(deployment, settings, **patient)
        run.wait_for(lambda rows: len(rows) >= 4, 240.0)
        # Vertex 0 trains a third time in the second segment: vertex 1 is among its rounds then.
        busy = trouble / "busy-0"
        for _ in range(3):
            busy.unlink(missing_ok=True)
            wait_for(busy.exists, "vertex 0 to train", 60.0)
        for process in deployment.app_of(1):
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGTERM)
        rows = run.finish(600.0)
        assert [row["round"] for row in rows] == list(range(1, ROUNDS + 1))
        away = [row["round"] for row in rows if 1 in row["missing"]]
        assert 0 < len(away) < ROUNDS - 5
        assert rows[-1]["missing"] in ([], [1])
