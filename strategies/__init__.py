"""The Flower App's server side: it relays along the graph's edges."""
