"""keras_digits: a Keras model with batch normalization on scikit-learn's digits."""

from functools import cache
from pathlib import Path

import keras
import numpy as np
from flwr.app import ArrayRecord
from keras import layers
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split


def new_model(seed: int, learning_rate: float) -> keras.Model:
    start = keras.initializers.GlorotUniform
    model = keras.Sequential(
        [
            keras.Input((64,)),
            layers.Dense(32, kernel_initializer=start(seed)),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.Dense(10, activation="softmax", kernel_initializer=start(seed + 1)),
        ]
    )
    model.compile(
        keras.optimizers.Adam(learning_rate),
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    return model


@cache
def _split(seed: int):
    x, y = load_digits(return_X_y=True)
    x = (x / 8.0 - 1.0).astype(np.float32)
    return train_test_split(x, y, test_size=0.2, random_state=seed, stratify=y)


def load_data(partition_id: int, num_partitions: int, seed: int) -> tuple[NDArray, NDArray]:
    """One client's part; the last client has about three times the data of the first."""
    x, _, y, _ = _split(seed)
    shares = np.arange(num_partitions, 3 * num_partitions, 2)
    ends = (np.cumsum(shares) / shares.sum() * len(x)).astype(int)[:-1]
    part = np.split(np.random.default_rng(seed).permutation(len(x)), ends)[partition_id]
    return x[part], y[part]


def load_test_data(seed: int) -> tuple[NDArray, NDArray]:
    _, x, _, y = _split(seed)
    return x, y


def load_final(path: Path) -> ArrayRecord:
    model = new_model(0, 0.0)
    model.load_weights(path)
    return ArrayRecord(model.get_weights())
