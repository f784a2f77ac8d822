"""The main job, digits on a ring of 8, two classes per agent: peers give what `flwr run` gives."""

import numpy as np
import pytest
from safetensors.numpy import load_file
from support.flower_runs import ROOT, history, run

from tests.support.peers import PATIENT, Mesh

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300), pytest.mark.xdist_group("superlink")]

SETTINGS = {"topology": "ring:8", "split": "classes:2", "rounds": 30, "seed": 4, "local-steps": 2}


def test_same_accuracy_as_under_flwr_run(superlink, tmp_path):
    overrides = {key.replace("-", "_"): value for key, value in SETTINGS.items()}
    with Mesh(tmp_path / "mesh", app=ROOT, evaluate_every=10, peer=PATIENT, **overrides) as mesh:
        mesh.start()
        mesh.finish(200)
        peers = [mesh.model(v) for v in range(8)]
        mine = [mesh.history(v)[-1]["evaluate"]["accuracy"] for v in range(8)]
        assert not mesh.missing_edges()
    (folder,) = run(superlink, ROOT, 8, tmp_path / "runs", **SETTINGS, **{"evaluate-every": 10})
    theirs = history(folder)[-1]["accuracy"]
    # The same code in the same order on the same machine: no tolerance.
    assert mine == theirs
    for v, model in enumerate(peers):
        other = load_file(folder / f"agent-{v:03d}.safetensors")
        for name, array in model.items():
            np.testing.assert_array_equal(array, other[name])
    assert np.mean(mine) > 0.85
