"""Four states of a machine, seen by sensors; each device has seen two of them."""

import numpy as np
from flwr.app import ArrayRecord

STATES, SENSORS = 4, 12

_CENTERS = np.random.default_rng(0).normal(size=(STATES, SENSORS))


def samples(seed: int, states: list[int], each: int = 50) -> tuple[np.ndarray, np.ndarray]:
    """What sensors show in some states, `(n, 13)` with a one at the end, and which state it was."""
    labels = np.repeat(states, each)
    noise = np.random.default_rng(seed).normal(size=(len(labels), SENSORS))
    x = np.hstack([_CENTERS[labels] + noise, np.ones((len(labels), 1))])
    return x.astype(np.float32), labels


def load(device: int) -> tuple[np.ndarray, np.ndarray]:
    """The samples of a device: of two states."""
    return samples(1 + device, [device % STATES, (device + 1) % STATES])


def test_set() -> tuple[np.ndarray, np.ndarray]:
    """Samples of all states, which no device trains on."""
    return samples(0, [*range(STATES)], each=200)


def probabilities(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Of each state, `(n, 4)`."""
    scores = np.exp(x @ w - (x @ w).max(axis=1, keepdims=True))
    return scores / scores.sum(axis=1, keepdims=True)


def initial_arrays() -> ArrayRecord:
    """The model that all begin with."""
    return ArrayRecord([np.zeros((SENSORS + 1, STATES), np.float32)])


def start() -> dict[str, np.ndarray]:
    """The same, for a mesh of peers."""
    return {name: array.numpy() for name, array in initial_arrays().items()}
