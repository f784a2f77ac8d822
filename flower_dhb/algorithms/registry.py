"""The names of all rules: one vocabulary for Python, run configs, meshes and comparisons."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import is_dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
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
from flower_dhb.algorithms.trial import try_out
from flower_dhb.errors import ConfigError, unknown
from flower_dhb.references import can_be_imported, imported, is_reference, taken_from_the_app

__all__ = [
    "ALGORITHMS",
    "METHODS",
    "algorithm_from_config",
    "check_relayed",
    "default_algorithm",
    "known_names",
    "method",
    "method_config",
    "register",
    "relayed_methods",
    "require_rule",
    "rule_class",
    "settings_of",
]

GROUP = "flower_dhb.algorithms"  # of the entry points by which packages name their rules

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

for _rule in ALGORITHMS.values():
    _rule.registered = True

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
    settings. So put the class into a module that ServerApp and ClientApp both import. Without
    it a rule is known as `package.module:Rule`, which needs no more than that it can be imported.

    Raises ConfigError if it is no rule, has no default settings, its name is taken, or it does
    not keep to what it declares (`trial.try_out`).
    """
    if not (isinstance(rule, type) and issubclass(rule, Algorithm)):
        raise ConfigError(f"register takes a subclass of Algorithm, got {rule!r}")
    name = rule.name
    if not isinstance(name, str) or not name or ":" in name:
        raise ConfigError(f"{rule.__name__}: 'name' must be a text without a colon, got {name!r}")
    taken = ALGORITHMS.get(name)
    if name in METHODS and (taken is None or taken.__qualname__ != rule.__qualname__):
        raise ConfigError(f"{rule.__name__}: the name '{name}' is taken")
    _check_own(rule)
    rule.registered = True
    ALGORITHMS[name] = rule
    METHODS[name] = {"name": name}
    return rule


def rule_class(
    name: object, folder: str | None = None, *, from_message: bool = False
) -> type[Algorithm]:
    """The rule of a name: a registered one, an installed package's, or `package.module:Rule`.

    folder: of the app, in which modules are looked for first. from_message: whether a message
    names it, and not whoever runs this process: then only what the app has brought is imported.
    Packages name their rules by entry points of the group `flower_dhb.algorithms`.

    Raises ConfigError that names the nearest known one, or says what is wrong with the rule.
    """
    if isinstance(name, str):
        if name in ALGORITHMS:
            return ALGORITHMS[name]
        if is_reference(name):
            found = taken_from_the_app(name) if from_message else imported(name, folder)
            if not (isinstance(found, type) and issubclass(found, Algorithm)):
                raise ConfigError(f"'{name}' is no rule: it must be a subclass of Algorithm")
            return _check_own(found)
        installed = entry_points(group=GROUP, name=name)
        if installed:
            return _of_package(name, next(iter(installed)))
    raise ConfigError(unknown("algorithm", name, known_names()))


def known_names() -> list[str]:
    """What may be written for a rule: registered names, variants, and those of packages."""
    return [*METHODS, *sorted({e.name for e in entry_points(group=GROUP)} - METHODS.keys())]


def method(text: str) -> Algorithm:
    """Rule from its name, with settings after colons if need be.

    `dmsgd`, `dmsgd-gt`, `dmsgd:momentum=0.8:momentum-mixing=0.3`, `cdmsgd:nesterov=true`,
    `package.module:Rule`, `package.module:Rule:strength=0.5`. Raises ConfigError that names the
    nearest known one.
    """
    return algorithm_from_config(method_config(text))


def method_config(text: str) -> dict[str, Any]:
    """Name and settings that a text means, before the rule adds its defaults."""
    if not isinstance(text, str):
        raise ConfigError(f"a rule's name is a text such as 'dmsgd', got {text!r}")
    name, *settings = (part.strip() for part in text.split(":"))
    if name not in METHODS and settings and is_reference(f"{name}:{settings[0]}"):
        name = f"{name}:{settings.pop(0)}"
    elif name not in METHODS and not entry_points(group=GROUP, name=name):
        raise ConfigError(unknown("algorithm", name, known_names()))
    values = dict(METHODS.get(name, {"name": name}))
    for setting in settings:
        key, equals, value = (part.strip() for part in setting.partition("="))
        if not equals:
            raise ConfigError(f"algorithm '{text}': '{setting}' is not of the form setting=value")
        values[key.replace("-", "_")] = _value(value)
    return values


