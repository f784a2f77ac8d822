"""The Flower App's client side: one file per workload."""

from flower_dhb.extras import installed, needs_extra

if not installed("sklearn", "torch"):
    raise needs_extra("this app", "engine")
