"""Eigenvalues of mixing matrices: all of them, or only the two that decide.

A graph whose vertices are the elements of a product of cycles, with the same edges seen
from each (rings, tori, hypercubes, exponential and complete graphs), has a convolution for
a matrix: the Fourier transform of one row is its spectrum. Of other large graphs only
the smallest and the second largest eigenvalue are computed, from the sparse matrix.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from flower_dhb.extras import installed
from flower_dhb.topology.rows import Rows

__all__ = ["DENSE_UP_TO", "all_eigenvalues", "extreme_eigenvalues"]

Array: TypeAlias = NDArray[np.float64]
Sparse: TypeAlias = Any  # scipy.sparse.csr_array; SciPy has no types of its own

DENSE_UP_TO = 500  # agents; a full decomposition takes up to about 0.1 s
DENSE_WITHOUT_SCIPY = 2_000  # agents; it takes some seconds
_TOLERANCE = 1e-10  # of an eigenvalue found by iteration
_KEPT, _RESTARTS = 40, 30  # vectors between restarts; about 1,200 products at most
_SHIFT = 1e-4  # below the bound of the smallest eigenvalue, so that the system is definite


def all_eigenvalues(matrix: Rows, group: tuple[int, ...] = ()) -> Array:
    """All eigenvalues of a symmetric matrix, `(n,)` float64, ascending.

    group: lengths of the cycles whose product the vertices are, in row-major order, if so.
    """
    found = _convolution(matrix, group)
    return _decomposed(matrix) if found is None else found


def extreme_eigenvalues(matrix: Rows, group: tuple[int, ...] = ()) -> tuple[float, float]:
    """Smallest and second largest eigenvalue of a symmetric matrix whose rows sum to 1.

    The eigenvalue 1 of the constant vector is set aside, so for two agents both are the
    same one. Exact to rounding up to `DENSE_UP_TO` agents and for convolutions, else to
    about 1e-10. matrix: (n, n), n >= 2, all eigenvalues above -1 or found so.
    Raises ConfigError if that takes SciPy, which is not installed.
    """
    found = _convolution(matrix, group)
    dense = DENSE_UP_TO if installed("scipy") else DENSE_WITHOUT_SCIPY
    if found is None and matrix.n <= dense:
        found = _decomposed(matrix)
    if found is not None:
        return float(found[0]), float(found[-2])
    sparse = matrix.scipy(f"the spectrum of an irregular graph of {matrix.n:,} agents")
    return _smallest(sparse), _second(sparse)


def _decomposed(matrix: Rows) -> Array:
    return np.asarray(np.linalg.eigvalsh(matrix.dense()), np.float64)


def _convolution(matrix: Rows, group: tuple[int, ...]) -> Array | None:
    """Spectrum of a convolution over `group`; None if the matrix is none."""
    n = matrix.n
    if not group or int(np.prod(group)) != n:
        return None
    counts = np.diff(matrix.indptr)
    if (counts != counts[0]).any():
        return None
    here, there = np.unravel_index(matrix.row_of, group), np.unravel_index(matrix.indices, group)
    hops = [(t - h) % length for h, t, length in zip(here, there, group, strict=True)]
    offsets = np.ravel_multi_index(tuple(hops), group)
    first = np.zeros(n)
    first[offsets[: counts[0]]] = matrix.data[: counts[0]]
    if not (np.abs(matrix.data - first[offsets]) <= 1e-14).all():  # rounding of own weights
        return None
    return np.sort(np.fft.fftn(first.reshape(group)).real.ravel())


def _smallest(matrix: Sparse) -> float:
    """By Lanczos iteration; where many eigenvalues lie close to the smallest, of the inverse."""
    from scipy.sparse.linalg import ArpackNoConvergence, eigsh

    try:
        return _iterate(matrix, "SA", _start(matrix.shape[0]))
    except ArpackNoConvergence:
        own = matrix.diagonal()
        bound = float((own - (np.abs(matrix).sum(axis=1) - np.abs(own))).min())  # Gershgorin
        found = eigsh(
            matrix.tocsc(),
            k=1,
            sigma=bound - _SHIFT,
            v0=_start(matrix.shape[0]),
            tol=_TOLERANCE,
            return_eigenvectors=False,
        )
        return float(found[0])


def _second(matrix: Sparse) -> float:
    """By Lanczos iteration with the eigenvalue 1 moved to -1; if slow, of the inverse of I - W."""
    from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator

    n = matrix.shape[0]
    start = _start(n)
    start -= start.mean()

    def operator(product: Callable[[Array], Array]) -> Any:
        return LinearOperator((n, n), matvec=product, dtype=np.float64)

    moved = operator(lambda x: matrix @ x.ravel() - 2.0 * x.mean())
    try:
        return _iterate(moved, "LA", start)
    except ArpackNoConvergence:
        if (matrix.data < 0.0).any():  # an eigenvalue may be above 1
            return float(np.linalg.eigvalsh(matrix.toarray())[-2])
        largest = _iterate(operator(_inverse(matrix)), "LA", start, restarts=None)
        return 1.0 - 1.0 / largest


def _inverse(matrix: Sparse) -> Callable[[Array], Array]:
    """Inverse of I - W on the vectors whose entries sum to 0: one entry is held at 0."""
    from scipy.sparse import eye_array
    from scipy.sparse.linalg import splu

    n = matrix.shape[0]
    solve = splu((eye_array(n, format="csc") - matrix.tocsc())[1:, 1:].tocsc()).solve

    def product(x: Array) -> Array:
        flat = x.ravel()
        found = np.concatenate([[0.0], solve((flat - flat.mean())[1:])])
        return np.asarray(found - found.mean())

    return product


def _iterate(matrix: Any, which: str, start: Array, restarts: int | None = _RESTARTS) -> float:
    from scipy.sparse.linalg import eigsh

    found = eigsh(
        matrix,
        k=1,
        which=which,
        v0=start,
        ncv=min(_KEPT, matrix.shape[0]),
        maxiter=restarts,
        tol=_TOLERANCE,
        return_eigenvectors=False,
    )
    return float(found[0])


def _start(n: int) -> Array:
    """Where iterations start: the same every time, so that results repeat to the bit."""
    return np.random.default_rng(0).standard_normal(n)
