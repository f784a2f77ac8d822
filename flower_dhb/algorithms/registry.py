"""The names of all rules: one vocabulary for Python, run configs, meshes and comparisons."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from flower_dhb.algorithms.base import COMPLETE, Algorithm, Graph
from flower_dhb.algorithms.cdmsgd import CDMSGD
from flower_dhb.algorithms.centralized import Centralized
from flower_dhb.algorithms.decentlam import DecentLaM
from flower_dhb.algorithms.diloco import DiLoCo
from flower_dhb.algorithms.dsgd import DSGD
from flower_dhb.algorithms.exact_diffusion import ExactDiffusion
from flower_dhb.algorithms.gasloc import GASLoC
from flower_dhb.algorithms.global_update_tracking import GlobalUpdateTracking
from flower_dhb.algorithms.gradient_tracking import GradientTracking
from flower_dhb.algorithms.heavy_ball import HeavyBall
from flower_dhb.algorithms.momentum_tracking import MomentumTracking
from flower_dhb.algorithms.motef import MoTEF
from flower_dhb.algorithms.noloco import NoLoCo
from flower_dhb.algorithms.push_sum import PushSum
from flower_dhb.algorithms.quasi_global import QuasiGlobal
from flower_dhb.algorithms.safeguarded import SafeguardedHeavyBall
from flower_dhb.errors import ConfigError, unknown

__all__ = [
    "ALGORITHMS",
    "METHODS",
    "algorithm_from_config",
    "check_relayed",
    "default_algorithm",
    "method",
    "method_config",
    "register",
    "relayed_methods",
    "settings_of",
]

# Each rule's class, by its own name.
ALGORITHMS: dict[str, type[Algorithm]] = {
    rule.name: rule
    for rule in (
        HeavyBall,
        SafeguardedHeavyBall,
        DSGD,
        CDMSGD,
        QuasiGlobal,
        DecentLaM,
        GradientTracking,
        MomentumTracking,
        ExactDiffusion,
        GASLoC,
        NoLoCo,
        GlobalUpdateTracking,
        MoTEF,
        PushSum,
        Centralized,
        DiLoCo,
    )
}

# What may be written for a rule: its own name, which means its default settings, or the
# name of a variant that the literature knows.
METHODS: dict[str, dict[str, Any]] = {
    **{name: {"name": name} for name in ALGORITHMS},
    "dmsgd-cta": {"name": "dmsgd", "order": "combine-then-adapt"},
    "dmsgd-buffer": {"name": "dmsgd", "form": "buffer"},
    "dmsgd-buffer-cta": {"name": "dmsgd", "form": "buffer", "order": "combine-then-adapt"},
    "dmsgd-gt": {"name": "dmsgd", "form": "tracking"},
    "cdsgd": {"name": "dsgd", "order": "combine-then-adapt"},
    "cdmsgd-nesterov": {"name": "cdmsgd", "nesterov": True},
    "exact-diffusion-hb": {"name": "exact-diffusion", "momentum": 0.9},
}

R = TypeVar("R", bound=type[Algorithm])


def default_algorithm() -> Algorithm:
    """The rule of a strategy to which none is given: chosen by a study, `docs/decisions/0012`."""
    return SafeguardedHeavyBall()


def register(rule: R) -> R:
    """Make a rule of one's own known by its name; a class decorator.

    Every process that meets the rule must do so: agents build it from its name and its
    settings. So put the class into a module that ServerApp and ClientApp both import.
    Raises ConfigError if it is no rule, has no default settings, or its name is taken.
    """
    if not (isinstance(rule, type) and issubclass(rule, Algorithm)):
        raise ConfigError(f"register takes a subclass of Algorithm, got {rule!r}")
    name = getattr(rule, "name", None)
    if not isinstance(name, str) or not name or ":" in name:
        raise ConfigError(f"{rule.__name__}: 'name' must be a text without a colon, got {name!r}")
    taken = ALGORITHMS.get(name)
    if name in METHODS and (taken is None or taken.__qualname__ != rule.__qualname__):
        raise ConfigError(f"{rule.__name__}: the name '{name}' is taken")
    try:
        rule()
    except TypeError as error:
        raise ConfigError(f"{rule.__name__}: every setting needs a default: {error}") from None
    ALGORITHMS[name] = rule
    METHODS[name] = {"name": name}
    return rule


def method(text: str) -> Algorithm:
    """Rule from its name, with settings after colons if need be.

    `dmsgd`, `dmsgd-gt`, `dmsgd:momentum=0.8:momentum-mixing=0.3`, `cdmsgd:nesterov=true`.
    Raises ConfigError that names the nearest known one.
    """
    return algorithm_from_config(method_config(text))


def method_config(text: str) -> dict[str, Any]:
    """Name and settings that a text means, before the rule adds its defaults."""
    if not isinstance(text, str):
        raise ConfigError(f"a rule's name is a text such as 'dmsgd', got {text!r}")
    name, *settings = text.strip().split(":")
    if name not in METHODS:
        raise ConfigError(unknown("algorithm", name, METHODS))
    values = dict(METHODS[name])
    for setting in settings:
        key, equals, value = (part.strip() for part in setting.partition("="))
        if not equals:
            raise ConfigError(f"algorithm '{text}': '{setting}' is not of the form setting=value")
        values[key.replace("-", "_")] = _value(value)
    return values


def algorithm_from_config(config: Mapping[str, Any]) -> Algorithm:
    """Rule from `{"name": ..., setting: value, ...}`, the inverse of `Algorithm.to_config`.

    Raises ConfigError if the name or a setting is unknown or a value is not allowed.
    """
    settings = dict(config)
    name = settings.pop("name", None)
    if not isinstance(name, str) or name not in ALGORITHMS:
        raise ConfigError(unknown("algorithm", name, ALGORITHMS))
    known = settings_of(name)
    for setting in settings:
        if setting not in known:
            raise ConfigError(
                unknown(f"setting of {name}", setting, known)
                if known
                else f"'{name}' has no settings, got '{setting}'"
            )
    return ALGORITHMS[name](**settings)


def settings_of(name: str) -> list[str]:
    """Names of a rule's settings, its own first, then those that all rules have."""
    common = Algorithm.settings()
    return [s for s in ALGORITHMS[name].settings() if s not in common] + common


