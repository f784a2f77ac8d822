"""The arrays that all agents start from, for runtimes without a ServerApp."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from clients.settings import Settings
from clients.workload import shared

__all__ = ["initial_arrays"]


def initial_arrays(values: Mapping[str, Any]) -> dict[str, Any]:
    """The same as `strategies/server_app.py` hands out: drawn from the run's seed."""
    return dict(shared(Settings.of(values).new_model()))
