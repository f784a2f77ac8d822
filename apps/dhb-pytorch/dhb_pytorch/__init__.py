"""PyTorch on a graph, with no server that averages."""
