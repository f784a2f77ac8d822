"""An app for real SuperNodes."""
