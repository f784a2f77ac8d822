"""One agent's compression: what it sends, what that stands for, and what it remembers of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import numpy as np

from flower_dhb.agent.codec import all_finite
from flower_dhb.agent.compression.coders import Coder, coder_of
from flower_dhb.agent.compression.spec import Compression
from flower_dhb.agent.compression.values import Bytes
from flower_dhb.errors import PayloadError
from flower_dhb.types import Layout, NDArrays, Payload

__all__ = ["PUBLIC", "Codes", "Compressor"]

# The agent's own public payload among those that are mixed; no vertex is negative.
PUBLIC: Final = -1

Codes = Mapping[str, Bytes]


@dataclass(frozen=True)
class Compressor:
    """A compression of the payloads of one rule on one model.

    Two kinds of memory go with it, by vector: of a compression by *estimates* the last public
    payload, which the neighbors hold as well, so that only a change is sent; of all others the
    *error* that was made so far, which is added to what is sent next (error feedback; Karimireddy,
    Rebjock, Stich & Jaggi, ICML 2019, arXiv 1901.09847).
    """

    compression: Compression
    names: tuple[str, ...]
    coder: Coder
    dtype: np.dtype[Any]
    length: int

    @classmethod
    def of(cls, compression: Compression, names: tuple[str, ...], layout: Layout) -> Compressor:
        """For the vectors of a payload, each as long as the parameters. Raises ConfigError."""
        return _compressor(compression, names, layout)

    @property
    def rate(self) -> float:
        """`c`, how far an agent follows its neighbors."""
        return self.compression.rate

    @property
    def estimates(self) -> bool:
        """Whether only a change of the last public payload is sent."""
        return self.compression.estimates

    @property
    def n_bytes(self) -> int:
        """Bytes of the vectors of one payload."""
        return len(self.names) * self.coder.size

    def encode(
        self, payload: Payload, memory: Payload, round: int, vertex: int
    ) -> dict[str, Bytes] | None:
        """What is sent of a payload; None if it has to be sent whole.

        That is so if there is no public payload of which it would be a change. What is drawn at
        random depends on round and vertex alone, so all runtimes draw the same.
        """
        if self.estimates and not memory:
            return None
        codes = {}
        for at, name in enumerate(self.names):
            rng = np.random.Generator(np.random.SFC64([round, vertex, at]))
            vector = payload[name]
            if name in memory:
                known = memory[name]
                vector = vector - known if self.estimates else vector + known
            codes[name] = self.coder.encode(vector, round, rng)
        return codes

    def decode(self, codes: Codes, known: Payload, round: int) -> NDArrays:
        """The public payload that codes stand for.

        known: the sender's last public payload; not looked at where there are no estimates.
        Raises PayloadError if they stand for none: of another size, or not finite.
        """
        vectors = {}
        for name in self.names:
            data = codes[name]
            if data.shape != (self.coder.size,):
                raise PayloadError(
                    f"'{name}' has {data.size} bytes, expected {self.coder.size}; all agents must "
                    "run the same model and compression"
                )
            vector = self.coder.decode(data, round)
            if self.estimates:
                with np.errstate(over="ignore", invalid="ignore"):
                    vector = vector + known[name]
            if not all_finite(vector):
                raise PayloadError(f"'{name}' holds NaN or infinite values")
            vectors[name] = vector
        return vectors

    def publish(
        self, payload: Payload, memory: Payload, round: int, vertex: int
    ) -> tuple[dict[str, Bytes] | None, Payload]:
        """What is sent of a payload, as `encode` says, and the public payload that this is.

        What is in the payload beside the vectors that are compressed stays as it is.
        """
        codes = self.encode(payload, memory, round, vertex)
        if codes is None:
            return None, payload
        return codes, {**payload, **self.decode(codes, memory, round)}

    def vectors(self, payload: Payload) -> NDArrays:
        """The vectors of a payload that are compressed."""
        return {name: payload[name] for name in self.names}

    def remember(self, payload: Payload, public: Payload, memory: Payload) -> NDArrays:
        """The memory after a round in which `public` was sent for `payload`.

        Where there are estimates the payload itself is not looked at.
        """
        if self.estimates:
            return self.vectors(public)
        errors = {}
        for name in self.names:
            error = payload[name] - public[name]
            errors[name] = error + memory[name] if name in memory else error
        return errors

    def mixed(self, public: Payload, round: int) -> Payload:
        """What of a public payload is mixed in a round: all of it, or zeros elsewhere."""
        places = self.coder.mixed_at(round)
        if places is None:
            return public
        found = dict(public)
        for name in self.names:
            found[name] = np.zeros_like(public[name])
            found[name][places] = public[name][places]
        return found

    def mixing(
        self,
        public: Payload,
        payloads: Mapping[int, Payload],
        weights: Mapping[int, float],
        vertex: int,
        round: int,
    ) -> tuple[dict[int, float], dict[int, Payload]]:
        """Weights and payloads by vertex of what is mixed beside an agent's own payload.

        public: the agent's own. payloads, weights: as they are without compression.
        """
        mixed = {j: self.mixed(p, round) for j, p in {PUBLIC: public, **payloads}.items()}
        return self.weights(weights, vertex), mixed

    def weights(self, weights: Mapping[int, float], vertex: int) -> dict[int, float]:
        """Mixing weights `(…, PUBLIC, …)` of `p_i + c sum_j W[i, j] (h_j - h_i)`."""
        found = {j: self.rate * w for j, w in weights.items() if j != vertex}
        return {**found, PUBLIC: -sum(found[j] for j in sorted(found)), vertex: 1.0}


@lru_cache(maxsize=64)
def _compressor(compression: Compression, names: tuple[str, ...], layout: Layout) -> Compressor:
    coder = coder_of(compression, layout)
    return Compressor(compression, names, coder, layout.dtype, layout.size)
