"""The engine and a real `flwr run` of the digits app end with the same parameters."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from flower_dhb import Topology
from flower_dhb.algorithms import method
from flower_dhb.engine.engine import Engine
from flower_dhb.engine.supervised import Supervised
from flower_dhb.problems.digits import load_digits
from flower_dhb.problems.models import make_model
from flower_dhb.problems.splits import split
from flower_dhb.runs.superlink import SuperLink, local_superlink

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[2]
TOPOLOGY, ROUNDS, SEED, RATE = "erdos-renyi:7:0.4:2", 4, 3, 0.2
SETTINGS = {
    "dmsgd": {"algorithm": "dmsgd"},
    "dmsgd-gt": {"algorithm": "dmsgd", "form": "tracking"},
    "qg": {"algorithm": "qg"},
    "dsgd": {"algorithm": "dsgd"},
}


@pytest.fixture(scope="module")
def superlink(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SuperLink]:
    with local_superlink(tmp_path_factory.mktemp("flwr-home")) as link:
        yield link


@pytest.mark.parametrize("name", SETTINGS)
def test_engine_is_flwr_run(superlink: SuperLink, tmp_path: Path, name: str) -> None:
    settings: dict[str, Any] = {
        "topology": TOPOLOGY,
        "rounds": ROUNDS,
        "split": "classes:2",
        "seed": SEED,
        "learning-rate": RATE,
        "evaluate-every": 0,
        "runs-dir": str(tmp_path),
        **SETTINGS[name],
    }
    with superlink.log(superlink.submit(ROOT, 7, settings)) as lines:
        text = lines.read()
    folders = sorted(tmp_path.iterdir())
    assert folders, text[-3000:]

    module, data = make_model("mlp", SEED), load_digits()
    parts = split(data.train_y.numpy(), 7, "classes:2", SEED)
    problem = Supervised(module, data.train_x, data.train_y, parts, seed=SEED)
    engine = Engine(problem, Topology.parse(TOPOLOGY), method(name), learning_rate=RATE)
    engine.run(ROUNDS)
    for vertex in range(7):
        arrays = load_file(folders[-1] / f"agent-{vertex:03d}.safetensors")
        found = np.concatenate([arrays[key].ravel() for key in module.state_dict()])
        # float32, four rounds: gradients batched over agents or not, sums in another
        # order. A round's step is a thousand times larger.
        np.testing.assert_allclose(found, engine.parameters[vertex].numpy(), rtol=0, atol=1e-5)
