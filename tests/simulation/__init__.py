"""The protocol core of peers under millions of simulated faults, in virtual time."""
