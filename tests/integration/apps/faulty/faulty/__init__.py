"""An app whose agents fail in every way."""
