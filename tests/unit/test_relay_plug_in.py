"""Apps that know nothing of us train decentralized, alone and with Flower's own mods inside."""

from __future__ import annotations

import logging
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord
from flwr.clientapp import ClientApp
from flwr.clientapp.mod import LocalDpMod, fixedclipping_mod, message_size_mod
from safetensors.numpy import load_file
from support.grid import LocalGrid
from support.torch_app import initial_arrays, make_app

from flower_dhb import HeavyBall, ServerlessStrategy, Topology, consensus_mod, decentralize

pytestmark = pytest.mark.thorough

N, ROUNDS = 5, 30
GRAPH = Topology.from_edges([(0, 1), (1, 2), (2, 3), (3, 0), (0, 4)])


def run(app: ClientApp, rounds: int = ROUNDS, grid: LocalGrid | None = None, **config: float):
    strategy = ServerlessStrategy(GRAPH, HeavyBall(momentum=0.8), collect_models=True)
    return strategy.start(
        grid or LocalGrid(app, N),
        initial_arrays(),
        rounds,
        train_config=ConfigRecord({"lr": 0.2, **config}),
    )


@cache
def learned(lines: str):
    """What an app ends with of which two lines are changed, or none."""
    return run(make_app([consensus_mod]) if lines == "two lines" else decentralize(make_app()))


@pytest.mark.parametrize("lines", ["two lines", "none"])
def test_a_quickstart_app_with_batch_norm_learns(lines: str) -> None:
    result = learned(lines)
    first, last = (result.evaluate_metrics_clientapp[k] for k in (1, ROUNDS))
    assert float(last["eval_acc"]) > 0.9 > float(first["eval_acc"])  # type: ignore[arg-type]
    assert set(last) == {"eval_loss", "eval_acc"}, "the app's own names, as under FedAvg"
    assert all(r.missing == [] and r.events == [] for r in result.history)


def test_state_in_files_changes_nothing(tmp_path: Path) -> None:
    """Counters of BatchNorm have no dimension, which files must keep."""
    app = make_app([consensus_mod])
    grid = LocalGrid(app, N, node_config=lambda i: {"partition-id": i, "state-dir": str(tmp_path)})
    in_files, in_memory = run(app, 4, grid), run(app, 4)
    for path in tmp_path.iterdir():
        assert load_file(path)["local/norm.num_batches_tracked"].shape == ()
    assert all(r.missing == [] and r.events == [] for r in in_files.history)
    for i in range(N):
        for name, array in in_memory.models[i].items():
            other = in_files.models[i][name].numpy()
            assert other.shape == array.numpy().shape
            np.testing.assert_array_equal(other, array.numpy())


def test_running_statistics_agree_and_stay_valid_while_counters_stay_local() -> None:
    result = learned("two lines")
    arrays = [{k: a.numpy() for k, a in result.models[i].items()} for i in range(N)]
    assert list(arrays[0]) == list(initial_arrays())
    variances = np.stack([a["norm.running_var"] for a in arrays])
    means = np.stack([a["norm.running_mean"] for a in arrays])
    assert (variances > 0).all()
    # The agents' inputs are shifted by 0.3 each; unmixed means would differ as much.
    assert np.ptp(means, axis=0).max() < 0.5 * np.abs(means).max()
    assert {a["norm.num_batches_tracked"].dtype for a in arrays} == {np.dtype(np.int64)}


def test_counters_count_on_where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    from flower_dhb.flower import mod

    seen = []
    original = mod._Turn._call_app

    def watch(self, node, *arguments):
        if self.instruction.ask == "train":
            seen.append((node.vertex, int(node.arrays()["norm.num_batches_tracked"])))
        return original(self, node, *arguments)

    monkeypatch.setattr(mod._Turn, "_call_app", watch)
    run(make_app([consensus_mod]), rounds=3)
    assert [count for vertex, count in seen if vertex == 2] == [0, 1, 2]


def test_message_size_mod_inside_sees_plain_messages(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("flwr")
    logger.setLevel(logging.INFO)
    logger.addHandler(caplog.handler)
    try:
        result = run(make_app([consensus_mod, message_size_mod]), rounds=2)
    finally:
        logger.removeHandler(caplog.handler)
    assert all(r.missing == [] for r in result.history)
    sizes = {r.getMessage() for r in caplog.records if "Incoming message size" in r.getMessage()}
    assert sizes


def test_fixed_clipping_inside_bounds_the_local_step() -> None:
    norm = 0.01
    result = run(make_app([consensus_mod, fixedclipping_mod]), rounds=1, clipping_norm=norm)
    assert all(r.missing == [] for r in result.history)
    start = _parameters(initial_arrays())
    for vertex in range(N):
        # One round from equal starts: each agent moves by an average of clipped steps.
        moved = np.linalg.norm(_parameters(result.models[vertex]) - start)
        assert 0.0 < moved <= norm * 1.001


def test_local_differential_privacy_inside_adds_its_noise() -> None:
    private = LocalDpMod(clipping_norm=1.0, sensitivity=0.01, epsilon=10.0, delta=1e-5)
    noisy = run(make_app([consensus_mod, private]), rounds=2)
    plain = run(make_app([consensus_mod]), rounds=2)
    assert all(r.missing == [] for r in noisy.history)
    difference = _parameters(noisy.models[0]) - _parameters(plain.models[0])
    assert 0.0 < np.abs(difference).max() < 1.0


def _parameters(record: ArrayRecord) -> np.ndarray:
    names = [k for k in record if "running" not in k and "num_batches" not in k]
    return np.concatenate([record[k].numpy().ravel() for k in names])
