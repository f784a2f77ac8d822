"""What Flower cannot carry, found before a run begins instead of in its first round.

Arrays of messages travel in pieces of 5 MiB, so a payload may be of any size. An agent's state
does not: without a `state-dir` it lies in Flower's context, which a SuperNode hands to each
process of its app, and takes back, as one message of protobuf.
"""

from __future__ import annotations

from collections.abc import Collection

from flwr.common import GRPC_MAX_MESSAGE_LENGTH

from flower_dhb.agent.compression import NONE, Compression
from flower_dhb.agent.node import Node, compressor_of
from flower_dhb.algorithms import Algorithm
from flower_dhb.errors import ConfigError
from flower_dhb.flower.records import common_length
from flower_dhb.memory import free_bytes
from flower_dhb.metrics import agents_text
from flower_dhb.types import Layout

__all__ = ["PAYLOADS_HELD", "check_layout", "check_state", "memory_warning", "state_bytes"]

PAYLOADS_HELD = 2.5  # by the ServerApp at most, for each agent (benchmarks/relay_memory.py)
_MOST_BYTES = GRPC_MAX_MESSAGE_LENGTH
_REST_BYTES = 2**20  # of a context: names, configs, what is small of the app's own state


def state_bytes(
    algorithm: Algorithm, layout: Layout, compression: Compression = NONE, degree: int = 0
) -> int:
    """Bytes of an agent's state at its largest, when it has trained and not yet combined.

    degree: number of its neighbors, of which some compressions keep the last payload.
    """
    vectors = 2 + len(algorithm.memory)  # parameters, trained, and what the rule remembers
    codes = 0
    compressor = compressor_of(compression, algorithm, layout)
    if compressor is not None:
        codes = compressor.n_bytes
        vectors += len(algorithm.vectors) * (1 + degree if compressor.estimates else 1)
    statistics = 2 * layout.statistics_size * layout.statistics_dtype.itemsize
    local = sum(e.size * e.dtype.itemsize for e in layout.entries if e.kind == "local")
    return vectors * layout.size * layout.dtype.itemsize + statistics + local + codes


def check_layout(algorithm: Algorithm, layout: Layout) -> None:
    """Raise ConfigError if the names and shapes of a model's arrays are too long a text."""
    length, most = common_length(algorithm, layout)
    if length > most:
        raise ConfigError(
            f"initial_arrays: names and shapes of {len(layout.entries):,} arrays take {length:,} "
            f"characters, at most {most:,} are sent; join arrays, or give them shorter names"
        )


def check_state(
    algorithm: Algorithm,
    layout: Layout,
    in_context: Collection[int],
    compression: Compression = NONE,
    degree: int = 0,
) -> None:
    """Raise ConfigError if Flower cannot carry the state of agents that keep it in its context.

    in_context: vertices of a deployment whose nodes have no `state-dir`. degree: the largest of
    theirs.
    """
    needed = state_bytes(algorithm, layout, compression, degree) + _REST_BYTES
    if not in_context or needed <= _MOST_BYTES:
        return
    vectors = ", ".join(("parameters", "trained parameters", *algorithm.memory))
    if compression.on:
        vectors += f", what compression '{compression}' remembers"
    raise ConfigError(
        f"{agents_text(in_context)}: an agent's state of {layout.size:,} {layout.dtype} parameters "
        f"takes {needed:,} bytes ({vectors}), and a SuperNode hands its app {_MOST_BYTES:,} at "
        "most. Set state-dir in the node config of these agents, where the state lies in a file "
        "of any size, or train fewer parameters, as adapters do"
    )


def memory_warning(algorithm: Algorithm, layout: Layout, n_agents: int) -> str:
    """A warning if the ServerApp's machine has less memory than a run's payloads take, or empty."""
    payload = sum(spec.n_bytes for spec in Node.vectors_of(algorithm, layout))
    needed, free = int(PAYLOADS_HELD * payload * n_agents), free_bytes()
    if free is None or needed <= free:
        return ""
    return (
        f"the ServerApp will hold up to {needed / 1e9:.1f} GB ({PAYLOADS_HELD:g} payloads of "
        f"{payload / 1e6:,.0f} MB for each of {n_agents} agents), and its machine has "
        f"{free / 1e9:.1f} GB of memory left. Run it where there is more, or let the nodes "
        "exchange payloads directly (docs/deployment.md)"
    )
