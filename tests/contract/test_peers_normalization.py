"""Normalization over real peers: processes of their own, beside the relay and the engine.

What peers send and keep of running statistics goes through their frames, journals and files.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from flwr.app import ArrayRecord
from support.grid import LocalGrid

from flower_dhb import ServerlessStrategy, Topology
from flower_dhb.algorithms import method
from flower_dhb.engine.engine import Engine
from flower_dhb.engine.supervised import Supervised
from tests.support.peers import PATIENT, Mesh

APP = Path(__file__).resolve().parents[1] / "support" / "norm_app"
sys.path.insert(0, str(APP))
import normed  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

ROUNDS, RULE, GRAPH = 4, method("dmsgd"), "path:3"
Arrays = dict[str, np.ndarray]


def on_peers(folder: Path, normalization: str) -> list[Arrays]:
    with Mesh(
        folder,
        app=APP,
        n=normed.N,
        topology=GRAPH,
        rounds=ROUNDS,
        algorithm="dmsgd",
        normalization=normalization,
        peer=PATIENT,
        load=("torch.nn.functional",),
    ) as mesh:
        mesh.start()
        mesh.finish(300)
        assert not mesh.missing_edges()
        return [mesh.model(vertex) for vertex in range(normed.N)]


def relayed(normalization: str) -> list[Arrays]:
    values = {"normalization": normalization}
    grid = LocalGrid(normed.app, normed.N, run_config=values)
    strategy = ServerlessStrategy(GRAPH, RULE, collect_models=True, evaluate_every=2)
    start = ArrayRecord(normed.net(normalization).state_dict())
    models = strategy.start(grid, start, ROUNDS).models
    return [{n: a.numpy() for n, a in models[vertex].items()} for vertex in range(normed.N)]


def in_the_engine(normalization: str) -> list[Arrays]:
    x, y = normed.samples()
    problem = Supervised(
        normed.net(normalization),
        x,
        y,
        [np.array(normed.part(vertex)) for vertex in range(normed.N)],
        batch_size=normed.BATCH,
        local_steps=normed.STEPS,
        seed=0,
    )
    engine = Engine(problem, Topology.parse(GRAPH), RULE, learning_rate=normed.RATE)
    engine.run(ROUNDS)
    found: list[Arrays] = []
    for parameters, statistics in zip(engine.parameters, engine.agents.statistics, strict=True):
        arrays, at = {}, {"parameter": 0, "statistic": 0}
        for entry in problem.layout.entries:
            if entry.kind == "local":
                continue
            row = parameters if entry.kind == "parameter" else statistics
            begin = at[entry.kind]
            at[entry.kind] += entry.size
            values = np.asarray(row[begin : begin + entry.size])
            arrays[entry.name] = values.reshape(entry.shape)
        found.append(arrays)
    return found


@pytest.mark.parametrize("normalization", ["group", "batch"])
def test_peers_relay_and_engine_give_the_same_numbers(tmp_path: Path, normalization: str) -> None:
    peers, relay = on_peers(tmp_path / "mesh", normalization), relayed(normalization)
    engine = in_the_engine(normalization)
    start = normed.start({"normalization": normalization})
    statistics = {"1.running_mean", "1.running_var"} if normalization == "batch" else set()
    assert statistics <= engine[0].keys()
    for mine, theirs, batched in zip(peers, relay, engine, strict=True):
        for name, array in batched.items():
            np.testing.assert_array_equal(mine[name], theirs[name], err_msg=name)
            # In double precision; the engine sums over neighbors, and in a batch, in another order.
            np.testing.assert_allclose(array, mine[name], rtol=0, atol=1e-12, err_msg=name)
            assert np.abs(mine[name] - start[name]).max() > 1e-3, name  # it did move
    for name in statistics:  # and agents differ in what they know, so that averages do something
        assert np.abs(peers[0][name] - peers[2][name]).max() > 1e-3
