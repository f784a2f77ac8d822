"""An app that runs several strategies by turns, for benchmarks/deployment.py."""
