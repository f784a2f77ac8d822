"""Workload `text-lora`: of a frozen transformer only the adapters travel."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Context, RecordDict
from safetensors.torch import load_file
from support.grid import LocalGrid

from clients.client_app import app as client_app
from clients.settings import Settings
from clients.workload import evaluate, put, shared
from flower_dhb import ConfigError
from flower_dhb.extras import installed
from strategies import server_app

# Hugging Face's packages warn of their own futures.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.families,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif(not installed("peft"), reason="needs the extra `lora`"),
]

VALUES: dict[str, Any] = {
    "topology": "ring:4",
    "workload": "text-lora",
    "split": "iid",
    "algorithm": "dsgd",
    "rounds": 3,
    "optimizer": "adamw",
    "learning-rate": 0.003,
    "local-steps": 4,
    "evaluate-every": 3,
}


def test_a_run_sends_adapters_and_no_more(tmp_path: Path) -> None:
    settings = Settings.of(VALUES)
    start = settings.new_model()
    whole = sum(t.nbytes for t in start.state_dict().values())
    adapters = sum(t.nbytes for t in shared(start).values())
    grid = LocalGrid(client_app, 4, run_config=VALUES)
    context = Context(1, 1, {}, RecordDict(), VALUES | {"runs-dir": str(tmp_path)})
    server_app.main(grid, context)
    (folder,) = tmp_path.iterdir()
    last = json.loads((folder / "history.jsonl").read_text().splitlines()[-1])
    assert last["missing"] == []
    for sent in last["bytes_sent_by_agent"]:  # to two neighbors; a header each
        assert 2 * adapters <= sent < 2 * (adapters + 2_000)
        assert sent < 0.05 * 2 * whole

    learned = load_file(folder / "agent-000.safetensors")
    assert learned.keys() == shared(start).keys()
    assert all("lora" in name or "classifier" in name for name in learned)
    before = shared(start)
    assert all(not torch.equal(learned[name], before[name]) for name in learned)
    model, again = settings.new_model(), settings.new_model()
    put(learned, model)
    frozen = {k: v for k, v in model.state_dict().items() if k not in learned}
    assert frozen
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in frozen.items())
    test = settings.workload.load(train=False)
    loss, _ = evaluate(model, settings.workload, test, torch.device("cpu"))
    assert loss < evaluate(again, settings.workload, test, torch.device("cpu"))[0]


def test_a_saved_base_is_read_from_its_folder(tmp_path: Path) -> None:
    values = VALUES | {"data-dir": str(tmp_path), "model": "saved-base"}
    with pytest.raises(ConfigError, match=f"there is no model in '{tmp_path}/base': write one"):
        Settings.of(values).new_model()
    random = Settings.of(VALUES | {"seed": 7}).new_model()
    name = "model.base_model.model.distilbert.embeddings.word_embeddings.weight"
    words = random.state_dict()[name].clone()
    random.model.unload().save_pretrained(tmp_path / "base")
    for seed in (0, 1):
        model = Settings.of(values | {"seed": seed}).new_model()
        assert torch.equal(model.state_dict()[name], words)
        assert len(shared(model)) == 12  # as with the random base: two layers of attention, a head
