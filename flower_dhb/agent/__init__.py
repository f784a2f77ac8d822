"""One agent's round without I/O: node, mixing, and payloads to bytes and back."""
