"""Rounds in TensorBoard, Weights & Biases and MLflow: read back with the tools' own readers."""

import math

import pytest

from flower_dhb import ConfigError, ServerlessStrategy, Topology
from flower_dhb.metrics import RoundRecord
from flower_dhb.runs.loggers import (
    MLflowLogger,
    RoundLogger,
    TensorBoardLogger,
    WandbLogger,
    each,
    scalars,
)
from tests.support.waiting import wait_for

pytestmark = pytest.mark.thorough


def record(k, accuracy=0.5):
    return RoundRecord(
        round=k,
        train={0: {"loss": 2.0, "num-examples": 1}, 1: {"loss": 4.0, "num-examples": 1}},
        evaluate={v: {"accuracy": accuracy + 0.1 * v, "num-examples": 1} for v in (0, 1)},
        consensus_distance=0.25 * k,
        bytes_sent=1000 * k,
        missing=[1],
        seconds=1.5,
        profile={"app": 1.25},
    )


WANT = {
    "evaluate/accuracy/mean": 0.55,
    "evaluate/accuracy/worst": 0.5,
    "evaluate/accuracy/best": 0.6,
    "train/loss/mean": 3.0,
    "train/loss/worst": 4.0,
    "train/loss/best": 2.0,
    "consensus_distance": 0.75,
    "bytes_sent": 3000.0,
    "missing": 1.0,
    "rejoined": 0.0,
    "seconds": 1.5,
    "profile/app": 1.25,
}


def test_a_round_as_numbers():
    assert scalars(record(3)) == pytest.approx(WANT)
    nothing = scalars(RoundRecord(round=1, train={0: {"loss": math.nan, "num-examples": 1}}))
    assert set(nothing) == {"bytes_sent", "seconds", "missing", "rejoined"}


def test_tensorboard_reads_what_was_written(tmp_path):
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with TensorBoardLogger(tmp_path / "logs") as logger:
        for k in (1, 2, 3):
            logger(record(k))
    events = accumulators.EventAccumulator(str(tmp_path / "logs")).Reload()
    assert set(events.Tags()["scalars"]) == set(WANT)
    for name, value in WANT.items():
        found = events.Scalars(name)
        assert [event.step for event in found] == [1, 2, 3]
        assert found[-1].value == pytest.approx(value)


def test_wandb_keeps_a_run_offline(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    for name in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    with WandbLogger("mesh", tmp_path, settings=wandb.Settings(silent=True)) as logger:
        logger(record(1))
        logger(record(3))
        assert logger.run.summary["consensus_distance"] == pytest.approx(0.75)
        assert logger.run.step == 4
    (kept,) = (tmp_path / "wandb").glob("offline-run-*/run-*.wandb")
    # A process of the tool's own writes the file.
    wait_for(lambda: b"evaluate/accuracy/worst" in kept.read_bytes(), "the file", 30.0)


def test_mlflow_reads_what_was_written(tmp_path, monkeypatch):
    tracking = pytest.importorskip("mlflow.tracking")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    uri = (tmp_path / "store").as_uri()
    with MLflowLogger("mesh", uri, {"rule": "dmsgd"}) as logger:
        for k in (1, 3):
            logger(record(k))
    client = tracking.MlflowClient(uri)
    run = client.get_run(logger.run_id)
    assert run.data.params == {"rule": "dmsgd"}
    assert run.info.status == "FINISHED"
    assert run.data.metrics == pytest.approx(WANT)
    history = client.get_metric_history(logger.run_id, "bytes_sent")
    assert [(m.step, m.value) for m in history] == [(1, 1000.0), (3, 3000.0)]
    with MLflowLogger("mesh", uri) as again:
        assert again.run_id != logger.run_id
    assert len(client.search_experiments(filter_string="name = 'mesh'")) == 1


class Broken(RoundLogger):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def write(self, numbers, round):
        self.calls += 1
        raise OSError(28, "No space left on device")


def test_a_tool_that_fails_is_named_once_and_ends_nothing(caplog):
    logger = Broken()
    for k in (1, 2):
        assert logger(record(k)) is None
    assert logger.calls == 2
    assert caplog.messages == ["Broken: round 1 is not told: [Errno 28] No space left on device"]


def test_several_are_all_called_and_one_may_end_the_run():
    called = []

    def late(record):
        called.append(record.round)
        return record.round == 2

    on_round = each(late, lambda r: called.append(-r.round))
    assert on_round(record(1)) is False
    assert on_round(record(2)) is True
    assert called == [1, -1, 2, -2]


def test_a_logger_is_an_on_round_of_the_strategy():
    logger = Broken()
    assert ServerlessStrategy(Topology.ring(3), on_round=logger).on_round is logger


@pytest.mark.parametrize("kind", [TensorBoardLogger, WandbLogger, MLflowLogger])
def test_without_its_library_a_logger_says_which_extra_it_needs(kind, monkeypatch, tmp_path):
    monkeypatch.setattr("flower_dhb.extras.find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"needs the '\w+' extra: pip install"):
        kind(str(tmp_path))
    assert not list(tmp_path.iterdir())
