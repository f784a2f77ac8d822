"""numpy_cancer: a Flower app."""
