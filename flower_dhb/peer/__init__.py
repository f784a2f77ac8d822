"""The peer runtime: agents that talk to their graph neighbors only, over gRPC and mutual TLS."""
