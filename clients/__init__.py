"""The Flower App's client side: one file per workload."""
