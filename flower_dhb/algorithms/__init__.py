"""Decentralized training rules, one paper per file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from flower_dhb.algorithms.base import Algorithm
from flower_dhb.algorithms.dsgd import DSGD
from flower_dhb.algorithms.heavy_ball import HeavyBall
from flower_dhb.errors import ConfigError, unknown

__all__ = ["ALGORITHMS", "DSGD", "Algorithm", "HeavyBall", "algorithm_from_config", "settings_of"]

ALGORITHMS: dict[str, type[Algorithm]] = {rule.name: rule for rule in (HeavyBall, DSGD)}


def algorithm_from_config(config: Mapping[str, Any]) -> Algorithm:
    """Rule from `{"name": ..., setting: value, ...}`, the inverse of `Algorithm.to_config`.

    Raises ConfigError if the name or a setting is unknown or a value is not allowed.
    """
    settings = dict(config)
    name = settings.pop("name", None)
    if name not in ALGORITHMS:
        raise ConfigError(unknown("algorithm", name, ALGORITHMS))
    known = settings_of(name)
    for setting in settings:
        if setting not in known:
            raise ConfigError(unknown(f"setting of {name}", setting, known))
    return ALGORITHMS[name](**settings)


def settings_of(name: str) -> list[str]:
    """Names of a rule's settings."""
    return [field.name for field in fields(ALGORITHMS[name])]
