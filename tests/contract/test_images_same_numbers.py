"""Images with normalization: the app under the relay, the app on peers, and the engine.

All in one process: the relay's messages, the peers' frames and the app's own training are the
real ones; nothing but the network between them is left out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord
from support.grid import LocalGrid
from support.originals import scaled_digits, write_mnist

from clients.agents import parts_of, samples_of
from clients.client_app import app
from clients.settings import Settings
from clients.workload import shared
from flower_dhb import ServerlessStrategy, Topology
from flower_dhb.algorithms import method
from flower_dhb.engine.engine import Engine
from flower_dhb.engine.supervised import Supervised
from flower_dhb.peer.device.app import Agent
from flower_dhb.types import Entry

pytestmark = pytest.mark.slow  # convolutions, and recording them

N, ROUNDS, RATE, RULE = 4, 2, 0.02, method("dmsgd")
GRAPH = Topology.from_edges([(0, 1), (0, 2), (2, 3)])  # no two rows of its matrix are alike

Arrays = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scaled digits in MNIST's format."""
    found = tmp_path_factory.mktemp("images")
    write_mnist(found / "MNIST" / "raw", *scaled_digits(28), packed=True)
    return found


def run_config(folder: Path, normalization: str) -> dict[str, Any]:
    return {
        "workload": "mnist",
        "data-dir": str(folder),
        "split": "iid",
        "topology": f"star:{N}",  # for the number of agents: the graph is the test's
        "model": "cnn",
        "normalization": normalization,
        "augment": False,
        "optimizer": "momentum:0.8",
        "learning-rate": RATE,
        "local-steps": 3,
        "batch-size": 8,
        "seed": 1,
    }


def relayed(start: ArrayRecord, values: dict[str, Any]) -> list[Arrays]:
    grid = LocalGrid(app, N, run_config=values)
    strategy = ServerlessStrategy(GRAPH, RULE, collect_models=True, evaluate_every=0)
    models = strategy.start(grid, start, ROUNDS).models
    return [{n: a.numpy() for n, a in models[vertex].items()} for vertex in range(N)]


def on_peers(start: ArrayRecord, values: dict[str, Any], rounds: int = ROUNDS) -> list[Arrays]:
    agents = [
        Agent.of_device(
            app,
            vertex=vertex,
            run="images",
            algorithm=RULE,
            weights={
                j: float(GRAPH.mixing_matrix[vertex, j]) for j in [vertex, *GRAPH.neighbors(vertex)]
            },
            arrays={n: a.numpy() for n, a in start.items()},
            node_config={},
            run_config=values,
        )
        for vertex in range(N)
    ]
    for k in range(1, rounds + 1):
        frames = [bytes(agent.train(k).frame or b"") for agent in agents]
        for vertex, agent in enumerate(agents):
            heard = {j: frames[j] for j in GRAPH.neighbors(vertex)}
            assert not agent.combine(k, heard, evaluate=False).refused
    snapshots = [agent.snapshot() for agent in agents]
    entries = agents[0].layout.entries
    return [named(entries, s.state.parameters, s.statistics) for s in snapshots]


def named(entries: tuple[Entry, ...], parameters: Any, statistics: Any) -> Arrays:
    """An agent's arrays that travel, by name."""
    found = {}
    for kind, row in (("parameter", parameters), ("statistic", statistics)):
        at = 0
        for entry in entries:
            if entry.kind == kind:
                found[entry.name] = np.asarray(row[at : at + entry.size]).reshape(entry.shape)
                at += entry.size
    return found


def in_the_engine(
    settings: Settings, backend: str, rounds: int, dtype: torch.dtype = torch.float32
) -> list[Arrays]:
    samples = samples_of(settings.workload, train=True)
    problem = Supervised(
        settings.new_model().to(dtype),
        settings.workload.prepare(samples.x).to(dtype),
        samples.y,
        parts_of(settings, N),
        batch_size=settings.batch_size,
        local_steps=settings.local_steps,
        seed=settings.seed,
        optimizer=settings.optimizer,
        backend=backend,
    )
    engine = Engine(problem, GRAPH, RULE, learning_rate=RATE)
    engine.run(rounds)
    pairs = zip(engine.parameters, engine.agents.statistics, strict=True)
    return [named(problem.model.layout.entries, x, s) for x, s in pairs]


def assert_alike(found: list[Arrays], expected: list[Arrays], atol: float) -> None:
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.keys() <= theirs.keys()
        for name, array in mine.items():
            np.testing.assert_allclose(array, theirs[name], rtol=0, atol=atol, err_msg=name)


@pytest.mark.parametrize("normalization", ["group", "batch"])
def test_relay_peers_and_engine_give_the_same_numbers(folder: Path, normalization: str) -> None:
    values = run_config(folder, normalization)
    settings = Settings.of(values)
    start = ArrayRecord(shared(settings.new_model()))
    peers = on_peers(start, values)
    assert_alike(peers, relayed(start, values), atol=0.0)  # the same code in the same order
    moved = [np.abs(peers[0][name] - start[name].numpy()).max() for name in peers[0]]
    assert max(moved) > 0.05
    # The engine sums over neighbors in another order: rounding of float32. Where that changes
    # which value of a pool is the largest, a round of training makes 1e-4 of it; with batch
    # normalization 1e-3, so there one round is compared, which ends with the sum. That more
    # of them are the same arithmetic is the next test's.
    rounds, atol = (ROUNDS, 5e-4) if normalization == "group" else (1, 2e-6)
    engine = in_the_engine(settings, "loop", rounds)
    assert_alike(engine, peers if rounds == ROUNDS else on_peers(start, values, rounds), atol)


@pytest.mark.parametrize("normalization", ["group", "batch"])
def test_agents_batched_are_agents_one_by_one_for_a_whole_run(
    folder: Path, normalization: str
) -> None:
    """In float64, where what batch normalization makes of rounding is still small."""
    settings = Settings.of(run_config(folder, normalization))
    loop, batched = (
        in_the_engine(settings, backend, ROUNDS, torch.float64) for backend in ("loop", "batched")
    )
    assert_alike(batched, loop, atol=1e-9)
