"""What a run hands over at its end: the network average, or the reason why there is none."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from support.apps import flat, numpy_app, quadratic, quadratic_step, start_arrays
from support.grid import LocalGrid

from flower_dhb import DSGD, HeavyBall, RoundError, ServerlessResult, ServerlessStrategy, Topology
from flower_dhb import consensus_mod as mod

N, D = 6, 4
IRREGULAR = Topology.from_edges([(0, 1), (0, 2), (0, 3), (3, 4), (4, 5)])


def start(
    rounds: int = 3, arrays: ArrayRecord | None = None, grid: LocalGrid | None = None, **options
):
    grid = grid or LocalGrid(numpy_app(N, D, mods=[mod]), N)
    strategy = ServerlessStrategy(IRREGULAR, DSGD(), collect_models=True, **options)
    return strategy.start(grid, arrays or start_arrays(D)[0], rounds)


def echo(change) -> ClientApp:
    """An app whose training is `change(name, array)`."""
    app = ClientApp(mods=[mod])

    @app.train()
    def train(message: Message, context: object) -> Message:
        arrays = {n: a.numpy() for n, a in message.content["arrays"].items()}
        trained = {n: Array(np.asarray(change(n, a), a.dtype)) for n, a in arrays.items()}
        metrics = MetricRecord({"num-examples": 1})
        content = {"arrays": ArrayRecord(trained), "metrics": metrics}
        return Message(RecordDict(content), reply_to=message)

    return app


@pytest.mark.parametrize("evaluate_every", [0, 1, 2])
def test_the_average_is_that_of_the_final_models(evaluate_every: int) -> None:
    result = start(evaluate_every=evaluate_every)
    models = np.stack([flat(result.models[v]) for v in range(N)])
    assert len({row.tobytes() for row in models}) == N, "each agent has a model of its own"
    np.testing.assert_allclose(flat(result.arrays), models.mean(axis=0), rtol=0, atol=1e-15)
    assert result.has_arrays


def test_a_run_goes_on_from_the_average_of_another() -> None:
    first = start()
    second = start(arrays=first.arrays, rounds=1)
    assert [a.shape for a in second.arrays.to_numpy_ndarrays()] == [(1, 2), (2,)]
    # One round from a common start moves the average by the mean of the agents' steps.
    x = flat(first.arrays)
    steps = quadratic_step(np.tile(x, (N, 1)), *quadratic(N, D), 0.05)
    np.testing.assert_allclose(flat(second.arrays), steps.mean(axis=0), rtol=0, atol=1e-14)


def test_arrays_come_back_under_their_names_and_in_their_dtypes() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    arrays = ArrayRecord(module.state_dict())
    grid = LocalGrid(echo(lambda name, a: a + 1), N)
    result = start(rounds=1, arrays=arrays, grid=grid, evaluate_every=0)
    found = result.arrays.to_torch_state_dict()
    for name, tensor in module.state_dict().items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        moved = 0 if name == "1.num_batches_tracked" else 1  # integers stay with the agents
        np.testing.assert_allclose(found[name].numpy(), tensor.numpy() + moved, rtol=1e-6)
    module.load_state_dict(found)
    again = start(rounds=1, arrays=result.arrays, grid=grid, evaluate_every=0)
    bias = again.arrays["0.bias"].numpy()
    np.testing.assert_allclose(bias, found["0.bias"].numpy() + 1, rtol=1e-6)


def test_arrays_of_scikit_learn_go_in_and_come_out_as_a_list() -> None:
    coefficients, intercept = np.ones((10, 64)), np.zeros(10)
    grid = LocalGrid(echo(lambda name, a: a + float(name)), N)
    result = start(
        rounds=2, arrays=ArrayRecord([coefficients, intercept]), grid=grid, evaluate_every=0
    )
    first, second = result.arrays.to_numpy_ndarrays()
    np.testing.assert_allclose(first, coefficients, rtol=1e-15)
    np.testing.assert_allclose(second, intercept + 2, rtol=1e-15)


# --- no average ------------------------------------------------------------------------------


def test_without_an_average_reading_it_says_what_to_set() -> None:
    result = start(average=False)
    assert not result.has_arrays
    assert len(result.models) == N
    with pytest.raises(RoundError, match="made with average=False; set average=True, or read the"):
        _ = result.arrays
    assert "network average: none" in repr(result)


def test_where_nobody_reports_reading_it_says_so() -> None:
    def lost(vertex: int, message: Message) -> Exception | None:
        document = str(message.content.config_records["flower_dhb"]["json"])
        return ConnectionError("gone") if '"ask": "report"' in document else None

    grid = LocalGrid(numpy_app(N, D, mods=[mod]), N, intercept=lost)
    result = start(rounds=1, grid=grid, evaluate_every=0)
    with pytest.raises(RoundError, match="no agent reported its parameters at the end of the run"):
        _ = result.arrays


def test_a_result_that_is_not_finished_has_none() -> None:
    with pytest.raises(RoundError, match="since the run has not finished"):
        _ = ServerlessResult().arrays


def test_a_result_made_with_arrays_has_them() -> None:
    arrays = start_arrays(D)[0]
    assert ServerlessResult(arrays).arrays is arrays
    assert "network average: 2 arrays" in repr(ServerlessResult(arrays))


# --- agents that are missing at the end --------------------------------------------------------


def test_the_average_is_of_those_that_reported_and_the_log_says_so(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("flwr"), "propagate", True)
    grid = LocalGrid(
        numpy_app(N, D, mods=[mod]),
        N,
        intercept=lambda v, m: ConnectionError("gone") if v == 2 and m.metadata.group_id else None,
    )
    with caplog.at_level(logging.INFO, "flwr"):
        result = start(grid=grid, evaluate_every=0)
    assert sorted(result.models) == [0, 1, 3, 4, 5]
    models = [flat(result.models[v]) for v in sorted(result.models)]
    np.testing.assert_allclose(flat(result.arrays), np.mean(models, axis=0), rtol=0, atol=1e-15)
    assert "the final models of 5 of 6 agents" in caplog.text


# --- running statistics ------------------------------------------------------------------------


def keras_like() -> ArrayRecord:
    """A batch normalization as Keras lists it: gamma, beta, moving mean, moving variance."""
    return ArrayRecord([np.ones((2, 3)), np.ones(3), np.zeros(3), np.zeros(3), np.ones(3)])


def test_numbers_for_names_are_a_warning_that_says_what_to_do(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("flwr"), "propagate", True)

    def logged(arrays: ArrayRecord, **options) -> dict[str, str]:
        caplog.clear()
        with caplog.at_level(logging.INFO, "flwr"):
            grid = LocalGrid(echo(lambda _, a: a), N)
            start(1, arrays, grid, evaluate_every=0, **options)
        return {r.getMessage(): r.levelname for r in caplog.records if "numbers" in r.getMessage()}

    ((text, level),) = logged(keras_like()).items()
    assert level == "WARNING"
    assert "arrays [3, 4] look like the moving mean and variance" in text
    assert "ServerlessStrategy(..., statistics=[3, 4])" in text
    ((text, level),) = logged(ArrayRecord([np.ones((2, 3)), np.ones(3)])).items()
    assert level == "INFO"
    assert "statistics=[]" in text
    assert logged(keras_like(), statistics=[3, 4]) == {}
    assert logged(keras_like(), statistics=[]) == {}
    assert logged(keras_like(), statistics=lambda name, _: name == "4") == {}


@pytest.mark.parametrize("statistics", [[3, 4], lambda name, _: name in "34", ("3", "4")])
def test_statistics_by_index_are_averaged_and_carry_no_momentum(statistics) -> None:
    """One agent's variance falls from 1 to 0.01 at once; with momentum it would pass below 0."""

    def fall(name: str, array: np.ndarray) -> np.ndarray:
        return np.full(3, 0.01) if name == "4" else array

    def run(statistics):
        strategy = ServerlessStrategy(
            IRREGULAR, HeavyBall(), statistics=statistics, evaluate_every=0, collect_models=True
        )
        result = strategy.start(LocalGrid(echo(fall), N), keras_like(), 2)
        return np.stack([result.models[v]["4"].numpy() for v in range(N)])

    np.testing.assert_allclose(run(statistics), 0.01, rtol=1e-12)
    # As a parameter it goes on falling: 0.01 + 0.9 (0.01 - 1).
    np.testing.assert_allclose(run([]), -0.881, rtol=1e-12)
