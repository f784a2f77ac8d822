"""Communication graphs: who talks to whom, with which weights, and what that can do."""
