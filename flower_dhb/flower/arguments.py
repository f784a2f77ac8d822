"""What the arguments of Flower's own strategies mean here, and why some of them mean nothing."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, cast, get_args

import numpy as np

from flower_dhb.algorithms import Algorithm, default_algorithm, method
from flower_dhb.errors import ConfigError, unknown
from flower_dhb.topology.graph import Topology
from flower_dhb.topology.turns import Graphs, Turns, parse_graphs, share_every
from flower_dhb.types import Encryption

__all__ = [
    "a_rule",
    "a_topology",
    "check_callable",
    "check_choice",
    "check_count",
    "check_encryption",
    "check_flag",
    "check_key",
    "check_patterns",
    "check_seconds",
    "check_type",
    "evaluating_fraction",
    "least_nodes",
    "maybe_seconds",
    "refuse",
    "refuse_encrypted",
    "train_everywhere",
    "unless_encrypted",
]

# --- what is refused ------------------------------------------------------------------

_NO_SERVER_STEP = (
    "it belongs to an optimizer on the server, and here no server makes a step. Momentum is the "
    "rule's, as in algorithm=HeavyBall(momentum=0.9), and the learning rate is the app's"
)
_NO_ROBUST_AGGREGATION = (
    "it belongs to an aggregation that leaves out some of the replies, and here nothing is "
    "aggregated: each agent takes the weighted mean over its neighbors. Leave it out"
)
_NO_FAIR_AGGREGATION = (
    "it belongs to q-FedAvg, which weights the agents' models by their losses, and here the "
    "mixing matrix of the topology holds the weights. Leave it out"
)
_PRIVACY_IS_THE_APPS = (
    "it belongs to differential privacy on the server, and here no server sees a model before "
    "the neighbors do. Use Flower's mods in the app, behind ours: "
    "ClientApp(mods=[consensus_mod, LocalDpMod(...)])"
)
_ALL_TRAIN = (
    "in every round every agent trains, since each needs its neighbors' models. Leave it out. To "
    "train less, give the app fewer local steps; to sample clients, use FedAvg"
)
_OLDER = "it belongs to Flower's older strategies (flwr.server); "
_AT_START = "it is an argument of start: strategy.start(grid, initial_arrays, {0}=...)"
_CONFIGURE = (
    _OLDER + "send settings with start({0}=ConfigRecord(...)), and let a subclass change them "
    "from round to round in {1} (docs/flower.md)"
)

_REMEDIES: dict[str, str] = {
    **dict.fromkeys(
        (
            *("eta", "eta_l", "beta_1", "beta_2", "tau"),
            *("server_learning_rate", "server_momentum"),
        ),
        _NO_SERVER_STEP,
    ),
    **dict.fromkeys(
        (
            *("beta", "num_malicious_nodes", "num_malicious_clients", "num_nodes_to_select"),
            *("num_clients_to_keep", "first_aggregation_rule", "selection_rule"),
        ),
        _NO_ROBUST_AGGREGATION,
    ),
    **dict.fromkeys(
        ("q", "q_param", "qffl_learning_rate", "client_learning_rate", "train_loss_key"),
        _NO_FAIR_AGGREGATION,
    ),
    **dict.fromkeys(
        (
            *("noise_multiplier", "clipping_norm", "initial_clipping_norm", "clip_norm"),
            *("init_clip_norm", "target_clipped_quantile", "clip_norm_target_quantile"),
            *("clip_norm_lr", "clipped_count_stddev", "clip_count_stddev"),
            *("num_sampled_clients", "server_side_noising", "accountant"),
        ),
        _PRIVACY_IS_THE_APPS,
    ),
    "proximal_mu": (
        "the proximal term is the app's: send it with "
        "start(train_config=ConfigRecord({'proximal-mu': ...})), as FedProx does for you"
    ),
    "strategy": "this strategy wraps no other one. Leave it out",
    "fraction_fit": _OLDER + _ALL_TRAIN,
    "min_fit_clients": _OLDER + "every agent trains in every round. Leave it out",
    "min_evaluate_clients": _OLDER + "its name is now min_evaluate_nodes",
    "min_available_clients": _OLDER
    + "the run begins when the nodes cover the topology. Leave it out",
    "min_completion_rate_fit": _OLDER + "a round ends at its deadline: round_timeout_s",
    "min_completion_rate_evaluate": _OLDER + "a round ends at its deadline: round_timeout_s",
    "accept_failures": _OLDER + "an agent that fails misses the round. Leave it out",
    "inplace": _OLDER + "nothing is aggregated here. Leave it out",
    "evaluate_function": _OLDER + "give evaluate_fn to start",
    "initial_parameters": _OLDER + "give initial_arrays to start",
    "fit_metrics_aggregation_fn": _OLDER + "its name is now train_metrics_aggr_fn",
    "evaluate_metrics_aggregation_fn": _OLDER + "its name is now evaluate_metrics_aggr_fn",
    "on_fit_config_fn": _CONFIGURE.format("train_config", "configure_train"),
    "on_evaluate_config_fn": _CONFIGURE.format("evaluate_config", "configure_evaluate"),
    **{
        name: _AT_START.format(name)
        for name in (
            *("grid", "initial_arrays", "num_rounds", "timeout"),
            *("train_config", "evaluate_config", "evaluate_fn"),
        )
    },
}


def refuse(others: Mapping[str, Any], known: Collection[str]) -> None:
    """Raise ConfigError for arguments that mean nothing here, with the reason and the remedy."""
    for name, value in others.items():
        if name in _REMEDIES:
            raise ConfigError(f"{name}={value!r}: {_REMEDIES[name]}")
        raise ConfigError(unknown("argument of ServerlessStrategy", name, sorted(known)))


def train_everywhere(fraction: object) -> float:
    """Raise ConfigError unless `fraction_train` says that every agent trains."""
    if fraction is None or (_is_number(fraction) and fraction == 1.0):
        return 1.0
    raise ConfigError(f"fraction_train={fraction!r}: {_ALL_TRAIN}")


def evaluating_fraction(fraction: object) -> float:
    """`fraction_evaluate`, in [0, 1]; None means all."""
    if fraction is None:
        return 1.0
    if _is_number(fraction) and 0.0 <= fraction <= 1.0:  # type: ignore[operator]
        return float(fraction)  # type: ignore[arg-type]
    raise ConfigError(
        f"fraction_evaluate must be a number in [0, 1], got {fraction!r}; 0 for no evaluation by "
        "the agents"
    )


def least_nodes(name: str, value: object, n_agents: int, default: int) -> int:
    """`min_train_nodes` and its like: no more than there are vertices."""
    if value is None:
        return min(default, n_agents)
    count = check_count(name, value, least=0)
    if count > n_agents:
        raise ConfigError(
            f"{name}={count}: the topology has {n_agents} vertices, and exactly as many nodes "
            f"take part. Leave {name} out, or choose a larger topology"
        )
    return count


# --- values -----------------------------------------------------------------------------


def check_count(name: str, value: object, *, least: int) -> int:
    """An integer that is at least `least`. Raises ConfigError otherwise."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | np.integer):
        raise ConfigError(f"{name} must be an integer, got {value!r}")
    if not value >= least:
        raise ConfigError(f"{name} must be at least {least}, got {value}")
    return int(value)


