"""jax_digits: a network of two layers in JAX on scikit-learn's digits."""

from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flwr.app import ArrayRecord
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split


def new_model(seed: int) -> dict:
    """The parameters, a tree of arrays."""
    first, second = jax.random.split(jax.random.key(seed))
    return {
        "hidden": {"w": jax.random.normal(first, (64, 32)) / 8.0, "b": jnp.zeros(32)},
        "out": {"w": jax.random.normal(second, (32, 10)) / 5.6, "b": jnp.zeros(10)},
    }


def get_params(tree: dict) -> list[NDArray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


def set_params(params: list[NDArray]) -> dict:
    return jax.tree.unflatten(jax.tree.structure(new_model(0)), [jnp.asarray(p) for p in params])


@cache
def _split(seed: int):
    x, y = load_digits(return_X_y=True)
    x = (x / 8.0 - 1.0).astype(np.float32)
    return train_test_split(x, y, test_size=0.2, random_state=seed, stratify=y)


def load_data(partition_id: int, num_partitions: int, seed: int) -> tuple[NDArray, NDArray]:
    """One client's part, as large as the others'."""
    x, _, y, _ = _split(seed)
    part = np.random.default_rng(seed).permutation(len(x))[partition_id::num_partitions]
    return x[part], y[part]


def load_test_data(seed: int) -> tuple[NDArray, NDArray]:
    _, x, _, y = _split(seed)
    return x, y


def _scores(tree: dict, x: jax.Array) -> jax.Array:
    hidden = jnp.tanh(x @ tree["hidden"]["w"] + tree["hidden"]["b"])
    return hidden @ tree["out"]["w"] + tree["out"]["b"]


def _loss(tree: dict, x: jax.Array, y: jax.Array) -> jax.Array:
    chosen = jax.nn.log_softmax(_scores(tree, x))[jnp.arange(len(y)), y]
    return -chosen.mean()


_loss_and_gradient = jax.jit(jax.value_and_grad(_loss))


def train(tree: dict, x: NDArray, y: NDArray, steps: int, lr: float) -> tuple[dict, float]:
    """Some steps of gradient descent on all the data."""
    loss = 0.0
    for _ in range(steps):
        loss, gradient = _loss_and_gradient(tree, x, y)
        tree = jax.tree.map(lambda p, g: p - lr * g, tree, gradient)
    return tree, float(loss)


def test(tree: dict, x: NDArray, y: NDArray) -> tuple[float, float]:
    """Loss and accuracy."""
    right = _scores(tree, jnp.asarray(x)).argmax(axis=1) == y
    return float(_loss(tree, x, y)), float(right.mean())


def load_final(path: Path) -> ArrayRecord:
    with np.load(path) as file:
        return ArrayRecord([file[name] for name in file.files])
