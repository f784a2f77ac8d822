"""transformers_lora: a Flower app."""
