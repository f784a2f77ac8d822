"""Apps of Flower's quickstart families with the two lines of the docs changed.

Light frameworks run here always; the others behind the marker `families`, where the extra
of that name is installed (`make test-families`).
"""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from flwr.app import ArrayRecord
from flwr.clientapp import ClientApp
from support.families import (
    FAMILIES,
    Family,
    N,
    Outcome,
    copy_of,
    hunks,
    importable,
    run_app,
    wrapper,
)
from support.flower_runs import log_of
from support.grid import LocalGrid

from flower_dhb import ConfigError, ServerlessStrategy, Topology, consensus_mod
from flower_dhb.runs.superlink import SuperLink
from flower_dhb.types import STATISTICS, Layout

pytestmark = [
    # Of the frameworks: what they warn of in each other is not ours to heal.
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.timeout(900),
]
os.environ.setdefault("KERAS_BACKEND", "torch")  # it is here, and compiles nothing

TRAINED = [name for name in FAMILIES if name != "xgboost_cancer"]
SHARED = [name for name in TRAINED if name != "pytorch_personal"]


def family_params(names: list[str], *, slow: tuple[str, ...] = ()) -> list[object]:
    """One parameter per family, marked by what it needs."""
    params = []
    for name in names:
        marks = [pytest.mark.families] if FAMILIES[name].needs else []
        marks += [pytest.mark.slow] if marks or name in slow else []
        params.append(pytest.param(FAMILIES[name], id=name, marks=marks))
    return params


def run(
    family: Family, tmp_path: Path, rounds: int, *, seed: int = 1, **options: object
) -> Outcome:
    """The app with the changes of the docs."""
    for module in family.needs:
        pytest.importorskip(module)
    return run_app(
        family,
        copy_of(family, tmp_path, hunks(family.heading)),
        rounds=rounds,
        seed=seed,
        **options,
    )


def run_as_written(family: Family, tmp_path: Path, rounds: int, **options: object) -> Outcome:
    """The app as its author wrote it."""
    return run_app(family, copy_of(family, tmp_path / "as-written"), rounds=rounds, **options)


@pytest.fixture(scope="module")
def short_run(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Family], Outcome]:
    """Two rounds of an app with the changes of the docs, run once for all tests that ask."""

    @cache
    def outcome(name: str) -> Outcome:
        return run(FAMILIES[name], tmp_path_factory.mktemp(name), 2)

    return lambda family: outcome(family.name)


def form(record: ArrayRecord) -> list[tuple[str, tuple[int, ...], str]]:
    return [(name, a.numpy().shape, a.numpy().dtype.name) for name, a in record.items()]


def assert_same(one: ArrayRecord, other: ArrayRecord) -> None:
    assert form(one) == form(other)
    for name, array in one.items():
        np.testing.assert_array_equal(array.numpy(), other[name].numpy())


# --- it ends as it did under FedAvg -------------------------------------------------------


@pytest.mark.parametrize("family", family_params(TRAINED))
@pytest.mark.thorough
def test_an_app_ends_as_it_did(
    family: Family, short_run: Callable[[Family], Outcome], tmp_path: Path
) -> None:
    outcome = short_run(family)
    result = outcome.result
    assert all(record.missing == [] and record.events == [] for record in result.history)
    assert sum(m["num-examples"] for m in result.history[0].train.values()) == family.examples
    before = run_as_written(family, tmp_path, 1)
    assert form(result.arrays) == form(outcome.initial_arrays)
    # FedAvg makes a fraction of BatchNorm's counters: names and shapes are what it keeps.
    assert [f[:2] for f in form(result.arrays)] == [f[:2] for f in form(before.result.arrays)]
    assert set(result.train_metrics_clientapp[1]) >= set(before.result.train_metrics_clientapp[1])
    assert sorted(result.evaluate_metrics_serverapp) == (
        [0, 1, 2] if before.result.evaluate_metrics_serverapp else []
    )
    with importable(outcome.folder, family.package):
        assert_same(outcome.final_model(family.final), result.arrays)
    # What is saved is the mean of the agents' own models, which differ.
    assert len(result.models) == N
    for name, array in result.arrays.items():
        own = np.stack([result.models[i][name].numpy() for i in range(N)])
        if own.dtype.kind == "f":
            # float32: a mean of eight, in another order of summation.
            np.testing.assert_allclose(array.numpy(), own.mean(axis=0), rtol=1e-4, atol=1e-6)
            assert np.ptp(own, axis=0).max() > 0.0, name


@pytest.mark.parametrize("family", family_params(SHARED))
@pytest.mark.thorough
def test_training_goes_on_from_the_final_model(
    family: Family, short_run: Callable[[Family], Outcome]
) -> None:
    outcome = short_run(family)
    with importable(outcome.folder, family.package):
        client_app = importlib.import_module(f"{family.package}.client_app").app
        grid = LocalGrid(client_app, N, run_config=outcome.run_config)
        seen = []
        strategy = ServerlessStrategy(Topology.ring(N))
        again = strategy.start(
            grid,
            outcome.result.arrays,
            1,
            train_config=outcome.train_config,
            evaluate_fn=lambda k, arrays: seen.append((k, arrays)),
        )
    assert [record.missing for record in again.history] == [[]]
    assert_same(seen[0][1], outcome.result.arrays)
    assert form(again.arrays) == form(outcome.result.arrays)