def check_seconds(name: str, value: object, *, zero: bool = False) -> float:
    """A time above 0 (or 0 itself with `zero`), which may be infinite."""
    if not _is_number(value):
        raise ConfigError(f"{name} must be a number of seconds, got {value!r}")
    seconds = float(value)  # type: ignore[arg-type]
    if not (seconds > 0.0 or (zero and seconds == 0.0)):
        raise ConfigError(f"{name} must be {'at least' if zero else 'above'} 0, got {value}")
    return seconds


def check_choice(name: str, value: object, choices: Sequence[str]) -> str:
    """One of some texts. Raises ConfigError."""
    if not isinstance(value, str) or value not in choices:
        raise ConfigError(unknown(name, value, choices))
    return value


def check_flag(name: str, value: object) -> bool:
    """True or False. Raises ConfigError otherwise."""
    if not isinstance(value, bool | np.bool_):
        raise ConfigError(f"{name} must be True or False, got {value!r}")
    return bool(value)


def check_encryption(value: object) -> Encryption:
    """`"none"` or `"neighbors"`. Raises ConfigError otherwise."""
    for known in get_args(Encryption):
        if value == known:
            return cast(Encryption, known)
    raise ConfigError(f"encryption must be one of {get_args(Encryption)}, got {value!r}")


