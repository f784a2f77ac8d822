"""A run that goes on from its folder: with which run config, and what may differ from before.

The agents' app reads the run config of the start that goes on, not that of the first one. So
what says what the agents train must be the same; what only the ServerApp reads may be given anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flower_dhb.errors import ConfigError
from flower_dhb.files import read_toml

__all__ = ["KEY", "config_of", "folder_to_resume", "resumed"]

KEY = "resume"
# Only the ServerApp reads these.
_FREE = {
    *("rounds", "num-server-rounds", "evaluate-every", "observe-average"),
    *("round-timeout-s", "name", "runs-dir", KEY),
}


def folder_to_resume(text: str) -> Path:
    """The folder of the run that is to go on. Raises ConfigError if it cannot."""
    folder = Path(text).expanduser()
    if not folder.is_dir():
        raise ConfigError(
            f"run config: resume = '{text}' is not a folder; give the folder of a run, in full or "
            f"as seen from {Path.cwd()}"
        )
    if not (folder / "checkpoint").is_dir():
        raise ConfigError(
            f"run config: resume = '{text}' has no checkpoint: that run is over, or it never "
            "began; begin a new one"
        )
    return folder


def config_of(folder: Path) -> dict[str, Any]:
    """The run config that a run was started with. Raises ConfigError if there is none."""
    return read_toml(folder / "config.toml", "give the folder of a run")


def resumed(folder: Path, values: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The run config with which a run goes on.

    values: as this start has it. defaults: the app's own, before anybody has said anything.
    What only the ServerApp reads is as before, or as it was given now. Raises ConfigError if
    the agents' app would find other values than it had.
    """
    before = config_of(folder)
    differ = [
        f"{key} = {values.get(key)!r}, it was {before.get(key)!r}"
        for key in sorted((values.keys() | before.keys()) - _FREE)
        if values.get(key) != before.get(key)
    ]
    if differ:
        raise ConfigError(
            f"the agents would read another run config than the run in {folder} had: "
            f"{'; '.join(differ)}. Give the whole of it: --run-config {folder / 'resume.toml'} "
            "(of a 'flwr run'; 'flower-dhb run' does so by itself)"
        )
    given = {k: v for k, v in values.items() if k in _FREE and v != defaults.get(k)}
    return {**before, **given}
