"""What a peer tells and records of itself, and the check of its records."""
