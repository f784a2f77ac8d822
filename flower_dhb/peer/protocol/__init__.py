"""The protocol between two neighbors."""
