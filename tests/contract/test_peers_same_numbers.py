"""Promise 1: peers, each in a process of its own, give the numbers of `simulate`."""

import sys

import numpy as np
import pytest

from flower_dhb import Topology, simulate
from flower_dhb.algorithms import algorithm_from_config
from tests.support.peers import APP, PATIENT, Mesh

sys.path.insert(0, str(APP))
import quadratics
from own_rules import Warming

pytestmark = [pytest.mark.slow, pytest.mark.timeout(90)]

# Irregular: degrees 1 to 4.
EDGES = [(0, 1), (0, 2), (0, 3), (0, 4), (1, 2), (2, 5), (3, 6), (5, 6)]
ROUNDS, SIZE, RATE = 20, 12, 0.1
RULES = {
    "dmsgd-folded": {"algorithm": "dmsgd"},
    "dmsgd-separate": {"algorithm": "dmsgd", "payload": "separate"},
    "dmsgd-gt": {"algorithm": "dmsgd", "form": "tracking"},
    "dmsgd-combine-then-adapt": {"algorithm": "dmsgd", "order": "combine-then-adapt"},
    "own": {"algorithm": "own_rules:Warming:strength=0.8:warmup=2"},
    "safeguarded": {"algorithm": "safeguarded"},
}


@pytest.mark.parametrize("rule", RULES)
def test_peers_give_the_numbers_of_simulate(rule, tmp_path):
    graph = tmp_path / "irregular.edges"
    graph.write_text("\n".join(f"{a} {b}" for a, b in EDGES))
    settings = RULES[rule]
    with Mesh(
        tmp_path / "mesh",
        n=7,
        topology=str(graph),
        rounds=ROUNDS,
        size=SIZE,
        rate=RATE,
        evaluate_every=7,
        peer={**PATIENT, **({"record": "payloads"} if rule in ("own", "safeguarded") else {})},
        **settings,
    ) as mesh:
        algorithm = mesh.settings(0).algorithm
        mesh.start()
        mesh.finish(75)
        found = mesh.parameters()
        assert not mesh.missing_edges()
        if rule in ("own", "safeguarded"):  # rules that measure are computed again as well
            assert mesh.replay().rounds_computed == 7 * ROUNDS
    start = quadratics.start({"seed": 0, "size": SIZE})["x"]

    def local_step(x, _):
        return np.stack([quadratics.local_step(x[i], i, RATE) for i in range(7)])

    topology = Topology.from_edges(EDGES)
    assert algorithm == algorithm_from_config(algorithm.to_config())
    if rule == "own":
        assert algorithm == Warming(strength=0.8, warmup=2)
    expected = simulate(algorithm, topology, start, local_step, ROUNDS)[-1]
    # float64 throughout; the two sum over neighbors in another order, so they differ by
    # rounding: about 20 rounds of a few units in the last place of numbers near 1.
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)
    assert np.abs(expected - start).max() > 0.1  # it did move
