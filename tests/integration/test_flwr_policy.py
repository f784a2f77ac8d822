"""The operator's policy on real SuperNodes: which apps are loaded, and what leaves the node."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from support.deployment import Deployment, Run
from support.flower_runs import log_of

from flower_dhb import Topology
from flower_dhb.runs.superlink import executable

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(560),
    pytest.mark.usefixtures("quick_programs"),
]

BOUND = 1  # the vertex whose node has a policy
CLIP = 0.125


class Guarded(Deployment):
    """SuperNodes that look at an app before they load it."""

    def _start(
        self, program: str, words: Sequence[str], home: Path, log: Path
    ) -> subprocess.Popen[bytes]:
        plain = executable("flower-supernode")
        if plain in words:
            at = words.index(plain)
            words = [*words[:at], executable("flower-dhb"), "supernode", "--", *words[at + 1 :]]
        return super()._start(program, words, home, log)


def test_an_app_that_is_not_allowed_is_not_loaded_and_one_that_is_keeps_to_the_policy(
    tmp_path: Path,
) -> None:
    with Guarded(tmp_path, authenticated=False) as deployment:
        deployment.start_link()
        deployment.start_node(0)
        deployment.start_node(BOUND, policy_apps="0" * 64, policy_clip=CLIP)
        settings = {"rounds": 1, "topology": "path:2"}

        refused = Run.submit(deployment, settings)
        status, _ = refused.end()
        assert status == "finished:failed"
        log = log_of(deployment.flower, refused.id)
        found = re.search(r"does not allow the app with the digest (\w{64})", log)
        assert found is not None, log[-3000:]
        home = tmp_path / f"vertex-{BOUND}"
        assert not list(home.rglob("client_app.py")), "the app was not even unpacked"

        deployment.kill_node(BOUND)
        deployment.start_node(BOUND, policy_apps=found[1], policy_clip=CLIP)
        run = Run.submit(deployment, settings)
        (row,) = run.finish()
        told = {"agents": [BOUND], "policy": f"clip {CLIP:g}; 1 allowed app"}
        assert row["policies"] == [told]
        assert list(home.rglob("client_app.py"))
        # Of one round from zero: agent 0 stays, agent 1 would go 0.1 in each of 8 directions.
        step = np.full(8, CLIP / np.sqrt(8))
        weights = Topology.parse("path:2").mixing_matrix
        for vertex in (0, BOUND):
            model = load_file(run.folder / f"agent-{vertex:03d}.safetensors")["x"]
            np.testing.assert_allclose(model, weights[vertex, BOUND] * step, rtol=1e-12)
