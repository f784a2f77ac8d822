"""A run config as a comparison: the same experiment that `flwr run` and `flower-dhb run` do."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flower_dhb.algorithms import ALGORITHMS, settings_of
from flower_dhb.compare.tasks import Task, check_task
from flower_dhb.errors import ConfigError
from flower_dhb.files import flat, read_toml
from flower_dhb.references import imported

__all__ = ["read_preset", "settings_of_preset"]

_AUTO = "auto"


def read_preset(path: Path) -> dict[str, Any]:
    """The run config that a preset makes of its app's: the app's own values, and its own above.

    The app is that of the nearest `pyproject.toml` above the preset, if there is one.
    Raises ConfigError that names the file if it is none.
    """
    values = flat(read_toml(path, "a preset is a TOML file of settings"), path)
    folder, document = _app_of(path)
    defaults = document.get("tool", {}).get("flwr", {}).get("app", {}).get("config", {})
    defaults = flat(defaults, folder / "pyproject.toml")
    for key in values:
        if defaults and key not in defaults:
            raise ConfigError(f"preset '{path}': the app's run config has no key '{key}'")
    return {**defaults, **values}


def settings_of_preset(path: Path, problem: str | None = None) -> dict[str, Any]:
    """Settings of a `Comparison` that a preset means.

    problem: another one, to take in place of the preset's, whose data need not be there then.

    Its rule is the only method. Its problem is what the app's `[tool.flower-dhb] problem` makes
    of the run config, a function `package.module:name` of it that returns a task; without one,
    the digits with the model of the config.
    """
    values = read_preset(path)
    found: dict[str, Any] = {
        "problem": _problem(path, values) if problem is None else problem,
        "topologies": [_text(path, values, "topology", "ring:16")],
        "weights": _text(path, values, "weights", "metropolis"),
        "share_every": _number(path, values, "share-every", 1),
        "splits": [_text(path, values, "split", "iid")],
        "methods": [_method(path, values)],
        "rounds": _number(path, values, "rounds", 100),
        "local_steps": [_number(path, values, "local-steps", 1)],
        "optimizers": [_text(path, values, "optimizer", "sgd")],
        "schedules": [_text(path, values, "schedule", "constant")],
        "compressions": [_text(path, values, "compression", "none")],
        "batch_size": _number(path, values, "batch-size", 32),
    }
    rate = values.get("learning-rate")
    if rate is not None:
        if isinstance(rate, bool) or not isinstance(rate, int | float):
            raise ConfigError(f"preset '{path}': 'learning-rate' must be a number, got {rate!r}")
        found["grid"] = [float(rate)]
    return found


def _problem(path: Path, values: Mapping[str, Any]) -> str | Task:
    root, document = _app_of(path)
    reference = document.get("tool", {}).get("flower-dhb", {}).get("problem")
    if reference is not None:
        made = imported(str(reference), str(root))
        return check_task(made(values), f"[tool.flower-dhb] problem = '{reference}'")
    workload = values.get("workload", "digits")
    if workload != "digits":
        raise ConfigError(
            f"preset '{path}': workload '{workload}' is the app's own, and its pyproject.toml does "
            "not say how to compare on it: [tool.flower-dhb] problem = 'package.module:name'"
        )
    model = values.get("model", _AUTO)
    return f"digits-{'mlp' if model == _AUTO else model}"


def _method(path: Path, values: Mapping[str, Any]) -> str:
    """The rule with those of its settings that the run config holds."""
    words = [_text(path, values, "algorithm", "dmsgd")]
    for key in sorted({s.replace("_", "-") for each in ALGORITHMS for s in settings_of(each)}):
        value = values.get(key, _AUTO)
        if value != _AUTO:
            words.append(f"{key}={str(value).lower() if isinstance(value, bool) else value}")
    return ":".join(words)


def _app_of(path: Path) -> tuple[Path, dict[str, Any]]:
    """Folder and `pyproject.toml` of the app that a preset belongs to."""
    for folder in path.resolve().parents:
        if (folder / "pyproject.toml").is_file():
            return folder, read_toml(folder / "pyproject.toml", "it is the app's of a preset")
    return path.resolve().parent, {}


def _text(path: Path, values: Mapping[str, Any], key: str, default: str) -> str:
    value = values.get(key, default)
    if not isinstance(value, str):
        raise ConfigError(f"preset '{path}': '{key}' must be a text, got {value!r}")
    return value


def _number(path: Path, values: Mapping[str, Any], key: str, default: int) -> int:
    value = values.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigError(f"preset '{path}': '{key}' must be an integer, got {value!r}")
    return value
