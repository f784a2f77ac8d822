"""Schedules that broke a promise once, and what was wrong in the core.

The seeds belong to the schedules as they are drawn today: whoever changes how a schedule is
drawn (plan, faults, links) finds other seeds for the same defects with a core that has them.
"""

from __future__ import annotations

__all__ = ["REGRESSIONS"]

REGRESSIONS: tuple[tuple[int, str, str], ...] = ()
