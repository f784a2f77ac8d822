"""One round's mixing: `W @ V` for all agents, dense or sparse."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from torch import Tensor

from flower_dhb.errors import ConfigError
from flower_dhb.topology.weights import Matrix

__all__ = ["CHUNK", "Mixer", "prefers_sparse"]

# Elements that are mixed and combined at a time: intermediate results stay in a
# second-level cache. Measured (benchmarks/engine.py mixing).
CHUNK = 2**17

# A sparse product costs about as much per weight as this many weights of a dense one.
SPARSE_COST = {"cpu": 10.0, "cuda": 16.0}
SPARSE_FROM = 32  # agents; below, a dense product is bound by memory and never slower


def prefers_sparse(matrix: Matrix, device: str = "cpu") -> bool:
    """Whether the sparse product is faster for this mixing matrix, as measured.

    A fixed rule rather than a stopwatch: the two products round differently, and a run
    must repeat to the bit.
    """
    n = len(matrix)
    cost = SPARSE_COST.get(device, SPARSE_COST["cuda"])
    return n >= SPARSE_FROM and cost * int(np.count_nonzero(matrix)) < n * n


class Mixer:
    """The product with one mixing matrix, on one device, in one dtype.

    kind: `dense`, `sparse`, or `auto` for the faster one.
    """

    def __init__(
        self, matrix: Matrix, dtype: torch.dtype, device: torch.device, kind: str = "auto"
    ) -> None:
        if kind not in ("auto", "dense", "sparse"):
            raise ConfigError(f"mixing must be one of auto, dense, sparse; got {kind!r}")
        sparse = kind == "sparse" or (kind == "auto" and prefers_sparse(matrix, device.type))
        self.kind = "sparse" if sparse else "dense"
        weights = torch.tensor(np.ascontiguousarray(matrix), dtype=dtype, device=device)
        if sparse:
            with warnings.catch_warnings():
                # torch announces that its sparse layout may still change.
                warnings.filterwarnings("ignore", "Sparse CSR tensor support", UserWarning)
                warnings.filterwarnings("ignore", "Sparse invariant checks", UserWarning)
                weights = weights.to_sparse_csr()
        self._weights = weights

    def __call__(self, vectors: Tensor) -> Tensor:
        """Every agent's weighted sum: `(n, d)` of `(n, d)`."""
        return self._weights @ vectors
