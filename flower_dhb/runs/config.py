"""Run config to frozen dataclasses: every bad value is refused here, with its key."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, fields
from typing import Any, TypeAlias, TypedDict, cast, get_args

from flower_dhb.agent.compression import Compression
from flower_dhb.algorithms import (
    ALGORITHMS,
    Algorithm,
    algorithm_from_config,
    check_relayed,
    method_config,
    settings_of,
)
from flower_dhb.algorithms.base import GUARDS
from flower_dhb.engine.publics import check_compression
from flower_dhb.errors import ConfigError, GraphError, unknown
from flower_dhb.topology.planning import check_rule_on
from flower_dhb.topology.turns import Graphs, parse_graphs, share_every
from flower_dhb.types import Encryption

__all__ = [
    "RuleKeys",
    "RunConfig",
    "get_choice",
    "get_flag",
    "get_integer",
    "get_number",
    "get_text",
    "key_of_rounds",
    "known_keys",
    "said_of_rounds",
]

# What Flower hands to an app as `context.run_config`.
Values: TypeAlias = Mapping[str, Any]

AUTO = "auto"
# How Flower's own templates call the number of rounds: it is that, where `rounds` is not there.
_ROUNDS_OF_APPS = "num-server-rounds"


class RuleKeys(TypedDict, total=False):
    """Keys of graph and rule that have no field of their own in `RunConfig`.

    `"auto"` leaves a setting to the rule; one that the rule lacks is refused.
    """

    weights: str
    """How the mixing weights follow from the graph.

    Allowed: `metropolis`, `uniform`, `laplacian`, `lazy`, `lazy-uniform`, `lazy-laplacian`.
    """
    momentum: float | str
    """How much of its last step an agent takes again. Allowed: 0 or more, below 1."""
    momentum_mixing: float | str
    """How much of its momentum an agent has from its neighbors. Allowed: 0 to 1."""
    form: str
    """What the momentum is made of. Allowed: `displacement`, `buffer`, `tracking`."""
    order: str
    """Whether an agent trains before it combines.

    Allowed: `adapt-then-combine`, `combine-then-adapt`.
    """
    payload: str
    """Whether parameters and momentum travel as one vector.

    Allowed: `auto` (folded where the form has it), `folded`, `separate`.
    """
    nesterov: bool | str
    """Whether the gradient is taken ahead of the step. Allowed: true, false."""
    lazy: bool | str
    """Whether an agent keeps half of its weight to itself. Allowed: true, false."""
    outer_rate: float | str
    """By what a round's local step is multiplied, of rules that are made for many local steps.

    Allowed: above 0.
    """
    consensus_rate: float | str
    """How strongly an agent follows its neighbors' parameters. Allowed: above 0."""
    tracking: float | str
    """How much of the pull of earlier rounds is taken into account. Allowed: 0 or more, below 1."""
    clipping: float | str
    """How far a neighbor can pull an agent in a round.

    Counts as a setting of the rule only where `algorithm` is named. `auto` is off. Allowed:
    `"off"`, `"on"`, or a radius above 0.
    """
    screening: float | str
    """Whether a payload that is absurdly far from the agent's own counts as missing.

    Counts as a setting of the rule only where `algorithm` is named. `auto` is on. Allowed: `"on"`,
    `"off"`, or a factor above 0; larger is more generous.
    """


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """The decentralized part of a run config: who talks to whom, by which rule, for how long.

    topology, algorithm: as built from their keys; of `topology`, with `share_every`, only every
    so many rounds have edges. What the other fields say is what their keys
    mean.
    """

    topology: Graphs
    """The communication graph, or graphs that take turns.

    Allowed: `ring:N`, `complete:N`, `star:N`, `path:N`, `torus:ROWSxCOLUMNS`, `bipartite:AxB`,
    `hypercube:DIMENSION`, `exponential:N`, `erdos-renyi:N:P:SEED`,
    `random-regular:N:DEGREE:SEED`, `small-world:N:K:P:SEED`, or a graph file; in turn,
    `one-peer:N`, `base:N:K`, `matchings:GRAPH`, `random-pairs:N:PERIOD:SEED`,
    `turns:GRAPH+GRAPH+…`, or `turns:FILE`.
    """
    algorithm: Algorithm
    """The rule, with its settings after a colon or as keys of their own.

    Allowed: `dmsgd`, `safeguarded`, `dmsgd-gt`, `dmsgd-cta`, `dmsgd-buffer`, `dmsgd-buffer-cta`,
    `dsgd`, `cdsgd`, `cdmsgd`, `cdmsgd-nesterov`, `qg`, `decentlam`, `dsgt`, `momentum-tracking`,
    `exact-diffusion`, `exact-diffusion-hb`, `gasloc`, `noloco`, `gut`, `motef`, or a rule of your
    own: `package.module:Rule`.
    """
    rounds: int = 100
    """Number of rounds.

    Without it, `num-server-rounds` of Flower's own templates is taken. Unit: rounds. Allowed: 1
    or more.
    """
    share_every: int = 1
    """Rounds from one exchange to the next.

    In the rounds between, each agent trains and combines alone. Unit: rounds. Allowed: 1 or more.
    """
    seed: int = 0
    """Of everything random. Allowed: 0 or more."""
    round_timeout_s: float = 300.0
    """Who has not answered by then is missing in the round.

    For peers it is `timing.ceiling-s`. Allowed: 0 or more; 0 for no limit.
    """
    evaluate_every: int = 1
    """Rounds from one evaluation to the next. Unit: rounds. Allowed: 0 or more; 0 for none."""
    transport: str = "relay"
    """Who carries the payloads: the ServerApp, or the nodes themselves, in segments of rounds.

    Only in a deployment of Flower's nodes. Allowed: `relay`, `direct`.
    """
    observe_average: bool = False
    """Whether the average model is formed at each evaluation, for an observer.

    Allowed: true, false.
    """
    encryption: Encryption = "none"
    """`neighbors`: payloads are sealed by their sender for its neighbors, and nobody between can
    read them.

    Each SuperNode needs `mesh` in its node config. Peers encrypt their connections in any case.
    Allowed: `none`, `neighbors`.
    """
    compression: str = "none"
    """Fewer bytes for a payload, at the price of knowing the neighbors less exactly.

    Changes since the last payload are sent; with `:whole` the numbers themselves. `@RATE`, above 0
    and up to 1, is how far an agent follows what it knows of its neighbors. Allowed: `none`,
    `bf16`, `int8`, `int4`, `bf16:whole`, `int8:whole`, `int4:whole`, `topk:SHARE`, `randk:SHARE`,
    `lowrank:RANK`; after the last three `+bf16`, `+int8` or `+int4` for how their numbers are sent,
    as in `topk:0.5+int4`; last of all `@RATE`, as in `topk:0.1@0.3`.
    """
    bind_nodes: bool = False
    """Whether a vertex belongs to the key of its SuperNode for the whole run.

    For SuperLinks with `--enable-supernode-auth`. Allowed: true, false.
    """
    name: str = "run"
    """Of the run, in the name of its folder."""

    @classmethod
    def of(cls, values: Values, folder: str | None = None) -> RunConfig:
        """Read the keys of a Flower run config; keys of the app itself are left alone.

        folder: of the app, where a rule of its own is looked for (`package.module:Rule`); in the
        app's own processes its modules are found without it.

        Raises ConfigError that names the key, the value found and the values allowed.
        """
        every = get_integer(values, "share-every", 1, least=1)
        topology = _topology(values, every)
        algorithm = _algorithm(values, folder)
        compression = _compression(values)
        try:
            check_relayed(algorithm)
            check_rule_on(algorithm, topology)
            compression = check_compression(compression, algorithm, topology)
        except ConfigError as error:
            raise ConfigError(f"{error} [topology = '{topology.name}']") from None
        return cls(
            topology=topology,
            algorithm=algorithm,
            rounds=get_integer(values, key_of_rounds(values), 100, least=1),
            share_every=every,
            seed=get_integer(values, "seed", 0, least=0),
            round_timeout_s=get_number(values, "round-timeout-s", 300.0, least=0.0),
            evaluate_every=get_integer(values, "evaluate-every", 1, least=0),
            transport=get_choice(values, "transport", "relay", ("relay", "direct")),
            observe_average=get_flag(values, "observe-average", False),
            bind_nodes=get_flag(values, "bind-nodes", False),
            compression=str(compression),
            encryption=cast(
                Encryption, get_choice(values, "encryption", "none", get_args(Encryption))
            ),
            name=get_text(values, "name", "run"),
        )


