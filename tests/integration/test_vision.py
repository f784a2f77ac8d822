"""Images from their original files to trained agents: `flwr run` and peers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from support.flower_runs import history, write_all_rules

from tests.support.eight import ROUNDS, SEEN, knowing
from tests.support.peers import DIGITS, PATIENT, Mesh

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600), pytest.mark.xdist_group("superlink")]


@pytest.mark.parametrize("name", ["mnist-learn", "cifar10-learn"])
def test_the_average_model_reads_digits(eight: dict[str, Path], name: str) -> None:
    rows = history(eight[name])
    assert rows[-1]["accuracy_average_model"] >= 0.97, rows[-1]
    assert [row["missing"] for row in rows] == [[]] * SEEN[name]["rounds"]
    assert (eight[name] / "split.png").exists()


def test_peers_give_the_same_numbers_and_statistics(
    eight: dict[str, Path], images: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    """To the bit: the same code in the same order on the same machine."""
    values = SEEN["cifar10-batch"] | {"data-dir": str(images[0])}
    overrides = {key.replace("-", "_"): value for key, value in values.items()}
    app = tmp_path / "app"
    write_all_rules(app, {}, knowing(images[1]))
    needed = [*DIGITS, "torchvision.datasets"]
    with Mesh(tmp_path / "mesh", app=app, peer=PATIENT, load=needed, **overrides) as mesh:
        mesh.start()
        mesh.finish(300)
        assert not mesh.missing_edges()
        for v in range(8):
            mine = mesh.model(v)
            theirs = load_file(eight["cifar10-batch"] / f"agent-{v:03d}.safetensors")
            assert mine.keys() == theirs.keys()
            for name, array in mine.items():
                if name.endswith("num_batches_tracked"):  # it never leaves an agent
                    assert (int(array), int(theirs[name])) == (ROUNDS * values["local-steps"], 0)
                else:
                    np.testing.assert_array_equal(array, theirs[name], err_msg=name)
