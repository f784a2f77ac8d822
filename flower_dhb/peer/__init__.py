"""The peer runtime: agents that talk to their graph neighbors only, over gRPC and mutual TLS."""

from flower_dhb.extras import installed, needs_extra

if not installed("cryptography", "grpc", "prometheus_client", "tomli_w"):
    raise needs_extra("the peer runtime", "peer")
