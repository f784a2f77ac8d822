"""A small classification in NumPy alone: ten clusters of points, of which each agent sees four.

The parameters are those of a softmax regression. Everything follows from the vertex.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

CLASSES, FEATURES, SEEN, APART = 10, 24, 4, 3
SIZE = (FEATURES + 1) * CLASSES
RATE = 0.5

Vector = NDArray[np.float64]


def points(labels: NDArray[np.int64], seed: int) -> Vector:
    """A point of each label's cluster, with a last feature that is always 1."""
    centers = np.random.default_rng(0).standard_normal((CLASSES, FEATURES))
    noise = np.random.default_rng([seed, 1]).standard_normal((len(labels), FEATURES))
    return np.column_stack([centers[labels] + 1.5 * noise, np.ones(len(labels))])


def step(x: Vector, vertex: int) -> Vector:
    """One gradient step on the agent's own points."""
    labels = (APART * vertex + np.arange(100) % SEEN) % CLASSES
    features = points(labels, 1 + vertex)
    shares = softmax(features @ x.reshape(FEATURES + 1, CLASSES))
    shares[np.arange(len(labels)), labels] -= 1.0
    return x - RATE * (features.T @ shares).ravel() / len(labels)


def accuracy(x: Vector) -> float:
    """The share of points of all clusters that a model puts where they belong."""
    labels = np.arange(2000) % CLASSES
    found = (points(labels, 0) @ x.reshape(FEATURES + 1, CLASSES)).argmax(axis=1)
    return float((found == labels).mean())


def softmax(scores: Vector) -> Vector:
    """Shares of each row that sum to 1."""
    raised = np.exp(scores - scores.max(axis=1, keepdims=True))
    return np.asarray(raised / raised.sum(axis=1, keepdims=True))
