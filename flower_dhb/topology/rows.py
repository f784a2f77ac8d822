"""A symmetric matrix by rows, without its zeros: what NumPy alone can do for large graphs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from flower_dhb.extras import load

__all__ = ["Rows", "connected_parts"]

Array: TypeAlias = NDArray[np.float64]
Indices: TypeAlias = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Rows:
    """Compressed rows: row i has `data[indptr[i]:indptr[i+1]]` in the columns `indices[…]`.

    indptr: (n + 1,) int64. indices: (k,) int64, ascending in each row. data: (k,) float64.
    """

    indptr: Indices
    indices: Indices
    data: Array

    @classmethod
    def of_edges(cls, ends: Indices, edge: Array, own: Array) -> Rows:
        """Matrix with a weight at both places of each edge `(m, 2)`, and a diagonal `(n,)`."""
        i, j = ends.T
        diagonal = np.arange(len(own))
        rows = np.concatenate([i, j, diagonal])
        columns = np.concatenate([j, i, diagonal])
        order = np.lexsort((columns, rows))
        counts = np.bincount(rows, minlength=len(own))
        indptr = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        return cls(indptr, columns[order], np.concatenate([edge, edge, own])[order])

    @property
    def n(self) -> int:
        """Number of rows."""
        return len(self.indptr) - 1

    @property
    def row_of(self) -> Indices:
        """Row of each entry, `(k,)`."""
        return np.repeat(np.arange(self.n), np.diff(self.indptr))

    def row(self, i: int) -> tuple[Indices, Array]:
        """Columns and values of row i."""
        at = slice(int(self.indptr[i]), int(self.indptr[i + 1]))
        return self.indices[at], self.data[at]

    def sums(self) -> Array:
        """Sum of each row in the order of its columns, `(n,)`."""
        return np.asarray(np.bincount(self.row_of, self.data, minlength=self.n), np.float64)

    def dense(self) -> Array:
        """The matrix, `(n, n)`."""
        matrix = np.zeros((self.n, self.n))
        matrix[self.row_of, self.indices] = self.data
        return matrix

    def scipy(self, what: str) -> Any:
        """The matrix as a `scipy.sparse.csr_array`.

        what: who asks, for the error. Raises ConfigError if SciPy is not installed.
        """
        sparse = load("scipy.sparse", what)
        return sparse.csr_array((self.data, self.indices, self.indptr), shape=(self.n, self.n))


def connected_parts(n: int, ends: Indices) -> Indices:
    """Which connected part each of n vertices is in, `(n,)`, numbered by their first vertices.

    Parts are joined along all edges at once until no edge leaves one: each part takes the
    smallest name that it sees, and names are then followed to their end.
    """
    root = np.arange(n)
    while True:
        a, b = root[ends[:, 0]], root[ends[:, 1]]
        apart = a != b
        if not apart.any():
            return np.unique(root, return_inverse=True)[1].astype(np.int64)
        a, b = a[apart], b[apart]
        np.minimum.at(root, np.maximum(a, b), np.minimum(a, b))
        while True:
            further = root[root]
            if (further == root).all():
                break
            root = further
