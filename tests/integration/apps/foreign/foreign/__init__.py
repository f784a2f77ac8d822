"""An app as a user has it."""
