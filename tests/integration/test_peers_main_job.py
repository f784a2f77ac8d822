"""The main job, digits on a ring of 8, two classes per agent: peers give what `flwr run` gives."""

import numpy as np
import pytest
from safetensors.numpy import load_file
from support.flower_runs import ROOT, history

from tests.support.eight import MAIN_JOB
from tests.support.peers import PATIENT, Mesh

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600), pytest.mark.xdist_group("superlink")]


def test_same_accuracy_as_under_flwr_run(eight, tmp_path):
    overrides = {key.replace("-", "_"): value for key, value in MAIN_JOB.items()}
    with Mesh(tmp_path / "mesh", app=ROOT, peer=PATIENT, **overrides) as mesh:
        mesh.start()
        mesh.finish(200)
        peers = [mesh.model(v) for v in range(8)]
        mine = [mesh.history(v)[-1]["evaluate"]["accuracy"] for v in range(8)]
        assert not mesh.missing_edges()
    theirs = history(eight["main-job"])[-1]["accuracy"]
    # The same code in the same order on the same machine: no tolerance.
    assert mine == theirs
    for v, model in enumerate(peers):
        other = load_file(eight["main-job"] / f"agent-{v:03d}.safetensors")
        for name, array in model.items():
            np.testing.assert_array_equal(array, other[name])
    assert np.mean(mine) > 0.85
