"""The Flower runtime: a strategy that only relays, and a mod that makes any app an agent."""
