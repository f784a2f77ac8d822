"""Decentralized training rules, one paper per file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from flower_dhb.algorithms.base import Algorithm
from flower_dhb.algorithms.dsgd import DSGD
from flower_dhb.algorithms.heavy_ball import HeavyBall
from flower_dhb.errors import ConfigError, unknown

__all__ = [
    "ALGORITHMS",
    "DSGD",
    "Algorithm",
    "HeavyBall",
    "algorithm_from_config",
    "setting_names",
]

ALGORITHMS: dict[str, type[Algorithm]] = {rule.name: rule for rule in (HeavyBall, DSGD)}


def algorithm_from_config(config: Mapping[str, Any]) -> Algorithm:
    """Rule from `{"name": ..., setting: value, ...}`, the inverse of `Algorithm.to_config`.

    Raises ConfigError if the name or a setting is unknown or a value is not allowed.
    """
    settings = dict(config)
    name = settings.pop("name", None)
    if name not in ALGORITHMS:
        raise ConfigError(unknown("algorithm", name, ALGORITHMS))
    known = setting_names(name)
    for setting in settings:
        if setting not in known:
            raise ConfigError(unknown(f"setting of {name}", setting, known))
    return ALGORITHMS[name](**settings)


def setting_names(name: str) -> tuple[str, ...]:
    """Names of a rule's settings (of its class's fields `name` is none)."""
    return tuple(field.name for field in fields(ALGORITHMS[name]))
