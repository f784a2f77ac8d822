"""lightning_digits: a Flower app."""
