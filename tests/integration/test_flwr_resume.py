"""A real ServerApp is killed with SIGKILL, and another one goes on with its run."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from support.deployment import Deployment, Run

from flower_dhb import HeavyBall, Topology, simulate
from flower_dhb.flower.checkpoint import Checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

N, ROUNDS, SIZE = 3, 4, 8
TESTS = str(Path(__file__).parents[1])
WHERE = os.environ | {"PYTHONPATH": os.pathsep.join([TESTS, os.environ.get("PYTHONPATH", "")])}


def test_a_run_goes_on_after_its_serverapp_was_killed_in_mid_round(tmp_path: Path) -> None:
    """Agents 0 and 1 keep their state in files; agent 2 begins again from its neighbor."""
    checkpoint, trouble = tmp_path / "checkpoint", tmp_path / "trouble"
    trouble.mkdir()
    (trouble / "slow-1").write_text("4")
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


DYING = """
import sys
from pathlib import Path
from support.apps import numpy_app, start_arrays
from support.grid import LocalGrid
from flower_dhb import HeavyBall, ServerlessStrategy, consensus_mod

folder = Path(sys.argv[1])
app = numpy_app(3, 4, mods=[consensus_mod])
states = {"state-dir": str(folder / "states")}
grid = LocalGrid(app, 3, node_config=lambda v: {"partition-id": v, **states})
strategy = ServerlessStrategy(
    "star:3", HeavyBall(form="tracking"), collect_models=True, evaluate_every=2,
    checkpoint=folder / "run", on_round=lambda record: print(record.round, flush=True),
)
result = strategy.start(grid, start_arrays(4)[0], 60)
assert [record.round for record in result.history] == list(range(1, 61))
assert not any(record.missing or record.rejoined for record in result.history)
print([array.numpy().tolist() for v in range(3) for array in result.models[v].values()])
"""


def test_a_process_that_is_killed_wherever_it_is_leaves_files_to_go_on_from(tmp_path: Path) -> None:
    """ServerApp and agents in one process, killed four times; its files are all that is left."""
    rng = np.random.default_rng(8)
    ends = {}
    for name, deaths in (("undisturbed", 0), ("killed", 4)):
        rounds, lives = set(), 0
        while True:
            command = [sys.executable, "-c", DYING, str(tmp_path / name)]
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=WHERE) as process:
                assert process.stdout is not None
                wanted = int(rng.integers(3, 12)) if lives < deaths else None
                lines = list(itertools.islice(process.stdout, wanted))
                if wanted is not None:
                    time.sleep(float(rng.uniform(0.0, 0.02)))  # wherever that finds it
                    process.kill()
            lives += 1
            if wanted is None:
                assert process.returncode == 0
                ends[name] = lines[-1]
                break
            assert len(lines) == wanted
            assert rounds.isdisjoint(map(int, lines)), "a round is finished once"
            rounds |= set(map(int, lines))
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
