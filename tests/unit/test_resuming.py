"""With which run config a run goes on, and what is refused."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from flower_dhb import ConfigError, RunFolder, StateError, Topology
from flower_dhb.cli.run_app import AppFolder
from flower_dhb.runs.resuming import config_of, folder_to_resume, resumed

DEFAULTS = {"topology": "ring:16", "rounds": 100, "learning-rate": 0.4, "seed": 0, "resume": ""}
BEFORE = DEFAULTS | {"topology": "ring:4", "rounds": 40}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = RunFolder(tmp_path, "try", Topology.ring(4), BEFORE)
    made.checkpoint.mkdir()
    return made.path


def test_what_the_serverapp_alone_reads_is_as_before_or_as_given_now(folder: Path) -> None:
    now = BEFORE | {"resume": str(folder)}
    assert resumed(folder, now, DEFAULTS) == now
    assert resumed(folder, now | {"rounds": 100}, DEFAULTS) == now  # the app's default
    assert resumed(folder, now | {"rounds": 60}, DEFAULTS) == now | {"rounds": 60}


def test_another_run_config_for_the_agents_is_refused_with_the_file_to_give(folder: Path) -> None:
    now = DEFAULTS | {"resume": str(folder), "seed": 3}
    with pytest.raises(ConfigError) as error:
        resumed(folder, now, DEFAULTS)
    text = str(error.value)
    assert "seed = 3, it was 0; topology = 'ring:16', it was 'ring:4'" in text
    path = folder / "resume.toml"
    assert f"--run-config {path}" in text
    given = tomllib.loads(path.read_text())
    assert given == BEFORE | {"resume": str(folder)}
    assert resumed(folder, given, DEFAULTS) == given


def test_what_is_no_run_that_can_go_on_is_refused(folder: Path, tmp_path: Path) -> None:
    assert folder_to_resume(str(folder)) == folder
    for path, why in (
        (
            tmp_path / "nowhere",
            "is not a folder; give the folder of a run, in full or as seen from",
        ),
        (tmp_path, "has no checkpoint: that run is over, or it never began"),
    ):
        with pytest.raises(ConfigError, match=why):
            folder_to_resume(str(path))
    (tmp_path / "checkpoint").mkdir()
    with pytest.raises(ConfigError, match=r"config.toml: No such file or directory"):
        config_of(folder_to_resume(str(tmp_path)))
    (folder / "checkpoint" / "records.jsonl").write_text("[]\n")
    with pytest.raises(StateError, match=r"records.jsonl: damaged"):
        RunFolder.resume(folder, Topology.ring(4))


def test_flower_dhb_run_gives_the_agents_what_they_had(folder: Path) -> None:
    root = AppFolder.read(Path(__file__).parents[2])
    n_agents, handed = root.settings({"resume": str(folder), "rounds": 60}, None)
    assert n_agents == 4
    assert {key: handed[key] for key in DEFAULTS} == BEFORE | {
        "rounds": 60,
        "resume": str(folder),
    }
    with pytest.raises(ConfigError, match="is not a folder"):
        root.settings({"resume": "nowhere"}, None)
