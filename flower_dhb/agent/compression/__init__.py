"""Fewer bytes: what of a payload is sent, and what its neighbors make of it.

An agent has a *payload* `p`, as its rule makes it, and sends something shorter, from which each
neighbor forms the same *public payload* `h`. Mixing is of public payloads, and the agent keeps
the rest to itself: `mixed_i = p_i + c sum_j W[i, j] (h_j - h_i)`. Whatever is lost in the
compression, an edge gives to one end what it takes from the other, so the network average moves
by the payloads alone.
"""

from flower_dhb.agent.compression.compressor import Compressor
from flower_dhb.agent.compression.spec import NONE, Compression

__all__ = ["NONE", "Compression", "Compressor"]
