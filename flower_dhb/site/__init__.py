"""What a node of a Flower deployment brings: the mod that answers for it."""