def key_of_rounds(values: Values) -> str:
    """The key that says the number of rounds: `rounds`, or else what Flower's templates have."""
    return _ROUNDS_OF_APPS if "rounds" not in values and _ROUNDS_OF_APPS in values else "rounds"


def said_of_rounds(values: Values) -> str:
    """What is worth a word about where the number of rounds comes from; empty if nothing is."""
    found = values.get(_ROUNDS_OF_APPS)
    if found is None:
        return ""
    if key_of_rounds(values) == _ROUNDS_OF_APPS:
        return f"{found} rounds, as '{_ROUNDS_OF_APPS}' of the app's run config says"
    if found == values["rounds"]:
        return ""
    return (
        f"{values['rounds']} rounds, as 'rounds' says; the app's '{_ROUNDS_OF_APPS}' = {found} is "
        "what the app finds in its run config, and nothing else"
    )


def known_keys(values: Values | None = None, folder: str | None = None) -> set[str]:
    """All keys that `RunConfig.of` reads, the settings of every rule included.

    values: a run config, which may name a rule of the app's own, with settings of its own.
    folder: as for `RunConfig.of`.
    """
    own = {field.name for field in fields(RunConfig)} | {"weights"}
    settings = _settings_of_all()
    if values is not None:
        with suppress(ConfigError):  # which is said where the rule is made
            name = method_config(get_text(values, "algorithm", "dmsgd"))["name"]
            settings |= {*settings_of(name, folder)}
    return {name.replace("_", "-") for name in own | settings}


