"""NumPy on small devices, with no server that averages."""
