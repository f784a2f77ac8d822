"""A device that loses its state in a real mesh, under each rule whose memory is conserved."""

import shutil

import numpy as np
import pytest

from flower_dhb.peer.mesh.overview import read_overview
from flower_dhb.peer.watch.replay import of_mesh
from tests.support.peer_app.quadratics import target
from tests.support.peers import Mesh

pytestmark = [pytest.mark.slow, pytest.mark.alone, pytest.mark.timeout(170)]

N, SIZE = 4, 12
# Less momentum than usual: the way to the optimum takes 80 rounds instead of 520.
EXACT = {
    "dmsgd-gt": {"momentum": 0.5},
    "dsgt": {},
    "momentum-tracking": {"momentum": 0.5},
    "exact-diffusion": {},
    "exact-diffusion-hb": {"momentum": 0.5},
}
OPTIMUM = np.mean([target(v, SIZE) for v in range(N)], axis=0)
QUICK = {"least-s": 0.4, "reconnect-s": 0.5}


def error(mesh):
    """Largest distance of an agent's model from the optimum of all, in any parameter."""
    return float(np.abs(mesh.parameters() - OPTIMUM).max())


@pytest.mark.parametrize("algorithm", EXACT)
def test_an_exact_rule_stays_exact_when_a_device_loses_its_disk(algorithm, tmp_path):
    """Without an epoch the error would stay where the loss left it, at about 0.1 to 1."""
    with Mesh(
        tmp_path / "m", n=N, topology=f"ring:{N}", rounds=120, algorithm=algorithm, rate=0.3,
        step_s=0.005, evaluate_every=0, **EXACT[algorithm],
        peer={"timing": QUICK, "away-rounds": 3, "linger-s": 30.0, "record": "payloads"},
    ) as mesh:  # fmt: skip
        mesh.start()
        mesh.wait_round(2, 20)
        mesh.kill(2)
        shutil.rmtree(tmp_path / "m" / "vertex-2" / "state")
        mesh.start(2)
        mesh.wait_event(2, "rejoined")
        mesh.finish(120)
        begun = {mesh.named(v, "epoch")[0]["round"] for v in range(N) if mesh.named(v, "epoch")}
        assert begun, mesh.tail()
        assert error(mesh) < 1e-6  # it falls on, as without the loss
        replay = of_mesh(read_overview(tmp_path / "m"), tmp_path / "m")
        assert [str(found) for found in (*replay.findings(), *replay.gaps)] == []
