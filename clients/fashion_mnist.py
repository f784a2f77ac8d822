"""Workload `fashion-mnist`, read by torchvision."""

from __future__ import annotations

from clients.images import Images

__all__ = ["FashionMnist"]


class FashionMnist(Images):
    """Clothes: 60,000 to train on and 10,000 to test with, gray, 28 x 28.

    Source: Xiao, Rasul & Vollgraf 2017, arXiv 1708.07747.
    """

    name = "fashion-mnist"
    kind = "FashionMNIST"
    shape = (1, 28, 28)
    classes = 10
    mean, deviation = (0.2860,), (0.3530,)