# --- and is as accurate -------------------------------------------------------------------

# One app, one seed, at most 360 test examples: two runs of FedAvg itself that differ in
# nothing but the order of the examples are up to 1.5 points apart. The mean of three
# seeds, to a point, is in docs/existing-apps.md (`python -m benchmarks.families`).
MARGIN = 0.02
ROUNDS = 15


LONG = ("pytorch_digits", "pytorch_batch_norm", "pytorch_personal", "sklearn_digits")
# The agents' own models of the network without batch normalization are short by two points
# as the mean of three seeds.
OWN_MARGIN = {"pytorch_digits": 0.04}


@pytest.mark.parametrize("family", family_params(TRAINED, slow=LONG))
@pytest.mark.thorough
def test_an_app_is_as_accurate_as_under_fedavg(family: Family, tmp_path: Path) -> None:
    ours = run(family, tmp_path, ROUNDS, evaluate_every=ROUNDS)
    theirs = run_as_written(family, tmp_path, ROUNDS, evaluate_every=ROUNDS)
    fedavg = theirs.average[ROUNDS]
    assert ours.average[ROUNDS] >= fedavg - MARGIN
    assert np.mean(ours.own[ROUNDS]) >= fedavg - OWN_MARGIN.get(family.name, MARGIN)


# --- what each family needs ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("package", "dtype"),
    [("numpy_cancer", "float64"), ("sklearn_digits", "float64"), ("pytorch_digits", "float32")],
)
def test_numbers_stay_as_precise_as_the_app_has_them(
    package: str, dtype: str, short_run: Callable[[Family], Outcome]
) -> None:
    outcome = short_run(FAMILIES[package])
    records = [outcome.result.arrays, *outcome.result.models.values()]
    assert {a.numpy().dtype.name for record in records for a in record.values()} == {dtype}
    size = sum(a.numpy().nbytes for a in outcome.result.arrays.values())
    # Each of eight agents sends one vector of the model's size to each of two neighbors.
    assert 2 * N * size < outcome.result.history[0].bytes_sent < 2 * N * (size + 2048)


def test_batch_norm_in_torch_needs_nothing(short_run: Callable[[Family], Outcome]) -> None:
    outcome = short_run(FAMILIES["pytorch_batch_norm"])
    means, variances = ([f"norm{i}.running_{what}" for i in (1, 2)] for what in ("mean", "var"))
    _assert_statistics(outcome, variances, means)
    counters = [int(m["norm1.num_batches_tracked"].numpy()) for m in outcome.result.models.values()]
    # Counters stay with their agent, where the observer does not see them.
    assert counters == [0] * N


@pytest.mark.slow
@pytest.mark.families
def test_batch_norm_in_keras_needs_its_statistics_by_index(tmp_path: Path) -> None:
    outcome = run(FAMILIES["keras_digits"], tmp_path, 5, **{"learning-rate": 0.03})
    _assert_statistics(outcome, ["5"], ["4"])


def _assert_statistics(outcome: Outcome, variances: list[str], means: list[str]) -> None:
    """These arrays and no others are statistics; the variances are positive, and differ."""
    arrays = {name: array.numpy() for name, array in outcome.result.arrays.items()}
    layout = Layout.of(arrays, outcome.strategy.statistics or STATISTICS)
    found = sorted(entry.name for entry in layout.entries if entry.kind == "statistic")
    assert found == sorted(variances + means)
    for name in variances:
        own = np.stack([model[name].numpy() for model in outcome.result.models.values()])
        assert (own > 0.0).all()
        assert np.ptp(own, axis=0).max() > 0.0


def test_a_learning_rate_that_follows_the_round_does(
    short_run: Callable[[Family], Outcome],
) -> None:
    outcome = short_run(FAMILIES["pytorch_personal"])
    for record in outcome.result.history:
        rates = [metrics["lr"] for metrics in record.train.values()]
        assert rates == pytest.approx([0.1 * 0.95 ** (record.round - 1)] * N)


def test_what_an_app_keeps_in_its_context_stays_its_own(
    short_run: Callable[[Family], Outcome],
) -> None:
    outcome = short_run(FAMILIES["pytorch_personal"])
    heads = [
        outcome.grid.contexts[outcome.grid.node_of(i)].state["head"]["weight"].numpy()
        for i in range(N)
    ]
    assert all(head.shape == (10, 16) for head in heads)
    assert all(not np.array_equal(heads[0], head) for head in heads[1:])
    assert all(name.startswith(("0.", "2.")) for name in outcome.result.arrays)


