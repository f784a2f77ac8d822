"""keras_digits: a Flower app."""
