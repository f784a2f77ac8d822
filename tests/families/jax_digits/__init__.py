"""jax_digits: a Flower app."""
