"""Bytes between neighbors: frames, gRPC streams, mutual TLS."""
