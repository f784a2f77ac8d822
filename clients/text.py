"""Workload `text`: which description is a passage from? Real English that ships with scikit-learn.

scikit-learn's own texts are what is there without a download: it comes with descriptions of 14
data sets, some 7,000 words in all. They are few, and enough to see a text model train on a graph;
the texts of another version of scikit-learn may differ in some words.
"""

from __future__ import annotations

import re
import zlib
from functools import cache
from importlib.resources import files

import torch
from torch import Tensor, nn

from clients.workload import Samples, Workload

__all__ = ["LENGTH", "WORDS", "Text", "passages"]

WORDS, LENGTH = 1024, 16  # numbers that a word may have, and the words of a passage
_STEP = 4  # words from one training passage to the next
_TEST = 5  # one of so many stretches of a text is for testing; no training passage overlaps it


class Text(Workload):
    """Passages of 16 words, `(m, 16)` int64, and the text that each is from."""

    models = ("bag", "transformer")

    def load(self, *, train: bool) -> Samples:  # noqa: D102
        return passages(train=train)

    def build(self, model: str) -> nn.Module:
        """`bag`: the mean of the words' vectors. `transformer`: two small layers of attention."""
        kind = _Bag if model == "bag" else _Transformer
        return kind(len(_texts()))


class _Bag(nn.Sequential):
    def __init__(self, classes: int) -> None:
        super().__init__(nn.EmbeddingBag(WORDS, 32), nn.Linear(32, classes))


class _Transformer(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, 32)
        self.places = nn.Parameter(0.1 * torch.randn(LENGTH, 32))
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True) for _ in range(2)
        )
        self.scores = nn.Linear(32, classes)

    def forward(self, x: Tensor) -> Tensor:
        y = self.words(x) + self.places
        for layer in self.layers:
            y = layer(y)
        scores: Tensor = self.scores(y.mean(dim=1))
        return scores


@cache
def passages(*, train: bool) -> Samples:
    """Passages of all texts: for training they overlap, for testing they do not.

    A word's number is a checksum of it, so that agents need not agree on a vocabulary.
    """
    found, labels = [], []
    for label, text in enumerate(_texts()):
        numbers = [zlib.crc32(word.encode()) % WORDS for word in text]
        for stretch, first in enumerate(range(0, len(numbers) - LENGTH + 1, 2 * LENGTH)):
            if (stretch % _TEST == 0) == train:
                continue
            piece = numbers[first : first + 2 * LENGTH]
            step = _STEP if train else LENGTH
            for at in range(0, len(piece) - LENGTH + 1, step):
                found.append(piece[at : at + LENGTH])
                labels.append(label)
    return Samples(torch.tensor(found), torch.tensor(labels))


@cache
def _texts() -> tuple[tuple[str, ...], ...]:
    """The words of each description, in the order of their files' names."""
    folder = files("sklearn.datasets") / "descr"
    paths = sorted((p for p in folder.iterdir() if p.name.endswith(".rst")), key=lambda p: p.name)
    texts = (path.read_text(encoding="utf-8").lower() for path in paths)
    return tuple(tuple(re.findall(r"[a-z]+|\d", text)) for text in texts)
