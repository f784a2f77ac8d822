"""Small image data sets in their original formats: IDX files, pickled batches."""

from __future__ import annotations

import gzip
import hashlib
import pickle
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

Images = Mapping[str, NDArray[np.integer]]  # by the part: train and t10k, or train and test

MNIST_FILES = tuple(
    f"{part}-{what}-ubyte" for part in ("train", "t10k") for what in ("images-idx3", "labels-idx1")
)


def idx(array: NDArray[np.integer]) -> bytes:
    """An array of bytes in the IDX format: magic with its dimensions, sizes, values."""
    head = struct.pack(">I", 0x0800 | array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    return head + array.astype(np.uint8).tobytes()


def mnist_files(images: Images, labels: Images, *, packed: bool = False) -> list[tuple[str, bytes]]:
    """The four files of a data set in MNIST's format."""
    arrays = [array for part in ("train", "t10k") for array in (images[part], labels[part])]
    files = [(name, idx(array)) for name, array in zip(MNIST_FILES, arrays, strict=True)]
    return [(f"{n}.gz", gzip.compress(data)) for n, data in files] if packed else files


def write_mnist(folder: Path, images: Images, labels: Images, *, packed: bool = False) -> None:
    folder.mkdir(parents=True)
    for name, data in mnist_files(images, labels, packed=packed):
        (folder / name).write_bytes(data)


def cifar_files(name: str, images: Images, labels: Images | None = None) -> list[tuple[str, bytes]]:
    """The pickled batches of `cifar10` or `cifar100`, and their names of classes.

    images: (m, 3, 32, 32). Without labels, classes take turns.
    """
    classes = 10 if name == "cifar10" else 100
    key = "labels" if name == "cifar10" else "fine_labels"
    batches = []
    for part, pixels in images.items():
        found = np.arange(len(pixels)) % classes if labels is None else labels[part]
        flat = pixels.astype(np.uint8).reshape(len(pixels), -1)
        if name == "cifar10" and part == "train":
            rows = np.array_split(np.arange(len(flat)), 5)
            batches += [
                (f"data_batch_{i + 1}", flat[r], found[r].tolist()) for i, r in enumerate(rows)
            ]
        else:
            file = "test_batch" if name == "cifar10" else part
            batches.append((file, flat, found.tolist()))
    meta = {"label_names" if name == "cifar10" else "fine_label_names": list(map(str, range(10)))}
    return [
        *((file, pickle.dumps({"data": x, key: y})) for file, x, y in batches),
        ("batches.meta" if name == "cifar10" else "meta", pickle.dumps(meta)),
    ]


def known_sums(source: Any, files: Iterable[tuple[str, bytes]]) -> dict[str, Any]:
    """What a class of torchvision must know to take these files for the real ones."""
    sums = {name: hashlib.md5(data, usedforsecurity=False).hexdigest() for name, data in files}
    lists = {
        listed: [[name, sums[name]] for name, _ in getattr(source, listed)]
        for listed in ("train_list", "test_list")
    }
    return {**lists, "meta": source.meta | {"md5": sums[source.meta["filename"]]}}


def scaled_digits(side: int) -> tuple[Images, Images]:
    """scikit-learn's 8 x 8 digits as images of another size, (m, side, side), and their labels.

    1,200 to train on and 360 to test with, under the names that MNIST's files have.
    """
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))[:1560]
    small = torch.from_numpy(pixels[order].reshape(-1, 1, 8, 8) * (255.0 / 16.0))
    large = torch.nn.functional.interpolate(small, (side, side), mode="bilinear")
    images = large[:, 0].round().to(torch.uint8).numpy()
    cut = {"train": slice(0, 1200), "t10k": slice(1200, None)}
    return (
        {part: images[rows] for part, rows in cut.items()},
        {part: labels[order][rows] for part, rows in cut.items()},
    )
