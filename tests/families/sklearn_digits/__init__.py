"""sklearn_digits: a Flower app."""
