"""Presets of experiments: what the app takes, and what only a comparison can run."""

import tomllib
from pathlib import Path

import pytest

from clients.compared import task
from clients.settings import Settings
from flower_dhb import ConfigError, RunConfig
from flower_dhb.cli import main
from flower_dhb.cli.run_app import AppFolder
from flower_dhb.cli.values import read_settings
from flower_dhb.compare.presets import settings_of_preset
from flower_dhb.compare.tasks import make_task
from flower_dhb.peer.device.settings import PeerSettings

ROOT = Path(__file__).parents[2]
PRESETS = {path.stem: path for path in sorted((ROOT / "presets").glob("*.toml"))}
APART = ("sgp", "centralized")  # rules that no relay and no peer has
SIZES = {"complete": "complete:{}", "ring": "ring:{}", "bipartite": "bipartite:{}x{}"}


def read(name):
    return tomllib.loads(PRESETS[name].read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def app():
    return AppFolder.read(ROOT)


def test_each_size_graph_and_split_is_there_and_each_rule_once():
    setups = {f"{g}-{n}-{s}" for g in SIZES for n in (5, 10, 16) for s in ("iid", "classes")}
    rules = ("dmsgd-gt", "cdsgd", "cdmsgd", *APART)
    assert set(PRESETS) == setups | {f"ring-16-classes-{rule}" for rule in rules}


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_what_its_name_says(name, app):
    values = read(name)
    graph, agents, split, *rule = name.split("-", 3)
    assert values["name"] == name
    assert values["topology"].startswith(f"{graph}:")
    assert values["split"] == {"iid": "iid", "classes": "classes:2"}[split]
    assert values["algorithm"] == (rule[0] if rule else "dmsgd")
    assert Settings.of({**app.config, **values}).workload.download is False
    if values["algorithm"] in APART:
        return
    n, handed = app.settings(read_settings([str(PRESETS[name])]), None)
    assert n == int(agents)
    assert handed["data-dir"] == str(Path.home() / "data")
    config = RunConfig.of({**app.config, **values})
    assert (config.rounds, config.evaluate_every) == (2000, 50)


def test_a_mesh_takes_a_preset(tmp_path, capsys):
    out = tmp_path / "mesh"
    create = ["mesh", "create", "--app", str(ROOT), "--out", str(out), "--insecure-plaintext"]
    assert main([*create, "--run-config", str(PRESETS["ring-5-classes"])]) == 0
    assert "5 devices" in capsys.readouterr().out
    devices = [PeerSettings.load(home / "peer.toml") for home in out.glob("vertex-*")]
    assert {d.run_config["split"] for d in devices} == {"classes:2"}
    assert {d.rounds for d in devices} == {2000}


@pytest.mark.parametrize("rule", APART)
def test_what_runs_in_a_comparison_alone_is_refused_by_a_run(rule, app):
    name = f"ring-16-classes-{rule}"
    assert "`flower-dhb compare --preset` alone" in PRESETS[name].read_text(encoding="utf-8")
    with pytest.raises(ConfigError, match="it runs in the engine and in 'flower-dhb compare'"):
        app.settings(read_settings([str(PRESETS[name])]), None)
    with pytest.raises(ConfigError, match="it runs in the engine and in 'flower-dhb compare'"):
        RunConfig.of({**app.config, **read(name)})  # as the ServerApp does under `flwr run`


def test_a_comparison_says_which_files_are_missing(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(ConfigError, match=r"CIFAR10: the folder '.*/data' does not exist\. Put "):
        settings_of_preset(PRESETS["ring-16-classes-sgp"])


def test_a_comparison_learns_what_the_app_learns(app):
    """Data, split, start and batches are those of the problem of the same name."""
    found = task({**app.config, "model": "mlp"})
    known = make_task("digits-mlp")
    mine, theirs = (each.problem(5, "classes:2", 3) for each in (found, known))
    assert mine.digest == theirs.digest
    assert mine.inputs.equal(theirs.inputs)
    cpu = mine.inputs.device
    assert mine.start(cpu).parameters.equal(theirs.start(cpu).parameters)
    assert found.name == "digits-mlp"
    assert found.parts["validation"][0].shape == (237, 64)
    assert task({**app.config, "workload": "cancer"}).problem(4, "iid", 0).n_agents == 4
