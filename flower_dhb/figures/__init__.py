"""Pictures of graphs, of runs and of comparisons."""
