"""pytorch_digits: a Flower app."""
