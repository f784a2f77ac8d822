"""The arrays that all agents start from, for runtimes without a ServerApp."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from clients.client_app import count_agents, load_workload

__all__ = ["initial_arrays"]


def initial_arrays(values: Mapping[str, Any]) -> dict[str, Any]:
    """The same as `strategies/server_app.py` hands out: drawn from the run's seed."""
    workload = load_workload(values, count_agents(values))
    return dict(workload.make_model().state_dict())
