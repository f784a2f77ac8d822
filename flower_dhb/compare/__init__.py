"""Comparing methods: the same problem, graph, data and tuning for all of them."""

from flower_dhb.extras import installed, needs_extra

if not installed("sklearn", "torch"):
    raise needs_extra("comparing methods", "engine")
