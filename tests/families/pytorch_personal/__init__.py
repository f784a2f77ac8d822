"""pytorch_personal: a Flower app."""
