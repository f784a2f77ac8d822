"""Decentralized training rules, one paper per file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from flower_dhb.algorithms.base import Algorithm
from flower_dhb.algorithms.cdmsgd import CDMSGD
from flower_dhb.algorithms.centralized import Centralized
from flower_dhb.algorithms.decentlam import DecentLaM
from flower_dhb.algorithms.dsgd import DSGD
from flower_dhb.algorithms.exact_diffusion import ExactDiffusion
from flower_dhb.algorithms.gradient_tracking import GradientTracking
from flower_dhb.algorithms.heavy_ball import HeavyBall
from flower_dhb.algorithms.momentum_tracking import MomentumTracking
from flower_dhb.algorithms.push_sum import PushSum
from flower_dhb.algorithms.quasi_global import QuasiGlobal
from flower_dhb.errors import ConfigError, unknown

__all__ = [
    "ALGORITHMS",
    "CDMSGD",
    "DSGD",
    "ENGINE_ALGORITHMS",
    "METHODS",
    "Algorithm",
    "Centralized",
    "DecentLaM",
    "ExactDiffusion",
    "GradientTracking",
    "HeavyBall",
    "MomentumTracking",
    "PushSum",
    "QuasiGlobal",
    "algorithm_from_config",
    "method",
    "settings_of",
]

# Neighbor averaging on the agents' own links: these run in every runtime.
ALGORITHMS: dict[str, type[Algorithm]] = {
    rule.name: rule
    for rule in (
        HeavyBall,
        DSGD,
        CDMSGD,
        QuasiGlobal,
        DecentLaM,
        GradientTracking,
        MomentumTracking,
        ExactDiffusion,
    )
}

# One-way links, or no graph at all: these run in the engine alone.
ENGINE_ALGORITHMS: dict[str, type[Algorithm]] = {
    **ALGORITHMS,
    **{rule.name: rule for rule in (PushSum, Centralized)},
}

# The names by which comparisons and tables know them.
METHODS: dict[str, dict[str, Any]] = {
    "dmsgd": {"name": "heavy-ball"},
    "dmsgd-cta": {"name": "heavy-ball", "order": "combine-then-adapt"},
    "dmsgd-buffer": {"name": "heavy-ball", "form": "buffer"},
    "dmsgd-buffer-cta": {
        "name": "heavy-ball",
        "form": "buffer",
        "order": "combine-then-adapt",
    },
    "dmsgd-gt": {"name": "heavy-ball", "form": "tracking"},
    "dpsgd": {"name": "dsgd"},
    "cdsgd": {"name": "dsgd", "order": "combine-then-adapt"},
    "cdmsgd": {"name": "cdmsgd"},
    "cdmsgd-nesterov": {"name": "cdmsgd", "nesterov": True},
    "qg": {"name": "qg"},
    "decentlam": {"name": "decentlam"},
    "dsgt": {"name": "dsgt"},
    "momentum-tracking": {"name": "momentum-tracking"},
    "exact-diffusion": {"name": "exact-diffusion"},
    "exact-diffusion-hb": {"name": "exact-diffusion", "momentum": 0.9},
    "sgp": {"name": "sgp"},
    "centralized": {"name": "centralized"},
}


def method(name: str) -> Algorithm:
    """Rule of a method's name, such as `dmsgd-gt`; raises ConfigError with the nearest one."""
    if name not in METHODS:
        raise ConfigError(unknown("method", name, METHODS))
    return algorithm_from_config(METHODS[name])


def algorithm_from_config(config: Mapping[str, Any]) -> Algorithm:
    """Rule from `{"name": ..., setting: value, ...}`, the inverse of `Algorithm.to_config`.

    Raises ConfigError if the name or a setting is unknown or a value is not allowed.
    """
    settings = dict(config)
    name = settings.pop("name", None)
    if name not in ENGINE_ALGORITHMS:
        raise ConfigError(unknown("algorithm", name, ENGINE_ALGORITHMS))
    known = settings_of(name)
    for setting in settings:
        if setting not in known:
            raise ConfigError(unknown(f"setting of {name}", setting, known))
    return ENGINE_ALGORITHMS[name](**settings)


def settings_of(name: str) -> list[str]:
    """Names of a rule's settings."""
    return [field.name for field in fields(ENGINE_ALGORITHMS[name])]
