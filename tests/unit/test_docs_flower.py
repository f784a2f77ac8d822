"""The code blocks of docs/flower.md run, and its table names every argument of FedAvg."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg
from support.grid import LocalGrid

from flower_dhb import ServerlessStrategy, consensus_mod
from flower_dhb.types import Layout

PAGE = (Path(__file__).parents[2] / "docs" / "flower.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def the_block_with(text: str) -> dict[str, object]:
    (block,) = [block for block in BLOCKS if text in block]
    names: dict[str, object] = {"ServerlessStrategy": ServerlessStrategy, "make_model": make_model}
    exec(block, names)  # noqa: S102
    return names


def make_model() -> torch.nn.Module:
    torch.manual_seed(3)
    return torch.nn.Linear(2, 1)


def app(seen: list[dict[str, object]], accuracy=lambda vertex, k: 0.5) -> ClientApp:
    made = ClientApp(mods=[consensus_mod])

    @made.train()
    def train(message: Message, context) -> Message:
        config = dict(message.content["config"].items())
        seen.append(config)
        arrays = {n: a.numpy() + 1 for n, a in message.content["arrays"].items()}
        record = ArrayRecord({n: torch.tensor(a) for n, a in arrays.items()})
        content = {"arrays": record, "metrics": MetricRecord({"num-examples": 1})}
        return Message(RecordDict(content), reply_to=message)

    @made.evaluate()
    def evaluate(message: Message, context) -> Message:
        k = message.content["config"]["server-round"]
        value = accuracy(context.node_config["partition-id"], k)
        metrics = MetricRecord({"accuracy": value, "num-examples": 1})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    return made


def test_all_blocks_are_seen() -> None:
    assert len(BLOCKS) == 7


def test_the_first_block_runs_as_it_stands(capsys: pytest.CaptureFixture[str]) -> None:
    result = the_block_with("def main")["main"](LocalGrid(app([]), 8), None)
    assert len(result.history) == 3
    assert float(result.arrays["bias"].numpy()[0]) > make_model().bias[0].item()
    the_block_with("def show")["show"](result)
    assert "1 accuracy 0.5 0.5 0.5" in capsys.readouterr().out


def test_patience_ends_a_run_when_the_worst_agent_no_longer_improves() -> None:
    """The worst agent improves until round 4; the mean goes on improving."""

    def accuracy(vertex: int, k: int) -> float:
        return min(k, 4) / 10 if vertex == 3 else 0.5 + k / 100

    strategy = the_block_with("class Patience")["strategy"]
    start = ArrayRecord(make_model().state_dict())
    result = strategy.start(LocalGrid(app([], accuracy), 8), start, num_rounds=30)
    assert len(result.history) == 4 + 5


def test_a_logger_is_told_each_round_until_another_function_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    strategy = the_block_with("TensorBoardLogger")["strategy"]
    start = ArrayRecord(make_model().state_dict())
    grid = LocalGrid(app([], lambda vertex, k: k / 6), 8)
    result = strategy.start(grid, start, num_rounds=30)
    assert len(result.history) == 6
    (written,) = (tmp_path / "logs").iterdir()
    assert b"evaluate/accuracy/worst" in written.read_bytes()


def test_the_strategy_with_a_checkpoint_keeps_it_in_that_folder() -> None:
    made = the_block_with("checkpoint=")["strategy"]
    assert made.checkpoint == Path("runs/mine/checkpoint")


def test_the_decaying_schedule_halves_every_ten_rounds() -> None:
    seen: list[dict[str, object]] = []
    strategy = the_block_with("class Decaying")["Decaying"]("path:2", evaluate_every=0)
    strategy.start(
        LocalGrid(app(seen), 2),
        ArrayRecord(make_model().state_dict()),
        num_rounds=20,
        train_config=ConfigRecord({"lr": 0.1}),
    )
    rates = {config["server-round"]: config["lr"] for config in seen}
    assert (rates[1], rates[9], rates[10], rates[19], rates[20]) == (0.1, 0.1, 0.05, 0.05, 0.025)


def test_the_statistics_of_the_last_block_are_those_meant() -> None:
    block = next(block for block in BLOCKS if "statistics=" in block)
    found = []
    for line in block.splitlines():
        names = {"ServerlessStrategy": ServerlessStrategy}
        exec(line, names)  # noqa: S102
        statistics = names["strategy"].statistics
        arrays = {n: torch.ones(2).numpy() for n in ("a.w", "b", "ema_mean", "ema_var", "running")}
        kinds = Layout.of(arrays, statistics).entries
        found.append([e.name for e in kinds if e.kind == "statistic"])
    assert found == [["ema_mean", "ema_var"], ["ema_mean", "ema_var"], ["running"]]


def test_the_table_names_every_argument_of_fedavg_and_of_its_start() -> None:
    for function in (FedAvg.__init__, FedAvg.start):
        for name in inspect.signature(function).parameters:
            if name not in ("self", "grid", "initial_arrays"):
                assert f"`{name}" in PAGE, name
