"""Workload `text`: which part of scikit-learn a passage of its documentation describes.

A text without a download: the docstrings that ship with scikit-learn, 10,000 words on each of
eight subjects. It is real English, of one style; another version of scikit-learn may differ in
some words, so agents that learn together need the same one.
"""

from __future__ import annotations

import re
import zlib
from functools import cache
from importlib.resources import files

import torch
from torch import Tensor, nn

from clients.workload import Samples, Workload

__all__ = ["LENGTH", "SUBJECTS", "WORDS", "Text", "passages"]

SUBJECTS = (
    *("cluster", "datasets", "decomposition", "ensemble"),
    *("linear_model", "metrics", "model_selection", "preprocessing"),
)
WORDS, LENGTH = 2048, 32  # numbers that a word may have, and the words of a passage
_EACH = 10_000  # words on a subject
_TEST = 5  # one passage of so many is for testing


class Text(Workload):
    """Passages of 32 words, `(m, 32)` int64: 1,992 to train on and 504 to test with."""

    models = ("bag", "transformer")

    def load(self, *, train: bool) -> Samples:  # noqa: D102
        return passages(train=train)

    def build(self, model: str) -> nn.Module:
        """`bag`: the mean of the words' vectors. `transformer`: two small layers of attention."""
        if model == "transformer":
            return _Transformer()
        return nn.Sequential(nn.EmbeddingBag(WORDS, 32), nn.Linear(32, len(SUBJECTS)))


class _Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, 32)
        self.places = nn.Parameter(0.1 * torch.randn(LENGTH, 32))
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True) for _ in range(2)
        )
        self.scores = nn.Linear(32, len(SUBJECTS))

    def forward(self, x: Tensor) -> Tensor:
        y = self.words(x) + self.places
        for layer in self.layers:
            y = layer(y)
        scores: Tensor = self.scores(y.mean(dim=1))
        return scores


@cache
def passages(*, train: bool) -> Samples:
    """Passages on all subjects, those for training or those for testing; none overlap.

    A word's number is a checksum of it, so that agents need not agree on a vocabulary.
    """
    found, labels = [], []
    for label, subject in enumerate(SUBJECTS):
        numbers = [zlib.crc32(word.encode()) % WORDS for word in _words(subject)]
        for place, first in enumerate(range(0, len(numbers) - LENGTH + 1, LENGTH)):
            if (place % _TEST == 0) != train:
                found.append(numbers[first : first + LENGTH])
                labels.append(label)
    return Samples(torch.tensor(found), torch.tensor(labels))


@cache
def _words(subject: str) -> tuple[str, ...]:
    """The first words of a subject's docstrings, file after file by name; no code of it is run."""
    words: list[str] = []
    seen: set[str] = set()  # lines: many stand in several docstrings, and tests must be new
    folder = files("sklearn") / subject
    for path in sorted((p for p in folder.iterdir() if p.name.endswith(".py")), key=str):
        for text in path.read_text(encoding="utf-8").lower().split('"""')[1::2]:
            for line in text.splitlines():
                if line not in seen:
                    seen.add(line)
                    words += re.findall(r"[a-z]+", line)
        if len(words) >= _EACH:
            break
    return tuple(words[:_EACH])
