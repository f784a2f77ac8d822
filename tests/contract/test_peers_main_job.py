"""The main job, digits on a ring of 8, two classes per agent: peers give what `flwr run` gives."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from flower_dhb.runs.superlink import local_superlink
from tests.support.peers import PATIENT, Mesh

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[2]
SETTINGS = {"topology": "ring:8", "split": "classes:2", "rounds": 30, "seed": 4, "local-steps": 2}


def test_same_accuracy_as_under_flwr_run(tmp_path):
    overrides = {key.replace("-", "_"): value for key, value in SETTINGS.items()}
    with Mesh(tmp_path / "mesh", app=ROOT, evaluate_every=10, peer=PATIENT, **overrides) as mesh:
        mesh.start()
        mesh.finish(200)
        peers = [mesh.model(v) for v in range(8)]
        mine = [mesh.history(v)[-1]["evaluate"]["accuracy"] for v in range(8)]
        assert not mesh.missing_edges()
    runs = tmp_path / "runs"
    with local_superlink(tmp_path / "home") as superlink:
        settings = {**SETTINGS, "evaluate-every": 10, "runs-dir": str(runs)}
        run_id = superlink.submit(ROOT, 8, settings)
        with superlink.log(run_id) as lines:
            text = lines.read()
    folders = list(runs.iterdir())
    assert folders, text[-2000:]
    history = [json.loads(line) for line in (folders[0] / "history.jsonl").read_text().splitlines()]
    theirs = history[-1]["accuracy"]
    # The same code in the same order on the same machine: no tolerance.
    assert mine == theirs
    for v, model in enumerate(peers):
        other = load_file(folders[0] / f"agent-{v:03d}.safetensors")
        for name, array in model.items():
            np.testing.assert_array_equal(array, other[name])
    assert np.mean(mine) > 0.85
