"""scikit-learn on a graph, with no server that averages."""
