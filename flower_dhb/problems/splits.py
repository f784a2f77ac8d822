"""Seeded data splits over agents, and seeded batches.

The Flower app and the engine draw from here, so the same seed gives both the same data
in the same order.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from flower_dhb.errors import ConfigError, unknown

__all__ = ["Indices", "batches", "split"]

Indices = NDArray[np.int64]

_DRAWS = 1000  # tries for a Dirichlet split without an empty agent; most need fewer than ten


def split(labels: NDArray[np.integer], n_agents: int, how: str, seed: int) -> list[Indices]:
    """Give each sample to exactly one agent, and no agent nothing.

    Parameters
    ----------
    labels : (m,) integers
        Class of each sample.
    how : str
        `iid`: equal random parts. `classes:K`: each agent holds samples of K classes,
        each class shared evenly by its holders. `dirichlet:A`: each class is divided in
        proportions drawn from a symmetric Dirichlet distribution; small A, very uneven
        (Hsu, Qi & Brown 2019, arXiv 1909.06335).

    Returns
    -------
    One ascending array of sample indices per agent.

    Raises
    ------
    ConfigError
        If the split is unknown, or would leave an agent empty or a sample unused.
    """
    labels = np.asarray(labels)
    if not 1 <= n_agents <= len(labels):
        raise ConfigError(
            f"split: {len(labels)} samples cannot be divided among {n_agents} agents without "
            "leaving one empty"
        )
    rng = _generator(seed, n_agents)
    kind, _, argument = how.partition(":")
    if kind == "iid" and not argument:
        parts = np.array_split(rng.permutation(len(labels)), n_agents)
    elif kind == "classes":
        parts = _by_classes(labels, n_agents, int(_number(how, argument, int)), rng)
    elif kind == "dirichlet":
        parts = _dirichlet(labels, n_agents, _number(how, argument, float), rng)
    else:
        raise ConfigError(unknown("split", how, ("iid", "classes:K", "dirichlet:A")))
    for agent, part in enumerate(parts):
        if len(part) == 0:
            raise ConfigError(
                f"split '{how}' leaves agent {agent} of {n_agents} empty; use fewer agents or "
                "another split"
            )
    return [np.sort(part).astype(np.int64) for part in parts]


def batches(
    n_samples: int, batch_size: int, local_steps: int, *, seed: int, vertex: int, round: int
) -> Indices:
    """Sample positions for one agent's local steps in one round, `(local_steps, batch_size)`.

    Drawn without replacement within a step; an agent with fewer samples than
    `batch_size` sees each of them equally often, give or take one. Depends on seed,
    vertex and round alone. Raises ConfigError if there is no sample or nothing to draw.
    """
    if n_samples < 1:
        raise ConfigError(f"agent {vertex} has no samples to train on")
    if batch_size < 1 or local_steps < 1:
        raise ConfigError(
            f"batch size and local steps must be at least 1, got {batch_size} and {local_steps}"
        )
    rng = _generator(seed, vertex, round)
    repeats = -(-batch_size // n_samples)
    steps = [
        np.concatenate([rng.permutation(n_samples) for _ in range(repeats)])[:batch_size]
        for _ in range(local_steps)
    ]
    return np.stack(steps).astype(np.int64)


def _generator(*words: int) -> np.random.Generator:
    """Generator of a seed and what else the draws depend on."""
    for word in words:
        if isinstance(word, bool) or not isinstance(word, int | np.integer) or word < 0:
            raise ConfigError(
                f"seed, vertex and round must be integers and at least 0, got {word!r}"
            )
    return np.random.default_rng(list(words))


def _by_classes(
    labels: NDArray[np.integer], n_agents: int, k: int, rng: np.random.Generator
) -> list[Indices]:
    classes = rng.permutation(np.unique(labels))
    if not 1 <= k <= len(classes):
        raise ConfigError(f"split 'classes:{k}': there are {len(classes)} classes")
    if n_agents * k < len(classes):
        raise ConfigError(
            f"split 'classes:{k}' over {n_agents} agents covers {n_agents * k} of "
            f"{len(classes)} classes; the samples of the others would never be used"
        )
    order = rng.permutation(n_agents)
    holders: dict[int, list[int]] = {}
    for position, agent in enumerate(order):
        for offset in range(k):
            holders.setdefault(int(classes[(position * k + offset) % len(classes)]), []).append(
                int(agent)
            )
    parts: list[list[Indices]] = [[] for _ in range(n_agents)]
    for label, agents in holders.items():
        samples = rng.permutation(np.flatnonzero(labels == label))
        for agent, part in zip(agents, np.array_split(samples, len(agents)), strict=True):
            parts[agent].append(part)
    return [np.concatenate(part) for part in parts]


def _dirichlet(
    labels: NDArray[np.integer], n_agents: int, alpha: float, rng: np.random.Generator
) -> list[Indices]:
    if not 0.0 < alpha < float("inf"):
        raise ConfigError(f"split 'dirichlet:{alpha}': the parameter must be above 0")
    classes = np.unique(labels)
    for _ in range(_DRAWS):
        parts: list[list[Indices]] = [[] for _ in range(n_agents)]
        for label in classes:
            samples = rng.permutation(np.flatnonzero(labels == label))
            shares = rng.dirichlet(np.full(n_agents, alpha))
            cuts = np.round(np.cumsum(shares)[:-1] * len(samples)).astype(np.int64)
            for agent, part in enumerate(np.split(samples, cuts)):
                parts[agent].append(part)
        joined = [np.concatenate(part) for part in parts]
        if all(len(part) for part in joined):
            return joined
    raise ConfigError(
        f"split 'dirichlet:{alpha}' left an agent empty in each of {_DRAWS} draws for {n_agents} "
        "agents; use a larger parameter or fewer agents"
    )


def _number(how: str, text: str, kind: type) -> float:
    try:
        return kind(text)  # type: ignore[no-any-return]
    except ValueError:
        raise ConfigError(
            f"split '{how}' needs a number after the colon, such as classes:2 or dirichlet:0.1"
        ) from None
