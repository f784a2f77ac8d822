"""How much of the agents' payloads a ServerApp holds, on the grid that Flower gives it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "relay_memory.py"


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_server_app_holds_two_payloads_an_agent_and_a_half_at_most() -> None:
    """Evaluation in each round and the average at the end, 32 agents of 4 MB each.

    With 64 agents it is less, since what a run holds once counts for less (docs/benchmarks.md).
    """
    words = ["--agents", "32", "--parameters", "1000000", "--rounds", "2"]
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *words], capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert 1.0 < found["peak"] <= 2.5, "of each agent at least one has come"