def get_number(
    values: Values,
    key: str,
    default: float,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
) -> float:
    """A finite number from a run config, within bounds. Raises ConfigError otherwise."""
    value = values.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f"run config: '{key}' must be a number, got {value!r}")
    bounds = []
    if least is not None:
        bounds.append((value >= least, f"at least {least:g}"))
    if above is not None:
        bounds.append((value > above, f"above {above:g}"))
    if most is not None:
        bounds.append((value <= most, f"at most {most:g}"))
    if not all(holds for holds, _ in bounds) or not abs(value) < float("inf"):
        wanted = " and ".join(text for _, text in bounds) or "finite"
        raise ConfigError(f"run config: '{key}' must be {wanted}, got {value}")
    return float(value)


def get_integer(values: Values, key: str, default: int, *, least: int) -> int:
    """An integer from a run config, not below `least`. Raises ConfigError otherwise."""
    value = values.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigError(f"run config: '{key}' must be an integer, got {value!r}")
    if not value >= least:
        raise ConfigError(f"run config: '{key}' must be at least {least}, got {value}")
    return value


def get_flag(values: Values, key: str, default: bool) -> bool:
    """True or false from a run config. Raises ConfigError otherwise."""
    value = values.get(key, default)
    if not isinstance(value, bool):
        raise ConfigError(f"run config: '{key}' must be true or false, got {value!r}")
    return value


def get_text(values: Values, key: str, default: str) -> str:
    """A text from a run config. Raises ConfigError otherwise."""
    value = values.get(key, default)
    if not isinstance(value, str):
        raise ConfigError(f"run config: '{key}' must be a text, got {value!r}")
    return value


def get_choice(values: Values, key: str, default: str, choices: Collection[str]) -> str:
    """One of some names from a run config. Raises ConfigError with the nearest match."""
    value = get_text(values, key, default)
    if value not in choices:
        raise ConfigError(f"run config: {unknown(key, value, choices)}")
    return value


def _topology(values: Values, every: int) -> Graphs:
    try:
        graph = parse_graphs(
            get_text(values, "topology", "ring:16"), get_text(values, "weights", "metropolis")
        )
        return cast(Graphs, share_every(graph, every))
    except GraphError as error:
        raise GraphError(f"run config: {error}") from None


def _compression(values: Values) -> Compression:
    text = get_text(values, "compression", "none")
    try:
        return Compression.parse(text)
    except ConfigError as error:
        raise ConfigError(f"run config: {error}") from None


def _settings_of_all() -> set[str]:
    return {setting for rule in ALGORITHMS for setting in settings_of(rule)}


def _algorithm(values: Values, folder: str | None) -> Algorithm:
    """The rule that `algorithm` names, with those settings that the run config holds.

    A setting of `auto` is left to the rule.
    """
    text = get_text(values, "algorithm", "dmsgd")
    try:
        config = method_config(text)
        known = settings_of(config["name"], folder)
        for name in sorted({*_settings_of_all(), *known}):
            key = name.replace("_", "-")
            value = values.get(key, AUTO)
            if value == AUTO or (name in GUARDS and "algorithm" not in values):
                continue  # an app may well have a key 'clipping' of its own
            if name in known:
                config[name] = value
            elif "algorithm" in values:  # else the key is the app's own
                has = ", ".join(k.replace("_", "-") for k in known) or "none"
                raise ConfigError(
                    f"'{config['name']}' has no setting '{key}', got {value!r}; its settings: "
                    f"{has}. Leave '{key}' at \"auto\""
                )
        return algorithm_from_config(config, folder)
    except ConfigError as error:
        raise ConfigError(f"run config: {error}") from None