@pytest.mark.slow
@pytest.mark.families
def test_adapters_alone_are_sent_and_leave_their_start_at_zero(
    short_run: Callable[[Family], Outcome],
) -> None:
    outcome = short_run(FAMILIES["transformers_lora"])
    result = outcome.result
    assert {name.split(".")[-2] for name in result.arrays} >= {"lora_A", "lora_B"}
    assert not any("base_layer" in name or "embeddings" in name for name in result.arrays)
    size = sum(a.numpy().nbytes for a in result.arrays.values())
    assert result.history[-1].bytes_sent < 2 * N * (size + 2048)
    for model in result.models.values():
        raised = [model[name].numpy() for name in model if "lora_B" in name]
        assert raised
        assert all(np.abs(matrix).max() > 0.0 for matrix in raised)


@pytest.mark.slow
@pytest.mark.families
def test_the_leaves_of_a_jax_tree_come_back_in_their_places(
    short_run: Callable[[Family], Outcome],
) -> None:
    outcome = short_run(FAMILIES["jax_digits"])
    assert form(outcome.result.arrays) == [
        ("0", (32,), "float32"),
        ("1", (64, 32), "float32"),
        ("2", (10,), "float32"),
        ("3", (32, 10), "float32"),
    ]


# --- an app that must not be touched ------------------------------------------------------


def test_a_wrapped_app_trains_as_a_changed_one(
    short_run: Callable[[Family], Outcome], tmp_path: Path
) -> None:
    family = FAMILIES["numpy_cancer"]
    changed = short_run(family)
    server = [change for change in hunks(family.heading) if change.file == "server_app.py"]
    folder = copy_of(family, tmp_path / "wrapped", server)
    (folder / family.package / "decentral.py").write_text(wrapper())
    wrapped = run_app(family, folder, rounds=2, client="decentral")
    assert_same(changed.result.arrays, wrapped.result.arrays)


@pytest.mark.slow
@pytest.mark.xdist_group("superlink")
def test_a_changed_app_runs_under_flwr_run_as_it_does_here(
    superlink: SuperLink, short_run: Callable[[Family], Outcome], tmp_path: Path
) -> None:
    family = FAMILIES["numpy_cancer"]
    here = short_run(family)
    folder = copy_of(family, tmp_path / "there", hunks(family.heading))
    (folder / "pyproject.toml").write_text(PYPROJECT)
    text = log_of(superlink, superlink.submit(folder, N, {}))
    saved = superlink.log_path.parent / family.final  # where the ServerApp runs
    assert saved.exists(), text[-3000:]
    with np.load(saved) as file:
        np.testing.assert_array_equal(file["weights"], here.result.arrays["0"].numpy())


PYPROJECT = """
[project]
name = "numpy-cancer"
version = "1.0.0"
dependencies = []

[tool.hatch.build.targets.wheel]
packages = ["."]

[tool.flwr.app]
publisher = "somebody"

[tool.flwr.app.components]
serverapp = "numpy_cancer.server_app:app"
clientapp = "numpy_cancer.client_app:app"

[tool.flwr.app.config]
num-server-rounds = 2
learning-rate = 0.1
local-epochs = 1
seed = 1
"""


# --- trees --------------------------------------------------------------------------------


def test_trees_are_refused_with_the_reason_and_the_remedy() -> None:
    """What XGBoost apps send, at their start and later, without XGBoost."""
    for tree in (b"", json.dumps({"learner": {"gradient_booster": {}}}).encode()):
        record = ArrayRecord([np.frombuffer(tree, dtype=np.uint8)])
        app = ClientApp(mods=[consensus_mod])
        grid = LocalGrid(app, N)
        with pytest.raises(ConfigError, match=r"trees cannot be averaged.*FedXgbBagging"):
            ServerlessStrategy(Topology.ring(N)).start(grid, record)
        assert grid.messages == []


def test_whole_numbers_that_are_no_bytes_are_not_called_trees() -> None:
    record = ArrayRecord([np.arange(3)])
    with pytest.raises(ConfigError, match=r"nothing to agree on$"):
        ServerlessStrategy(Topology.ring(N)).start(LocalGrid(ClientApp(), N), record)


@pytest.mark.slow
@pytest.mark.families
def test_an_xgboost_app_trains_under_flower_and_is_refused_here(tmp_path: Path) -> None:
    pytest.importorskip("xgboost")
    family = FAMILIES["xgboost_cancer"]
    assert run_as_written(family, tmp_path, 3).average[3] > 0.9
    with pytest.raises(ConfigError, match="trees cannot be averaged"):
        run(family, tmp_path, 3)


# --- the page -----------------------------------------------------------------------------


def test_each_app_is_on_the_page_with_one_line_changed_on_each_side() -> None:
    """Beside the imports: the ClientApp gets its mod, the ServerApp its strategy."""
    for family in FAMILIES.values():
        changes = [c for c in hunks(family.heading) if "import" not in c.new]
        assert [c.file for c in changes] == ["client_app.py", "server_app.py"]
        assert changes[0].new == "app = ClientApp(mods=[consensus_mod])\n"
        assert 'strategy = ServerlessStrategy("ring:8"' in changes[1].new
