"""Peers on a graph in turn, each in a process of its own, have the relay's numbers to the bit."""

import sys
import tomllib

import numpy as np
import pytest
from support.grid import LocalGrid

from flower_dhb import ServerlessStrategy
from flower_dhb.flower.arrays import array_record
from flower_dhb.pages.reading import read_run
from flower_dhb.runs.config import RunConfig
from tests.support.peers import APP, PATIENT, Mesh

sys.path.insert(0, str(APP))
import quadratics

pytestmark = [pytest.mark.slow, pytest.mark.timeout(90)]

ROUNDS, N = 15, 5
CONFIG = {
    "topology": "base:5:1",  # five rounds, and one agent by itself in four of them
    "share-every": 2,
    "algorithm": "dmsgd:momentum=0.3",
    "size": 12,
    "rate": 0.1,
    "seed": 0,
}


def relayed() -> np.ndarray:
    """Final parameters of the same app and config in the relay."""
    config = RunConfig.of(CONFIG)
    values = {**_run_config(), **CONFIG}
    node = lambda v: {"vertex": v, "partition-id": v, "num-partitions": N}  # noqa: E731
    grid = LocalGrid(quadratics.app, N, run_config=values, node_config=node)
    strategy = ServerlessStrategy(config.topology, config.algorithm, collect_models=True)
    result = strategy.start(grid, array_record(quadratics.start(CONFIG)), ROUNDS)
    return np.stack([result.models[v].to_numpy_ndarrays()[0] for v in range(N)])


def _run_config():
    app = tomllib.loads((APP / "pyproject.toml").read_text())
    return app["tool"]["flwr"]["app"]["config"]


def test_peers_have_the_numbers_of_the_relay_to_the_bit(tmp_path):
    graphs = RunConfig.of(CONFIG).topology
    config = {key.replace("-", "_"): value for key, value in CONFIG.items()}
    peer = {**PATIENT, "record": "payloads"}
    with Mesh(tmp_path / "mesh", n=N, rounds=ROUNDS, peer=peer, **config) as mesh:
        assert mesh.settings(0).graph == graphs.digest
        mesh.start()
        mesh.wait_round(2, 4)
        mesh.kill(2)  # its neighbors wait for it in the next round that they share
        mesh.start(2)
        mesh.finish(75)
        found = mesh.parameters()
        assert not mesh.missing_edges()
        assert mesh.replay().rounds_computed == N * ROUNDS
        sent = {v: [line["bytes"] for line in mesh.history(v)] for v in range(N)}
        page = read_run(mesh.out)
    np.testing.assert_array_equal(found, relayed())
    for k in range(1, ROUNDS + 1):
        due = [len(graphs.at(k).neighbors(v)) for v in range(N)]
        size = sum(sent[v][k - 1] for v in range(N)) // max(sum(due), 1)
        assert [sent[v][k - 1] for v in range(N)] == [size * count for count in due]
    turns = {
        edge: sum(edge in g.edges for g in map(graphs.at, range(1, ROUNDS + 1)))
        for edge in graphs.edges
    }
    assert {(link.a, link.b): link.failed for link in page.links} == dict.fromkeys(turns, 0)
    sizes = [link.bytes / (2 * turns[link.a, link.b]) for link in page.links]
    assert max(sizes) - min(sizes) <= 1.0  # later rounds have a digit more