def algorithm_from_config(
    config: Mapping[str, Any], folder: str | None = None, *, from_message: bool = False
) -> Algorithm:
    """Rule from `{"name": ..., setting: value, ...}`, the inverse of `Algorithm.to_config`.

    folder, from_message: as for `rule_class`. Raises ConfigError if the name or a setting is
    unknown or a value is not allowed.
    """
    settings = dict(config)
    rule = rule_class(settings.pop("name", None), folder, from_message=from_message)
    known = _own_first(rule)
    for setting, value in settings.items():
        if setting not in known:
            raise ConfigError(unknown(f"setting of {rule.name}", setting, known))
        default = rule.__dataclass_fields__[setting].default
        if type(default) is int and type(value) is float and value.is_integer():
            settings[setting] = int(value)  # written as text, or read from JSON
    return rule(**settings)


def settings_of(name: str, folder: str | None = None) -> list[str]:
    """Names of a rule's settings, its own first, then those that all rules have."""
    return _own_first(rule_class(name, folder))


def relayed_methods() -> list[str]:
    """Names of the rules that run wherever agents send payloads to graph neighbors."""
    return [name for name in METHODS if method(name).relayed]


def require_rule(algorithm: object) -> None:
    """Raise ConfigError if something is no rule."""
    if not isinstance(algorithm, Algorithm):
        hint = ""
        if isinstance(algorithm, type) and issubclass(algorithm, Algorithm):
            hint = f"; did you mean {algorithm.__name__}()?"
        raise ConfigError(f"algorithm must be a rule such as HeavyBall(), got {algorithm!r}{hint}")


def check_relayed(algorithm: Algorithm, graph: Graph | None = None) -> None:
    """Refuse a rule that agents cannot run among themselves, or not on this graph.

    Raises ConfigError if it is no rule, cannot be found by its name, needs a server or one-way
    links; and what `Algorithm.check` raises.
    """
    require_rule(algorithm)
    kind = type(algorithm)
    if kind.registered and ALGORITHMS.get(algorithm.name) is not kind:
        raise ConfigError(f"the name '{algorithm.name}' now stands for another rule than {kind!r}")
    if not kind.registered:
        if not can_be_imported(kind):
            raise ConfigError(
                f"agents in other processes cannot find the rule {kind.__qualname__} of "
                f"'{kind.__module__}': put the class into a module of the app, at its top level, "
                "so that it can be imported as module:Rule; or put "
                "@flower_dhb.algorithms.register above it, in a module that ServerApp and "
                "ClientApp both import"
            )
        _check_own(kind)
    if not algorithm.relayed:
        need = "a server's average" if algorithm.graph == COMPLETE else "one-way links"
        raise ConfigError(
            f"'{algorithm.name}' is made for {need}: it runs in the engine and in 'flower-dhb "
            "compare', not where agents send their payloads to graph neighbors; take 'dmsgd' or "
            "'dsgd'"
        )
    if graph is not None:
        algorithm.check(graph)


def _own_first(rule: type[Algorithm]) -> list[str]:
    common = Algorithm.settings()
    return [s for s in rule.settings() if s not in common] + common


def _of_package(name: str, entry: EntryPoint) -> type[Algorithm]:
    """The rule that an installed package names, registered."""
    try:
        rule = entry.load()
    except Exception as error:
        raise ConfigError(
            f"algorithm '{name}': the package's entry point '{entry.value}' cannot be loaded: "
            f"{type(error).__name__}: {error}"
        ) from error
    if getattr(rule, "name", None) != name:
        raise ConfigError(
            f"algorithm '{name}': the package's entry point '{entry.value}' is "
            f"{getattr(rule, 'name', rule)!r}; a rule and its entry point must have one name"
        )
    found: type[Algorithm] = register(rule)
    return found


@cache
def _check_own(rule: type[Algorithm]) -> type[Algorithm]:
    """A rule of somebody's own, once it has been tried."""
    missing = sorted(getattr(rule, "__abstractmethods__", ()))
    if missing:
        raise ConfigError(f"{rule.__name__} is no whole rule: it lacks {', '.join(missing)}")
    if not is_dataclass(rule) or rule.__dict__.get("__dataclass_params__") is None:
        raise ConfigError(
            f"{rule.__name__}: put @dataclass(frozen=True, kw_only=True) above the class, as above "
            "all rules"
        )
    try:
        made = rule()
    except TypeError as error:
        raise ConfigError(f"{rule.__name__}: every setting needs a default: {error}") from None
    try_out(made)
    return rule


def _value(text: str) -> Any:
    if text in ("true", "false"):
        return text == "true"
    try:
        return float(text)
    except ValueError:
        return text
