"""Comparing methods: the same problem, graph, data and tuning for all of them."""
