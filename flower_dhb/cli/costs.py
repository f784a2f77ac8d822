"""What a round costs on a link, as rows of a table."""

from __future__ import annotations

from typing import Any

from flower_dhb.engine.traffic import advice, costs
from flower_dhb.topology.turns import AnyGraph

__all__ = ["OF_COSTS", "cost_rows"]

OF_COSTS = (
    "costs: of the busiest agent, which sends to all its neighbors over one link; rounds, and s to "
    "halve: until disagreement has halved, without steps. Below the first line stands what takes "
    "half as long or less, and the best of all. matchings and share-every use the same links, the "
    "others theirs. With int4 and topk the default rule takes more rounds, dmsgd does not"
)


def cost_rows(topology: AnyGraph, parameters: int, mbit_per_s: float) -> list[dict[str, Any]]:
    """What a round costs on a link, and what would at least halve it. Raises ConfigError."""
    return [
        {
            "schedule": cost.schedule,
            "compression": cost.compression,
            "MB a round": cost.n_bytes / 1e6,
            "s a round": cost.seconds,
            "rounds": cost.rounds,
            "s to halve": cost.seconds_to_halve,
        }
        for cost in advice(costs(topology, parameters, mbit_per_s))
    ]