def unless_encrypted(name: str, value: object, encryption: Encryption) -> bool:
    """What needs the agents' parameters: None means yes, where they come here.

    Raises ConfigError for True where they do not, and for what is no flag.
    """
    if value is None:
        return encryption == "none"
    if check_flag(name, value):
        refuse_encrypted(f"{name}=True", encryption)
    return bool(value)


def refuse_encrypted(what: str, encryption: Encryption) -> None:
    """Raise ConfigError where something is asked for that needs the agents' parameters."""
    if encryption != "none":
        raise ConfigError(
            f'{what} needs the agents\' parameters, and encryption="{encryption}" lets nobody but '
            "neighbors have them. Leave one of the two out; each node keeps its own model where "
            "its node config says, model-file='…'"
        )


def check_callable(name: str, value: object) -> None:
    """Raise ConfigError unless the value is None or can be called."""
    if value is not None and not callable(value):
        raise ConfigError(f"{name} must be callable, got {type(value).__name__}")


def check_key(name: str, value: object) -> str:
    """A key of a record or a metric: a text that is not empty and not one of ours."""
    if not isinstance(value, str) or not value or value.split(".")[0] == "flower_dhb":
        raise ConfigError(
            f"{name} must be a text, not empty and not beginning with 'flower_dhb', got {value!r}"
        )
    return value


def check_patterns(name: str, value: object) -> tuple[str, ...]:
    """Name patterns: a sequence of texts, which a single text is not."""
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise ConfigError(f"{name} must be a sequence of name patterns, got {value!r}")
    if not all(isinstance(pattern, str) for pattern in value):
        raise ConfigError(f"{name} must hold name patterns, got {list(value)!r}")
    return tuple(value)


def check_type(name: str, value: object, kind: type, example: str) -> None:
    """Raise ConfigError unless the value is of Flower's type `kind`."""
    if not isinstance(value, kind):
        raise ConfigError(
            f"{name} must be a flwr.app.{kind.__name__}, got {type(value).__name__}; {example}"
        )


def a_topology(topology: object, every: object = 1) -> Graphs:
    """A topology, graphs that take turns, or those of a name such as `ring:8`.

    every: rounds from one exchange to the next.
    """
    graph = parse_graphs(topology) if isinstance(topology, str) else topology
    if not isinstance(graph, Topology | Turns):
        raise ConfigError(
            "topology must be a Topology, Turns, or their name, such as 'ring:8', got "
            f"{type(topology).__name__}"
        )
    if graph.directed:
        raise ConfigError(f"topology '{graph.name}' has one-way links; agents need both ways")
    shared = share_every(graph, check_count("share_every", every, least=1))
    return cast(Graphs, shared)


def a_rule(algorithm: object) -> Algorithm:
    """A rule, the one of a name such as `dsgd`, or the default for None."""
    if algorithm is None:
        return default_algorithm()
    if isinstance(algorithm, str):
        return method(algorithm)
    if isinstance(algorithm, Algorithm):
        return algorithm
    hint = ""
    if isinstance(algorithm, type) and issubclass(algorithm, Algorithm):
        hint = f"; did you mean {algorithm.__name__}()?"
    raise ConfigError(
        f"algorithm must be a rule or its name, such as DSGD() or 'dsgd', got {algorithm!r}{hint}"
    )


def maybe_seconds(name: str, value: object, *, zero: bool = False) -> float | None:
    """None, or what `check_seconds` takes."""
    return None if value is None else check_seconds(name, value, zero=zero)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