def relayed_methods() -> list[str]:
    """Names of the rules that run wherever agents send payloads to graph neighbors."""
    return [name for name in METHODS if method(name).relayed]


def check_relayed(algorithm: Algorithm, graph: Graph | None = None) -> None:
    """Refuse a rule that agents cannot run among themselves, or not on this graph.

    Raises ConfigError if it is no rule, is not registered, needs a server or one-way
    links; and what `Algorithm.check` raises.
    """
    if not isinstance(algorithm, Algorithm):
        raise ConfigError(f"algorithm must be a rule such as HeavyBall(), got {algorithm!r}")
    if ALGORITHMS.get(algorithm.name) is not type(algorithm):
        raise ConfigError(
            f"agents cannot build the rule {type(algorithm).__name__} from its name "
            f"'{algorithm.name}': put @flower_dhb.algorithms.register above the class, in a module "
            "that ServerApp and ClientApp both import"
        )
    if not algorithm.relayed:
        kind = "a server's average" if algorithm.graph == COMPLETE else "one-way links"
        raise ConfigError(
            f"'{algorithm.name}' is made for {kind}: it runs in the engine and in 'flower-dhb "
            "compare', not where agents send their payloads to graph neighbors; take 'dmsgd' or "
            "'dsgd'"
        )
    if graph is not None:
        algorithm.check(graph)


def _value(text: str) -> Any:
    if text in ("true", "false"):
        return text == "true"
    try:
        return float(text)
    except ValueError:
        return text
