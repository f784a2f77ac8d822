"""Workload `mnist`, read by torchvision."""

from __future__ import annotations

from clients.images import Images

__all__ = ["Mnist"]


class Mnist(Images):
    """Handwritten digits: 60,000 to train on and 10,000 to test with, gray, 28 x 28.

    Source: LeCun, Bottou, Bengio & Haffner, Proceedings of the IEEE 1998.
    """

    name = "mnist"
    kind = "MNIST"
    shape = (1, 28, 28)
    classes = 10
    mean, deviation = (0.1307,), (0.3081,)
