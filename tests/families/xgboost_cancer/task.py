"""xgboost_cancer: boosted trees on the breast cancer data."""

from functools import cache

import numpy as np
import xgboost as xgb
from numpy.typing import NDArray
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import train_test_split

PARAMS = {"objective": "binary:logistic", "max_depth": 3, "eta": 0.3, "nthread": 1}


@cache
def _split(seed: int):
    x, y = load_breast_cancer(return_X_y=True)
    return train_test_split(x, y, test_size=0.3, random_state=seed, stratify=y)


def load_data(partition_id: int, num_partitions: int, seed: int) -> xgb.DMatrix:
    x, _, y, _ = _split(seed)
    return xgb.DMatrix(x[partition_id::num_partitions], label=y[partition_id::num_partitions])


def load_test_data(seed: int) -> xgb.DMatrix:
    _, x, _, y = _split(seed)
    return xgb.DMatrix(x, label=y)


def to_array(booster: xgb.Booster) -> NDArray[np.uint8]:
    return np.frombuffer(bytes(booster.save_raw("json")), dtype=np.uint8)


def from_array(array: NDArray[np.uint8]) -> xgb.Booster:
    booster = xgb.Booster(PARAMS)
    booster.load_model(bytearray(array.tobytes()))
    return booster


def accuracy(booster: xgb.Booster, data: xgb.DMatrix) -> float:
    return float(np.mean((booster.predict(data) > 0.5) == data.get_label()))
