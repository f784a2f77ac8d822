"""Training without a server: decentralized heavy-ball SGD for Flower apps.

Agents sit on a fixed communication graph and share parameters and momentum with their
graph neighbors only (DMSGD: Balu et al., ICASSP 2021, arXiv 2010.11166).

Public names load on first use: importing this package loads neither Flower, gRPC,
torch nor matplotlib.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flower_dhb.agent.node import Node
    from flower_dhb.algorithms import (
        DSGD,
        Algorithm,
        HeavyBall,
        SafeguardedHeavyBall,
        algorithm_from_config,
    )
    from flower_dhb.engine.reference import simulate
    from flower_dhb.errors import (
        ConfigError,
        FlowerDhbError,
        GraphError,
        PayloadError,
        RoundError,
        StateError,
    )
    from flower_dhb.figures.topologies import draw
    from flower_dhb.flower.result import ServerlessResult
    from flower_dhb.flower.strategy import ServerlessStrategy
    from flower_dhb.metrics import consensus_distance
    from flower_dhb.runs.config import RunConfig
    from flower_dhb.runs.folder import RunFolder
    from flower_dhb.site.mod import consensus_mod, decentralize
    from flower_dhb.topology.graph import Topology
    from flower_dhb.topology.turns import Turns
    from flower_dhb.topology.weights import lazy

__version__ = "0.1.0"

_HOMES = {
    "Algorithm": "algorithms",
    "ConfigError": "errors",
    "DSGD": "algorithms",
    "FlowerDhbError": "errors",
    "GraphError": "errors",
    "HeavyBall": "algorithms",
    "Node": "agent.node",
    "PayloadError": "errors",
    "RoundError": "errors",
    "RunConfig": "runs.config",
    "RunFolder": "runs.folder",
    "SafeguardedHeavyBall": "algorithms",
    "ServerlessResult": "flower.result",
    "ServerlessStrategy": "flower.strategy",
    "StateError": "errors",
    "Topology": "topology.graph",
    "Turns": "topology.turns",
    "algorithm_from_config": "algorithms",
    "consensus_distance": "metrics",
    "consensus_mod": "site.mod",
    "decentralize": "site.mod",
    "draw": "figures.topologies",
    "lazy": "topology.weights",
    "simulate": "engine.reference",
}

__all__ = [
    "DSGD",
    "Algorithm",
    "ConfigError",
    "FlowerDhbError",
    "GraphError",
    "HeavyBall",
    "Node",
    "PayloadError",
    "RoundError",
    "RunConfig",
    "RunFolder",
    "SafeguardedHeavyBall",
    "ServerlessResult",
    "ServerlessStrategy",
    "StateError",
    "Topology",
    "Turns",
    "__version__",
    "algorithm_from_config",
    "consensus_distance",
    "consensus_mod",
    "decentralize",
    "draw",
    "lazy",
    "simulate",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
